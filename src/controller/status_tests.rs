use super::super::conditions::holds;
use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn inputs(step: &Step) -> Inputs<'_> {
    Inputs {
        generation: Some(1),
        refused: None,
        blocked: None,
        step,
        pod_name: None,
        pod_uid: None,
        node_name: None,
        policy_digest: None,
        limits: None,
        containment: None,
        exceptions: "",
        warnings: String::new(),
        now: at(5),
    }
}

#[test]
fn the_node_alone_is_not_worth_a_write() {
    let starting = Step::Starting { reason: "PodStarting", message: "m".into(), until: at(60) };
    let before = next(&AgentSandboxStatus::default(), &inputs(&starting));
    let on_node = Inputs { node_name: Some("node".into()), ..inputs(&starting) };
    let bound = next(&before, &on_node);
    assert!(bound != before && !worth_writing(&before, &bound));
    let running = Step::Running { started: at(1), deadline: at(9), check: at(9) };
    let runs = next(&before, &Inputs { step: &running, ..on_node });
    assert!(worth_writing(&before, &runs) && runs.node_name.is_some());
}

#[test]
fn the_phase_follows_the_life_and_a_status_is_a_fixed_point() {
    let refused = Refused { reason: "ReservedAddress".into(), message: "m".into(), heals: true };
    let forever = Refused { heals: false, ..refused.clone() };
    let pending = Step::NotCreated { until: at(60) };
    let starting = Step::Starting { reason: "PodStarting", message: "m".into(), until: at(60) };
    let running = Step::Running { started: at(1), deadline: at(9), check: at(9) };
    let ended = |reason| Step::Finished(Box::new(Ending::by_us(reason, "m", Some(at(1)))));
    for (step, refused, phase, ready, finished) in [
        (pending.clone(), None, Phase::Pending, false, false),
        (pending.clone(), Some(&refused), Phase::Rejected, false, false),
        (pending, Some(&forever), Phase::Rejected, false, true),
        (starting, None, Phase::Starting, false, false),
        (running.clone(), None, Phase::Running, true, false),
        (running, Some(&refused), Phase::Running, false, false),
        (Step::Stopping { started: None, check: None }, None, Phase::Stopping, false, false),
        (ended("Completed"), None, Phase::Succeeded, true, true),
        (ended("AgentFailed"), None, Phase::Failed, false, true),
    ] {
        let inputs = Inputs { refused, ..inputs(&step) };
        let status = next(&AgentSandboxStatus::default(), &inputs);
        assert_eq!(status.phase, Some(phase), "{step:?}");
        assert_eq!(status.conditions.len(), 8);
        assert_eq!(holds(&status.conditions, READY), Some(ready), "{step:?}");
        assert_eq!(holds(&status.conditions, FINISHED), Some(finished), "{step:?}");
        assert_eq!(holds(&status.conditions, ACCEPTED), Some(refused.is_none()));
        assert_eq!(status.finished_at.is_some(), finished);
        assert_eq!(next(&status, &inputs), status, "{step:?}");
    }
}

fn measured(at_second: Option<i64>) -> ContainmentStatus {
    ContainmentStatus {
        verified_at: at_second.map(|second| Time(at(second))),
        policy_digest: Some("sha256:d".into()),
        checks: Vec::new(),
    }
}

fn stand_of(status: &AgentSandboxStatus, kind: &str) -> String {
    let found = status.conditions.iter().find(|c| c.type_ == kind).unwrap();
    format!("{} {}", found.status, found.reason)
}

#[test]
fn containment_is_claimed_only_where_it_was_measured() {
    let pending = Step::NotCreated { until: at(60) };
    let starting = |reason| Step::Starting { reason, message: "m".into(), until: at(60) };
    let running = Step::Running { started: at(1), deadline: at(9), check: at(9) };
    let ended = |reason| Step::Finished(Box::new(Ending::by_us(reason, "m", Some(at(1)))));
    let never = |reason| Step::Finished(Box::new(Ending::by_us(reason, "m", None)));
    let (passed, failing) = (Some(measured(Some(1))), Some(measured(None)));
    for (step, containment, contained, egress) in [
        (pending.clone(), None, "False GatePending", "False GatePending"),
        (starting("PodStarting"), None, "False GatePending", "False GatePending"),
        (starting(NOT_CONTAINED), failing.clone(), "False NotContained", "False GatePending"),
        (running.clone(), passed.clone(), "True StartGatePassed", "True GatewayReady"),
        // Made by an operator that knew no gate.
        (running.clone(), None, "False NotMeasured", "False NotMeasured"),
        (ended("Completed"), passed.clone(), "True StartGatePassed", "False Finished"),
        (ended("Completed"), None, "False NotMeasured", "False Finished"),
        // A guard of the agent's own container could not be put up after the gate had passed.
        (ended(NOT_CONTAINED), passed.clone(), "False NotContained", "False Finished"),
        (never(NOT_CONTAINED), failing, "False NotContained", "False Finished"),
        (never("StartupTimeout"), None, "False NotStarted", "False Finished"),
    ] {
        let inputs = Inputs { containment, ..inputs(&step) };
        let status = next(&AgentSandboxStatus::default(), &inputs);
        assert_eq!(stand_of(&status, CONTAINED), contained, "{step:?}");
        assert_eq!(stand_of(&status, EGRESS_READY), egress, "{step:?}");
        assert_eq!(next(&status, &inputs), status, "{step:?}");
    }
    // Once measured it stays, also when the Pod is gone or the sidecar failed later.
    let first =
        next(&AgentSandboxStatus::default(), &Inputs { containment: passed.clone(), ..inputs(&running) });
    let gone = Step::Stopping { started: None, check: None };
    for containment in [None, Some(measured(None)), Some(measured(Some(4)))] {
        let later = next(&first, &Inputs { containment, ..inputs(&gone) });
        assert_eq!(later.containment, passed);
        assert_eq!(stand_of(&later, CONTAINED), "True StartGatePassed");
    }
}

