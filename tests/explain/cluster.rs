//! On a sandbox of a cluster, which is played.
use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    path::Path,
    thread,
};

use rstest::rstest;
use serde_json::{Value, json};

use super::{
    rules, sandbox,
    support::{PROGRAM, Ran, run},
};

/// An API server that has one sandbox and more, and a kubeconfig for it.
struct Cluster {
    directory: tempfile::TempDir,
}

impl Cluster {
    fn with(object: &Value) -> Self {
        Self::with_more(object, &[])
    }

    /// `more` are answers by what is asked for; one with a `code` is an error.
    fn with_more(object: &Value, more: &[(&str, Value)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let sandbox = "/apis/agentsandbox.dev/v1alpha1/namespaces/team-a/agentsandboxes/fix";
        let mut answers: HashMap<_, _> =
            more.iter().map(|(path, answer)| ((*path).to_owned(), answer.clone())).collect();
        answers.insert(sandbox.to_owned(), object.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                let request = lines.next().unwrap_or_default();
                lines.take_while(|line| !line.is_empty()).for_each(drop);
                let path = request.strip_prefix("GET ").and_then(|rest| rest.strip_suffix(" HTTP/1.1"));
                let missing = || {
                    json!({
                        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404,
                        "reason": "NotFound", "message": "agentsandboxes.agentsandbox.dev \"none\" not found",
                    })
                };
                let answer = path.and_then(|path| answers.get(path)).cloned().unwrap_or_else(missing);
                let (code, body) = (answer["code"].as_u64().unwrap_or(200), answer.to_string());
                let head = format!(
                    "HTTP/1.1 {code} Said\r\ncontent-type: application/json\r\nconnection: close\r\n"
                );
                let _ = write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len());
            }
        });
        let directory = tempfile::tempdir().unwrap();
        let context = |name: &str, namespace: &str| json!({"name": name, "context": {"cluster": "test", "user": "test", "namespace": namespace}});
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "own",
            "clusters": [{"name": "test", "cluster": {"server": server}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [context("own", "team-a"), context("else", "team-b")],
        });
        std::fs::write(directory.path().join("config"), config.to_string()).unwrap();
        Self { directory }
    }

    fn explain(&self, program: &Path, arguments: &[&str]) -> Ran {
        let config = self.directory.path().join("config");
        run(program, &[&["explain"], arguments].concat(), &[("KUBECONFIG", &config)], "")
    }
}

#[test]
fn a_sandbox_of_a_cluster_is_answered_for() {
    let mut object = sandbox("fix", &rules());
    let network = serde_json::from_value(object["spec"]["network"].clone()).unwrap();
    object["status"] = json!({"policyDigest": agentsandbox::policy::digest(Some(&network))});
    let cluster = Cluster::with(&object);
    let program = Path::new(PROGRAM);
    for more in [&[][..], &["-n", "team-a"], &["--context", "else", "--namespace", "team-a"]] {
        let ran = cluster.explain(program, &[&["fix", "--to", "https://api.example"], more].concat());
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
        assert!(ran.out.contains("in force:    yes"), "{}", ran.out);
    }
    let ran = cluster.explain(program, &["fix", "--to", "https://evil.example"]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(1), ""));
    for more in [&["none"][..], &["fix", "--context", "else"], &["fix", "--context", "absent"]] {
        let ran = cluster.explain(program, &[more, &["--to", "https://api.example"]].concat());
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{}", ran.err);
        assert!(ran.err.starts_with("agentsandbox explain: "), "{}", ran.err);
    }
}

const SERVICE: &str = "/api/v1/namespaces/serving/services/model";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/serving/endpointslices?&labelSelector=kubernetes.io%2Fservice-name%3Dmodel";

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "model", "namespace": "serving", "uid": "s-1"},
        "spec": {"clusterIP": "10.96.3.4", "selector": {"app": "model"}, "ports": [{"port": 80, "targetPort": 8080}]},
    })
}

