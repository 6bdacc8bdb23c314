//! Images made for one test.
use std::process::Command;

use super::{environment, environment::output_of};

/// An image like the agents', changed by the options of `image.py`; answers its name by digest. None where the cluster's
/// registry is not the harness's own.
pub async fn like_the_agents(tag: &str, options: &[&str]) -> Option<String> {
    let (crane, registry) = (environment().get("CRANE")?, environment().get("REGISTRY")?);
    let (name, image) = (environment().need("REGISTRY_NAME"), environment().agent_image());
    let source = image.replacen(&name, &registry, 1);
    let work = tempfile::tempdir().unwrap();
    let (before, after) = (work.path().join("before.tar"), work.path().join("after.tar"));
    let run = |arguments: &[&str], paths: &[&std::path::Path]| {
        let mut command = Command::new(&crane);
        command.args(arguments).args(paths);
        output_of(command)
    };
    run(&["pull", "--insecure", &source], &[&before]).await;
    let mut change = Command::new("python3");
    change
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/support/image.py"))
        .args([&before, &after])
        .args(options);
    output_of(change).await;
    let target = format!("{registry}/e2e-{tag}:latest");
    let mut push = Command::new(&crane);
    push.args(["push", "--insecure"]).arg(&after).arg(&target);
    output_of(push).await;
    let digest = run(&["digest", "--insecure", &target], &[]).await;
    Some(format!("{name}/e2e-{tag}@{}", digest.trim()))
}
