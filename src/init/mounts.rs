//! Whether the mounts are those that the operator planned. An image may lead a planned path elsewhere by a symbolic
//! link, hide a mount under a volume of its own, or bring a writable place that the spec does not list.
use std::collections::BTreeMap;
use std::fs;

use super::config::InitConfig;

/// Most paths that are told, and most characters of each.
const MOST_TOLD: usize = 16;
const LONGEST_TOLD: usize = 256;

/// Places that runtimes and the kubelet make writable in every container. `/dev/shm` and, under gVisor, `/tmp` are
/// memory; the files of `/etc` are root's.
const USUAL: [&str; 17] = [
    "/dev",
    "/dev/shm",
    "/dev/mqueue",
    "/dev/pts",
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/tty",
    "/dev/random",
    "/dev/urandom",
    "/dev/console",
    "/proc",
    "/sys",
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
    "/run/.containerenv",
];

/// File systems that are mounted below `/proc` and `/sys`: an image's volume has another.
const OF_THE_KERNEL: [&str; 6] = ["proc", "sysfs", "cgroup", "cgroup2", "tmpfs", "devtmpfs"];

/// Looks at the mounts of this process. Returns the writable places that are neither configured nor usual, or why
/// the mounts are not those of `config`.
pub fn look(config: &InitConfig, termination_log: &str) -> Result<Vec<String>, String> {
    let text = fs::read("/proc/self/mountinfo").map_err(|error| format!("/proc/self/mountinfo: {error}"))?;
    judge(&String::from_utf8_lossy(&text), config, termination_log)
}

fn judge(mountinfo: &str, config: &InitConfig, termination_log: &str) -> Result<Vec<String>, String> {
    let table = Table::parse(mountinfo)?;
    let own = table.only(&config.own_directory)?;
    if own.writable {
        return Err(format!("{}, the operator's own directory, is writable", own.path));
    }
    if let Some(below) = table.mounts.iter().find(|mount| is_below(&mount.path, &own.path)) {
        return Err(format!("{} is mounted below the operator's own directory", below.path));
    }
    for planned in &config.mounts {
        let mount = table.only(&planned.path)?;
        if planned.read_only && mount.writable {
            return Err(format!("the mount {} is writable", planned.path));
        }
    }
    let listed = |path: &str| {
        let mut writable = config.writable.iter().map(|path| trimmed(path));
        writable.any(|writable| writable == path) || path == termination_log
    };
    let unlisted = table.mounts.iter().filter(|m| m.writable && !m.is_usual() && !listed(&m.path));
    Ok(unlisted.map(|mount| cut(&mount.path)).take(MOST_TOLD).collect())
}

fn cut(path: &str) -> String {
    path.chars().take(LONGEST_TOLD).collect()
}

fn trimmed(path: &str) -> &str {
    match path.trim_end_matches('/') {
        "" => "/",
        path => path,
    }
}

fn is_below(path: &str, directory: &str) -> bool {
    directory == "/" && path != "/" || path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

/// A line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
struct Mount {
    id: u64,
    parent: u64,
    path: String,
    writable: bool,
    kind: String,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(' ');
        let id = fields.next()?.parse().ok()?;
        let parent = fields.next()?.parse().ok()?;
        let path = unescaped(fields.nth(2)?);
        let options = fields.next()?;
        let mut rest = fields.skip_while(|field| *field != "-").skip(1);
        let kind = rest.next()?.to_owned();
        let of_file_system = rest.nth(1).unwrap_or_default();
        let read_only = |options: &str| options.split(',').next() == Some("ro");
        let writable = !read_only(options) && !read_only(of_file_system);
        Some(Self { id, parent, path, writable, kind })
    }

    fn is_usual(&self) -> bool {
        let kernels = ["/proc", "/sys"].iter().any(|directory| is_below(&self.path, directory))
            && OF_THE_KERNEL.contains(&self.kind.as_str());
        let memory = self.path == "/tmp" && self.kind == "tmpfs";
        kernels || memory || USUAL.contains(&self.path.as_str())
    }
}

struct Table {
    mounts: Vec<Mount>,
}

impl Table {
    fn parse(mountinfo: &str) -> Result<Self, String> {
        let parse = |line| Mount::parse(line).ok_or_else(|| format!("/proc/self/mountinfo: {line:?}"));
        Ok(Self { mounts: mountinfo.lines().map(parse).collect::<Result<_, _>>()? })
    }

    /// The one mount at exactly `path`, if nothing hides it.
    fn only(&self, path: &str) -> Result<&Mount, String> {
        let path = trimmed(path);
        let mut there = self.mounts.iter().filter(|mount| mount.path == path);
        let mount = there.next().ok_or_else(|| format!("{path} is not a mount point{}", led(path)))?;
        if there.next().is_some() {
            return Err(format!("more than one thing is mounted at {path}"));
        }
        let parents: BTreeMap<u64, u64> = self.mounts.iter().map(|mount| (mount.id, mount.parent)).collect();
        let mut chain = vec![mount.id];
        while let Some(parent) = chain.last().and_then(|id| parents.get(id)).filter(|id| !chain.contains(id))
        {
            chain.push(*parent);
        }
        // What was there before is what it is mounted on; what came later is not.
        let hides = |other: &&Mount| is_below(path, &other.path) && !chain.contains(&other.id);
        match self.mounts.iter().find(hides) {
            Some(other) => Err(format!("{path} is hidden by a mount at {}", other.path)),
            None => Ok(mount),
        }
    }
}

/// Where a path leads, if not to itself.
fn led(path: &str) -> String {
    match fs::canonicalize(path) {
        Ok(end) if end != std::path::Path::new(path) => format!("; the image leads it to {}", end.display()),
        _ => String::new(),
    }
}

/// The kernel writes spaces, line feeds, tabulators and backslashes as `\` and three octal digits.
fn unescaped(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        result.push_str(before);
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        result.push(code.map_or('\\', char::from));
        rest = if code.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    result + rest
}

#[cfg(test)]
#[path = "mounts_tests.rs"]
mod tests;