fn slices() -> Value {
    let pod = json!({"addresses": ["10.244.1.7"], "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "name": "model-0", "namespace": "serving"}});
    let made = json!({
        "name": "model-1", "labels": {"endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"},
        "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": "model", "uid": "s-1"}],
    });
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList", "metadata": {},
        "items": [{
            "metadata": made, "addressType": "IPv4", "endpoints": [pod],
            "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        }],
    })
}

fn refused(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message})
}

fn with_service_rule() -> Value {
    sandbox("fix", &json!([{"service": {"name": "model", "namespace": "serving"}, "ports": [80]}]))
}

#[rstest]
#[case("10.244.1.7:8080", 0, "this is one of them, and its port 8080 is port 80 of the Service")]
#[case("10.244.1.7:80", 1, "the Pod's own ports: 8080 (port 80 of the Service)")]
#[case("10.96.3.4:80", 0, "this is its ClusterIP, whose port 80 leads to port 8080 of the Pods")]
#[case("10.244.9.9:8080", 1, "no cidr rule and no Service that a rule names has this address")]
#[case(
    "http://model.serving",
    1,
    "  open:        TCP port 80 of the Service: ClusterIP 10.96.3.4:80, Pods 10.244.1.7:8080\n"
)]
fn services_of_a_cluster_are_read(#[case] to: &str, #[case] code: i32, #[case] said: &str) {
    let cluster = Cluster::with_more(&with_service_rule(), &[(SERVICE, service()), (SLICES, slices())]);
    let ran = cluster.explain(Path::new(env!("CARGO_BIN_EXE_agentsandbox")), &["fix", "--to", to]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(code), ""), "{}", ran.out);
    assert!(ran.out.contains(said), "{}", ran.out);
}

/// Nobody needs more rights than the answer does.
#[test]
fn a_service_that_cannot_be_read_is_said() {
    let forbidden = || refused(403, "Forbidden", "that is forbidden");
    let missing = || refused(404, "NotFound", "services \"model\" not found");
    let read = (SLICES, slices());
    for (more, to, code, said) in [
        (
            vec![(SERVICE, forbidden()), read.clone()],
            "10.244.1.7:8080",
            2,
            "  unread:      the Service serving/model: that is forbidden\n",
        ),
        (
            vec![(SERVICE, missing()), read],
            "10.96.3.4:80",
            2,
            "serving/model: services \"model\" not found\n",
        ),
        (
            vec![(SERVICE, service()), (SLICES, forbidden())],
            "10.244.1.7:8080",
            2,
            "is not known: its EndpointSlices: that is forbidden\n",
        ),
        (vec![(SERVICE, service()), (SLICES, forbidden())], "10.96.3.4:80", 0, "this is its ClusterIP"),
        (vec![(SERVICE, forbidden())], "https://api.example", 1, "NoRule: no rule of this sandbox names"),
    ] {
        let cluster = Cluster::with_more(&with_service_rule(), &more);
        let ran = cluster.explain(Path::new(env!("CARGO_BIN_EXE_agentsandbox")), &["fix", "--to", to]);
        assert_eq!((ran.code, ran.err.as_str()), (Some(code), ""), "{}", ran.out);
        assert!(ran.out.contains(said), "{to}: {said}: {}", ran.out);
        assert_eq!(ran.out.contains(": not known\n"), code == 2, "{}", ran.out);
    }
}

#[test]
fn a_name_that_is_not_there_is_said_in_words() {
    let cluster = Cluster::with(&sandbox("fix", &rules()));
    let ran = cluster.explain(Path::new(PROGRAM), &["none", "--to", "https://api.example"]);
    let said = "agentsandbox explain: team-a/none: agentsandboxes.agentsandbox.dev \"none\" not found; is it in another namespace? -n NAMESPACE\n";
    assert_eq!((ran.code, ran.err.as_str()), (Some(2), said));
}

#[test]
fn without_a_cluster_the_ways_to_ask_are_said() {
    let directory = tempfile::tempdir().unwrap();
    let absent = directory.path().join("config");
    for more in [&[][..], &["--context", "own"]] {
        let arguments = [&["explain", "fix", "--to", "https://api.example"], more].concat();
        let ran = run(Path::new(PROGRAM), &arguments, &[("KUBECONFIG", &absent)], "");
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""));
        assert!(
            ran.err.ends_with("; set KUBECONFIG or --context, or ask of a file with -f\n"),
            "{}",
            ran.err
        );
    }
}

