//! A rule and a Service, and what comes of an address.
use serde_json::{Value, json};

use super::{super::*, *};
use crate::api::v1alpha1::AgentSandbox;

fn service(spec: &Value) -> Service {
    let mut whole = json!({
        "selector": {"app": "model"}, "clusterIP": "10.96.3.4", "clusterIPs": ["10.96.3.4"], "ipFamilies": ["IPv4"],
        "ports": [
            {"name": "http", "port": 80, "targetPort": 8080},
            {"name": "again", "port": 81, "targetPort": 8080},
            {"name": "admin", "port": 82, "targetPort": 9090},
            {"name": "tls", "port": 443, "targetPort": "https"},
            {"name": "names", "port": 53, "targetPort": 5353, "protocol": "UDP"},
        ],
    });
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let metadata = json!({"name": "model", "namespace": "serving", "uid": "s-1"});
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": whole});
    serde_json::from_value(service).unwrap()
}

/// Metadata of a slice that Kubernetes made for the Service.
fn made() -> Value {
    json!({
        "name": "s", "labels": {"endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"},
        "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": "model", "uid": "s-1"}],
    })
}

#[test]
fn what_somebody_else_says_of_the_service_is_not_believed() {
    let believed = |change: &dyn Fn(&mut EndpointSlice)| {
        let mut slices = slices();
        slices.truncate(1);
        change(&mut slices[0]);
        SeenService::of(&service(&json!({})), Ok(slices)).has("10.244.1.7".parse().unwrap())
    };
    assert!(believed(&|_| {}));
    assert!(!believed(&|slice| slice.metadata.labels = None));
    assert!(!believed(&|slice| slice.metadata.owner_references.as_mut().unwrap()[0].uid = "s-2".to_owned()));
    assert!(!believed(&|slice| {
        let target = slice.endpoints.as_mut().unwrap()[0].target_ref.as_mut().unwrap();
        target.namespace = Some("kube-system".to_owned());
    }));
}

/// Two Pods that are ready and one that is not, each slice with its own number for `https`; and a machine that somebody
/// added.
fn slices() -> Vec<EndpointSlice> {
    let endpoint = |address: &str, ready: bool, kind: &str| json!({"addresses": [address], "conditions": {"ready": ready}, "targetRef": {"kind": kind, "name": "p", "namespace": "serving"}});
    let slice = |https: i32, endpoints: Value| {
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": made(),
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "tls", "port": https}],
        });
        serde_json::from_value(slice).unwrap()
    };
    vec![
        slice(8443, json!([endpoint("10.244.1.7", true, "Pod"), endpoint("10.244.1.8", false, "Pod")])),
        slice(9443, json!([endpoint("10.244.2.9", true, "Pod"), endpoint("10.1.1.1", true, "Node")])),
    ]
}

fn seen(spec: &Value) -> SeenService {
    SeenService::of(&service(spec), Ok(slices()))
}

fn asked(rules: &Value, seen: Result<SeenService, String>, to: &str) -> (Finding, String) {
    let sandbox: AgentSandbox = serde_json::from_value(json!({
        "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox",
        "metadata": {"name": "fix", "namespace": "team-a"},
        "spec": {"image": "a", "command": ["/a"], "network": {"egress": rules}},
    }))
    .unwrap();
    let services = Services::from([(("serving".to_owned(), "model".to_owned()), seen)]);
    let target = Target::parse(to, "GET", false).unwrap();
    let answer = answer(&sandbox, &target, &crate::policy::AddressPolicy::default(), &[], &services);
    (answer.finding, answer.to_string())
}

fn rules(ports: &[i32]) -> Value {
    json!([{"service": {"name": "model", "namespace": "serving"}, "ports": ports}])
}

#[track_caller]
fn check(told: (Finding, String), finding: Finding, said: &str) {
    let (found, text) = told;
    assert!(found == finding && text.contains(said), "{finding} {said}: {text}");
}

