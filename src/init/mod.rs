//! `sandbox-init`: the first process of the agent's container. Small, and without an async runtime.
pub mod config;
mod facts;
mod filters;
mod guard;
mod install;
mod launch;
mod link;
mod mounts;
pub mod report;
mod run;
mod supervise;
mod sys;
pub mod wire;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// Where the container runtime collects the termination message.
const TERMINATION_LOG: &str = "/dev/termination-log";

const USAGE: &str =
    "usage: sandbox-init install PATH | sandbox-init run [--termination-log PATH] -- COMMAND [ARGUMENT...]";

/// Exit code of a wrong command line.
const USAGE_CODE: u8 = 64;

/// The program: `install PATH` or `run [--termination-log PATH] -- COMMAND [ARGUMENT...]`.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match parse(&arguments) {
        Some(Order::Install(target)) => match install::install(&target) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                run::say(&format!("cannot install {}: {error}", target.display()));
                ExitCode::FAILURE
            }
        },
        Some(Order::Run { termination_log, command }) => {
            ExitCode::from(u8::try_from(run::run(&command, &termination_log)).unwrap_or(u8::MAX))
        }
        None => {
            run::say(USAGE);
            ExitCode::from(USAGE_CODE)
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Order {
    Install(PathBuf),
    Run { termination_log: PathBuf, command: Vec<OsString> },
}

fn parse(arguments: &[OsString]) -> Option<Order> {
    let (verb, rest) = arguments.split_first()?;
    if verb == "install" {
        let [target] = rest else { return None };
        return Some(Order::Install(target.into()));
    }
    let (termination_log, rest) = match rest {
        [flag, path, rest @ ..] if flag == "--termination-log" => (path.into(), rest),
        rest => (TERMINATION_LOG.into(), rest),
    };
    match rest {
        [dashes, command @ ..] if verb == "run" && dashes == "--" && !command.is_empty() => {
            Some(Order::Run { termination_log, command: command.to_vec() })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_strict() {
        let parse = |line: &str| parse(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert_eq!(parse("install /x"), Some(Order::Install("/x".into())));
        let run = |log: &str| {
            Some(Order::Run { termination_log: log.into(), command: vec!["a".into(), "-b".into()] })
        };
        assert_eq!(parse("run -- a -b"), run(TERMINATION_LOG));
        assert_eq!(parse("run --termination-log /t -- a -b"), run("/t"));
        for wrong in ["", "run", "run a", "run --", "install", "install a b", "start -- a"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
