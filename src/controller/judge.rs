//! Whether a spec is accepted, and what is planned for it: pure.
use k8s_openapi::api::networking::v1::NetworkPolicy;

use crate::api::v1alpha1::{AgentSandbox, LimitsStatus, PidsEnforcement};
use crate::plan::labels::POLICY_DIGEST;
use crate::plan::{Observed, Plan, Prepared, Refusal, Settings, held, plan, reason, validate};

use super::lifecycle::bounded;
use super::status::Refused;

/// What is to be done about a spec.
#[derive(Debug)]
pub struct Judged {
    /// What is wanted of the cluster.
    pub wanted: Wanted,
    /// Why it is refused.
    pub refused: Option<Refused>,
}

/// What is wanted of the cluster.
#[derive(Debug)]
pub enum Wanted {
    /// Of an accepted spec: its objects.
    Objects(Box<Plan<Prepared>>),
    /// Of a refused one whose Pod exists: the policy that holds the Pod.
    Policy(Box<NetworkPolicy>),
    /// Of a refused one without a Pod.
    Nothing,
}

impl Wanted {
    /// The objects of an accepted spec.
    pub fn objects(&self) -> Option<&Plan<Prepared>> {
        match self {
            Self::Objects(plan) => Some(plan),
            Self::Policy(_) | Self::Nothing => None,
        }
    }

    /// The policy under which the Pod is held, if it exists. Its labels and owner are the Pod's, too.
    pub fn into_policy(self) -> Option<NetworkPolicy> {
        match self {
            Self::Objects(plan) => Some(plan.policy),
            Self::Policy(policy) => Some(*policy),
            Self::Nothing => None,
        }
    }
}