#[test]
fn an_address_of_a_pod_is_open_at_its_own_ports() {
    use Finding::{Allowed, Denied};
    for (to, finding, said) in [
        (
            "10.244.1.7:8080",
            Allowed,
            "AllowedByRule: spec.network.egress[0] opens the Pods of Service serving/model; this is one of them, and its port 8080 is port 80 of the Service\n",
        ),
        ("http://10.244.2.9:8080", Allowed, "rule:        spec.network.egress[0] {\"service\""),
        ("10.244.1.7:8443", Allowed, "its port 8443 is port 443 of the Service"),
        ("10.244.2.9:9443", Allowed, "its port 9443 is port 443 of the Service"),
        (
            "10.244.2.9:8443",
            Denied,
            "PortNotAllowed: spec.network.egress[0] opens the Pods of Service serving/model; this is one of them, but what counts are the Pod's own ports: 8080 (port 80 of the Service), 9443 (port 443 of the Service)\n",
        ),
        ("10.244.1.7:80", Denied, "what counts are the Pod's own ports: 8080 (port 80"),
        ("10.244.1.7:9090", Denied, "PortNotAllowed"),
        (
            "10.244.1.8:8080",
            Allowed,
            "note:        the Pod is not ready: the Service does not lead to it now\n",
        ),
        ("udp://10.244.1.7:5353", Denied, "ProtocolNotAllowed: spec.network.egress[0] is not for UDP"),
        ("udp://10.244.3.3:5353", Denied, "NoRule"),
        (
            "10.1.1.1:8080",
            Denied,
            "NoRule: no cidr rule and no Service that a rule names has this address, and host rules are for names only\n",
        ),
        (
            "10.244.3.3:8080",
            Denied,
            "note:        spec.network.egress[0] opens the Pods of Service serving/model: TCP port 80 of the Service: ClusterIP 10.96.3.4:80, Pods 10.244.1.7:8080, 10.244.2.9:8080; TCP port 443 of the Service: ClusterIP 10.96.3.4:443, Pods 10.244.1.7:8443, 10.244.2.9:9443\n",
        ),
    ] {
        check(asked(&rules(&[80, 443]), Ok(seen(&json!({}))), to), finding, said);
    }
    let udp =
        json!([{"service": {"name": "model", "namespace": "serving"}, "ports": [53], "protocol": "UDP"}]);
    check(asked(&udp, Ok(seen(&json!({}))), "udp://10.244.1.7:5353"), Allowed, "its port 5353 is port 53");
}

#[test]
fn a_cluster_ip_is_open_where_it_leads_to_a_port_that_is() {
    use Finding::{Allowed, Denied, Unknown};
    for (to, finding, said) in [
        ("10.96.3.4:80", Allowed, "; this is its ClusterIP, whose port 80 leads to port 8080 of the Pods\n"),
        // The rule has port 80 only; the Pods' port is the same.
        ("10.96.3.4:81", Allowed, "whose port 81 leads to port 8080 of the Pods\n"),
        (
            "10.96.3.4:82",
            Denied,
            "PortNotAllowed: spec.network.egress[0] opens the Pods of Service serving/model; this is its ClusterIP, whose port 82 leads to port 9090 of the Pods, which the rule does not open\n",
        ),
        ("10.96.3.4:443", Denied, "leads to the port named https of the Pods, which the rule does not open"),
        ("10.96.3.4:8080", Denied, "this is its ClusterIP, at which it has no TCP port 8080, but 80\n"),
        ("10.96.3.5:80", Denied, "NoRule: no cidr rule and no Service"),
    ] {
        check(asked(&rules(&[80]), Ok(seen(&json!({}))), to), finding, said);
    }
    let idle = Ok(SeenService::of(&service(&json!({})), Ok(Vec::new())));
    check(asked(&rules(&[80]), idle, "10.96.3.4:80"), Allowed, "note:        no Pod of the Service is ready");
    let same = json!([{"port": 80, "targetPort": 8443, "name": "http"}, {"port": 443, "targetPort": "https", "name": "tls"}]);
    let mut one = slices();
    one.truncate(1);
    let one = Ok(SeenService::of(&service(&json!({"ports": same})), Ok(one)));
    check(asked(&rules(&[80]), one, "10.96.3.4:443"), Allowed, "leads to the port named https");
    check(
        asked(&rules(&[80]), Ok(seen(&json!({"ports": same}))), "10.96.3.4:443"),
        Unknown,
        "of some of them",
    );
    let headless = Ok(seen(&json!({"clusterIP": "None", "clusterIPs": ["None"]})));
    check(
        asked(&rules(&[80]), headless, "10.244.3.3:8080"),
        Denied,
        "80 of the Service: Pods 10.244.1.7:8080,",
    );
}

