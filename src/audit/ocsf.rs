//! The part of OCSF 1.8 that the records use: Application Lifecycle (6002), Process Activity (1007), API Activity
//! (6003), Network Activity (4001) and DNS Activity (4003), see <https://schema.ocsf.io/1.8.0>.
use std::io::Write;

use serde::Serialize;

use super::RecordError;
use crate::init::config::SandboxIdentity;

/// Version of the schema in `metadata.version`.
pub const VERSION: &str = "1.8.0";

/// Vendor in `metadata.product` and `app`.
const VENDOR: &str = "agentsandbox.dev";

/// One event of one of the classes. Fields that a class does not have stay empty and are not written.
#[derive(Serialize, Clone, Debug)]
pub struct Record {
    /// What was done, by the class's own numbers; 99 for what it has none for.
    pub activity_id: u32,
    /// Name of `activity_id`.
    pub activity_name: &'static str,
    /// 1 System Activity, 4 Network Activity, 6 Application Activity.
    pub category_uid: u32,
    /// Class, such as 1007.
    pub class_uid: u32,
    /// `class_uid * 100 + activity_id`.
    pub type_uid: u32,
    /// 1 Informational, 2 Low, 3 Medium, 4 High.
    pub severity_id: u32,
    /// 1 Success, 2 Failure.
    pub status_id: u32,
    /// Reason, such as `DeadlineExceeded`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_code: Option<String>,
    /// Details of the status for a person.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_detail: Option<String>,
    /// What happened, for a person.
    pub message: String,
    /// Milliseconds since the epoch.
    pub time: i64,
    /// Identity and order of the record.
    pub metadata: Metadata,
    /// Who did it (1007, 6003).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor>,
    /// Which application began or ended (6002).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<App>,
    /// Where it happened (1007).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<Device>,
    /// The process that began or ended (1007).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// Exit code of `process` (1007, Terminate).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The call (6003).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api: Option<Api>,
    /// Who called (4001, 6003).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src_endpoint: Option<Endpoint>,
    /// Who was called (4001).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst_endpoint: Option<Endpoint>,
    /// Kind of the connection (4001).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_info: Option<ConnectionInfo>,
    /// Bytes of the connection (4001).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
    /// When it began, in milliseconds since the epoch (4001).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<i64>,
    /// When it ended, in milliseconds since the epoch (4001).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_time: Option<i64>,
    /// Milliseconds that it took (4001).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<i64>,
    /// What the policy decided: 1 Allowed, 2 Denied (4001).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action_id: Option<u32>,
    /// What was done: 1 Allowed, 2 Blocked (4001).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disposition_id: Option<u32>,
    /// The rule that decided (4001).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firewall_rule: Option<Rule>,
    /// The policy that decided (4001).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// What was called for (6003).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<Resource>,
    /// Facts without a place in the schema.
    #[serde(skip_serializing_if = "serde_json::Value::is_null")]
    pub unmapped: serde_json::Value,
}

/// Identity and order of a record.
#[derive(Serialize, Clone, Debug)]
pub struct Metadata {
    /// [`VERSION`].
    pub version: &'static str,
    /// Unique among all records.
    pub uid: String,
    /// Place among the records of one writer, from 1 without gaps.
    pub sequence: u64,
    /// UID of the sandbox; empty and not written where nobody could say which it is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub correlation_uid: String,
    /// Profiles of the schema that the record has the fields of.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub profiles: &'static [&'static str],
    /// Who wrote it.
    pub product: Product,
}

/// A product.
#[derive(Serialize, Clone, Debug)]
pub struct Product {
    /// Part of `AgentSandbox` that wrote the record.
    pub name: &'static str,
    /// Vendor.
    pub vendor_name: &'static str,
    /// Version of the crate.
    pub version: &'static str,
}

impl Product {
    /// The part `name` of this build.
    pub const fn part(name: &'static str) -> Self {
        Self { name, vendor_name: VENDOR, version: env!("CARGO_PKG_VERSION") }
    }
}

/// The application of a life-cycle record: the sandbox.
#[derive(Serialize, Clone, Debug)]
pub struct App {
    /// `namespace/name`.
    pub name: String,
    /// UID of the sandbox.
    pub uid: String,
    /// Vendor.
    pub vendor_name: &'static str,
}

impl App {
    /// The application that `sandbox` is.
    pub fn of(sandbox: &SandboxIdentity) -> Self {
        Self {
            name: format!("{}/{}", sandbox.namespace, sandbox.name),
            uid: sandbox.uid.clone(),
            vendor_name: VENDOR,
        }
    }
}

