//! E26: as many names as a sandbox may have.
use std::time::Instant;

use serde_json::{Value, json};

use super::{all_done, host, none_done};
use crate::support::{secs, shared, wait_for};

/// As many rules as the definition allows, each with as many ports; the last is for `last`.
fn rules(label: &str, last: &str) -> Vec<Value> {
    let ports: Vec<u16> = (8000..8016).collect();
    let others = (0..255).map(|index| host(&format!("n{index}.{label}.asbx.test"), &ports));
    others.chain([host(last, &[80, 443])]).collect()
}

#[test]
fn a_sandbox_may_have_as_many_names_as_the_definition_allows() {
    shared("egress-many", |test| async move {
        test.probe().await;
        let script = "end = time.time() + 50\n\
                      while time.time() < end:\n    \
                          trial('one', lambda: https('one.asbx.test'))\n    \
                          trial('two', lambda: https('two.asbx.test'))\n    \
                          time.sleep(0.5)";
        test.agent("agent", script, &rules("first", "one.asbx.test"), json!({})).await;
        let said = test.said("agent", "what it tried", |line| line["probe"] == "two").await;
        all_done(&said, &["one"]);
        none_done(&said, &["two"]);
        // All of them change at once, while it runs.
        let changed = Instant::now();
        test.change("agent", json!({"network": {"egress": rules("second", "two.asbx.test")}})).await.unwrap();
        wait_for("the other name to be the one", secs(40), || async {
            let lines = crate::support::agent::lines(&test.log("agent").await);
            let last =
                |name: &str| lines.iter().rfind(|line| line["probe"] == name).map(|line| line["ok"] == true);
            (last("one") == Some(false) && last("two") == Some(true)).then_some(())
        })
        .await;
        eprintln!("256 rules were others within {:?}", changed.elapsed());
    });
}
