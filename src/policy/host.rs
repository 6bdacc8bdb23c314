//! The one form of a host name.
use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Longest name, in bytes, without a trailing dot (RFC 1035, 2.3.4).
const MAX_NAME: usize = 253;
/// Longest label, in bytes.
const MAX_LABEL: usize = 63;

/// A host name in its canonical form: lower-case letters, digits, hyphens and underscores in labels of at most 63
/// bytes, at most 253 bytes in all, no trailing dot, and nothing that any parser takes for an address.
///
/// DNS questions, TLS server names, Host headers, CONNECT and SOCKS5 targets all become this type before anything is
/// decided, and what is resolved is the text of this type: no two parts can read one name in two ways.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Arc<str>);

/// Why a text is not a host name. Says nothing of the text itself, so that it may be shown anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostNameError {
    /// No text, or the root alone.
    #[error("an empty host name")]
    Empty,
    /// More than 253 bytes.
    #[error("a host name longer than {MAX_NAME} characters")]
    TooLong,
    /// Two dots in a row, or a dot at the start.
    #[error("an empty label; write one dot between labels and none before them")]
    EmptyLabel,
    /// More than 63 bytes between two dots.
    #[error("a label longer than {MAX_LABEL} characters")]
    LabelTooLong,
    /// A hyphen at the start or the end of a label.
    #[error("a label that starts or ends with a hyphen")]
    Hyphen,
    /// A character beyond ASCII.
    #[error("a character that is not ASCII; write the name in punycode, such as xn--bcher-kva.example")]
    NotAscii,
    /// Any other character that no host name has.
    #[error("the byte 0x{0:02x}; a host name has letters, digits, hyphens, underscores and dots only")]
    Character(u8),
    /// A last label that makes it an address to some parser: decimal, octal, hexadecimal.
    #[error("an address or what some programs take for one; host names end in a label that is no number")]
    Address,
}

impl HostName {
    /// Reads a name: in any letter case, and with at most one trailing dot.
    ///
    /// # Errors
    /// [`HostNameError`] for everything else; nothing is ever left out, decoded or guessed.
    pub fn parse(text: &str) -> Result<Self, HostNameError> {
        Self::from_bytes(text.as_bytes())
    }

    /// Reads a name from bytes as they came from the network. See [`HostName::parse`].
    ///
    /// # Errors
    /// [`HostNameError`] for everything that is not a name.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, HostNameError> {
        let bytes = bytes.strip_suffix(b".").unwrap_or(bytes);
        if bytes.is_empty() {
            return Err(HostNameError::Empty);
        }
        // Before the length: of a name in another script, what to do about it is more use than its size.
        let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        match bytes.iter().copied().find(|byte| !known(*byte)) {
            Some(byte) if !byte.is_ascii() => return Err(HostNameError::NotAscii),
            Some(byte) => return Err(HostNameError::Character(byte)),
            None => {}
        }
        if bytes.len() > MAX_NAME {
            return Err(HostNameError::TooLong);
        }
        bytes.split(|byte| *byte == b'.').try_for_each(label)?;
        let name: String = bytes.iter().map(|byte| char::from(byte.to_ascii_lowercase())).collect();
        // The rule of the WHATWG's URL standard ("ends in a number"), so that `127.1`, `2130706433`, `0x7f.1` and
        // `0177.0.0.1` are no names; the standard needs digits after `0x`, and no domain is called so anyhow.
        let last = name.rsplit('.').next().unwrap_or_default();
        if last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x") {
            return Err(HostNameError::Address);
        }
        Ok(Self(name.into()))
    }

    /// The canonical form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn label(label: &[u8]) -> Result<(), HostNameError> {
    match label {
        [] => Err(HostNameError::EmptyLabel),
        [b'-', ..] | [.., b'-'] => Err(HostNameError::Hyphen),
        _ if label.len() > MAX_LABEL => Err(HostNameError::LabelTooLong),
        _ => Ok(()),
    }
}

