//! What the agents of the tests do: Python given inline, which prints one JSON line for each thing it tried.
use serde_json::{Value, json};

/// Functions that every script may use: `say`, `tcp`, `udp`, `attempt`, `write`, `read`.
const PRELUDE: &str = include_str!("prelude.py");

/// The command of an agent that runs `script` after the prelude.
pub fn python(script: &str) -> Value {
    json!(["/usr/bin/python3", "-c", format!("{PRELUDE}\n{script}")])
}

/// The JSON lines of an agent's log; other lines are left out.
pub fn lines(log: &str) -> Vec<Value> {
    log.lines().filter_map(|line| serde_json::from_str(line).ok()).filter(Value::is_object).collect()
}

/// The line of one probe.
///
/// # Panics
/// When the agent did not say anything of it.
pub fn probe<'a>(lines: &'a [Value], name: &str) -> &'a Value {
    lines
        .iter()
        .find(|line| line["probe"] == name)
        .unwrap_or_else(|| panic!("the agent said nothing of `{name}`: {lines:#?}"))
}

/// Whether a network probe got through.
pub fn is_open(lines: &[Value], name: &str) -> bool {
    probe(lines, name)["open"].as_bool().unwrap()
}

/// Whether an attempt could be done.
pub fn is_done(lines: &[Value], name: &str) -> bool {
    probe(lines, name)["ok"].as_bool().unwrap()
}

/// A service that answers every TCP connection on 8080, for the tests of Pod to Pod traffic.
pub const SERVER: &str = r#"
server = socket.create_server(("0.0.0.0", 8080))
say(listening=8080)
while True:
    peer, _ = server.accept()
    peer.close()
"#;