/// Judges `sandbox`. `exists` says whether its Pod does: then there always is a policy, of a refused spec one that opens
/// what is right in its network. It is never left as wide as it was.
pub fn judge(sandbox: &AgentSandbox, observed: &Observed, settings: &Settings, exists: bool) -> Judged {
    match validate(sandbox, observed, settings) {
        Ok(valid) => Judged { wanted: Wanted::Objects(Box::new(plan(&valid, settings))), refused: None },
        Err(refusals) => {
            let wanted = if exists {
                Wanted::Policy(Box::new(held(sandbox, observed, settings)))
            } else {
                Wanted::Nothing
            };
            Judged { wanted, refused: refused(&refusals) }
        }
    }
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

/// Digest of the rules that `policy` was planned with.
pub fn digest(policy: &NetworkPolicy) -> Option<String> {
    policy.metadata.annotations.as_ref()?.get(POLICY_DIGEST).cloned()
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
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    use serde_json::{Value, json};

    use super::*;
    use crate::api::v1alpha1::Protocol;
    use crate::plan::{Foreign, GatewaySettings, ObservedPort, ObservedService};

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

    fn gateway() -> GatewaySettings {
        GatewaySettings { namespace: "operators".into(), reachable_cidrs: Vec::new(), reach: None }
    }

    /// Networks that the policy opens.
    fn opened(judged: &Judged) -> Option<Vec<String>> {
        let policy = match &judged.wanted {
            Wanted::Objects(plan) => &plan.policy,
            Wanted::Policy(policy) => policy,
            Wanted::Nothing => return None,
        };
        let rules = policy.spec.as_ref()?.egress.clone()?;
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
        assert!(matches!(new.wanted, Wanted::Nothing));
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
        assert_eq!(opened(&of(false)), None);
        assert_eq!(opened(&of(true)), Some(vec![GOOD.to_owned()]));
        assert_eq!(of(true).refused.unwrap().reason, reason::RUNTIME_CLASS_NOT_ALLOWED);
    }

    #[test]
    fn a_mount_that_was_let_in_once_does_not_keep_the_policy_from_being_held() {
        let mut spec = rules(&[GOOD]);
        spec["filesystem"] = json!({"mounts": [{"path": "/a", "emptyDir": {"sizeLimit": "1Mi"}}]});
        assert_eq!(opened(&judged(&sandbox(&spec), false)), None);
        let running = judged(&sandbox(&spec), true);
        assert_eq!(opened(&running), Some(vec![GOOD.to_owned()]));
        assert_eq!(running.refused.unwrap().reason, reason::INVALID_SPEC);
    }

    /// Of every field of a spec something that is refused, besides its network.
    #[test]
    fn whatever_else_is_wrong_the_policy_of_a_running_pod_follows_the_network() {
        let long = "x".repeat(40_000);
        let dollars = vec!["$".repeat(4096); 250];
        for wrong in [
            json!({"image": ""}),
            json!({"command": []}),
            json!({"args": dollars}),
            json!({"env": [{"name": "A", "value": long}]}),
            json!({"env": [{"name": "AGENTSANDBOX_X"}]}),
            json!({"workingDir": "a"}),
            json!({"runAs": {"user": 0}}),
            json!({"timeout": "a day"}),
            json!({"timeout": "169h"}),
            json!({"startupTimeout": ""}),
            json!({"ttlAfterFinished": "99999999999999999999h"}),
            json!({"resources": {"memory": "1e9"}}),
            json!({"resources": {"pids": 0}}),
            json!({"filesystem": {"mounts": [{"path": "/proc", "secret": {"name": "s"}}]}}),
            json!({"filesystem": {"mounts": [{"path": "/a"}]}}),
            json!({"isolation": {"runtimeClassName": "A"}}),
            json!({"isolation": {"userNamespace": "Required"}}),
        ] {
            for cidrs in [&[GOOD][..], &[]] {
                let mut spec = rules(cidrs);
                spec.as_object_mut().unwrap().extend(wrong.as_object().unwrap().clone());
                let judged = judged(&sandbox(&spec), true);
                assert!(judged.refused.is_some(), "{wrong}");
                let want = cidrs.iter().map(|cidr| (*cidr).to_owned()).collect();
                assert_eq!(opened(&judged), Some(want), "{wrong}");
            }
        }
    }

    #[test]
    fn a_policy_that_holds_a_refused_spec_is_the_one_of_the_accepted() {
        let settings = Settings { gateway: Some(gateway()), ..Settings::default() };
        let of = |spec: &Value| {
            let judged = judge(&sandbox(spec), &Observed::default(), &settings, true);
            (judged.refused.is_some(), judged.wanted.into_policy().unwrap())
        };
        let good = rules(&[GOOD]);
        let mut bad = rules(&[GOOD, "127.0.0.0/8"]);
        bad["timeout"] = json!("a day");
        let (accepted, refused) = (of(&good), of(&bad));
        assert_eq!((accepted.0, refused.0), (false, true));
        // Also in its marks, by which it selects the Pod, and in the digest of what it opens.
        assert_eq!(accepted.1, refused.1);
        // With nothing right in it the way to the gateway stays: what every sandbox needs.
        bad["network"]["limits"] = json!({"egressBytes": "none"});
        let closed = of(&bad).1;
        assert_eq!(closed, of(&json!({})).1);
        assert_eq!(closed.spec.unwrap().egress.unwrap().len(), 1);
    }

    #[test]
    fn a_policy_that_could_not_be_stored_closes_all_of_it() {
        let rule = json!({"service": {"name": "s"}, "ports": [443]});
        let spec = json!({"network": {"egress": vec![rule; 200]}});
        let selector = (0..80).map(|n| (format!("{n}{}", "k".repeat(60)), "v".repeat(63))).collect();
        let ports = vec![ObservedPort { port: 443, target: IntOrString::Int(443), protocol: Protocol::TCP }];
        let services = [(("n".to_owned(), "s".to_owned()), ObservedService { selector, ports })].into();
        let observed = Observed { services, ..Observed::default() };
        let judged = judge(&sandbox(&spec), &observed, &Settings::default(), true);
        assert!(judged.refused.is_some());
        assert_eq!(judged.wanted.into_policy().unwrap().spec.unwrap().egress, Some(Vec::new()));
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
        // A Pod that exists all the same is held.
        assert_eq!(opened(&judged(&sandbox(&never), true)), Some(Vec::new()));
    }

    #[test]
    fn limits_say_what_holds_the_process_limit() {
        let of = |spec: Value, user_namespaces: bool| {
            let sandbox = sandbox(&spec);
            let settings = Settings { user_namespaces, ..Settings::default() };
            let plan = judge(&sandbox, &Observed::default(), &settings, false).wanted;
            limits(&sandbox, plan.objects().unwrap())
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