impl FromStr for HostName {
    type Err = HostNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AsRef<str> for HostName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Serialize for HostName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for HostName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use hickory_proto::rr::Name;
    use proptest::{collection, prelude::*};

    use super::*;

    /// Canonical text of a name, one to five labels.
    pub(crate) fn any_host() -> impl Strategy<Value = String> {
        let label = "[a-z0-9_]([a-z0-9_-]{0,10}[a-z0-9_])?";
        (collection::vec(label, 0..4), "[a-z_]([a-z0-9_-]{0,10}[a-z0-9_])?").prop_map(|(mut labels, last)| {
            labels.push(last);
            labels.join(".")
        })
    }

    #[test]
    fn names_become_canonical() {
        for (text, canonical) in [
            ("api.example", "api.example"),
            ("API.Example.", "api.example"),
            ("localhost", "localhost"),
            ("_dmarc.example", "_dmarc.example"),
            ("a--b.example", "a--b.example"),
            ("xn--BCHER-kva.example", "xn--bcher-kva.example"),
            ("1.2.3.4.in-addr.arpa", "1.2.3.4.in-addr.arpa"),
            ("3com.example", "3com.example"),
            ("example.0b1", "example.0b1"),
            ("dead.beef", "dead.beef"),
        ] {
            assert_eq!(HostName::parse(text).unwrap().as_str(), canonical, "{text}");
        }
    }

    #[test]
    fn nasty_names_are_refused() {
        use HostNameError::{Address, Character, Empty, EmptyLabel, Hyphen, LabelTooLong, NotAscii, TooLong};
        let long_label = format!("{}.example", "a".repeat(64));
        let of_254 = format!("{}bc", "a.".repeat(126));
        assert_eq!(of_254.len(), 254);
        for (text, error) in [
            ("", Empty),
            (".", Empty),
            ("..", EmptyLabel),
            ("a..example", EmptyLabel),
            (".example", EmptyLabel),
            ("example..", EmptyLabel),
            ("evil.example\0.api.example", Character(0)),
            ("api.example\0", Character(0)),
            ("api.example%00", Character(b'%')),
            ("api%2eexample", Character(b'%')),
            ("user@api.example", Character(b'@')),
            ("api.example:443", Character(b':')),
            ("api.example/", Character(b'/')),
            ("api.example#.evil.example", Character(b'#')),
            ("api.example?", Character(b'?')),
            ("api.example\\.evil.example", Character(b'\\')),
            (" api.example", Character(b' ')),
            ("api.example ", Character(b' ')),
            ("api.example\t", Character(b'\t')),
            ("api.example\r\nHost: evil.example", Character(b'\r')),
            ("*.example", Character(b'*')),
            ("a,b.example", Character(b',')),
            ("bücher.example", NotAscii),
            // Cyrillic a, a soft hyphen, a zero-width joiner, full-width digits, an ideographic full stop.
            ("\u{430}pi.example", NotAscii),
            ("a\u{ad}pi.example", NotAscii),
            ("a\u{200d}pi.example", NotAscii),
            ("\u{ff11}\u{ff12}\u{ff17}.0.0.1", NotAscii),
            ("127\u{3002}0\u{3002}0\u{3002}1", NotAscii),
            ("api\u{ff0e}example", NotAscii),
            ("127.0.0.1", Address),
            ("127.0.0.1.", Address),
            ("127.1", Address),
            ("2130706433", Address),
            ("0x7f000001", Address),
            ("0x7f.1", Address),
            ("0X7F.0x1", Address),
            ("0x", Address),
            ("0177.0.0.01", Address),
            ("017700000001", Address),
            ("1.2.3.4.5", Address),
            ("example.1", Address),
            ("[::1]", Character(b'[')),
            ("::1", Character(b':')),
            ("::ffff:127.0.0.1", Character(b':')),
            ("fe80::1%eth0", Character(b':')),
            ("-api.example", Hyphen),
            ("api-.example", Hyphen),
            ("api.-", Hyphen),
            (long_label.as_str(), LabelTooLong),
            (of_254.as_str(), TooLong),
        ] {
            assert_eq!(HostName::parse(text), Err(error), "{text:?}");
            assert_eq!(text.parse::<HostName>(), Err(error), "{text:?}");
        }
    }

