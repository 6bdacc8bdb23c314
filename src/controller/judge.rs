//! Whether a spec is accepted, and what is planned for it: pure.
use crate::api::v1alpha1::{AgentSandbox, LimitsStatus, PidsEnforcement};
use crate::plan::labels::POLICY_DIGEST;
use crate::plan::{Observed, Plan, Prepared, Refusal, Settings, plan, reason, validate};

use super::lifecycle::bounded;
use super::status::Refused;

/// What is to be done about a spec.
#[derive(Debug)]
pub struct Judged {
    /// The objects; of a refused spec whose agent runs already those of its accepted rules; else none.
    pub plan: Option<Plan<Prepared>>,
    /// Why it is refused.
    pub refused: Option<Refused>,
}

/// Judges `sandbox`. `exists` says whether its Pod does: a policy is narrowed then, never left as wide as it was.
pub fn judge(sandbox: &AgentSandbox, observed: &Observed, settings: &Settings, exists: bool) -> Judged {
    let refusals = match validate(sandbox, observed, settings) {
        Ok(valid) => return Judged { plan: Some(plan(&valid, settings)), refused: None },
        Err(refusals) => refusals,
    };
    let plan = if exists { narrowed(sandbox, &refusals, observed, settings) } else { None };
    Judged { plan, refused: refused(&refusals) }
}

/// Plans `sandbox` without the rules that were refused, or without any.
fn narrowed(
    sandbox: &AgentSandbox,
    refusals: &[Refusal],
    observed: &Observed,
    settings: &Settings,
) -> Option<Plan<Prepared>> {
    let refused_rule = |index: usize| {
        let prefix = format!("spec.network.egress[{index}]");
        refusals.iter().any(|r| r.field.starts_with(&prefix))
    };
    // Its Pod is made and stays as it is: what the administrator no longer allows of it must not keep its policy from
    // being held.
    let settings = &Settings { runtime_classes: None, user_namespaces: true, ..settings.clone() };
    let mut fewer = sandbox.clone();
    // Also a mount that was let in once and is refused today.
    for mount in fewer.spec.filesystem.iter_mut().flat_map(|filesystem| &mut filesystem.mounts) {
        if mount.empty_dir.is_some() {
            mount.read_only = Some(false);
        }
    }
    if let Some(network) = fewer.spec.network.as_mut() {
        let rules = std::mem::take(&mut network.egress).into_iter().enumerate();
        network.egress = rules.filter(|(index, _)| !refused_rule(*index)).map(|(_, rule)| rule).collect();
    }
    let valid = validate(&fewer, observed, settings).or_else(|_| {
        fewer.spec.network = None;
        validate(&fewer, observed, settings)
    });
    valid.ok().map(|valid| plan(&valid, settings))
}

fn refused(refusals: &[Refusal]) -> Option<Refused> {
    let first = refusals.first()?;
    let heals = |r: &Refusal| r.reason == reason::NAME_CONFLICT || r.field.starts_with("spec.network");
    let all: Vec<String> = refusals.iter().map(|r| format!("{}: {}", r.field, r.message)).collect();
    Some(Refused {
        reason: first.reason.to_owned(),
        message: bounded(&all.join("; ")),
        heals: refusals.iter().all(heals),
    })
}

/// Digest of the policy in `plan`.
pub fn digest(plan: &Plan<Prepared>) -> Option<String> {
    plan.policy.metadata.annotations.as_ref()?.get(POLICY_DIGEST).cloned()
}