#[test]
fn one_that_the_operator_refuses_is_denied() {
    let mut object = sandbox("fix", &rules());
    let accepted = |status: &str| json!({"type": "Accepted", "status": status, "reason": "ReservedAddress", "message": "it overlaps", "lastTransitionTime": "2026-11-01T00:00:00Z"});
    for (status, code) in [("False", 1), ("True", 0)] {
        object["status"] = json!({"conditions": [accepted(status)]});
        let ran = Cluster::with(&object).explain(Path::new(PROGRAM), &["fix", "--to", "https://api.example"]);
        assert_eq!((ran.code, ran.err.as_str()), (Some(code), ""), "{}", ran.out);
        let said = "denied\n  reason:      NotAccepted: Accepted=False, ReservedAddress: it overlaps\n";
        assert_eq!(ran.out.contains(said), code == 1, "{}", ran.out);
        let rule = if code == 1 { "rules say:   AllowedByRule: " } else { "reason:      AllowedByRule: " };
        assert!(ran.out.contains(rule), "{}", ran.out);
        let said = "  in force:    no: the spec is refused, and nothing of it runs\n";
        assert_eq!(ran.out.contains(said), code == 1, "{}", ran.out);
        assert_eq!(ran.out.contains("by TLS: denied"), code == 1, "{}", ran.out);
    }
}

#[test]
fn one_that_is_refused_while_its_agent_runs_holds_in_part() {
    let rules = json!([{"host": "api.example", "ports": [443]}, {"cidr": "198.51.100.0/24", "ports": [443]}]);
    let mut object = sandbox("fix", &rules);
    let accepted = json!({"type": "Accepted", "status": "False", "reason": "ReservedAddress", "message": "it overlaps", "lastTransitionTime": "2026-11-01T00:00:00Z"});
    object["status"] = json!({"phase": "Running", "conditions": [accepted]});
    for (to, code) in [
        ("https://api.example", 0),
        ("https://evil.example", 1),
        ("198.51.100.7:443", 2),
        ("198.51.100.7:444", 1),
        ("127.0.0.1:8080", 0),
        ("127.64.0.1:3128", 0),
    ] {
        let ran = Cluster::with(&object).explain(Path::new(PROGRAM), &["fix", "--to", to]);
        assert_eq!((ran.code, ran.err.as_str()), (Some(code), ""), "{to}: {}", ran.out);
        let refused = "  refused:     NotAccepted: Accepted=False, ReservedAddress: it overlaps\n";
        assert!(ran.out.contains(refused) && ran.out.contains("  in force:    in part: "), "{}", ran.out);
    }
}

#[test]
fn a_change_that_is_not_in_force_yet_is_said() {
    let mut object = sandbox("fix", &rules());
    object["status"] = json!({"policyDigest": agentsandbox::policy::digest(None)});
    let ran = Cluster::with(&object).explain(Path::new(PROGRAM), &["fix", "--to", "https://api.example"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.out.contains("in force:    not yet: status.policyDigest is sha256:"), "{}", ran.out);
}

/// kubectl runs the file of that name that it finds, with the rest of its arguments.
#[test]
fn as_a_plugin_of_kubectl_it_is_the_same_program() {
    let cluster = Cluster::with(&sandbox("fix", &rules()));
    let plugin = cluster.directory.path().join("kubectl-agentsandbox");
    std::os::unix::fs::symlink(PROGRAM, &plugin).unwrap();
    let ran = cluster.explain(&plugin, &["fix", "--to", "https://api.example"]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    assert!(ran.out.contains("in force:    not yet: the sandbox has no status.policyDigest"), "{}", ran.out);
    let help = cluster.explain(&plugin, &["--help"]);
    assert!(help.out.contains("Usage: kubectl agentsandbox explain"), "{}", help.out);
    assert!(help.out.contains("\n  kubectl agentsandbox explain -f sandbox.yaml"), "{}", help.out);
    assert!(!help.out.contains("\n  agentsandbox "), "{}", help.out);
}
