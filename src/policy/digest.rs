//! The digest by which a policy is named in status, annotations and audit records.
use sha2::{Digest, Sha256};

use crate::api::v1alpha1::Network;

/// `sha256:` and the hexadecimal SHA-256 of the egress rules in their canonical form
/// ([RFC 8785](https://www.rfc-editor.org/rfc/rfc8785)). No `network` and an empty one are the same policy.
pub fn digest(network: Option<&Network>) -> String {
    let rules = network.map_or(&[][..], |n| n.egress.as_slice());
    // Strings and integers only, so that neither form can fail; plain JSON still tells two policies apart.
    let canonical = serde_json_canonicalizer::to_vec(&rules)
        .or_else(|_| serde_json::to_vec(&rules))
        .unwrap_or_else(|_| format!("{rules:?}").into_bytes());
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
    use super::*;
    use crate::api::v1alpha1::EgressRule;

    #[test]
    fn none_and_empty_are_one_policy() {
        assert_eq!(digest(None), digest(Some(&Network::default())));
        // printf '[]' | sha256sum
        assert_eq!(digest(None), "sha256:4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945");
    }

    #[test]
    fn every_part_of_a_rule_counts() {
        let rule =
            EgressRule { cidr: Some("198.51.100.0/24".into()), ports: vec![443], ..EgressRule::default() };
        let of = |r: &EgressRule| digest(Some(&Network { egress: vec![r.clone()], ..Network::default() }));
        assert_ne!(of(&rule), of(&EgressRule { ports: vec![444], ..rule.clone() }));
        assert_ne!(of(&rule), of(&EgressRule { cidr: Some("198.51.100.0/25".into()), ..rule.clone() }));
        assert_eq!(of(&rule), of(&rule.clone()));
    }
}
