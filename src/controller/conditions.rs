//! The conditions of an AgentSandbox: every type is always there, and a transition time moves with its status only.
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// The spec was found valid.
pub const ACCEPTED: &str = "Accepted";
/// Reason of [`ACCEPTED`] where the spec says something that is seldom meant.
pub const VALID_WITH_WARNINGS: &str = "ValidWithWarnings";
/// The start gate found the Pod contained before the agent was started.
pub const CONTAINED: &str = "Contained";
/// The gateway holds the sandbox's policy.
pub const EGRESS_READY: &str = "EgressReady";
/// The agent's process runs.
pub const RUNNING: &str = "Running";
/// The sandbox ended; nothing starts again.
pub const FINISHED: &str = "Finished";
/// kstatus: the agent runs as asked for, or completed.
pub const READY: &str = "Ready";
/// kstatus: the controller is still working towards the spec.
pub const RECONCILING: &str = "Reconciling";
/// kstatus: it will not get there without a change: it ended badly, or its spec is refused, also while the agent runs.
pub const STALLED: &str = "Stalled";

/// One condition to be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stand {
    /// Its type.
    pub kind: &'static str,
    /// `True` or `False`.
    pub holds: bool,
    /// One word.
    pub reason: String,
    /// For a person.
    pub message: String,
}

impl Stand {
    /// The condition `kind`.
    pub fn new(kind: &'static str, holds: bool, reason: &str, message: &str) -> Self {
        Self { kind, holds, reason: word(reason), message: message.to_owned() }
    }
}

/// The conditions after `stands`; transition times come from `before` where the status is the same.
pub fn set(
    before: &[Condition],
    stands: &[Stand],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let one = |stand: &Stand| {
        let status = if stand.holds { "True" } else { "False" };
        let kept = before.iter().find(|c| c.type_ == stand.kind && c.status == status);
        Condition {
            type_: stand.kind.to_owned(),
            status: status.to_owned(),
            reason: stand.reason.clone(),
            message: stand.message.clone(),
            observed_generation: generation,
            last_transition_time: kept.map_or_else(|| Time(second(now)), |c| c.last_transition_time.clone()),
        }
    };
    stands.iter().map(one).collect()
}

/// Whether the condition `kind` is `True`, `False` or not there.
pub fn holds(conditions: &[Condition], kind: &str) -> Option<bool> {
    conditions.iter().find(|c| c.type_ == kind).map(|c| c.status == "True")
}

/// `time` as the API server keeps it: whole seconds. What is compared with the server's must have its form.
pub fn second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// A reason must match `[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?` (meta/v1 Condition).
fn word(reason: &str) -> String {
    let word: String = reason.chars().filter(char::is_ascii_alphanumeric).take(128).collect();
    if word.starts_with(|c: char| c.is_ascii_alphabetic()) { word } else { "Unknown".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transition_time_moves_with_the_status_only() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let first = set(&[], &[Stand::new(READY, false, "Starting", "a")], Some(1), at(10));
        let second = set(&first, &[Stand::new(READY, false, "Pulling", "b")], Some(2), at(20));
        assert_eq!(second[0].last_transition_time, Time(at(10)));
        assert_eq!((second[0].reason.as_str(), second[0].observed_generation), ("Pulling", Some(2)));
        let third = set(&second, &[Stand::new(READY, true, "Running", "c")], Some(2), at(30));
        assert_eq!(third[0].last_transition_time, Time(at(30)));
        assert_eq!(holds(&third, READY), Some(true));
        assert_eq!(holds(&third, FINISHED), None);
    }

    #[test]
    fn reasons_are_words() {
        assert_eq!(word("Err Image-Pull"), "ErrImagePull");
        assert_eq!(word("9"), "Unknown");
    }
}
