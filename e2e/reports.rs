//! What status believes of what a container says at its end: the agent may try to write that itself.
use agentsandbox::api::v1alpha1::AgentSandboxStatus;
use serde_json::json;

use crate::support::{
    agent::{is_done, lines, probe},
    shared,
};

/// Puts a report of its own in the place of that of `sandbox-init`: everything went well, and nearly nothing was used.
const FORGE: &str = r#"
forged = json.dumps({"version": 1, "cause": "Exited", "exitCode": 0, "message": "forged", "wallMs": 1, "cpuMs": 1,
    "peakMemoryBytes": 1, "processes": 1, "landlockAbi": 987654321, "userNamespace": True, "records": 123456789,
    "egress": {"connections": 123456789, "denied": 0, "bytesIn": 0, "bytesOut": 0}})
attempt("forge", write("/dev/termination-log", forged))
"#;

fn nothing_is_believed(status: &AgentSandboxStatus) {
    let text = serde_json::to_string(status).unwrap();
    for forged in ["forged", "123456789", "987654321"] {
        assert!(!text.contains(forged), "{forged}: {status:#?}");
    }
    assert_ne!(status.outcome.as_ref().unwrap().reason, "Completed", "{status:#?}");
}

#[test]
fn the_agent_cannot_write_its_own_report() {
    shared("report", |test| async move {
        let control = test.control("control", FORGE).await;
        assert!(is_done(&control, "forge"), "a plain Pod writes it: {control:?}");
        test.sandbox("agent", &format!("{FORGE}sys.exit(7)"), json!({})).await;
        let outcome = test.finished_as("agent", "AgentFailed").await;
        let said = lines(&test.log("agent").await);
        assert_eq!(probe(&said, "forge")["ok"], false, "{said:?}");
        assert_eq!(outcome.exit_code, Some(7));
        let wall = outcome.usage.and_then(|usage| usage.wall_milliseconds);
        assert!(wall.is_some_and(|milliseconds| milliseconds > 1), "{wall:?}: the true report is believed");
        nothing_is_believed(&test.status("agent").await);
    });
}

/// Under gVisor no Landlock keeps it from writing.
#[test]
fn under_gvisor_the_agents_own_report_is_not_believed() {
    shared("report-gvisor", |test| async move {
        if !test.has_gvisor().await {
            return;
        }
        let spec = json!({"isolation": {"runtimeClassName": "gvisor"}, "resources": {"memory": "256Mi"}, "timeout": "90s"});
        // One ends by itself, and `sandbox-init` has the last word; one is ended with everything that is in the container.
        let ends = [
            ("exits", "sys.exit(7)"),
            ("grows", "hog = []\nwhile True:\n    hog.append(bytearray(4 << 20))"),
        ];
        for (name, end) in ends {
            test.sandbox(name, &format!("{FORGE}{end}"), spec.clone()).await;
        }
        for (name, _) in ends {
            let outcome = test.finished(name).await;
            let said = lines(&test.log(name).await);
            assert!(is_done(&said, "forge"), "{name}: {said:?}");
            eprintln!("{name}: {outcome:?}");
            nothing_is_believed(&test.status(name).await);
            assert!(outcome.usage.is_none(), "{name}: {outcome:?}");
        }
        let status = test.status("exits").await;
        let outcome = status.outcome.unwrap();
        assert_eq!((outcome.reason.as_str(), outcome.exit_code), ("AgentFailed", Some(7)));
    });
}
