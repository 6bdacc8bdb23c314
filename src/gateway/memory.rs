//! How much of its memory the gateway uses: what the kernel keeps for connections whose peers do not read counts, and a
//! gateway that is killed for it takes everybody's connections with it. When memory is short, no further connections to
//! servers are taken, and those that stand still end.
use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

/// Where a container sees its own control group.
pub const CONTROL_GROUP: &str = "/sys/fs/cgroup";

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(500);

/// Hundredths of the limit from which on memory is short.
const SHORT: u64 = 75;

/// Whether memory is short.
#[derive(Debug, Default)]
pub struct Memory {
    /// Looks at which it was short since it was short for the first time; 0 when it is not.
    short: watch::Sender<u64>,
}

impl Memory {
    /// Whether memory is short.
    pub fn is_short(&self) -> bool {
        *self.short.borrow() > 0
    }

    /// Ready at the next look that finds memory short, with the number of such looks in a row.
    pub async fn shortage(&self, looks: &mut watch::Receiver<u64>) -> u64 {
        // The sender lives in `self`: the channel cannot be closed.
        while looks.changed().await.is_ok() {
            let short = *looks.borrow_and_update();
            if short > 0 {
                return short;
            }
        }
        std::future::pending().await
    }

    /// For [`Memory::shortage`].
    pub fn looks(&self) -> watch::Receiver<u64> {
        self.short.subscribe()
    }

    /// Looks for ever, where control groups of version 2 tell. In those of version 1 the kernel's part counts on no limit.
    pub async fn keep(&self, directory: &Path) {
        if usage(directory).is_none() {
            tracing::info!("memory is not looked at: no limit, or no control group of version 2");
            return std::future::pending().await;
        }
        loop {
            self.look(usage(directory));
            sleep(LOOK).await;
        }
    }

    /// Takes one look.
    pub fn look(&self, usage: Option<Usage>) {
        // What cannot be read is not known to be short: the places and the kernel have the last word.
        let short = usage.is_some_and(Usage::is_short);
        let changed = self.short.send_if_modified(|looks| {
            let before = *looks;
            *looks = if short { before + 1 } else { 0 };
            *looks != before
        });
        if changed && *self.short.borrow() == 1 {
            tracing::warn!(?usage, "memory is short: what stands still ends, and nothing more is taken");
        }
    }
}

/// Bytes of a control group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// In use, without pages of files that can be read again.
    pub used: u64,
    /// Most that may be in use.
    pub limit: u64,
}

impl Usage {
    fn is_short(self) -> bool {
        self.used.saturating_mul(100) >= self.limit.saturating_mul(SHORT)
    }
}

/// What the control group at `directory` says, where it has a limit. See the kernel's admin-guide/cgroup-v2.rst.
fn usage(directory: &Path) -> Option<Usage> {
    let read = |file: &str| std::fs::read_to_string(directory.join(file)).ok();
    let number = |text: String| text.trim().parse::<u64>().ok();
    let limit = number(read("memory.max")?)?;
    let current = number(read("memory.current")?)?;
    let stat = read("memory.stat").unwrap_or_default();
    let file = stat.lines().find_map(|line| line.strip_prefix("inactive_file "));
    let file = file.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    Some(Usage { used: current.saturating_sub(file), limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        directory
    }

    #[test]
    fn a_control_group_says_what_is_used() {
        let stat = "anon 5\ninactive_file 30\nactive_file 7\n";
        let whole = group(&[("memory.max", "100\n"), ("memory.current", "90\n"), ("memory.stat", stat)]);
        assert_eq!(usage(whole.path()), Some(Usage { used: 60, limit: 100 }));
        for (files, why) in [
            (&[("memory.max", "max\n"), ("memory.current", "90\n")][..], "no limit"),
            (&[("memory.usage_in_bytes", "90\n")], "version 1"),
            (&[("memory.max", "100\n"), ("memory.current", "")], "not a number"),
        ] {
            assert_eq!(usage(group(files).path()), None, "{why}");
        }
    }

    #[test]
    fn it_is_short_from_three_quarters_on_and_may_recover() {
        let memory = Memory::default();
        for (used, short) in [(0, false), (74, false), (75, true), (100, true), (74, false)] {
            memory.look(Some(Usage { used, limit: 100 }));
            assert_eq!(memory.is_short(), short, "{used}");
        }
        memory.look(Some(Usage { used: 80, limit: 100 }));
        memory.look(None);
        assert!(!memory.is_short());
    }
}
