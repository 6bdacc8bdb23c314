//! What is right in a network that may be wrong.
use super::{Refusals, ValidatedRule, egress};
use crate::{
    api::v1alpha1::Network,
    plan::{Observed, Settings},
};

/// `network` without the rules that are refused, and what those that are left open. Nothing is left where the whole is
/// wrong: rules that may be more than were meant must not hold.
pub(in crate::plan) fn right(
    network: Option<&Network>,
    own_namespace: &str,
    observed: &Observed,
    settings: &Settings,
) -> (Network, Vec<ValidatedRule>) {
    let check = |network: &Network| {
        let mut refusals = Refusals::default();
        let rules = egress::check(Some(network), own_namespace, observed, settings, &mut refusals);
        (rules, refusals.0)
    };
    let mut network = network.cloned().unwrap_or_default();
    let (_, refusals) = check(&network);
    let refused = |index: usize| {
        let prefix = format!("spec.network.egress[{index}]");
        refusals.iter().any(|refusal| refusal.field.starts_with(&prefix))
    };
    let rules = std::mem::take(&mut network.egress).into_iter().enumerate();
    network.egress = rules.filter(|(index, _)| !refused(*index)).map(|(_, rule)| rule).collect();
    match check(&network) {
        (rules, refusals) if refusals.is_empty() => (network, rules),
        _ => (Network::default(), Vec::new()),
    }
}
