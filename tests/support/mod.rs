//! The program as a person runs it.
use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

/// The program that is tested.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_agentsandbox");

/// What came of a run.
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// Runs `program` with nothing in its environment but `environment`, and `input` on its standard input.
pub fn run(program: &Path, arguments: &[&str], environment: &[(&str, &Path)], input: &str) -> Ran {
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_clear()
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A process that does not read it may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}
