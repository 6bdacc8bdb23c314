//! Patterns of host names.
use std::{fmt, str::FromStr};

use super::{HostName, HostNameError};

/// Why a text is not a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostPatternError {
    /// A star that is not the whole of the first label.
    #[error("a * elsewhere than alone before the first dot")]
    Star,
    /// Any other character that no host name has; of ASCII.
    #[error("the character {0:?}")]
    Character(char),
    /// A dot at the end. A name from the network may have one; a rule is written in one way.
    #[error("a dot at the end")]
    TrailingDot,
    /// Stars or none, and then what is no name.
    #[error(transparent)]
    Name(HostNameError),
}

impl From<HostNameError> for HostPatternError {
    fn from(error: HostNameError) -> Self {
        match error {
            HostNameError::Character(b'*') => Self::Star,
            HostNameError::Character(byte) => Self::Character(char::from(byte)),
            other => Self::Name(other),
        }
    }
}

/// Which names a rule means. There is no pattern for every name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// `api.example`: this name.
    Exact(HostName),
    /// `*.example`: one more label before it, such as `a.example`; neither `example` nor `a.b.example`.
    OneLabel(HostName),
    /// `**.example`: one or more labels before it; not `example` itself.
    AnyDepth(HostName),
}

impl HostPattern {
    /// Whether the pattern means `name`.
    pub fn matches(&self, name: &HostName) -> bool {
        match self {
            Self::Exact(exact) => exact == name,
            Self::OneLabel(base) => before(name, base).is_some_and(|more| !more.contains('.')),
            Self::AnyDepth(base) => before(name, base).is_some(),
        }
    }

    /// The name without its stars.
    pub fn base(&self) -> &HostName {
        match self {
            Self::Exact(name) | Self::OneLabel(name) | Self::AnyDepth(name) => name,
        }
    }

    /// Whether it means every name under a suffix that anybody may register names under, such as `*.com`,
    /// `**.co.uk` or `*.github.io`. Allowed, but seldom meant. Source: <https://publicsuffix.org>.
    pub fn is_public_suffix(&self) -> bool {
        let base = match self {
            Self::Exact(_) => return false,
            Self::OneLabel(base) | Self::AnyDepth(base) => base.as_str().as_bytes(),
        };
        psl::suffix(base).is_some_and(|suffix| suffix.is_known() && suffix.as_bytes() == base)
    }
}

/// What stands before `.base` in `name`.
fn before<'a>(name: &'a HostName, base: &HostName) -> Option<&'a str> {
    // A name has no empty label, so that what is left is one label or more.
    name.as_str().strip_suffix(base.as_str())?.strip_suffix('.')
}

impl FromStr for HostPattern {
    type Err = HostPatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (form, base): (fn(HostName) -> Self, _) =
            match (text.strip_prefix("**."), text.strip_prefix("*.")) {
                (Some(base), _) => (Self::AnyDepth, base),
                (None, Some(base)) => (Self::OneLabel, base),
                (None, None) => (Self::Exact, text),
            };
        let pattern = HostName::parse(base).map(form)?;
        if base.ends_with('.') { Err(HostPatternError::TrailingDot) } else { Ok(pattern) }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stars = match self {
            Self::Exact(_) => "",
            Self::OneLabel(_) => "*.",
            Self::AnyDepth(_) => "**.",
        };
        write!(f, "{stars}{}", self.base())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::host::tests::any_host;

    fn matches(pattern: &str, name: &str) -> bool {
        pattern.parse::<HostPattern>().unwrap().matches(&name.parse().unwrap())
    }

