//! Rules that are allowed and seldom meant.
use super::{EffectivePolicy, HostName, HostPattern, HostRule, shown};
use crate::api::v1alpha1::{EgressRule, Network};

/// Why `localhost` needs no rule and has no use for one.
const OWN_LOOPBACK: &str =
    "is the sandbox itself, whose own servers need no rule, and the gateway dials no loopback address";

/// What an object may say and seldom means.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct PolicyWarning {
    /// Index of the rule in `spec.network.egress`.
    pub rule: usize,
    /// Path of the field.
    pub field: String,
    /// What it means and what to write instead.
    pub message: String,
}

impl PolicyWarning {
    /// Those about the rules of `network`; none about rules that are refused anyhow.
    pub fn all(network: Option<&Network>) -> Vec<Self> {
        let Ok(policy) = EffectivePolicy::of(network) else { return Vec::new() };
        let all = network.map_or(&[][..], |network| network.egress.as_slice());
        let hosts = policy.rules().iter().filter_map(|rule| Self::of(rule, all));
        let networks = all.iter().enumerate().filter_map(|(index, rule)| Self::of_network(index, rule));
        let mut warnings: Vec<Self> = hosts.chain(networks).collect();
        warnings.sort_by_key(|warning| warning.rule);
        warnings
    }

    /// The warning about a rule for a network, where there is one.
    fn of_network(index: usize, rule: &EgressRule) -> Option<Self> {
        let cidr = rule.cidr.as_ref().filter(|_| rule.ports.contains(&53))?;
        let message = format!(
            "port 53 of `{}` takes whatever is put into a question for a name; a sandbox needs no name server: host rules give it names",
            shown(cidr)
        );
        Some(Self { rule: index, field: format!("spec.network.egress[{index}].ports"), message })
    }

    /// The warning about `rule`, one of `all`, where there is one.
    fn of(rule: &HostRule, all: &[EgressRule]) -> Option<Self> {
        let HostRule { index, pattern, .. } = rule;
        let message = if pattern.is_public_suffix() {
            "means every name under a public suffix, which anybody may register; list the names that are needed"
                .to_owned()
        } else if under(pattern, "localhost") {
            format!("{OWN_LOOPBACK}; leave the rule out")
        } else if let Some((of_service, command)) = named_service(pattern, all) {
            format!(
                "is the name of the Service that spec.network.egress[{of_service}] opens by address, which a sandbox does not resolve; leave this rule out and give the agent the ClusterIP ({command})"
            )
        } else {
            useless(pattern)?
        };
        let message = format!("`{}` {message}", shown(&pattern.to_string()));
        Some(Self { rule: *index, field: format!("spec.network.egress[{index}].host"), message })
    }
}

/// Why no host rule helps who asks for `name`, and what to write instead, where that is so.
pub(crate) fn no_help(name: &HostName) -> Option<String> {
    useless(&HostPattern::Exact(name.clone()))
}

/// Why a rule for `pattern` leads nowhere, and what to write instead, where that is so.
fn useless(pattern: &HostPattern) -> Option<String> {
    if under(pattern, "localhost") {
        return Some(OWN_LOOPBACK.to_owned());
    }
    if let Some(service) = service(pattern) {
        return Some(format!(
            "is a name of the cluster's own, whose addresses the gateway does not dial; for a Service write service: {service} instead of host"
        ));
    }
    match pattern {
        HostPattern::Exact(name) if !name.as_str().contains('.') => Some(format!(
            "has no dot, and the gateway uses no search domains; write the full name, or for a Service service: {{name: {name}}} instead of host"
        )),
        _ => None,
    }
}

