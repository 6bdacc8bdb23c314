//! Connections that sandboxes made or asked for, as the gateway saw them.
use std::io::Write;
use std::net::SocketAddr;

use serde_json::{Map, Value};

use super::ocsf::{App, ConnectionInfo, Endpoint, Metadata, Policy, Product, Record, Rule, Traffic, VERSION};
use super::{RecordError, now_ms};
use crate::init::config::SandboxIdentity;

/// Name of the gateway in its records.
const GATEWAY: &str = "agentsandbox-gateway";

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkOutcome {
    /// It was allowed, made, and goes on: another record tells of its end, unless the gateway is killed before.
    Open,
    /// It was allowed, made, and ended by the peers.
    Closed,
    /// It was allowed, made, and cut off: by a peer, by the policy, by a limit.
    Reset,
    /// It was allowed and could not be made.
    Failed,
    /// It was refused.
    Refused,
}

/// The Pod that asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodIdentity {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// One connection, from its beginning to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkEvent {
    /// Number of the connection among those of the process; `None` where nothing was asked for.
    pub connection: Option<u64>,
    /// The sandbox; `None` where nobody could say.
    pub sandbox: Option<SandboxIdentity>,
    /// The Pod; `None` where nobody could say.
    pub pod: Option<PodIdentity>,
    /// Generation and digest of the policy that decided.
    pub policy: Option<(i64, String)>,
    /// From where the gateway was asked.
    pub source: SocketAddr,
    /// How the agent asked, such as `transparent`.
    pub via: Option<&'static str>,
    /// What was asked for: a host name, or what was written in the place of one.
    pub host: Option<String>,
    /// Port that was asked for.
    pub port: Option<u16>,
    /// The address that was dialled.
    pub address: Option<SocketAddr>,
    /// What the first bytes were: `tls`, `http` or `other`.
    pub protocol: Option<&'static str>,
    /// How it ended.
    pub outcome: NetworkOutcome,
    /// Index of the rule that decided.
    pub rule: Option<usize>,
    /// Word of the decision, or of what cut it off.
    pub reason: &'static str,
    /// For a person.
    pub detail: Option<String>,
    /// Bytes from the agent.
    pub bytes_out: i64,
    /// Bytes to the agent.
    pub bytes_in: i64,
    /// Requests that went on, where each was checked.
    pub requests: Option<u64>,
    /// When it began, in milliseconds since the epoch.
    pub started: i64,
    /// Milliseconds that it took.
    pub duration: i64,
    /// Refusals of the same kind before this one that have no record; where nothing was asked for, this record is only of them.
    pub suppressed: u64,
}

/// Writer of the gateway's records.
pub struct NetworkLog {
    /// Tells the records of one process from those of others.
    instance: String,
    sink: Box<dyn Write + Send>,
    sequence: u64,
}

impl std::fmt::Debug for NetworkLog {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("NetworkLog").field("instance", &self.instance).finish_non_exhaustive()
    }
}

impl NetworkLog {
    /// Writes to `sink`, which is standard output except in tests. `instance` is the name of the Pod.
    pub fn new(instance: &str, sink: impl Write + Send + 'static) -> Self {
        let instance = format!("{instance}-{:x}", now_ms());
        Self { instance, sink: Box::new(sink), sequence: 0 }
    }

    /// Writes one line and flushes it. A record that fails has no sequence number.
    pub fn record(&mut self, event: &NetworkEvent) -> Result<(), RecordError> {
        let sequence = self.sequence + 1;
        let metadata = Metadata {
            version: VERSION,
            uid: format!("{GATEWAY}-{}-{sequence}", self.instance),
            sequence,
            correlation_uid: event.sandbox.as_ref().map(|sandbox| sandbox.uid.clone()).unwrap_or_default(),
            profiles: &["security_control"],
            product: Product::part(GATEWAY),
        };
        let connection = event.connection.map(|number| format!("{GATEWAY}-{}-c{number}", self.instance));
        to_record(event, metadata, connection).write_to(&mut *self.sink)?;
        self.sequence = sequence;
        Ok(())
    }
}

