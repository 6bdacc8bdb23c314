//! Names of the objects of one sandbox.
use sha2::{Digest, Sha256};

use crate::policy::digest::hex;

/// Characters of the sandbox's own name that an object's name keeps, for people.
const KEPT: usize = 28;

/// First 32 hexadecimal digits (128 bits) of SHA-256 over `namespace/name/uid`: what tells sandboxes apart. None of
/// the three may contain a slash, so no two sandboxes have one text.
pub fn hash(namespace: &str, name: &str, uid: &str) -> String {
    let mut text = hex(&Sha256::digest(format!("{namespace}/{name}/{uid}")));
    text.truncate(32);
    text
}

/// Name of the sandbox's Pod and `NetworkPolicy`: a DNS-1123 label of at most 61 characters.
pub fn object_name(name: &str, hash: &str) -> String {
    let kept: String = name
        .chars()
        .take(KEPT)
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' })
        .collect();
    match kept.trim_matches('-') {
        "" => format!("sandbox-{hash}"),
        kept => format!("{kept}-{hash}"),
    }
}

/// The hash in `object`, where that can be the name of a sandbox's Pod and `NetworkPolicy`: unlike a label nobody can take
/// it off.
pub fn hash_of(object: &str) -> Option<&str> {
    let (kept, hash) = object.rsplit_once('-')?;
    let is_hash = hash.len() == 32 && hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    (is_hash && is_label(kept) && kept.len() <= KEPT).then_some(hash)
}

/// Whether `text` is a DNS-1123 subdomain (RFC 1123): at most 253 characters of labels joined by dots.
pub fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(|label| !label.is_empty() && is_label_text(label))
}

/// Whether `text` is a DNS-1123 label: at most 63 lower-case letters, digits and inner hyphens.
pub fn is_label(text: &str) -> bool {
    !text.is_empty() && text.len() <= 63 && is_label_text(text)
}

fn is_label_text(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels_and_tell_sandboxes_apart() {
        let h = hash("team-a", "fix", "1");
        assert_eq!(h.len(), 32);
        assert_ne!(h, hash("team-a", "fix", "2"));
        assert_ne!(h, hash("team-b", "fix", "1"));
        for name in ["fix", "a.b.c", &"x".repeat(200), "123456789012345678901234567-tail", "..", ""] {
            let object = object_name(name, &h);
            assert!(is_label(&object) && object.len() <= 61, "{object}");
            assert_eq!(hash_of(&object), Some(h.as_str()), "{object}");
        }
        for other in [
            "a",
            &h,
            &format!("-{h}"),
            &format!("a-{h}-b"),
            &format!("a-{}", h.to_uppercase()),
            &format!("{}-{h}", "a".repeat(29)),
        ] {
            assert_eq!(hash_of(other), None, "{other}");
        }
        assert_eq!(object_name("a.b", &h), format!("a-b-{h}"));
    }

    #[test]
    fn subdomains_and_labels() {
        assert!(is_subdomain("a.b-c.d0") && is_label("a-0"));
        for bad in ["", "A", "-a", "a-", "a..b", "a_b", "ä"] {
            assert!(!is_subdomain(bad) && !is_label(bad), "{bad}");
        }
        assert!(!is_label("a.b") && !is_label(&"a".repeat(64)));
    }
}