/// Who acted.
#[derive(Serialize, Clone, Debug)]
pub struct Actor {
    /// Name of the part that acted.
    pub app_name: &'static str,
    /// As which user, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
}

/// A user.
#[derive(Serialize, Clone, Debug)]
pub struct User {
    /// Numeric user id as the container sees it.
    pub uid: String,
}

/// The Pod of the sandbox.
#[derive(Serialize, Clone, Debug)]
pub struct Device {
    /// Host name of the Pod.
    pub hostname: String,
    /// 6: virtual.
    pub type_id: u32,
    /// Container of the Pod.
    pub container: Container,
}

/// A container.
#[derive(Serialize, Clone, Debug)]
pub struct Container {
    /// Its name in the Pod.
    pub name: &'static str,
}

/// A process.
#[derive(Serialize, Clone, Debug)]
pub struct Process {
    /// Number in the container.
    pub pid: i32,
    /// Name of the program.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Arguments, quoted where they need it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cmd_line: String,
    /// As which user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
}

/// A call.
#[derive(Serialize, Clone, Debug)]
pub struct Api {
    /// What was called.
    pub operation: &'static str,
    /// Identity of the call.
    pub request: ApiRequest,
}

/// Identity of a call.
#[derive(Serialize, Clone, Debug)]
pub struct ApiRequest {
    /// Generation of the sandbox's spec that the call is about.
    pub uid: String,
}

/// A caller, or what is called.
#[derive(Serialize, Clone, Debug, Default)]
pub struct Endpoint {
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// UID of the Pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Host name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// Port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

impl Endpoint {
    /// One that has only a name.
    pub fn named(name: &str) -> Self {
        Self { name: Some(name.to_owned()), ..Self::default() }
    }
}

/// Kind of a connection.
#[derive(Serialize, Clone, Debug)]
pub struct ConnectionInfo {
    /// 2: outbound.
    pub direction_id: u32,
    /// Name of the transport protocol.
    pub protocol_name: &'static str,
    /// Number of the transport protocol.
    pub protocol_num: u32,
    /// What the records of one connection have in common.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// Bytes of a connection.
#[derive(Serialize, Clone, Copy, Debug)]
pub struct Traffic {
    /// Both ways.
    pub bytes: i64,
    /// To the caller.
    pub bytes_in: i64,
    /// From the caller.
    pub bytes_out: i64,
}

/// A rule of a policy.
#[derive(Serialize, Clone, Debug)]
pub struct Rule {
    /// Where it stands, such as `spec.network.egress[0]`.
    pub uid: String,
}

/// A policy.
#[derive(Serialize, Clone, Debug)]
pub struct Policy {
    /// Its digest.
    pub uid: String,
    /// Generation of the spec that it is of.
    pub version: String,
}

/// An object.
#[derive(Serialize, Clone, Debug)]
pub struct Resource {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Kind.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// UID, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

impl Record {
    /// An informational success of `class` with the activity `(id, name)`.
    pub fn new(
        class: u32,
        activity: (u32, &'static str),
        time: i64,
        metadata: Metadata,
        message: impl Into<String>,
    ) -> Self {
        Self {
            activity_id: activity.0,
            activity_name: activity.1,
            category_uid: class / 1000,
            class_uid: class,
            type_uid: class * 100 + activity.0,
            severity_id: 1,
            status_id: 1,
            status_code: None,
            status_detail: None,
            message: message.into(),
            time,
            metadata,
            actor: None,
            app: None,
            device: None,
            process: None,
            exit_code: None,
            api: None,
            src_endpoint: None,
            dst_endpoint: None,
            connection_info: None,
            traffic: None,
            start_time: None,
            end_time: None,
            duration: None,
            action_id: None,
            disposition_id: None,
            firewall_rule: None,
            policy: None,
            resources: Vec::new(),
            unmapped: serde_json::Value::Null,
        }
    }

    /// The record as a line of canonical JSON with its line feed.
    pub fn to_line(&self) -> Result<Vec<u8>, RecordError> {
        let mut line = serde_json_canonicalizer::to_vec(self)?;
        line.push(b'\n');
        Ok(line)
    }

    /// Writes the line in one call and flushes it.
    pub fn write_to(&self, sink: &mut dyn Write) -> Result<(), RecordError> {
        sink.write_all(&self.to_line()?)?;
        sink.flush()?;
        Ok(())
    }
}
