//! From the fork to the agent's exec.
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{Pid, execve, pipe2, setsid};

use super::config::InitConfig;
use super::filters::Filters;
use super::guard;
use super::sys::{self, Side};

/// Prefix of the variables that the agent does not see.
const OWN_PREFIX: &[u8] = b"AGENTSANDBOX_";

/// Directories that are searched where the agent's environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Longest message of the child to its parent, in bytes.
const MAX_FAILURE: u64 = 512;

/// Why the agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// No program of this name.
    #[error("{0}")]
    NotFound(String),
    /// The program cannot be executed.
    #[error("{0}")]
    NotExecutable(String),
    /// A guard does not stand.
    #[error("{0}")]
    NotContained(String),
    /// No process could be made.
    #[error("the agent's process cannot be made: {0}")]
    Fork(Errno),
}

/// What is executed, and in what.
#[derive(Debug)]
pub struct Launch {
    candidates: Vec<CString>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    /// `RLIMIT_NPROC`.
    pub pids: u64,
    /// `RLIMIT_FSIZE`.
    pub file_size: Option<u64>,
    /// Landlock ABI to put in force; 0 for none.
    pub landlock_abi: i32,
    /// Paths that the agent may write.
    pub writable: Vec<String>,
    /// Seccomp filters.
    pub filters: Filters,
}

impl Launch {
    /// Prepares `command` with the environment of this process, except what is the operator's.
    pub fn new(
        command: &[OsString],
        config: &InitConfig,
        landlock_abi: i32,
        filters: Filters,
    ) -> Result<Self, LaunchError> {
        let variables: Vec<(OsString, OsString)> =
            std::env::vars_os().filter(|(name, _)| !name.as_bytes().starts_with(OWN_PREFIX)).collect();
        let path = variables.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_os_str());
        let program = command.first().ok_or_else(|| LaunchError::NotFound("no command".to_owned()))?;
        let environment = variables.iter().map(|(name, value)| {
            let mut both = name.clone();
            both.push("=");
            both.push(value);
            both
        });
        Ok(Self {
            candidates: c_strings(candidates(program, path.unwrap_or(OsStr::new(DEFAULT_PATH))))?,
            arguments: c_strings(command.iter().cloned())?,
            environment: c_strings(environment)?,
            pids: config.pids,
            file_size: config.file_size_bytes,
            landlock_abi,
            writable: config.writable.clone(),
            filters,
        })
    }

    /// Starts the agent; returns when its program runs.
    pub fn start(&self) -> Result<Pid, LaunchError> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(LaunchError::Fork)?;
        match sys::fork_single_threaded().map_err(LaunchError::Fork)? {
            Side::Child => {
                drop(reader);
                let (kind, message) = self.become_agent();
                // If nobody reads, the exit code still says that it failed.
                let _ = File::from(writer).write_all(format!("{kind}{message}").as_bytes());
                sys::exit_now(125)
            }
            Side::Parent(child) => {
                drop(writer);
                let mut failure = Vec::new();
                let read = File::from(reader).take(MAX_FAILURE).read_to_end(&mut failure);
                // The exec closed the pipe without a word.
                if read.is_ok() && failure.is_empty() {
                    return Ok(child);
                }
                let text = String::from_utf8_lossy(&failure);
                let mut characters = text.chars();
                let kind = characters.next();
                let message = characters.as_str().to_owned();
                Err(match kind {
                    Some('F') => LaunchError::NotFound(message),
                    Some('X') => LaunchError::NotExecutable(message),
                    _ => LaunchError::NotContained(message),
                })
            }
        }
    }

    /// Turns this process into the agent; returns only a failure, as its kind and a message.
    fn become_agent(&self) -> (char, String) {
        if let Err(message) = self.contain() {
            return ('C', message);
        }
        let mut failure = Errno::ENOENT;
        for candidate in &self.candidates {
            let Err(errno) = execve(candidate, &self.arguments, &self.environment);
            match errno {
                // As execvp(3): the next directory may have it, but what was there and forbidden is told.
                Errno::ENOENT | Errno::ENOTDIR => {}
                Errno::EACCES => failure = errno,
                _ => {
                    failure = errno;
                    break;
                }
            }
        }
        let name = self.arguments.first().map(|name| name.to_string_lossy()).unwrap_or_default();
        let kind = if failure == Errno::ENOENT { 'F' } else { 'X' };
        let searched = kind == 'F' && !name.is_empty() && !name.contains('/');
        let hint = if searched { "; not found in the image's PATH; write an absolute path" } else { "" };
        let name: String = name.chars().take(200).collect();
        (kind, format!("cannot execute {name:?}: {}{hint}", sys::describe(failure as i32)))
    }

    fn contain(&self) -> Result<(), String> {
        let system = |errno: Errno| errno.to_string();
        setsid().map_err(system)?;
        sys::reset_signals().map_err(system)?;
        // Everything of ours is opened that way; this is for what the runtime left open.
        let _ = sys::close_on_exec_from_three();
        guard::limit(self.pids, self.file_size).map_err(|error| error.to_string())?;
        guard::restrict_files(self.landlock_abi, &self.writable).map_err(|error| error.to_string())?;
        self.filters.apply().map_err(|error| error.to_string())
    }
}

/// Paths to try for `program`: itself if it has a slash, else in every directory of `path`.
fn candidates(program: &OsStr, path: &OsStr) -> Vec<OsString> {
    if program.is_empty() || program.as_bytes().contains(&b'/') {
        return vec![program.to_owned()];
    }
    let in_directory = |directory: &[u8]| {
        let directory = if directory.is_empty() { b"." } else { directory };
        OsString::from_vec([directory, b"/", program.as_bytes()].concat())
    };
    path.as_bytes().split(|byte| *byte == b':').map(in_directory).collect()
}

fn c_strings(texts: impl IntoIterator<Item = OsString>) -> Result<Vec<CString>, LaunchError> {
    let convert = |text: OsString| CString::new(text.into_vec());
    texts
        .into_iter()
        .map(convert)
        .collect::<Result<_, _>>()
        .map_err(|_| LaunchError::NotFound("a NUL byte in the command or its environment".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_searched_and_paths_are_not() {
        let find = |program: &str, path: &str| candidates(OsStr::new(program), OsStr::new(path));
        assert_eq!(find("a", "/x::/y"), ["/x/a", "./a", "/y/a"]);
        assert_eq!(find("./a", "/x"), ["./a"]);
        assert_eq!(find("", "/x"), [""]);
    }
}