/// Whether every name that `pattern` means is `zone` or under it.
fn under(pattern: &HostPattern, zone: &str) -> bool {
    let before = pattern.base().as_str().strip_suffix(zone);
    before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// Index of the rule for the Service that `pattern` names as `NAME` or `NAME.NAMESPACE`, and how to ask for its address.
fn named_service(pattern: &HostPattern, all: &[EgressRule]) -> Option<(usize, String)> {
    let HostPattern::Exact(host) = pattern else { return None };
    all.iter().enumerate().find_map(|(index, rule)| {
        let service = rule.service.as_ref()?;
        let (name, namespace) = (service.name.as_str(), service.namespace.as_deref());
        let fits = match host.as_str().split_once('.') {
            None => host.as_str() == name,
            Some((first, rest)) => first == name && Some(rest) == namespace,
        };
        let namespace = namespace.map(|namespace| format!(" -n {}", shown(namespace))).unwrap_or_default();
        fits.then(|| (index, format!("kubectl get service {}{namespace}", shown(name))))
    })
}

/// The reference to the Service that a name of the cluster's own DNS most likely means. Of the cluster's domain only the
/// usual one is known here.
fn service(pattern: &HostPattern) -> Option<String> {
    const DOMAIN: &str = "cluster.local";
    let base = pattern.base().as_str();
    let labels = match base.strip_suffix(DOMAIN) {
        Some(_) if under(pattern, DOMAIN) => base.strip_suffix(".svc.cluster.local").unwrap_or_default(),
        _ if under(pattern, "svc") => base.strip_suffix(".svc").unwrap_or_default(),
        _ => return None,
    };
    let mut labels = labels.rsplit('.').filter(|label| !label.is_empty());
    let (last, before) = (labels.next(), labels.next());
    Some(match (before, last, pattern) {
        (Some(name), Some(namespace), _) => format!("{{name: {name}, namespace: {namespace}}}"),
        (None, Some(name), HostPattern::Exact(_)) => format!("{{name: {name}}}"),
        (None, Some(namespace), _) => format!("{{name: NAME, namespace: {namespace}}}"),
        _ => "{name: NAME, namespace: NAMESPACE}".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn warning(host: &str) -> Option<PolicyWarning> {
        let rule = serde_json::from_value(json!({"host": host, "ports": [443]})).unwrap();
        PolicyWarning::of(&HostRule::parse(3, &rule).unwrap().unwrap(), &[])
    }

    #[test]
    fn a_way_out_to_name_servers_is_warned_of() {
        let network = serde_json::from_value(json!({"egress": [
            {"cidr": "198.51.100.0/24", "ports": [53], "protocol": "UDP"},
            {"cidr": "198.51.100.0/24", "ports": [853]},
            {"host": "localhost", "ports": [53]},
            {"cidr": "198.51.100.1/32", "ports": [443, 53]},
        ]}))
        .unwrap();
        let warnings = PolicyWarning::all(Some(&network));
        let fields: Vec<&str> = warnings.iter().map(|warning| warning.field.as_str()).collect();
        let want =
            ["spec.network.egress[0].ports", "spec.network.egress[2].host", "spec.network.egress[3].ports"];
        assert_eq!(fields, want);
        assert!(warnings.iter().any(|warning| warning.message.contains("host rules give it names")));
    }

    #[test]
    fn what_cannot_work_is_warned_of() {
        for (host, said) in [
            ("*.github.io", "every name under a public suffix"),
            ("localhost", "`localhost` is the sandbox itself"),
            ("*.localhost", "the sandbox itself"),
            ("a.LOCALHOST", "`a.localhost` is the sandbox itself"),
            ("web.team.svc.cluster.local", "write service: {name: web, namespace: team} instead of host"),
            ("web.team.svc", "{name: web, namespace: team}"),
            ("pod-0.web.team.svc", "{name: web, namespace: team}"),
            ("*.web.team.svc", "{name: web, namespace: team}"),
            ("*.team.svc.cluster.local", "{name: NAME, namespace: team}"),
            ("x.svc", "service: {name: x} instead"),
            ("svc", "{name: NAME, namespace: NAMESPACE}"),
            ("**.svc", "{name: NAME, namespace: NAMESPACE}"),
            ("**.cluster.local", "{name: NAME, namespace: NAMESPACE}"),
            ("10-0-0-1.team.pod.cluster.local", "{name: NAME, namespace: NAMESPACE}"),
            (
                "db",
                "`db` has no dot, and the gateway uses no search domains; write the full name, or for a Service service: {name: db} instead of host",
            ),
        ] {
            let warning = warning(host).unwrap_or_else(|| panic!("{host}"));
            assert_eq!(warning.field, "spec.network.egress[3].host");
            assert!(warning.message.contains(said), "{warning}");
        }
    }

    #[test]
    fn the_name_of_a_service_that_a_rule_opens_is_no_host() {
        let warnings = |host: &str| {
            let network = json!({"egress": [
                {"service": {"name": "model", "namespace": "serving"}, "ports": [80]},
                {"service": {"name": "cache"}, "ports": [80]},
                {"host": host, "ports": [80]},
            ]});
            PolicyWarning::all(Some(&serde_json::from_value(network).unwrap()))
        };
        for (host, said) in [
            ("model", "spec.network.egress[0] opens by address"),
            ("Model.serving", "(kubectl get service model -n serving)"),
            ("cache", "(kubectl get service cache)"),
        ] {
            let [warning] = &warnings(host)[..] else { panic!("{host}") };
            assert_eq!(warning.field, "spec.network.egress[2].host");
            assert!(warning.message.contains(said), "{warning}");
        }
        for host in ["model.example", "cache.serving", "*.model", "*.serving", "model.serving.example"] {
            assert_eq!(warnings(host), [], "{host}");
        }
    }

    #[test]
    fn who_asks_for_such_a_name_is_told_the_same() {
        let told = |name: &str| no_help(&name.parse().unwrap());
        for (name, said) in [
            ("localhost", "is the sandbox itself"),
            ("web.team.svc", "write service: {name: web, namespace: team} instead of host"),
            ("db", "service: {name: db}"),
        ] {
            assert!(told(name).is_some_and(|told| told.contains(said)), "{name}");
        }
        // The name itself is not under a public suffix, and may be anybody's.
        for name in ["a.github.io", "co.uk", "api.example"] {
            assert_eq!(told(name), None, "{name}");
        }
    }

    #[test]
    fn what_only_looks_like_it_is_not() {
        for host in [
            "api.example",
            "svc.example",
            "web.svc.example",
            "a.notsvc",
            "a.notlocalhost",
            "*.corp",
            "localhost.example",
            "mycluster.local",
            "printer.local",
        ] {
            assert_eq!(warning(host), None, "{host}");
        }
    }
}