    #[test]
    fn patterns_match_by_whole_labels() {
        for (pattern, yes, no) in [
            (
                "api.example",
                &["api.example", "API.EXAMPLE."][..],
                &["example", "a.api.example", "api.example.evil"][..],
            ),
            (
                "*.example",
                &["a.example", "xn--a.example"],
                &["example", "a.b.example", "aexample", "a.example.evil"],
            ),
            (
                "**.example",
                &["a.example", "a.b.example", "a.b.c.example"],
                &["example", "notexample", "a.notexample"],
            ),
            ("*.a.example", &["b.a.example"], &["b.example", "a.example", "ba.example"]),
            ("*.Example", &["a.example", "a.example."], &["example"]),
        ] {
            for name in yes {
                assert!(matches(pattern, name), "{pattern} {name}");
            }
            for name in no {
                assert!(!matches(pattern, name), "{pattern} {name}");
            }
        }
    }

    #[test]
    fn stars_stand_for_labels_at_the_start_only() {
        for text in [
            "*",
            "**",
            "*.",
            "**.",
            "*.*",
            "***.example",
            "a.*",
            "a.*.example",
            "*a.example",
            "a*.example",
            "*..example",
            "*.*.example",
            "**.*.example",
            "*.**.example",
            "**",
            "",
            "*example",
            "*.127.0.0.1",
            "**.1",
            "*.0x7f",
        ] {
            assert!(text.parse::<HostPattern>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_apart() {
        use HostPatternError::{Character, Name, Star, TrailingDot};
        for (text, error) in [
            ("api.example.", TrailingDot),
            ("*.example.", TrailingDot),
            ("**.example.", TrailingDot),
            ("127.0.0.1.", Name(HostNameError::Address)),
            ("example..", Name(HostNameError::EmptyLabel)),
            ("*.", Name(HostNameError::Empty)),
            ("*..", Name(HostNameError::Empty)),
            ("*", Star),
            ("api*.example", Star),
            ("a.**.example.", Star),
            ("https://api.example", Character(':')),
            ("a\u{1b}.example", Character('\u{1b}')),
            ("*.b\u{fc}cher.example", Name(HostNameError::NotAscii)),
        ] {
            assert_eq!(text.parse::<HostPattern>(), Err(error), "{text}");
        }
    }

    #[test]
    fn public_suffixes_are_known() {
        for text in ["*.com", "**.co.uk", "*.github.io", "**.s3.amazonaws.com", "*.xn--p1ai", "**.dev"] {
            assert!(text.parse::<HostPattern>().unwrap().is_public_suffix(), "{text}");
        }
        for text in
            ["com", "github.io", "*.github.com", "**.amazonaws.com", "*.example", "*.packages.example"]
        {
            assert!(!text.parse::<HostPattern>().unwrap().is_public_suffix(), "{text}");
        }
    }

    /// The documentation, word by word, on lists of labels.
    fn naive(pattern: &str, name: &str) -> bool {
        let pattern: Vec<&str> = pattern.split('.').collect();
        let name: Vec<&str> = name.split('.').collect();
        match pattern[0] {
            "*" => name.len() == pattern.len() && name[1..] == pattern[1..],
            "**" => name.len() >= pattern.len() && name[name.len() - pattern.len() + 1..] == pattern[1..],
            _ => name == pattern,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_pattern_matches_as_its_words_say(
            base in "[ab]{1,2}([.][ab]{1,2}){0,2}",
            stars in prop_oneof![Just(""), Just("*."), Just("**.")],
            before in "([ab]{1,2}[.]){0,3}",
            other in "[ab]{1,2}([.][ab]{1,2}){0,4}",
        ) {
            let pattern = format!("{stars}{base}");
            for name in [format!("{before}{base}"), format!("{}{base}", before.replace('.', "")), other] {
                prop_assert_eq!(matches(&pattern, &name), naive(&pattern, &name), "{} {}", &pattern, &name);
            }
        }

        #[test]
        fn a_pattern_is_written_as_it_is_read(base in any_host(), stars in prop_oneof![Just(""), Just("*."), Just("**.")]) {
            let text = format!("{stars}{base}");
            let pattern: HostPattern = text.parse().unwrap();
            prop_assert_eq!(pattern.to_string(), text);
            prop_assert_eq!(pattern.base().as_str(), base);
        }
    }
}