fn to_record(event: &NetworkEvent, metadata: Metadata, connection: Option<String>) -> Record {
    let (activity, allowed) = match event.outcome {
        NetworkOutcome::Open => ((1, "Open"), true),
        NetworkOutcome::Closed => ((2, "Close"), true),
        NetworkOutcome::Reset => ((3, "Reset"), true),
        NetworkOutcome::Failed => ((4, "Fail"), true),
        NetworkOutcome::Refused => ((5, "Refuse"), false),
    };
    let open = event.outcome == NetworkOutcome::Open;
    let good = open || event.outcome == NetworkOutcome::Closed;
    let target = match (&event.host, event.port) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host.clone(),
        (None, _) => "nothing".to_owned(),
    };
    let message = match event.outcome {
        NetworkOutcome::Open => format!("Connection to {target}, open"),
        NetworkOutcome::Closed => format!("Connection to {target}"),
        NetworkOutcome::Reset => format!("Connection to {target}, cut off"),
        NetworkOutcome::Failed => format!("Connection to {target} failed"),
        NetworkOutcome::Refused => format!("Connection to {target} refused"),
    };
    let (pod_name, pod_uid) = event.pod.as_ref().map(|pod| (pod.name.clone(), pod.uid.clone())).unzip();
    let decision = if allowed { 1 } else { 2 };
    Record {
        severity_id: if allowed { 1 } else { 3 },
        status_id: if good { 1 } else { 2 },
        status_code: Some(event.reason.to_owned()),
        status_detail: event.detail.clone().filter(|detail| !detail.is_empty()),
        app: event.sandbox.as_ref().map(App::of),
        src_endpoint: Some(Endpoint {
            name: pod_name,
            uid: pod_uid,
            ip: Some(event.source.ip().to_canonical().to_string()),
            port: Some(event.source.port()),
            hostname: None,
        }),
        dst_endpoint: Some(Endpoint {
            hostname: event.host.clone(),
            ip: event.address.map(|address| address.ip().to_string()),
            port: event.port,
            ..Endpoint::default()
        }),
        connection_info: Some(ConnectionInfo {
            direction_id: 2,
            protocol_name: "tcp",
            protocol_num: 6,
            uid: connection,
        }),
        traffic: Some(Traffic {
            bytes: event.bytes_in.saturating_add(event.bytes_out),
            bytes_in: event.bytes_in,
            bytes_out: event.bytes_out,
        }),
        start_time: Some(event.started),
        end_time: (!open).then(|| event.started.saturating_add(event.duration)),
        duration: Some(event.duration),
        action_id: Some(decision),
        disposition_id: Some(decision),
        firewall_rule: event.rule.map(|index| Rule { uid: format!("spec.network.egress[{index}]") }),
        policy: event
            .policy
            .as_ref()
            .map(|(generation, digest)| Policy { uid: digest.clone(), version: generation.to_string() }),
        unmapped: unmapped(event),
        ..Record::new(4001, activity, now_ms(), metadata, message)
    }
}

fn unmapped(event: &NetworkEvent) -> Value {
    let mut facts = Map::new();
    let mut add = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            facts.insert(name.to_owned(), value);
        }
    };
    add("via", event.via.map(Value::from));
    add("protocol", event.protocol.map(Value::from));
    add("requests", event.requests.map(Value::from));
    add("suppressed", Some(event.suppressed).filter(|count| *count > 0).map(Value::from));
    if facts.is_empty() { Value::Null } else { Value::Object(facts) }
}

#[cfg(test)]
mod tests {
    use super::super::sink::Sink;
    use super::*;

