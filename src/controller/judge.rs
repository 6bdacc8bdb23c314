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
    let mut fewer = sandbox.clone();
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
