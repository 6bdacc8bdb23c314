//! Images that were made to get in the way of what is mounted.
use serde_json::{Value, json};

use crate::support::{Test, agent::lines, image::like_the_agents, shared};

const MARK: &str = "say(marker='the agent ran')";

fn scratch(path: &str) -> Value {
    json!([{"path": path, "readOnly": false, "emptyDir": {"sizeLimit": "8Mi"}}])
}

impl Test {
    /// Whether the sandbox's agent ran to its end; if not, it did not run at all.
    async fn completes(&self, name: &str) -> bool {
        let outcome = self.finished(name).await;
        let said = lines(&self.log(name).await);
        let ran = said.iter().any(|line| line["marker"] == "the agent ran");
        eprintln!("{name}: {outcome:?}");
        assert_eq!(outcome.reason, if ran { "Completed" } else { "NotContained" }, "{outcome:?} {said:#?}");
        ran
    }
}

/// A link of the image leads what is mounted there elsewhere: what the spec mounts, or `sandbox-init` itself.
#[test]
fn an_image_that_leads_a_mount_elsewhere_runs_no_agent() {
    shared("image-links", |test| async move {
        let Some(image) = like_the_agents("links", &["--link", "/workspace=etc"]).await else {
            eprintln!("there is no registry that images can be pushed to: not tested");
            return;
        };
        let inits = like_the_agents("init-link", &["--link", "/.agentsandbox=tmp"]).await.unwrap();
        test.sandbox("control", MARK, json!({"image": image, "filesystem": {"mounts": scratch("/task")}}))
            .await;
        test.sandbox("mount", MARK, json!({"image": image, "filesystem": {"mounts": scratch("/workspace")}}))
            .await;
        test.sandbox("init", MARK, json!({"image": inits})).await;
        assert!(test.completes("control").await, "the image itself runs");
        assert!(!test.completes("mount").await, "/workspace leads to /etc");
        assert!(!test.completes("init").await, "sandbox-init lies elsewhere than it was told to");
    });
}

/// A volume that the image declares around `sandbox-init` does not hide it: it is deeper. And nothing can be written to it,
/// which only Landlock sees to: under gVisor the agent is not started.
#[test]
fn a_volume_of_the_image_neither_hides_the_guard_nor_is_a_place_to_write() {
    shared("image-volume", |test| async move {
        let volumes = ["--volume", "/.agentsandbox", "--volume", "/more"];
        let Some(image) = like_the_agents("volume", &volumes).await else {
            eprintln!("there is no registry that images can be pushed to: not tested");
            return;
        };
        let script = format!(
            "attempt('around', write('/.agentsandbox/a'))\nattempt('more', write('/more/a'))\n\
             attempt('task', write('/task/a'))\n{MARK}"
        );
        let spec = json!({"image": image, "filesystem": {"mounts": scratch("/task")}});
        test.sandbox("agent", &script, spec.clone()).await;
        let mut under_gvisor = spec;
        under_gvisor["isolation"] = json!({"runtimeClassName": "gvisor"});
        under_gvisor["resources"] = json!({"memory": "256Mi"});
        let gvisor = test.has_gvisor().await;
        if gvisor {
            test.sandbox("gvisor", &script, under_gvisor).await;
        }
        assert!(test.completes("agent").await);
        let said = lines(&test.log("agent").await);
        for (name, possible) in [("around", false), ("more", false), ("task", true)] {
            assert_eq!(crate::support::agent::is_done(&said, name), possible, "{said:#?}");
        }
        if gvisor {
            assert!(!test.completes("gvisor").await);
            let log = test.log("gvisor").await;
            assert!(log.contains("sandbox-init: ") && log.contains("/more"), "it says why: {log}");
        }
    });
}