    fn event() -> NetworkEvent {
        NetworkEvent {
            connection: Some(9),
            sandbox: Some(SandboxIdentity {
                namespace: "team-a".to_owned(),
                name: "fix".to_owned(),
                uid: "u-1".to_owned(),
            }),
            pod: Some(PodIdentity { name: "fix-0".to_owned(), uid: "p-1".to_owned() }),
            policy: Some((3, "sha256:ab".to_owned())),
            source: "[::ffff:10.0.0.7]:4000".parse().unwrap(),
            via: Some("transparent"),
            host: Some("api.example".to_owned()),
            port: Some(443),
            address: Some("198.51.100.7:443".parse().unwrap()),
            protocol: Some("tls"),
            outcome: NetworkOutcome::Closed,
            rule: Some(1),
            reason: "AllowedByRule",
            detail: None,
            bytes_out: 10,
            bytes_in: 20,
            requests: None,
            started: 1_700_000_000_000,
            duration: 1500,
            suppressed: 0,
        }
    }

    fn lines(events: &[NetworkEvent]) -> Vec<Value> {
        let sink = Sink::default();
        let mut log = NetworkLog::new("gateway-0", sink.clone());
        for event in events {
            log.record(event).unwrap();
        }
        sink.records()
    }

    #[test]
    fn a_connection_is_one_record() {
        let [line] = lines(&[event()]).try_into().unwrap();
        for (pointer, expected) in [
            ("/class_uid", Value::from(4001)),
            ("/type_uid", 400_102.into()),
            ("/category_uid", 4.into()),
            ("/status_code", "AllowedByRule".into()),
            ("/action_id", 1.into()),
            ("/disposition_id", 1.into()),
            ("/metadata/correlation_uid", "u-1".into()),
            ("/metadata/profiles/0", "security_control".into()),
            ("/src_endpoint/ip", "10.0.0.7".into()),
            ("/src_endpoint/uid", "p-1".into()),
            ("/dst_endpoint/hostname", "api.example".into()),
            ("/dst_endpoint/ip", "198.51.100.7".into()),
            ("/dst_endpoint/port", 443.into()),
            ("/firewall_rule/uid", "spec.network.egress[1]".into()),
            ("/policy/uid", "sha256:ab".into()),
            ("/policy/version", "3".into()),
            ("/traffic/bytes", 30.into()),
            ("/end_time", 1_700_000_001_500_i64.into()),
            ("/unmapped/protocol", "tls".into()),
        ] {
            assert_eq!(line.pointer(pointer), Some(&expected), "{pointer}");
        }
    }

    #[test]
    fn one_that_goes_on_has_no_end_and_is_known_by_its_number() {
        let open = NetworkEvent { outcome: NetworkOutcome::Open, ..event() };
        let [open, closed] = lines(&[open, event()]).try_into().unwrap();
        assert_eq!((&open["activity_name"], &open["type_uid"]), (&"Open".into(), &400_101.into()));
        assert_eq!((&open["status_id"], &open["action_id"]), (&1.into(), &1.into()));
        assert_eq!(open.get("end_time"), None);
        let of = |line: &Value| line["connection_info"]["uid"].as_str().unwrap().to_owned();
        assert_eq!(of(&open), of(&closed));
        assert!(of(&open).ends_with("-c9"), "{open}");
        assert_ne!(open["metadata"]["uid"], closed["metadata"]["uid"]);
    }

    #[test]
    fn a_refusal_is_one_too_also_of_nobody() {
        let refused = NetworkEvent {
            outcome: NetworkOutcome::Refused,
            reason: "Unauthenticated",
            sandbox: None,
            pod: None,
            policy: None,
            rule: None,
            host: None,
            port: None,
            address: None,
            suppressed: 7,
            ..event()
        };
        let [_, line] = lines(&[event(), refused]).try_into().unwrap();
        assert_eq!(line["activity_name"], "Refuse");
        assert_eq!(line["action_id"], 2);
        assert_eq!(line["metadata"]["sequence"], 2);
        assert_eq!(line["unmapped"]["suppressed"], 7);
        for pointer in ["/metadata/correlation_uid", "/dst_endpoint/ip", "/firewall_rule", "/policy", "/app"]
        {
            assert_eq!(line.pointer(pointer), None, "{pointer}");
        }
    }
}
