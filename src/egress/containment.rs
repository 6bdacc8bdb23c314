//! What the start gate measured: in the sidecar's termination message where it gave up, and in its record where it
//! passed.
use serde::{Deserialize, Serialize};

/// Exit code of a sidecar whose gate gave up. Its termination message is a [`NotContained`].
pub const NOT_CONTAINED_CODE: u8 = 78;

/// Longest `message`, in characters.
pub const MAX_MESSAGE: usize = 512;

/// Longest `detail` of a check, in characters.
pub const MAX_DETAIL: usize = 200;

/// Termination message of a sidecar whose gate gave up.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NotContained {
    /// What is not contained.
    pub cause: GateCause,
    /// What is wrong, for a person; at most [`MAX_MESSAGE`] characters.
    pub message: String,
    /// Every check of the last round.
    pub checks: Vec<GateCheck>,
}

/// Why the sidecar ended.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateCause {
    /// The Pod's network is not known to be closed.
    NotContained,
    /// Something else than `sandbox-init` is the first process of the agent's container.
    ForeignPeer,
}

/// One check of a round.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct GateCheck {
    /// What was looked at.
    pub name: CheckName,
    /// What was seen.
    pub result: CheckResult,
    /// Address and answer, for a person; at most [`MAX_DETAIL`] characters.
    pub detail: String,
}

/// What a round looks at.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckName {
    /// An endpoint of the operator that a gateway reached within the minute.
    Canary,
    /// The API server.
    ApiServer,
    /// The metadata service of the cloud.
    Metadata,
    /// The cluster's DNS server by TCP.
    ClusterDnsTcp,
    /// The cluster's DNS server by UDP.
    ClusterDnsUdp,
    /// The gateway: it took the token and named this sandbox's policy.
    Gateway,
}

/// What was seen.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckResult {
    /// It can be reached, and must not.
    Open,
    /// It cannot be reached.
    Closed,
    /// Nothing can be said.
    Inconclusive,
    /// The gateway confirmed the policy.
    Confirmed,
}

impl GateCheck {
    /// A check with its detail cut to [`MAX_DETAIL`].
    pub fn new(name: CheckName, result: CheckResult, detail: &str) -> Self {
        Self { name, result, detail: detail.chars().take(MAX_DETAIL).collect() }
    }

    /// Whether the gate may pass with it.
    pub fn holds(&self) -> bool {
        matches!(self.result, CheckResult::Closed | CheckResult::Confirmed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_message_fits_into_a_termination_message() {
        let names = [
            CheckName::Canary,
            CheckName::ApiServer,
            CheckName::Metadata,
            CheckName::ClusterDnsTcp,
            CheckName::ClusterDnsUdp,
            CheckName::Gateway,
        ];
        let checks =
            names.map(|name| GateCheck::new(name, CheckResult::Inconclusive, &"x".repeat(999))).to_vec();
        let message = "x".repeat(MAX_MESSAGE);
        let report = NotContained { cause: GateCause::NotContained, message, checks };
        let text = serde_json::to_string(&report).unwrap();
        assert!(text.len() < 4096, "{}", text.len());
        assert!(text.starts_with(r#"{"cause":"NotContained","message":"x"#));
        assert!(text.contains(r#"{"name":"ClusterDnsTcp","result":"Inconclusive","detail":"x"#));
        assert_eq!(serde_json::from_str::<NotContained>(&text).unwrap(), report);
    }
}
