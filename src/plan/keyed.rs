//! What only the operator can derive: HMAC-SHA-256 (RFC 2104) under a key of its own. Who knows a sandbox's name and uid
//! cannot foretell it.
use ring::hmac::{HMAC_SHA256, Key, sign};

use crate::policy::digest::hex;

/// Names below the first in the path of [`directory`].
const PARTS: usize = 16;
/// Characters of each.
const PART: usize = 4;
/// First name in the path of [`directory`]. The image and the spec may know it: no mount may be in it.
const ROOT: &str = "/.agentsandbox";
/// Names that the path of a mount may have: fewer than [`directory`] has. Runtimes mount the deepest paths last, so
/// that nothing covers it.
pub const MOST_PARTS: usize = 12;

/// Directory in the agent's container that holds `sandbox-init`. Nobody can know it before the Pod exists: no image has
/// a link or a volume there. And it is deeper than any mount.
pub fn directory(key: &[u8; 32], uid: &str) -> String {
    let text = of(key, "directory", &[uid]);
    let parts = (0..PARTS).filter_map(|index| text.get(index * PART..(index + 1) * PART));
    std::iter::once(ROOT).chain(parts).collect::<Vec<_>>().join("/")
}

/// 64 hexadecimal digits for `parts`, of which none may contain NUL, and for the use `label`.
pub fn of(key: &[u8; 32], label: &str, parts: &[&str]) -> String {
    let mut text = label.to_owned();
    for part in parts {
        text.push('\0');
        text.push_str(part);
    }
    hex(sign(&Key::new(HMAC_SHA256, key), text.as_bytes()).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_deep_and_nobody_elses() {
        let one = directory(&[1; 32], "u");
        assert_eq!(one.len(), ROOT.len() + PARTS * (PART + 1));
        assert!(one.starts_with("/.agentsandbox/") && one.matches('/').count() > MOST_PARTS);
        assert_eq!(one, directory(&[1; 32], "u"));
        assert_ne!(one, directory(&[2; 32], "u"));
        assert_ne!(one, directory(&[1; 32], "v"));
    }

    #[test]
    fn uses_and_parts_are_told_apart() {
        let key = [7; 32];
        let all = [
            of(&key, "a", &["b"]),
            of(&key, "a", &["b", ""]),
            of(&key, "ab", &[]),
            of(&key, "a", &["", "b"]),
        ];
        for (index, one) in all.iter().enumerate() {
            assert_eq!(one.len(), 64);
            assert!(all.iter().skip(index + 1).all(|other| other != one));
        }
    }
}
