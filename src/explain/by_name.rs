//! Names of Services: a sandbox does not resolve them, and reaches the Pods behind them by address.
use super::{Answer, Endpoint, Services, Target, answer::say_rule, services::SeenService};
use crate::{
    api::v1alpha1::{AgentSandbox, EgressRule, ServiceReference},
    plan::{names, names_of_services},
    policy::{HostName, shown},
};

/// Why the name of a Service that was read is denied. What its rule opens is said below it.
const UNRESOLVED: &str = "a sandbox does not resolve names of Services, and no host rule has this one; what a service rule opens, it opens by address";

/// Namespace and name of a Service; `own` is the sandbox's namespace.
pub(super) fn key(service: &ServiceReference, own: Option<&str>) -> (String, String) {
    let namespace = service.namespace.as_deref().or(own).unwrap_or_default();
    (namespace.to_owned(), service.name.clone())
}

/// The same for a person.
pub(super) fn full_name(service: &ServiceReference, own: Option<&str>) -> String {
    match service.namespace.as_deref().or(own) {
        Some(namespace) => format!("{}/{}", shown(namespace), shown(&service.name)),
        None => shown(&service.name),
    }
}

/// Namespace and name of every Service that an answer about `target` depends on.
pub(super) fn needed(sandbox: &AgentSandbox, target: &Target) -> Vec<(String, String)> {
    let own = sandbox.metadata.namespace.as_deref().unwrap_or_default();
    let mut all = names_of_services(sandbox.spec.network.as_ref(), own);
    // No other can be the name of an object, or a part of a URL.
    all.retain(|(namespace, name)| names::is_label(namespace) && names::is_label(name));
    match &target.endpoint {
        Endpoint::Invalid(..) => all.clear(),
        Endpoint::Address(_) => {}
        Endpoint::Host(host) => all.retain(|key| is_name_of(host, key, own)),
    }
    all
}

/// Whether `host` is, in the cluster, the name of the Service `key`: `name` from its own namespace, `name.namespace`, or
/// that with `.svc` and any domain of the cluster.
fn is_name_of(host: &HostName, (namespace, name): &(String, String), own: &str) -> bool {
    let mut labels = host.as_str().split('.');
    let first = labels.next() == Some(name.as_str());
    first
        && match labels.next() {
            None => namespace == own,
            Some(second) => second == namespace && labels.next().is_none_or(|third| third == "svc"),
        }
}

/// The rules for the Service whose name `host` is, with what was read of it.
pub(super) fn named<'a>(
    rules: &'a [EgressRule],
    own: Option<&str>,
    host: &HostName,
    services: &'a Services,
) -> Vec<(usize, &'a EgressRule, &'a Result<SeenService, String>)> {
    let all = rules.iter().enumerate().filter_map(|(index, rule)| {
        let key = key(rule.service.as_ref()?, own);
        let seen = services.get(&key).filter(|_| is_name_of(host, &key, own.unwrap_or_default()))?;
        Some((index, rule, seen))
    });
    all.collect()
}

/// Why `host` is denied where it is the name of a Service that a rule opens, and what to do: a host rule would not help.
pub(super) fn advice(
    rules: &[EgressRule],
    own: Option<&str>,
    host: &HostName,
    services: &Services,
) -> Option<String> {
    if !named(rules, own, host, services).is_empty() {
        return Some(UNRESOLVED.to_owned());
    }
    let (_, (namespace, name)) = fitting(rules, own, host)?;
    let namespace = if namespace.is_empty() { namespace } else { format!(" -n {}", shown(&namespace)) };
    Some(format!(
        "a sandbox does not resolve names of Services; give the agent its ClusterIP (kubectl get service {}{namespace})",
        shown(&name)
    ))
}

/// The first rule for a Service whose name `host` is: its index, and the Service's namespace and name.
fn fitting(rules: &[EgressRule], own: Option<&str>, host: &HostName) -> Option<(usize, (String, String))> {
    let mut labels = host.as_str().split('.').skip(1);
    // A file need not say the namespace; such a name has it.
    let said = labels.next().filter(|_| labels.next() == Some("svc"));
    let own = own.or(said).unwrap_or_default();
    let keys = rules.iter().map(|rule| rule.service.as_ref().map(|service| key(service, Some(own))));
    let mut keys = keys.enumerate().filter_map(|(index, key)| Some((index, key?)));
    keys.find(|(_, key)| is_name_of(host, key, own))
}

/// Adds what `rules` open of the Service whose name `host` is, by address.
pub(super) fn say_service(
    answer: &mut Answer,
    rules: &[EgressRule],
    own: Option<&str>,
    host: &HostName,
    services: &Services,
) {
    let named = named(rules, own, host, services);
    for (index, rule, seen) in &named {
        say_rule(answer, rules, Some(*index));
        match seen {
            Ok(seen) => seen.told(rule).iter().for_each(|line| answer.say("open", line)),
            Err(unread) => answer.say("unread", unread),
        }
    }
    if named.is_empty() {
        match fitting(rules, own, host) {
            Some((index, _)) => say_rule(answer, rules, Some(index)),
            None => hint(rules, host).iter().for_each(|hint| answer.say("note", hint)),
        }
    }
}

/// Whoever asks for `model.elsewhere` may have meant the rule for the Service of that name.
fn hint(rules: &[EgressRule], name: &HostName) -> Option<String> {
    let first = name.as_str().split('.').next()?;
    let index = rules.iter().position(|r| r.service.as_ref().is_some_and(|s| s.name == first))?;
    Some(format!(
        "spec.network.egress[{index}] opens the Pods of a Service of that name by their addresses; a sandbox does not resolve names of Services"
    ))
}