#[test]
fn a_missing_gateway_is_said_and_exceptions_are_shown() {
    let pending = Step::NotCreated { until: at(60) };
    let blocked = Some((GATEWAY_UNAVAILABLE, "not found yet"));
    let status = next(&AgentSandboxStatus::default(), &Inputs { blocked, ..inputs(&pending) });
    assert_eq!((status.phase, status.reason.as_deref()), (Some(Phase::Pending), Some(GATEWAY_UNAVAILABLE)));
    assert_eq!(stand_of(&status, EGRESS_READY), "False GatewayUnavailable");
    assert_eq!(stand_of(&status, ACCEPTED), "True Valid");
    let running = Step::Running { started: at(1), deadline: at(9), check: at(9) };
    let inputs =
        Inputs { containment: Some(measured(Some(1))), exceptions: "203.0.113.0/24", ..inputs(&running) };
    let status = next(&AgentSandboxStatus::default(), &inputs);
    let message = &status.conditions.iter().find(|c| c.type_ == EGRESS_READY).unwrap().message;
    assert!(message.ends_with("203.0.113.0/24"), "{message}");
}

#[test]
fn a_refused_edit_of_a_running_sandbox_is_seen_until_it_is_corrected() {
    let message = "spec.network.egress[2].cidr: 10.0.0.0/8 overlaps 10.244.0.0/16".to_owned();
    let refused = Refused { reason: "ReservedAddress".into(), message, heals: true };
    let running = Step::Running { started: at(1), deadline: at(9), check: at(9) };
    let runs = next(&AgentSandboxStatus::default(), &inputs(&running));
    assert_eq!(runs.reason.as_deref(), Some("AgentRunning"));
    let edited = Inputs { refused: Some(&refused), now: at(6), ..inputs(&running) };
    let held = next(&runs, &edited);
    assert_eq!((held.phase, held.reason.as_deref()), (Some(Phase::Running), Some(SPEC_REFUSED)));
    let said = "the agent runs, but its spec is refused: spec.network.egress[2].cidr: 10.0.0.0/8 overlaps";
    assert!(held.message.as_ref().is_some_and(|message| message.starts_with(said)), "{held:?}");
    for (kind, stand) in [
        (ACCEPTED, "False ReservedAddress"),
        (STALLED, "True ReservedAddress"),
        (READY, "False SpecRefused"),
        (RECONCILING, "False SpecRefused"),
        (RUNNING, "True AgentRunning"),
    ] {
        assert_eq!(stand_of(&held, kind), stand);
    }
    // Nothing is written as long as nothing changes, and what is corrected is as it was.
    assert_eq!(next(&held, &Inputs { now: at(7), ..edited }), held);
    let corrected = next(&held, &Inputs { now: at(8), ..inputs(&running) });
    assert_eq!((corrected.reason, corrected.message), (runs.reason, runs.message));
    for (before, after) in runs.conditions.iter().zip(&corrected.conditions) {
        assert_eq!((&before.status, &before.reason), (&after.status, &after.reason), "{}", after.type_);
    }
}

#[test]
fn a_wide_rule_is_accepted_and_said() {
    let spec = serde_json::json!({
        "metadata": {"name": "x"},
        "spec": {"image": "x", "command": ["/x"], "network": {"egress": [{"host": "*.co.uk", "ports": [443]}]}},
    });
    let warnings = warnings(&serde_json::from_value(spec).unwrap());
    let pending = Step::NotCreated { until: at(60) };
    let status = next(&AgentSandboxStatus::default(), &Inputs { warnings, ..inputs(&pending) });
    assert_eq!(stand_of(&status, ACCEPTED), "True ValidWithWarnings");
    let message = &status.conditions.iter().find(|c| c.type_ == ACCEPTED).unwrap().message;
    assert!(message.contains("spec.network.egress[0].host: `*.co.uk` means every name"), "{message}");
}

#[test]
fn the_numbers_of_the_sidecar_are_bounded() {
    let summary = EgressSummary {
        allowed: 3,
        denied: -1,
        bytes_out: 5,
        bytes_in: 6,
        last_denied: Some(format!("{}\u{7}", "x".repeat(999))),
    };
    let shown = egress(&summary);
    assert_eq!((shown.allowed, shown.denied, shown.bytes_out, shown.bytes_in), (3, 0, 5, 6));
    assert_eq!(shown.last_denied, Some("x".repeat(LAST_DENIED)));
    assert_eq!(egress(&EgressSummary::default()), EgressStatus::default());
}
