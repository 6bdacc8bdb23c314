//! Rules for host names, checked.
use super::{HostName, HostPattern, PathPrefix, wrong_host::wrong_host};
use crate::api::v1alpha1::{EgressRule, HttpRule, NetworkLimits, Protocol, bytes_of, wrong_bytes};

/// Least of `limits.egressBytes`: less would not carry a TLS handshake.
const LEAST_BYTES: i64 = 1 << 10;

/// Why an object has no effective policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct PolicyError {
    /// Path of the field, such as `spec.network.egress[0].host`.
    pub field: String,
    /// What is wrong and what to write instead; text of the user's is cut and escaped.
    pub message: String,
}

/// A rule for host names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRule {
    /// Its index in `spec.network.egress`.
    pub index: usize,
    /// Which names.
    pub pattern: HostPattern,
    /// Which ports, 1 to 65535; never empty.
    pub ports: Vec<u16>,
    /// What may be said on them.
    pub accepted: Accepted,
}

/// What a rule takes on its ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    /// Any bytes (`protocol: TCP`): nothing is looked at.
    Anything,
    /// TLS and plain HTTP, told apart by the first bytes.
    TlsAndHttp,
    /// TLS only.
    Tls {
        /// Whether the server name may be encrypted.
        ech: bool,
    },
    /// Plain HTTP only.
    Http {
        /// Methods; empty means every method.
        methods: Vec<String>,
        /// Prefixes of the path; empty means every path.
        paths: Vec<PathPrefix>,
    },
}

impl HostRule {
    /// The rule at `index`; nothing where it is not for host names.
    ///
    /// # Errors
    /// [`PolicyError`] at the first field that contradicts the schema.
    pub fn parse(index: usize, rule: &EgressRule) -> Result<Option<Self>, PolicyError> {
        let fail = |field: &str, message: String| {
            let dot = if field.is_empty() { "" } else { "." };
            PolicyError { field: format!("spec.network.egress[{index}]{dot}{field}"), message }
        };
        let ends = [rule.host.is_some(), rule.cidr.is_some(), rule.service.is_some()];
        let way_out = match ends.iter().filter(|written| **written).count() {
            1 => None,
            2 => Some("; make two rules of it"),
            3 => Some("; make three rules of it"),
            _ => Some(""),
        };
        if let Some(way_out) = way_out {
            let message = format!("an egress rule needs exactly one of host, cidr and service{way_out}");
            return Err(fail("", message));
        }
        let Some(host) = &rule.host else {
            return match (&rule.http, &rule.tls) {
                (None, None) => Ok(None),
                _ => {
                    Err(fail("", "http and tls are for host rules; leave them out, or write host".to_owned()))
                }
            };
        };
        let pattern = host.parse().map_err(|error| fail("host", wrong_host(host, error)))?;
        let ports: Vec<u16> = rule.ports.iter().filter_map(|p| u16::try_from(*p).ok()).collect();
        if !(1..=16).contains(&rule.ports.len()) || ports.len() != rule.ports.len() || ports.contains(&0) {
            return Err(fail("ports", "must be 1 to 16 ports from 1 to 65535, such as [443]".to_owned()));
        }
        let accepted = match (rule.protocol, &rule.http, &rule.tls) {
            (Some(Protocol::UDP), ..) => {
                let message = "a host rule takes no UDP; leave protocol out for TLS and HTTP, write TCP for any other protocol, or write cidr";
                return Err(fail("protocol", message.to_owned()));
            }
            (Some(Protocol::TCP), None, None) => Accepted::Anything,
            (Some(Protocol::TCP), ..) => {
                let message = "protocol TCP takes anything; leave it out, or leave http and tls out";
                return Err(fail("protocol", message.to_owned()));
            }
            (None, Some(_), Some(_)) => {
                let message = "http is for plain HTTP and tls for TLS; write two rules, one with each";
                return Err(fail("", message.to_owned()));
            }
            (None, Some(http), None) => {
                accepted_http(http).map_err(|(field, message)| fail(field, message))?
            }
            (None, None, Some(tls)) => Accepted::Tls { ech: tls.allow_encrypted_client_hello },
            (None, None, None) => Accepted::TlsAndHttp,
        };
        Ok(Some(Self { index, pattern, ports, accepted }))
    }

    /// Whether the rule has the name.
    pub fn names(&self, name: &HostName) -> bool {
        self.pattern.matches(name)
    }

    /// Whether the rule has the port.
    pub fn has_port(&self, port: u16) -> bool {
        self.ports.contains(&port)
    }
}

fn accepted_http(http: &HttpRule) -> Result<Accepted, (&'static str, String)> {
    let HttpRule { methods, path_prefixes } = http;
    let plain = |method: &String| {
        (1..=32).contains(&method.len()) && method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-')
    };
    if methods.len() > 16 || !methods.iter().all(plain) {
        return Err((
            "http.methods",
            "must be at most 16 methods in upper case, such as [GET, HEAD]".to_owned(),
        ));
    }
    let paths: Option<Vec<_>> = path_prefixes.iter().map(|text| PathPrefix::parse(text)).collect();
    match paths {
        Some(paths) if paths.len() <= 16 => Ok(Accepted::Http { methods: methods.clone(), paths }),
        _ => Err((
            "http.pathPrefixes",
            "must be at most 16 paths that start with / and have no doubled slash, no . or .. and no encoded slash, such as /v1/models"
                .to_owned(),
        )),
    }
}

/// The bytes of `limits`, where there are any.
///
/// # Errors
/// [`PolicyError`] when they are not a quantity of at least 1Ki.
pub fn bytes_of_limits(limits: Option<&NetworkLimits>) -> Result<Option<i64>, PolicyError> {
    let Some(text) = limits.and_then(|limits| limits.egress_bytes.as_deref()) else { return Ok(None) };
    match bytes_of(text) {
        Ok(bytes) if bytes >= LEAST_BYTES => Ok(Some(bytes)),
        _ => Err(PolicyError {
            field: "spec.network.limits.egressBytes".to_owned(),
            message: wrong_bytes(text, "at least 1Ki", "500Mi"),
        }),
    }
}
