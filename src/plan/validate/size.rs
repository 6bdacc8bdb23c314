//! Whether the API server could store what is planned. A spec that it takes may lead to an object that it does not: every
//! `$` is doubled for the kubelet, and one rule for a Service becomes that Service's whole selector.
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::Serialize;

use super::{Refusals, Settings, ValidatedSandbox};
use crate::plan::{agent, network_policy};

/// Bytes of JSON that each of the two objects may have for what an author writes. The API server refuses requests of 3 MiB
/// and etcd values of 1.5 MiB; the rest is for what the operator and the cluster add.
const MOST: usize = 1 << 20;

pub(super) fn check(sandbox: &ValidatedSandbox, settings: &Settings, refusals: &mut Refusals) {
    let container = bytes(&agent::container(sandbox, settings));
    if container > MOST {
        refusals.invalid(
            "spec.env",
            format!(
                "command, args, env and mounts take {container} bytes together, where every $ and every escaped character counts twice or more; at most {MOST} fit. Put large values into a ConfigMap or a Secret, and mount it"
            ),
        );
    }
    let policy = network_policy::build(&sandbox.marks(), sandbox.egress(), settings);
    if !fits(&policy) {
        let policy = bytes(&policy);
        refusals.invalid(
            "spec.network",
            format!("the rules take {policy} bytes as a NetworkPolicy; at most {MOST} fit. List fewer rules, or Services with shorter selectors"),
        );
    }
}

/// Whether the API server could store `policy`.
pub(in crate::plan) fn fits(policy: &NetworkPolicy) -> bool {
    bytes(policy) <= MOST
}

/// An object without a JSON form is as large as can be: it could not be sent either.
fn bytes(object: &impl Serialize) -> usize {
    serde_json::to_vec(object).map_or(usize::MAX, |json| json.len())
}
