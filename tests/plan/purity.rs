//! The code that decides what an agent may do talks to nobody: it cannot, because it names nothing that could.
use std::path::{Path, PathBuf};

const PURE: [&str; 3] = ["src/api", "src/policy", "src/plan"];

/// Ways to the outside. `fs::` also finds the import of `std::{fs, ..}` where it is used.
const OUTSIDE: [&str; 14] = [
    "kube::Client",
    "kube::Api",
    "kube::client",
    "kube_runtime",
    "kube::runtime",
    "std::fs",
    "fs::",
    "tokio",
    "std::net::Tcp",
    "TcpStream",
    "UdpSocket",
    "std::process",
    "std::env",
    "SystemTime",
];

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else {
            found.push(path);
        }
    }
    found
}

#[test]
fn the_pure_parts_name_no_way_to_the_outside() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files: Vec<PathBuf> = PURE.iter().flat_map(|directory| sources(&root.join(directory))).collect();
    assert!(files.len() >= 20, "{files:?}");
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for word in OUTSIDE {
            assert!(!text.contains(word), "{} names {word}", file.display());
        }
    }
}