    #[test]
    fn the_longest_names_pass() {
        let label = "a".repeat(63);
        let name = format!("{label}.{label}.{label}.{}", "a".repeat(61));
        assert_eq!(name.len(), 253);
        assert!(HostName::parse(&name).is_ok());
        assert!(HostName::parse(&format!("{name}.")).is_ok());
        assert_eq!(HostName::parse(&format!("{name}a")), Err(HostNameError::TooLong));
    }

    #[test]
    fn invalid_text_is_never_repaired() {
        assert_eq!(HostName::from_bytes(b"api\xff.example"), Err(HostNameError::NotAscii));
        assert!(serde_json::from_str::<HostName>("\"a b\"").is_err());
        assert_eq!(serde_json::to_string(&HostName::parse("A.b").unwrap()).unwrap(), "\"a.b\"");
    }

    /// Whether `inet_aton` of any C library takes `text` for an address: one to four numbers in any base.
    fn is_address_to_c(text: &str) -> bool {
        let number = |part: &str| {
            let lower = part.to_ascii_lowercase();
            let hex = lower.strip_prefix("0x").map(|h| h.bytes().all(|b| b.is_ascii_hexdigit()));
            !part.is_empty() && hex.unwrap_or_else(|| lower.bytes().all(|b| b.is_ascii_digit()))
        };
        let parts: Vec<_> = text.split('.').collect();
        parts.len() <= 4 && parts.into_iter().all(number)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn one_name_has_one_form(host in any_host(), upper in any::<u64>(), dot in any::<bool>()) {
            let name = HostName::parse(&host).unwrap();
            prop_assert_eq!(name.as_str(), &host);
            let mixed: String = host.chars().enumerate()
                .map(|(at, c)| if upper >> (at % 64) & 1 == 1 { c.to_ascii_uppercase() } else { c })
                .chain(dot.then_some('.'))
                .collect();
            prop_assert_eq!(HostName::parse(&mixed).unwrap(), name);
        }

        /// Whatever passes, from any bytes, is what the resolver asks for: letter by letter.
        #[test]
        fn what_is_checked_is_what_is_resolved(bytes in prop_oneof![
            collection::vec(any::<u8>(), 0..40),
            "[a-zA-Z0-9_.-]{1,40}".prop_map(String::into_bytes),
            "[0-9a-fxX]{1,6}([.][0-9a-fxX]{1,6}){0,4}[.]?".prop_map(String::into_bytes),
            "\\PC{0,20}".prop_map(String::into_bytes),
        ]) {
            let Ok(name) = HostName::from_bytes(&bytes) else { return Ok(()) };
            let text = name.as_str();
            prop_assert!(text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.')), "{}", text);
            prop_assert!((1..=253).contains(&text.len()));
            prop_assert!(text.split('.').all(|l| (1..=63).contains(&l.len())));
            prop_assert_eq!(HostName::parse(text).unwrap(), name.clone());
            prop_assert_eq!(name.to_string(), text);
            let same = String::from_utf8(bytes).unwrap().to_lowercase();
            prop_assert_eq!(same.strip_suffix('.').unwrap_or(&same), text);
            prop_assert!(text.parse::<std::net::IpAddr>().is_err());
            prop_assert!(!is_address_to_c(text), "{}", text);
            let asked = Name::from_ascii(format!("{text}.")).unwrap();
            prop_assert_eq!(asked.to_ascii(), format!("{text}."));
            let labels: Vec<Vec<u8>> = asked.iter().map(<[u8]>::to_vec).collect();
            prop_assert_eq!(labels, text.split('.').map(|l| l.as_bytes().to_vec()).collect::<Vec<_>>());
        }
    }
}
