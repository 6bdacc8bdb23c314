//! Prefixes of HTTP paths.
use std::fmt;

/// Longest prefix, in bytes.
pub(super) const MAX_PREFIX: usize = 256;
/// Times that a server may decode a path before this gives up on it.
const MAX_DECODINGS: usize = 3;

/// A prefix of paths, by whole segments: `/v1` means `/v1`, `/v1/` and `/v1/models`, not `/v10`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPrefix(String);

impl PathPrefix {
    /// Reads a prefix as a rule has it; nothing where it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let fine = text.starts_with('/')
            && text.len() <= MAX_PREFIX
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._~!$&*+,;=:@%/-".contains(&b))
            && !text.contains("//")
            && unambiguous(text.as_bytes());
        fine.then(|| Self(text.trim_end_matches('/').to_owned()))
    }

    /// Whether `target`, the path of a request with or without its query, lies under the prefix for every server.
    /// Where servers differ (`..`, also encoded or with parameters, encoded slashes, backslashes) it does not.
    pub fn covers(&self, target: &str) -> bool {
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        // Compared as it was written: an encoded form of an allowed path is refused, which harms nobody.
        let below = path.strip_prefix(self.0.as_str());
        below.is_some_and(|rest| (rest.is_empty() && !path.is_empty()) || rest.starts_with('/'))
            && !path.contains([' ', '#'])
            && unambiguous(path.as_bytes())
    }
}

impl fmt::Display for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "/" } else { &self.0 })
    }
}

/// Whether every server takes `path` for the same segments, however often it decodes it.
fn unambiguous(path: &[u8]) -> bool {
    let slashes = |bytes: &[u8]| bytes.split(|byte| *byte == b'/').count();
    let mut path = path.to_vec();
    for _ in 0..MAX_DECODINGS {
        let plain = |byte: &u8| !byte.is_ascii_control() && *byte != b'\\';
        if !path.iter().all(plain) || path.split(|byte| *byte == b'/').any(is_dots) {
            return false;
        }
        let Some(decoded) = decode(&path) else { return true };
        if slashes(&decoded) != slashes(&path) {
            return false;
        }
        path = decoded;
    }
    false
}

/// `.` and `..`, also with parameters or, decoded, a query behind (`..;a=b`), which some servers cut off.
fn is_dots(segment: &[u8]) -> bool {
    let name = segment.split(|byte| b";?#".contains(byte)).next().unwrap_or_default();
    matches!(name, b"." | b"..")
}

/// `path` with one layer of `%xx` taken off; nothing where there is none. A `%` without two digits stays.
fn decode(path: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut decoded = Vec::with_capacity(path.len());
    let mut changed = false;
    let mut rest = path;
    while let [first, tail @ ..] = rest {
        let (byte, next) = match rest {
            [b'%', high, low, next @ ..] => match digit(*high).zip(digit(*low)) {
                Some((high, low)) => {
                    changed = true;
                    (high * 16 + low, next)
                }
                None => (b'%', tail),
            },
            _ => (*first, tail),
        };
        decoded.push(byte);
        rest = next;
    }
    changed.then_some(decoded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn prefixes_are_of_whole_segments() {
        for (prefix, yes, no) in [
            (
                "/v1",
                &[
                    "/v1",
                    "/v1/",
                    "/v1/models",
                    "/v1?a=/../b",
                    "/v1/a%20b",
                    "/v1/%C3%BC",
                    "/v1//a",
                    "/v1/a..b",
                ][..],
                &["/", "", "/v10", "/v", "/V1", "v1", "*", "/v1%2fa", "//v1"][..],
            ),
            ("/v1/", &["/v1", "/v1/a"], &["/v10"]),
            ("/", &["/", "/a", "/a/b?c"], &["", "*", "a", "http://a/b"]),
            ("/a%20b", &["/a%20b/c"], &["/a b/c", "/a"]),
        ] {
            let prefix = PathPrefix::parse(prefix).unwrap();
            for path in yes {
                assert!(prefix.covers(path), "{prefix} {path}");
            }
            for path in no {
                assert!(!prefix.covers(path), "{prefix} {path}");
            }
        }
    }

    #[test]
    fn what_servers_read_differently_lies_nowhere() {
        let prefix = PathPrefix::parse("/public").unwrap();
        for path in [
            "/public/../secret",
            "/public/..",
            "/public/./a",
            "/public/%2e%2e/secret",
            "/public/.%2E/secret",
            "/public/%252e%252e/secret",
            "/public/%25252e%25252e/secret",
            "/public/%2525252525252e",
            "/public/..;/secret",
            "/public/..;a=b/secret",
            "/public/%2e%2e%3b/secret",
            "/public/..%3fa",
            "/public/..%2fsecret",
            "/public/a%2fb",
            "/public/a%252fb",
            "/public/..\\secret",
            "/public/a%5cb",
            "/public/a\0",
            "/public/a%00",
            "/public/a#/../b",
            "/public/a b",
            "/public/a%0d%0a",
        ] {
            assert!(!prefix.covers(path), "{path}");
        }
    }

    #[test]
    fn what_is_no_prefix_is_refused() {
        for text in [
            "", "v1", "/a//b", "/..", "/a/../b", "/a?b", "/a#b", "/a b", "/%2e%2e", "/a%2fb", "/ü", "*",
            "/a\\b",
        ] {
            assert_eq!(PathPrefix::parse(text), None, "{text}");
        }
        assert_eq!(PathPrefix::parse(&format!("/{}", "a".repeat(256))), None);
    }

    /// What a server does that decodes `times` times and then resolves dot segments.
    fn resolved(path: &str, times: usize) -> Vec<Vec<u8>> {
        let mut path = path.as_bytes().to_vec();
        for _ in 0..times {
            path = decode(&path).unwrap_or(path);
        }
        let mut kept: Vec<Vec<u8>> = Vec::new();
        for segment in path.split(|b| matches!(b, b'/' | b'\\')) {
            match segment.split(|b| *b == b';').next().unwrap() {
                b"." | b"" => {}
                b".." => drop(kept.pop()),
                _ => kept.push(segment.to_vec()),
            }
        }
        kept
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2048, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_server_leaves_the_prefix(rest in "(/|[.]{1,2}|%2[eEfF]|%252[eEfF]|%5[cC]|\\\\|;|a|%|%25|\\?){0,12}") {
            let path = format!("/p/q{rest}");
            if PathPrefix::parse("/p/q").unwrap().covers(&path) {
                let path = path.split('?').next().unwrap();
                for times in 0..4 {
                    prop_assert_eq!(&resolved(path, times)[..2], &[b"p".to_vec(), b"q".to_vec()], "{} {}", path, times);
                }
            }
        }
    }
}