#[test]
fn a_cidr_rule_decides_first_and_the_nearest_refusal_is_told() {
    let mut both = rules(&[80]);
    both.as_array_mut().unwrap().push(json!({"cidr": "10.244.1.0/24", "ports": [80]}));
    let ask = |to: &str| asked(&both, Ok(seen(&json!({}))), to);
    check(ask("10.244.1.7:80"), Finding::Allowed, "egress[1] opens 10.244.1.0/24");
    check(ask("10.244.1.7:8080"), Finding::Allowed, "egress[0] opens the Pods");
    check(ask("10.244.1.7:81"), Finding::Denied, "egress[1] lists other ports");
}

#[test]
fn what_was_not_read_is_not_known() {
    let unread = || Err("the Service serving/model: services \"model\" is forbidden".to_owned());
    for to in ["10.244.1.7:8080", "10.96.3.4:80"] {
        let told = asked(&rules(&[80]), unread(), to);
        check(
            told.clone(),
            Finding::Unknown,
            "reason:      spec.network.egress[0] opens the Pods of Service serving/model behind its ports [80]; whether this address and port are of one is not known\n",
        );
        check(
            told,
            Finding::Unknown,
            "unread:      the Service serving/model: services \"model\" is forbidden\n",
        );
    }
    let slices =
        || Ok(SeenService::of(&service(&json!({})), Err("its EndpointSlices: forbidden".to_owned())));
    check(
        asked(&rules(&[80]), slices(), "10.244.1.7:8080"),
        Finding::Unknown,
        "; whether this address is one of them is not known: its EndpointSlices: forbidden\n",
    );
    check(asked(&rules(&[80]), slices(), "10.244.1.7:80"), Finding::Denied, "NoRule");
    check(asked(&rules(&[80]), slices(), "10.96.3.4:80"), Finding::Allowed, "this is its ClusterIP");
    check(asked(&rules(&[443]), slices(), "10.244.1.7:1"), Finding::Unknown, "its EndpointSlices");
    let told = asked(&rules(&[80]), slices(), "model.serving:80");
    check(
        told,
        Finding::Denied,
        "Pods at port 8080, by addresses not known: its EndpointSlices: forbidden\n",
    );
    let told = asked(&rules(&[80]), unread(), "model.serving:80");
    check(told, Finding::Denied, "unread:      the Service serving/model: services");
}

/// Addresses that a `NetworkPolicy` may or may not see as those of the Pods.
#[test]
fn what_the_cluster_decides_otherwise_is_not_known() {
    use Finding::{Denied, Unknown};
    let family = |to: &str| asked(&rules(&[80]), Ok(seen(&json!({}))), to);
    check(family("[fd00::7]:8080"), Unknown, "which has addresses of IPv4 only");
    check(family("[fd00::7]:80"), Denied, "NoRule");
    let dual = Ok(seen(&json!({"ipFamilies": ["IPv4", "IPv6"]})));
    check(asked(&rules(&[80]), dual, "[fd00::7]:8080"), Denied, "NoRule");
    let ports = json!([{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30080}]);
    let open = || Ok(seen(&json!({"externalIPs": ["198.51.100.7"], "ports": ports})));
    let said = "this is its address outside the cluster: whether the policy sees the Pods behind it";
    check(asked(&rules(&[80]), open(), "198.51.100.7:80"), Unknown, said);
    check(asked(&rules(&[80]), open(), "198.51.100.7:81"), Denied, "NoRule");
    check(asked(&rules(&[80]), open(), "192.0.2.1:30080"), Unknown, "its port on the nodes");
    let mut balanced = service(&json!({}));
    let ingress = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.8"}, {"hostname": "a.example"}]}});
    balanced.status = Some(serde_json::from_value(ingress).unwrap());
    let balanced = Ok(SeenService::of(&balanced, Ok(slices())));
    check(asked(&rules(&[80]), balanced, "198.51.100.8:80"), Unknown, "its address outside");
}

