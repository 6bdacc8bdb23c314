//! Mount tables as runc and gVisor make them.
use super::*;
use crate::init::config::{MountFact, SandboxIdentity};

const RUNC: &str = "\
962 792 0:186 / / ro,relatime - overlay overlay rw,lowerdir=/a
534 962 0:223 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
586 962 0:225 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755
591 586 0:226 / /dev/pts rw,nosuid,noexec,relatime - devpts devpts rw,gid=5
604 586 0:121 / /dev/mqueue rw,nosuid,nodev,noexec,relatime - mqueue mqueue rw
607 962 0:132 / /sys ro,nosuid,nodev,noexec,relatime - sysfs sysfs ro
620 607 0:227 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - tmpfs tmpfs rw,mode=755
82 962 254:0 /kubelet/mount-0 /work rw,relatime,idmapped - ext4 /dev/vda rw,discard
83 962 254:0 /kubelet/mount-1 /read\\040only ro,relatime shared:5 - ext4 /dev/vda rw,discard
474 962 254:0 /kubelet/agentsandbox-init /.agentsandbox/5e ro,relatime - ext4 /dev/vda rw
489 962 254:0 /kubelet/etc-hosts /etc/hosts rw,relatime,idmapped - ext4 /dev/vda rw,discard
505 586 254:0 /kubelet/af17ea57 /dev/termination-log rw,relatime - ext4 /dev/vda rw
639 586 0:102 / /dev/shm rw,nosuid,nodev,noexec,relatime - tmpfs shm rw,size=65536k
640 586 0:6 /null /dev/null rw,relatime - devtmpfs devtmpfs rw
662 534 0:6 /null /proc/interrupts rw,relatime - devtmpfs devtmpfs rw
665 607 0:67 / /sys/firmware ro,relatime - tmpfs tmpfs ro,size=4k
";

const GVISOR: &str = "\
93 92 0:61 / / ro - 9p none ro,trans=fd,rfdno=93,directfs
95 93 0:62 / /dev rw,nosuid - dev none rw,mode=0755
96 93 0:63 / /sys ro,nosuid,noexec - sysfs none ro,dentry_cache_limit=1000
97 93 0:64 / /proc rw,nosuid,noexec - proc none rw,dentry_cache_limit=1000
98 93 0:65 / /work rw - 9p none rw,trans=fd,rfdno=94
90 93 0:60 / /read\\040only ro - 9p none ro,trans=fd
99 95 0:22 / /dev/pts rw,nosuid,noexec - devpts none rw
100 95 0:23 / /dev/shm rw - tmpfs none rw
101 93 0:66 / /etc/hosts rw - 9p none rw,trans=fd
103 96 0:68 / /sys/fs/cgroup ro,nosuid,noexec - tmpfs none ro
104 103 0:10 /c9 /sys/fs/cgroup/cpu rw - cgroup none rw,cpu
112 95 0:70 / /dev/termination-log rw - 9p none rw,trans=fd
113 93 0:71 / /.agentsandbox/5e ro - 9p none ro,trans=fd
114 93 0:72 / /tmp rw - tmpfs none rw
";

fn config() -> InitConfig {
    let mount = |path: &str, read_only| MountFact { path: path.into(), read_only, source: "emptyDir".into() };
    InitConfig {
        sandbox: SandboxIdentity { namespace: "n".into(), name: "s".into(), uid: "u".into() },
        timeout_ms: 1,
        grace_ms: 1,
        pids: 4,
        landlock: crate::api::v1alpha1::LandlockMode::BestEffort,
        writable: vec!["/work".into()],
        mounts: vec![mount("/work", false), mount("/read only", true)],
        own_directory: "/.agentsandbox/5e".into(),
        policy_digest: String::new(),
        generation: 1,
    }
}

fn judged(table: &str) -> Result<Vec<String>, String> {
    judge(table, &config(), "/dev/termination-log")
}

#[test]
fn what_runtimes_make_is_as_planned() {
    for table in [RUNC, GVISOR] {
        assert_eq!(judged(table), Ok(Vec::new()));
    }
}

#[test]
fn other_writable_places_are_found() {
    for table in [RUNC, GVISOR] {
        let more = "700 93 254:0 /v /data rw - ext4 /dev/vda rw\n701 93 254:0 /v /dev/data rw - 9p none rw\n\
                    702 93 254:0 /v /sys/a rw - ext4 /dev/vda rw\n703 93 254:0 /v /closed ro - ext4 /dev/vda rw\n";
        assert_eq!(
            judged(&format!("{table}{more}")),
            Ok(vec!["/data".into(), "/dev/data".into(), "/sys/a".into()])
        );
    }
    assert_eq!(judged(&RUNC.replace("/ / ro,", "/ / rw,")), Ok(vec!["/".into()]));
    assert_eq!(judged(&GVISOR.replace("/tmp rw - tmpfs", "/tmp rw - 9p")), Ok(vec!["/tmp".into()]));
}

#[test]
fn what_is_not_as_planned_is_told() {
    let added = |line: &str| format!("{RUNC}{line}\n");
    for (table, want) in [
        (RUNC.replace("/.agentsandbox/5e", "/q/5e"), "/.agentsandbox/5e is not a mount point"),
        (RUNC.replace("/.agentsandbox/5e ro", "/.agentsandbox/5e rw"), "own directory, is writable"),
        (
            added("700 474 0:1 / /.agentsandbox/5e/sandbox-init ro - ext4 a rw"),
            "is mounted below the operator's",
        ),
        (added("700 474 0:1 / /.agentsandbox/5e ro - ext4 a rw"), "more than one thing is mounted at"),
        (
            added("700 962 0:1 / /.agentsandbox ro - ext4 a rw"),
            "/.agentsandbox/5e is hidden by a mount at /.agentsandbox",
        ),
        (added("700 962 0:1 / / ro - ext4 a rw"), "is hidden by a mount at /"),
        (RUNC.replace(" /work ", " /elsewhere "), "/work is not a mount point"),
        (RUNC.replace("only ro,", "only rw,"), "the mount /read only is writable"),
        ("x".to_owned(), "/proc/self/mountinfo"),
    ] {
        let told = judged(&table).unwrap_err();
        assert!(told.contains(want), "{told}");
    }
    // What it is mounted on hides nothing.
    let below = RUNC.replace("474 962", "474 700") + "700 962 0:1 / /.agentsandbox ro - ext4 a rw\n";
    assert_eq!(judged(&below), Ok(Vec::new()));
}

#[test]
fn escapes_are_read() {
    assert_eq!(unescaped(r"/a\040b\134c\"), r"/a b\c\");
}
