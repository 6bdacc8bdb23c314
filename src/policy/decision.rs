//! Decisions and their reasons.
use std::fmt;

use super::{HostName, no_help};

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppProtocol {
    /// A TLS `ClientHello`, whose server name can be checked.
    Tls,
    /// An HTTP/1 request, whose host can be checked.
    Http,
    /// Anything else, or nothing while the server is waited for.
    Other,
}

/// Yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// May go on.
    Allow,
    /// Is refused.
    Deny,
}

/// Why something is allowed or refused. The word is part of the interface: audit records, refusals and metrics have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A rule allows it.
    AllowedByRule,
    /// No rule has a pattern that means the name.
    NoRule,
    /// A rule means the name, but lists other ports.
    PortNotAllowed,
    /// A rule has name and port, but takes another protocol.
    ProtocolNotAllowed,
    /// The TLS server name may be another one, encrypted (ECH), and the rule does not allow that.
    EchNotAllowed,
    /// A rule takes HTTP, but with other methods.
    MethodNotAllowed,
    /// A rule takes HTTP, but with other paths.
    PathNotAllowed,
    /// What was said inside the connection names another host than the connection was opened for.
    NameMismatch,
    /// What should be a host name is none.
    InvalidName,
    /// The first bytes or a request cannot be read in one way only.
    Malformed,
}

impl Reason {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AllowedByRule => "AllowedByRule",
            Self::NoRule => "NoRule",
            Self::PortNotAllowed => "PortNotAllowed",
            Self::ProtocolNotAllowed => "ProtocolNotAllowed",
            Self::EchNotAllowed => "EchNotAllowed",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::PathNotAllowed => "PathNotAllowed",
            Self::NameMismatch => "NameMismatch",
            Self::InvalidName => "InvalidName",
            Self::Malformed => "Malformed",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What was decided, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Yes or no.
    pub verdict: Verdict,
    /// Index in `spec.network.egress` of the first rule that allows it; of a refusal, of the rule that came nearest.
    pub rule: Option<usize>,
    /// Why.
    pub reason: Reason,
}

impl Decision {
    /// Allowed by the rule at this index.
    pub fn allow(rule: usize) -> Self {
        Self { verdict: Verdict::Allow, rule: Some(rule), reason: Reason::AllowedByRule }
    }

    /// A refusal for `reason`; `rule` is the one that came nearest.
    pub fn deny(reason: Reason, rule: Option<usize>) -> Self {
        Self { verdict: Verdict::Deny, rule, reason }
    }

    /// Whether it may go on.
    pub fn is_allowed(&self) -> bool {
        self.verdict == Verdict::Allow
    }

    /// For the agent and its owner: what was decided about `name` and `port`, and what to write where it was refused.
    pub fn message(&self, name: &HostName, port: u16) -> String {
        let rule = match self.rule {
            Some(index) => format!("spec.network.egress[{index}]"),
            None => "spec.network.egress".to_owned(),
        };
        match self.reason {
            Reason::AllowedByRule => format!("{rule} allows {name}:{port}"),
            Reason::NoRule => match no_help(name) {
                Some(why) => {
                    format!("no rule of this sandbox names {name}, and a host rule would not help: it {why}")
                }
                None => format!(
                    "no rule of this sandbox names {name}; to allow it, its owner adds {{host: {name}, ports: [{port}]}} to {rule}"
                ),
            },
            Reason::PortNotAllowed => format!(
                "{rule} names {name}, but not its port {port}; to allow it, the sandbox's owner adds {port} to the ports of the rule"
            ),
            Reason::ProtocolNotAllowed => format!(
                "{rule} does not take this protocol on {name}:{port}: with http a rule takes plain HTTP only, with tls TLS only, without both and without protocol either of the two, and with `protocol: TCP` anything"
            ),
            Reason::EchNotAllowed => format!(
                "the TLS hello to {name}:{port} may carry another, encrypted server name (ECH), which {rule} does not allow; turn it off in the client, or the sandbox's owner writes tls: {{allowEncryptedClientHello: true}}"
            ),
            Reason::MethodNotAllowed => {
                format!("{rule} allows plain HTTP to {name}:{port} with the methods in http.methods only")
            }
            Reason::PathNotAllowed => {
                format!("{rule} allows plain HTTP to {name}:{port} under the paths in http.pathPrefixes only")
            }
            Reason::NameMismatch => format!(
                "the connection was opened for {name}:{port}, and what was sent on it names another host"
            ),
            Reason::InvalidName => "this is not a host name".to_owned(),
            Reason::Malformed => {
                format!("what was sent to {name}:{port} is neither a TLS hello nor strict HTTP/1.1")
            }
        }
    }
}
