//! What one sandbox may reach by name.
use super::{
    Accepted, AppProtocol, Decision, HostName, HostRule, PolicyError, Reason, bytes_of_limits, digest,
};
use crate::{api::v1alpha1::Network, egress::wire::AllowedHost};

/// Most rules of a policy.
const MAX_RULES: usize = 256;

/// What one sandbox may reach by name. Rules for networks and Services are not part of it: a `NetworkPolicy` keeps them.
///
/// Rules only allow. What any rule allows is allowed, in whatever order they stand; what none allows is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectivePolicy {
    digest: String,
    rules: Vec<HostRule>,
    bytes: Option<i64>,
}

impl EffectivePolicy {
    /// The policy that `network` says.
    ///
    /// # Errors
    /// [`PolicyError`] when any rule contradicts the schema: then the sandbox has no policy, and reaches nothing.
    pub fn of(network: Option<&Network>) -> Result<Self, PolicyError> {
        let written = network.map_or(&[][..], |n| n.egress.as_slice());
        if written.len() > MAX_RULES {
            let message = format!("must be at most {MAX_RULES} rules");
            return Err(PolicyError { field: "spec.network.egress".to_owned(), message });
        }
        let rules = written.iter().enumerate().map(|(index, rule)| HostRule::parse(index, rule));
        Ok(Self {
            digest: digest(network),
            rules: rules.filter_map(Result::transpose).collect::<Result<_, _>>()?,
            bytes: bytes_of_limits(network.and_then(|n| n.limits.as_ref()))?,
        })
    }

    /// See [`digest()`].
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The rules for host names, in the order of the spec.
    pub fn rules(&self) -> &[HostRule] {
        &self.rules
    }

    /// Bytes that the sandbox may move by name in all, both ways.
    pub fn bytes(&self) -> Option<i64> {
        self.bytes
    }

    /// Every pattern with its ports, in the order of the rules.
    pub fn allowed_hosts(&self) -> Vec<AllowedHost> {
        let host = |r: &HostRule| AllowedHost { pattern: r.pattern.to_string(), ports: r.ports.clone() };
        self.rules.iter().map(host).collect()
    }

    /// Whether a connection to `name` and `port` may be opened at all.
    pub fn decide(&self, name: &HostName, port: u16) -> Decision {
        self.judge(name, port, |_| Ok(()))
    }

    /// Whether it may carry `protocol`. `ech`: the TLS hello offers an encrypted server name.
    ///
    /// Where [`AppProtocol::Other`] is allowed, anything is, and nothing has to be looked at: the server may be the one
    /// that speaks first.
    pub fn decide_protocol(&self, name: &HostName, port: u16, protocol: AppProtocol, ech: bool) -> Decision {
        self.judge(name, port, |accepted| match (accepted, protocol) {
            (Accepted::Anything, _) | (Accepted::TlsAndHttp | Accepted::Http { .. }, AppProtocol::Http) => {
                Ok(())
            }
            (Accepted::Tls { ech: false } | Accepted::TlsAndHttp, AppProtocol::Tls) if ech => {
                Err(Reason::EchNotAllowed)
            }
            (Accepted::Tls { .. } | Accepted::TlsAndHttp, AppProtocol::Tls) => Ok(()),
            _ => Err(Reason::ProtocolNotAllowed),
        })
    }

    /// Whether a plain HTTP request may be sent. `path` is the path of its target, with or without the query, as it was
    /// written: of an absolute form what stands behind the authority, and `/` where nothing does.
    pub fn decide_http(&self, name: &HostName, port: u16, method: &str, path: &str) -> Decision {
        self.judge(name, port, |accepted| match accepted {
            Accepted::Tls { .. } => Err(Reason::ProtocolNotAllowed),
            Accepted::Http { methods, .. } if !methods.is_empty() && methods.iter().all(|m| m != method) => {
                Err(Reason::MethodNotAllowed)
            }
            Accepted::Http { paths, .. } if !paths.is_empty() && !paths.iter().any(|p| p.covers(path)) => {
                Err(Reason::PathNotAllowed)
            }
            Accepted::Anything | Accepted::TlsAndHttp | Accepted::Http { .. } => Ok(()),
        })
    }

    /// Whether it depends on method or path if a request of plain HTTP may be sent to `name` at `port`.
    pub fn tells_requests_apart(&self, name: &HostName, port: u16) -> bool {
        let any = self.judge(name, port, |accepted| match accepted {
            Accepted::Anything | Accepted::TlsAndHttp => Ok(()),
            Accepted::Http { methods, paths } if methods.is_empty() && paths.is_empty() => Ok(()),
            Accepted::Http { .. } | Accepted::Tls { .. } => Err(Reason::MethodNotAllowed),
        });
        !any.is_allowed()
    }

    /// The first rule that has name and port and passes `check`; else the refusal of the rule that came nearest.
    fn judge(&self, name: &HostName, port: u16, check: impl Fn(&Accepted) -> Result<(), Reason>) -> Decision {
        let mut nearest = Decision::deny(Reason::NoRule, None);
        for rule in self.rules.iter().filter(|rule| rule.names(name)) {
            let reason = if rule.has_port(port) {
                match check(&rule.accepted) {
                    Ok(()) => return Decision::allow(rule.index),
                    Err(reason) => reason,
                }
            } else {
                Reason::PortNotAllowed
            };
            if nearness(reason) > nearness(nearest.reason) {
                nearest = Decision::deny(reason, Some(rule.index));
            }
        }
        nearest
    }
}

/// How much of what was asked a rule had that refused for `reason`.
fn nearness(reason: Reason) -> u8 {
    match reason {
        Reason::NoRule | Reason::InvalidName | Reason::Malformed | Reason::NameMismatch => 0,
        Reason::PortNotAllowed => 1,
        Reason::ProtocolNotAllowed => 2,
        Reason::EchNotAllowed | Reason::MethodNotAllowed => 3,
        Reason::PathNotAllowed | Reason::AllowedByRule => 4,
    }
}

#[cfg(test)]
mod tests;
