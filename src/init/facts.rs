//! What the kernel tells about the container.
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};

/// Time since boot, suspension included: a deadline passes while the node sleeps.
pub fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

/// The file of the CPU cgroup that counts, opened before the agent could hide it.
#[derive(Debug)]
pub struct CpuFacts {
    file: Option<File>,
    before: i64,
}

impl CpuFacts {
    /// Opens the file of cgroup v2, else of v1.
    pub fn open() -> Self {
        let file = first(["/sys/fs/cgroup/cpu.stat", "/sys/fs/cgroup/cpuacct/cpuacct.usage"]);
        let before = file.as_ref().and_then(cpu_us).unwrap_or(0);
        Self { file, before }
    }

    /// CPU time of the container since [`CpuFacts::open`], in milliseconds. Without a cgroup it is that of the
    /// processes that were waited for: an agent hides those of its own that it does not wait for.
    pub fn milliseconds(&self) -> i64 {
        match self.file.as_ref().and_then(cpu_us) {
            Some(now) => now.saturating_sub(self.before) / 1000,
            None => getrusage(UsageWho::RUSAGE_CHILDREN).map_or(0, |usage| {
                usage.user_time().num_milliseconds() + usage.system_time().num_milliseconds()
            }),
        }
    }
}

fn cpu_us(file: &File) -> Option<i64> {
    parse_cpu(&read(file)?)
}

/// Microseconds: a line of `cpu.stat`, or nanoseconds alone.
fn parse_cpu(text: &str) -> Option<i64> {
    match text.lines().find_map(|line| line.strip_prefix("usage_usec ")) {
        Some(microseconds) => microseconds.trim().parse().ok(),
        None => text.trim().parse::<i64>().ok().map(|nanoseconds| nanoseconds / 1000),
    }
}

fn first(paths: [&str; 2]) -> Option<File> {
    paths.into_iter().find_map(|path| File::open(path).ok())
}

/// Whether this is in a user namespace of its own.
pub fn in_user_namespace() -> bool {
    fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !is_initial(&map))
}

fn is_initial(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Files of the memory cgroup, opened before the agent could hide them. What is not there is not claimed.
#[derive(Debug)]
pub struct MemoryFacts {
    peak: Option<File>,
    events: Option<File>,
    kills_before: u64,
}

impl MemoryFacts {
    /// Opens the files of cgroup v2, else of v1.
    pub fn open() -> Self {
        let peak = first(["/sys/fs/cgroup/memory.peak", "/sys/fs/cgroup/memory/memory.max_usage_in_bytes"]);
        let events = first(["/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"]);
        let kills_before = events.as_ref().and_then(kills).unwrap_or(0);
        Self { peak, events, kills_before }
    }

    /// Largest memory of the container in bytes.
    pub fn peak(&self) -> Option<i64> {
        read(self.peak.as_ref()?)?.trim().parse().ok()
    }

    /// Processes that the kernel ended for want of memory since [`MemoryFacts::open`]; 0 where it does not tell.
    pub fn kills(&self) -> u64 {
        self.events.as_ref().and_then(kills).unwrap_or(0).saturating_sub(self.kills_before)
    }
}

fn kills(file: &File) -> Option<u64> {
    parse_kills(&read(file)?)
}

fn parse_kills(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

fn read(file: &File) -> Option<String> {
    let mut buffer = [0; 1024];
    let length = file.read_at(&mut buffer, 0).ok()?;
    buffer.get(..length).and_then(|bytes| std::str::from_utf8(bytes).ok()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_read_from_both_versions() {
        assert_eq!(parse_kills("low 0\noom 4\noom_kill 3\noom_group_kill 0\n"), Some(3));
        assert_eq!(parse_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"), Some(2));
        assert_eq!(parse_kills("oom_kill_disable 0\n"), None);
    }

    #[test]
    fn the_time_is_read_from_both_versions() {
        assert_eq!(parse_cpu("usage_usec 1234567\nuser_usec 1\nsystem_usec 2\n"), Some(1_234_567));
        assert_eq!(parse_cpu("1234567890\n"), Some(1_234_567));
        assert_eq!(parse_cpu("nr_periods 0\n"), None);
    }

    #[test]
    fn the_whole_range_is_the_initial_namespace() {
        assert!(is_initial("         0          0 4294967295\n"));
        assert!(!is_initial("         0     100000      65536\n"));
    }
}