/// The operator leaves such a rule out of the policy of a sandbox that runs.
#[test]
fn a_rule_that_the_operator_refuses_opens_nothing() {
    let said = "NoRule: spec.network.egress[0] opens nothing: the Service serving/model has no TCP port 90, and the operator refuses the rule\n";
    for to in ["10.244.1.7:8080", "10.96.3.4:80"] {
        check(asked(&rules(&[80, 90]), Ok(seen(&json!({}))), to), Finding::Denied, said);
    }
    for spec in [json!({"selector": {}}), json!({"type": "ExternalName"})] {
        let told = asked(&rules(&[80]), Ok(seen(&spec)), "10.244.1.7:8080");
        check(told, Finding::Denied, "opens nothing: the Service serving/model selects no Pods");
    }
    let told = asked(&rules(&[90]), Ok(seen(&json!({}))), "10.244.3.3:8080");
    check(told, Finding::Denied, "serving/model: nothing, since the Service has no TCP port 90\n");
}

#[test]
fn a_name_of_a_service_is_denied_with_what_is_open_behind_it() {
    for name in ["model.serving", "model.serving.svc", "model.serving.svc.cluster.local", "MODEL.serving."] {
        let (finding, text) = asked(&rules(&[80]), Ok(seen(&json!({}))), &format!("http://{name}"));
        assert_eq!(finding, Finding::Denied);
        for said in [
            "reason:      NoRule: a sandbox does not resolve names of Services",
            "rule:        spec.network.egress[0] {\"service\"",
            "open:        TCP port 80 of the Service: ClusterIP 10.96.3.4:80, Pods 10.244.1.7:8080, 10.244.2.9:8080\n",
        ] {
            assert!(text.contains(said), "{name}: {said}: {text}");
        }
    }
    let idle = || Ok(SeenService::of(&service(&json!({})), Ok(Vec::new())));
    let told = asked(&rules(&[80]), idle(), "model.serving:80");
    check(told, Finding::Denied, "ClusterIP 10.96.3.4:80, no Pod is ready now\n");
    // Of another namespace, or nobody's.
    for name in ["model", "model.other", "model.serving.example"] {
        let (finding, text) = asked(&rules(&[80]), Ok(seen(&json!({}))), &format!("{name}:80"));
        assert!(finding == Finding::Denied && !text.contains("  open:"), "{text}");
        assert!(
            text.contains("note:        spec.network.egress[0] opens the Pods of a Service of that"),
            "{text}"
        );
    }
    // A host rule decides by itself.
    let mut both = rules(&[80]);
    both.as_array_mut().unwrap().push(json!({"host": "model.serving", "ports": [80]}));
    check(asked(&both, Ok(seen(&json!({}))), "model.serving:80"), Finding::Allowed, "egress[1]");
    check(asked(&both, Ok(seen(&json!({}))), "model.serving:81"), Finding::Denied, "PortNotAllowed");
}

#[test]
fn only_what_the_answer_depends_on_is_read() {
    let own = json!({"service": {"name": "model"}, "ports": [80]});
    let odd = json!({"service": {"name": "../pods"}, "ports": [80]});
    let other = json!({"service": {"name": "model", "namespace": "serving"}, "ports": [80]});
    let sandbox: AgentSandbox = serde_json::from_value(json!({
        "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox",
        "metadata": {"name": "fix", "namespace": "team-a"},
        "spec": {"image": "a", "command": ["/a"], "network": {"egress": [own, odd, other]}},
    }))
    .unwrap();
    for (to, wanted) in [
        ("10.0.0.1:80", &["serving", "team-a"][..]),
        ("model:80", &["team-a"]),
        ("model.team-a:80", &["team-a"]),
        ("https://model.serving.svc.cluster.local", &["serving"]),
        ("https://model.serving.example", &[]),
        ("https://api.example", &[]),
        ("https://user@model", &[]),
    ] {
        let needed = by_name::needed(&sandbox, &Target::parse(to, "GET", false).unwrap());
        let namespaces: Vec<_> = needed.iter().map(|(namespace, _)| namespace.as_str()).collect();
        assert_eq!(namespaces, wanted, "{to}");
        assert!(needed.iter().all(|(_, name)| name == "model"), "{needed:?}");
    }
}

#[test]
fn many_addresses_are_counted() {
    let listed = listed((0..11).map(|n| n.to_string()));
    assert_eq!(listed, "0, 1, 2, 3, 4, 5, 6, 7 and 3 more");
}