/// How the limits of the Pod in `plan` are enforced.
pub fn limits(sandbox: &AgentSandbox, plan: &Plan<Prepared>) -> LimitsStatus {
    let user_namespace = plan.pod.spec.as_ref().and_then(|spec| spec.host_users) == Some(false);
    let runtime = sandbox.spec.isolation.as_ref().is_some_and(|i| i.runtime_class_name.is_some());
    let pids = match (runtime, user_namespace, sandbox.spec.run_as.user) {
        (true, ..) => PidsEnforcement::Runtime,
        (_, true, _) => PidsEnforcement::UserNamespace,
        (_, _, None) => PidsEnforcement::OwnUser,
        (_, _, Some(_)) => PidsEnforcement::SharedUser,
    };
    LimitsStatus { pids, user_namespace }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::plan::Foreign;

    fn sandbox(spec: &Value) -> AgentSandbox {
        let mut whole = json!({"image": "i", "command": ["c"]});
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(json!({
            "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox",
            "metadata": {"name": "a", "namespace": "n", "uid": "u"}, "spec": whole,
        }))
        .unwrap()
    }

    fn judged(sandbox: &AgentSandbox, exists: bool) -> Judged {
        judge(sandbox, &Observed::default(), &Settings::default(), exists)
    }

    /// Networks that the plan's policy opens.
    fn opened(judged: &Judged) -> Option<Vec<String>> {
        let rules = judged.plan.as_ref()?.policy.spec.as_ref()?.egress.clone()?;
        let peers = rules.into_iter().flat_map(|rule| rule.to.unwrap_or_default());
        Some(peers.filter_map(|peer| Some(peer.ip_block?.cidr)).collect())
    }

    const GOOD: &str = "198.51.100.0/24";

    fn rules(cidrs: &[&str]) -> Value {
        json!({"network": {"egress": cidrs.iter().map(|c| json!({"cidr": c, "ports": [443]})).collect::<Vec<_>>()}})
    }

    #[test]
    fn a_valid_spec_is_planned_whether_or_not_its_pod_exists() {
        for exists in [false, true] {
            let judged = judged(&sandbox(&rules(&[GOOD])), exists);
            assert_eq!((opened(&judged), judged.refused), (Some(vec![GOOD.to_owned()]), None));
        }
    }

    #[test]
    fn a_refused_spec_is_not_planned_and_a_running_one_is_narrowed() {
        let bad = sandbox(&rules(&["169.254.169.254/32", GOOD, "127.0.0.0/8"]));
        let new = judged(&bad, false);
        assert!(new.plan.is_none());
        let refused = new.refused.unwrap();
        assert_eq!((refused.reason.as_str(), refused.heals), (reason::RESERVED_ADDRESS, true));
        assert!(
            refused.message.contains("egress[0]") && refused.message.contains("egress[2]"),
            "{refused:?}"
        );
        let running = judged(&bad, true);
        assert_eq!(opened(&running), Some(vec![GOOD.to_owned()]));
        assert!(running.refused.is_some());
        // Eleven rules: the refusal of number 10 is none of number 1.
        let mut many = vec![GOOD; 10];
        many.push("127.0.0.1/32");
        assert_eq!(opened(&judged(&sandbox(&rules(&many)), true)).unwrap().len(), 10);
    }

    #[test]
    fn what_is_wrong_with_the_network_as_a_whole_closes_all_of_it() {
        let many: Vec<&str> = std::iter::repeat_n(GOOD, 257).collect();
        assert_eq!(opened(&judged(&sandbox(&rules(&many)), true)), Some(Vec::new()));
    }

    #[test]
    fn what_the_administrator_no_longer_allows_is_held_while_it_runs() {
        let mut spec = rules(&[GOOD]);
        spec["isolation"] = json!({"runtimeClassName": "gvisor"});
        let settings = Settings { runtime_classes: Some(vec!["kata".into()]), ..Settings::default() };
        let of = |exists| judge(&sandbox(&spec), &Observed::default(), &settings, exists);
        assert!(of(false).plan.is_none());
        assert_eq!(opened(&of(true)), Some(vec![GOOD.to_owned()]));
        assert_eq!(of(true).refused.unwrap().reason, reason::RUNTIME_CLASS_NOT_ALLOWED);
    }

    #[test]
    fn a_mount_that_was_let_in_once_does_not_keep_the_policy_from_being_held() {
        let mut spec = rules(&[GOOD]);
        spec["filesystem"] = json!({"mounts": [{"path": "/a", "emptyDir": {"sizeLimit": "1Mi"}}]});
        assert!(judged(&sandbox(&spec), false).plan.is_none());
        let running = judged(&sandbox(&spec), true);
        assert_eq!(opened(&running), Some(vec![GOOD.to_owned()]));
        assert_eq!(running.refused.unwrap().reason, reason::INVALID_SPEC);
    }

    #[test]
    fn only_what_an_edit_or_the_cluster_can_change_heals() {
        let foreign = Observed { foreign: [Foreign::PodTaken].into(), ..Observed::default() };
        let heals = |sandbox: &AgentSandbox, observed: &Observed| {
            judge(sandbox, observed, &Settings::default(), false).refused.unwrap().heals
        };
        assert!(heals(&sandbox(&rules(&["127.0.0.0/8"])), &Observed::default()));
        assert!(heals(&sandbox(&json!({})), &foreign));
        let never = json!({"runAs": {"user": 0}});
        assert!(!heals(&sandbox(&never), &Observed::default()));
        assert!(!heals(&sandbox(&never), &foreign));
        // And nothing is planned for it, whether or not its Pod exists.
        assert!(judged(&sandbox(&never), true).plan.is_none());
    }

    #[test]
    fn limits_say_what_holds_the_process_limit() {
        let of = |spec: Value, user_namespaces: bool| {
            let sandbox = sandbox(&spec);
            let settings = Settings { user_namespaces, ..Settings::default() };
            let plan = judge(&sandbox, &Observed::default(), &settings, false).plan.unwrap();
            limits(&sandbox, &plan)
        };
        for (spec, user_namespaces, pids) in [
            (json!({}), false, PidsEnforcement::OwnUser),
            (json!({}), true, PidsEnforcement::UserNamespace),
            (json!({"runAs": {"user": 1000}}), false, PidsEnforcement::SharedUser),
            (json!({"runAs": {"user": 1000}}), true, PidsEnforcement::UserNamespace),
            (json!({"isolation": {"runtimeClassName": "gvisor"}}), true, PidsEnforcement::Runtime),
        ] {
            let limits = of(spec.clone(), user_namespaces);
            assert_eq!(limits.pids, pids, "{spec}");
            assert_eq!(limits.user_namespace, pids == PidsEnforcement::UserNamespace);
        }
    }
}
