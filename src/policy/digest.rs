//! The digest by which a policy is named in status, annotations and audit records.
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::api::v1alpha1::{EgressRule, Network, NetworkLimits};

/// Everything of a policy that decides.
#[derive(Debug, Serialize)]
struct Deciding<'a> {
    egress: &'a [EgressRule],
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<&'a NetworkLimits>,
}

/// `sha256:` and the hexadecimal SHA-256 of what decides (rules and limits) in its canonical form
/// ([RFC 8785](https://www.rfc-editor.org/rfc/rfc8785)). No `network` and an empty one are the same policy.
pub fn digest(network: Option<&Network>) -> String {
    let deciding = Deciding {
        egress: network.map_or(&[], |n| n.egress.as_slice()),
        limits: network.and_then(|n| n.limits.as_ref()).filter(|l| **l != NetworkLimits::default()),
    };
    // Strings, integers and booleans only, so that neither form can fail; plain JSON still tells two policies apart.
    let canonical = serde_json_canonicalizer::to_vec(&deciding)
        .or_else(|_| serde_json::to_vec(&deciding))
        .unwrap_or_else(|_| format!("{deciding:?}").into_bytes());
    format!("sha256:{}", hex(&Sha256::digest(&canonical)))
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String never fails.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(network: &Value) -> String {
        digest(Some(&serde_json::from_value(network.clone()).unwrap()))
    }

    #[test]
    fn none_and_empty_are_one_policy() {
        assert_eq!(digest(None), digest(Some(&Network::default())));
        assert_eq!(digest(None), of(&json!({"limits": {}, "proxyEnvironment": true})));
        // printf '{"egress":[]}' | sha256sum
        assert_eq!(digest(None), "sha256:79234252c41c68841d64e022bf76921e2903878f57e3f467aee4c3d9bb403c68");
    }

    #[test]
    fn every_part_that_decides_counts() {
        let rule = |rule: Value| of(&json!({"egress": [rule]}));
        let all = [
            digest(None),
            rule(json!({"cidr": "198.51.100.0/24", "ports": [443]})),
            rule(json!({"cidr": "198.51.100.0/25", "ports": [443]})),
            rule(json!({"cidr": "198.51.100.0/24", "ports": [444]})),
            rule(json!({"cidr": "198.51.100.0/24", "ports": [443], "protocol": "UDP"})),
            rule(json!({"service": {"name": "a"}, "ports": [443]})),
            rule(json!({"host": "a.example", "ports": [443]})),
            rule(json!({"host": "*.example", "ports": [443]})),
            rule(json!({"host": "a.example", "ports": [443], "protocol": "TCP"})),
            rule(json!({"host": "a.example", "ports": [443], "http": {}})),
            rule(json!({"host": "a.example", "ports": [443], "http": {"methods": ["GET"]}})),
            rule(json!({"host": "a.example", "ports": [443], "http": {"pathPrefixes": ["/a"]}})),
            rule(json!({"host": "a.example", "ports": [443], "tls": {}})),
            rule(json!({"host": "a.example", "ports": [443], "tls": {"allowEncryptedClientHello": true}})),
            of(&json!({"limits": {"egressBytes": "1Mi"}})),
            of(&json!({"limits": {"egressBytes": "2Mi"}})),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(!all[at + 1..].contains(one), "{at}");
        }
    }

    /// Whoever reads the object from the API server, by whichever type, computes the same.
    #[test]
    fn it_survives_the_way_through_json() {
        let network = json!({"egress": [
            {"host": "a.example", "ports": [443], "tls": {}},
            {"cidr": "198.51.100.0/24", "ports": [5432, 1]},
        ], "limits": {"egressBytes": "1Gi"}, "proxyEnvironment": false});
        let typed: Network = serde_json::from_value(network).unwrap();
        assert_eq!(of(&serde_json::to_value(&typed).unwrap()), digest(Some(&typed)));
    }
}
