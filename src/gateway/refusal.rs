//! Why the gateway refuses, and how it says so to the agent.
use crate::egress::wire::Denial;
use crate::policy::{Decision, HostName, Reason};

/// Longest message of a refusal.
const MAX_MESSAGE: usize = 600;

/// Why something is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The policy does not allow it.
    Policy(Reason),
    /// The request to the gateway is not understood.
    BadRequest,
    /// It was not sent in time.
    TooSlow,
    /// No token, or one that is not of a living Pod of a sandbox.
    Unauthenticated,
    /// The token could not be checked: the API server is away, or too busy.
    Unverifiable,
    /// The sandbox's policy is not known or cannot be read.
    PolicyUnknown,
    /// The name has no address, or nobody answers for it.
    ResolutionFailed,
    /// The name's addresses are all of a kind that no rule opens.
    AddressRefused,
    /// No address of the name takes a connection.
    DialFailed,
    /// Too many connections at once or in too short a time.
    TooManyConnections,
    /// The sandbox has moved the bytes that it may.
    EgressBytesExceeded,
    /// This gateway has as many connections as it takes.
    Busy,
    /// This gateway is about to end.
    Draining,
}

impl Cause {
    /// One word of a fixed set.
    pub fn word(self) -> &'static str {
        match self {
            Self::Policy(reason) => reason.as_str(),
            Self::BadRequest => "BadRequest",
            Self::TooSlow => "TooSlow",
            Self::Unauthenticated | Self::Unverifiable => "Unauthenticated",
            Self::PolicyUnknown => "PolicyUnknown",
            Self::ResolutionFailed => "ResolutionFailed",
            Self::AddressRefused => "AddressRefused",
            Self::DialFailed => "DialFailed",
            Self::TooManyConnections => "TooManyConnections",
            Self::EgressBytesExceeded => "EgressBytesExceeded",
            Self::Busy => "GatewayBusy",
            Self::Draining => "Draining",
        }
    }

    /// Status of the answer. 503 means: another gateway, or this one later, may say otherwise.
    fn status(self) -> &'static str {
        match self {
            Self::Policy(_) | Self::AddressRefused | Self::EgressBytesExceeded => "403 Forbidden",
            Self::BadRequest => "400 Bad Request",
            Self::TooSlow => "408 Request Timeout",
            Self::Unauthenticated => "401 Unauthorized",
            Self::ResolutionFailed | Self::DialFailed => "502 Bad Gateway",
            Self::TooManyConnections => "429 Too Many Requests",
            Self::Unverifiable | Self::PolicyUnknown | Self::Busy | Self::Draining => {
                "503 Service Unavailable"
            }
        }
    }

    /// Whether the owner of the sandbox should hear of it: it is about what the agent wanted, and not about the state
    /// of things.
    pub fn is_denial(self) -> bool {
        matches!(
            self,
            Self::Policy(_) | Self::AddressRefused | Self::EgressBytesExceeded | Self::TooManyConnections
        )
    }

    /// Whether the connection was allowed and failed for other reasons.
    pub fn is_failure(self) -> bool {
        matches!(self, Self::ResolutionFailed | Self::DialFailed | Self::Busy | Self::Draining)
    }
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub cause: Cause,
    /// The rule that came nearest.
    pub rule: Option<usize>,
    /// For the agent and the record.
    pub message: String,
}

impl Refusal {
    /// A refusal with this message, cut where it is too long.
    pub fn new(cause: Cause, message: impl Into<String>) -> Self {
        let mut message: String = message.into();
        if message.len() > MAX_MESSAGE {
            let end = (0..=MAX_MESSAGE).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
            message.truncate(end);
        }
        Self { cause, rule: None, message }
    }

    /// The policy of the sandbox `who` does not allow it.
    pub fn by_policy(decision: &Decision, who: &str, name: &HostName, port: u16) -> Self {
        let message = format!("AgentSandbox {who}: {}", decision.message(name, port));
        Self { rule: decision.rule, ..Self::new(Cause::Policy(decision.reason), message) }
    }

    /// The answer, after which the connection is closed.
    pub fn response(&self) -> Vec<u8> {
        let body = Denial { reason: self.cause.word().to_owned(), message: self.message.clone() };
        let mut body = serde_json::to_vec(&body).unwrap_or_default();
        body.push(b'\n');
        let mut out = format!(
            "HTTP/1.1 {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            self.cause.status(),
            body.len()
        )
        .into_bytes();
        out.append(&mut body);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guide_has_every_word() {
        let guide = include_str!("../../docs/operations.md");
        let sources = [
            include_str!("refusal.rs"),
            include_str!("connection.rs"),
            include_str!("../policy/decision.rs"),
        ];
        let words: Vec<&str> = sources
            .iter()
            .flat_map(|source| source.lines())
            .filter_map(|line| line.trim().strip_suffix("\",")?.split_once("=> \""))
            .map(|(_, word)| word)
            .filter(|word| word.chars().all(char::is_alphanumeric))
            .collect();
        assert!(words.len() > 25, "{words:?}");
        for word in words {
            assert!(
                guide.contains(&format!("`{word}`")),
                "docs/operations.md does not say what `{word}` means"
            );
        }
    }

    #[test]
    fn a_refusal_names_the_host_and_says_how_to_ask() {
        let decision = Decision::deny(Reason::NoRule, None);
        let name = "evil.example".parse().unwrap();
        let text =
            String::from_utf8(Refusal::by_policy(&decision, "team-a/fix", &name, 443).response()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{head}");
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
        let denial: Denial = serde_json::from_str(body).unwrap();
        assert_eq!(denial.reason, "NoRule");
        assert!(denial.message.contains("{host: evil.example, ports: [443]}"), "{}", denial.message);
        assert!(denial.message.contains("team-a/fix"), "{}", denial.message);
    }

    #[test]
    fn messages_are_bounded() {
        assert!(Refusal::new(Cause::BadRequest, "\u{e4}".repeat(5000)).message.len() <= MAX_MESSAGE);
    }
}
