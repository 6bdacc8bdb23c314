//! `agentsandbox render`: the objects of a sandbox, or its refusals, without a cluster.
mod documents;
mod hint;

use std::{collections::BTreeMap, io::Write as _, path::PathBuf, process::ExitCode};

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::{
    api::v1alpha1::AgentSandbox,
    plan::{self, GatewaySettings, Observed, ObservedPort, ObservedService, Refusal, Settings},
    policy::{PolicyWarning, shown},
};

pub(crate) use documents::{Document, documents, read};

/// The uid that stands for the one that only an API server gives.
const OFFLINE_UID: &str = "offline";
/// Exit code when an input cannot be read.
const UNREADABLE: u8 = 2;

/// End of the long help.
const HELP: &str = "\
Exit codes:
  0  the objects of every sandbox are printed
  1  a sandbox is refused: every refusal is on standard error
  2  the file or an option cannot be read

Examples:
  agentsandbox render -f sandbox.yaml
  agentsandbox render -f sandbox.yaml -n team-a --service serving/model=app=model
  agentsandbox render -f sandbox.yaml --reserved-cidr 10.244.0.0/16,10.96.0.0/16";

/// Options of `agentsandbox render`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = HELP)]
pub struct Options {
    /// File with one or more AgentSandbox objects, and optionally the Services that their rules name; - is the
    /// standard input.
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// Namespace of the objects that name none.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Image of the operator.
    #[arg(long, default_value = "agentsandbox:dev")]
    pub image: String,
    /// A Service that rules may name, with its selector and target ports equal to its ports:
    /// NAMESPACE/NAME=KEY=VALUE[,KEY=VALUE]. May be repeated.
    #[arg(long, value_name = "SERVICE")]
    pub service: Vec<String>,
    /// Network that no rule may open. May be repeated.
    #[arg(long, value_delimiter = ',')]
    pub reserved_cidr: Vec<IpNet>,
    /// Whether nodes can run Pods in user namespaces.
    #[arg(long)]
    pub user_namespaces: bool,
    /// Namespace of the operator, and so of its egress gateway.
    #[arg(long, value_name = "NAMESPACE", default_value = "agentsandbox-system")]
    pub operator_namespace: String,
    /// Show what an operator without an egress gateway would say: rules that name a host are refused.
    #[arg(long)]
    pub without_gateway: bool,
}

/// Prints the objects. Exit code 0: printed; 1: refused, with every refusal on standard error; 2: unreadable.
#[allow(clippy::print_stderr, reason = "the command's refusals are for the person who typed it")]
pub fn run(options: &Options) -> ExitCode {
    match read(&options.file).and_then(|text| render(&text, options)) {
        Ok(Rendered { yaml, refusals, warnings, note }) => {
            if std::io::stdout().write_all(yaml.as_bytes()).is_err() {
                return ExitCode::from(UNREADABLE);
            }
            for warning in &warnings {
                eprintln!("warning: {warning}");
            }
            for refusal in &refusals {
                eprintln!("{refusal}");
            }
            if let Some(note) = &note {
                eprintln!("note: {note}");
            }
            if refusals.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(message) => {
            eprintln!("agentsandbox render: {message}");
            ExitCode::from(UNREADABLE)
        }
    }
}

/// What came of an input.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rendered {
    /// The objects as YAML documents.
    pub yaml: String,
    /// One line per refusal: `field: message [reason]`, and before it which sandbox where there are several.
    pub refusals: Vec<String>,
    /// One line per rule that is allowed and seldom meant: `field: message`.
    pub warnings: Vec<String>,
    /// What the options leave open.
    pub note: Option<String>,
}

/// Whether a rule of `sandbox` is for a network.
pub(crate) fn has_cidr_rule(sandbox: &AgentSandbox) -> bool {
    sandbox.spec.network.as_ref().is_some_and(|network| network.egress.iter().any(|rule| rule.cidr.is_some()))
}

/// What an answer without the cluster's own ranges, which `option` names, leaves open.
pub(crate) fn no_reserved_ranges(option: &str) -> String {
    format!("no reserved ranges were given ({option}); the operator may refuse a cidr rule")
}

/// The objects of every AgentSandbox in `text`.
///
/// # Errors
/// What in the input cannot be read, for a person.
pub fn render(text: &str, options: &Options) -> Result<Rendered, String> {
    let mut services = BTreeMap::new();
    let mut sandboxes = Vec::new();
    for document in documents(text)? {
        match document {
            Document::Sandbox(sandbox) => sandboxes.push(*sandbox),
            Document::Service(service) => {
                let namespace =
                    service.metadata.namespace.clone().unwrap_or_else(|| options.namespace.clone());
                let name = service.metadata.name.clone().unwrap_or_default();
                services.insert((namespace, name), ObservedService::from_service(&service));
            }
            Document::Other(what) => {
                return Err(format!("{what} is neither an AgentSandbox nor a Service"));
            }
        }
    }
    if sandboxes.is_empty() {
        return Err("no AgentSandbox in the input".to_owned());
    }
    // Where the gateway is, and which certificates it has, only a cluster knows.
    let gateway = (!options.without_gateway).then(|| GatewaySettings {
        namespace: options.operator_namespace.clone(),
        reachable_cidrs: Vec::new(),
        reach: None,
    });
    let settings = Settings {
        image: options.image.clone(),
        reserved_cidrs: options.reserved_cidr.clone(),
        user_namespaces: options.user_namespaces,
        gateway,
        ..Settings::default()
    };
    let open = options.reserved_cidr.is_empty() && sandboxes.iter().any(has_cidr_rule);
    let note = open.then(|| no_reserved_ranges("--reserved-cidr"));
    let mut rendered = Rendered { note, ..Rendered::default() };
    let several = sandboxes.len() > 1;
    for mut sandbox in sandboxes {
        complete(&mut sandbox, &options.namespace);
        let mut observed = Observed { services: services.clone(), ..Observed::default() };
        for text in &options.service {
            let (key, service) = named_service(text, &sandbox)?;
            observed.services.insert(key, service);
        }
        let which = if several { format!("{}: ", full_name(&sandbox)) } else { String::new() };
        one(&sandbox, &observed, &settings, &which, &mut rendered)?;
    }
    Ok(rendered)
}

/// What an API server and `kubectl` add.
pub(crate) fn complete(sandbox: &mut AgentSandbox, namespace: &str) {
    let meta = &mut sandbox.metadata;
    meta.namespace.get_or_insert_with(|| namespace.to_owned());
    meta.uid.get_or_insert_with(|| OFFLINE_UID.to_owned());
    meta.generation.get_or_insert(1);
}

/// Namespace and name of `sandbox`, for a person.
fn full_name(sandbox: &AgentSandbox) -> String {
    let part = |text: &Option<String>| shown(text.as_deref().unwrap_or_default());
    format!("{}/{}", part(&sandbox.metadata.namespace), part(&sandbox.metadata.name))
}

/// Adds what comes of `sandbox`; what is said of it begins with `which`.
fn one(
    sandbox: &AgentSandbox,
    observed: &Observed,
    settings: &Settings,
    which: &str,
    rendered: &mut Rendered,
) -> Result<(), String> {
    let valid = match plan::validate(sandbox, observed, settings) {
        Ok(valid) => valid,
        Err(refusals) => {
            rendered
                .refusals
                .extend(refusals.into_iter().map(|refusal| format!("{which}{}", offline(refusal))));
            return Ok(());
        }
    };
    let warnings = PolicyWarning::all(sandbox.spec.network.as_ref());
    rendered.warnings.extend(warnings.iter().map(|warning| format!("{which}{warning}")));
    let objects = plan::plan(&valid, settings);
    if sandbox.metadata.uid.as_deref() == Some(OFFLINE_UID) {
        rendered
            .yaml
            .push_str("# The uid is a placeholder: names and labels differ where the API server gave one.\n");
    }
    if settings.gateway.is_some() {
        rendered.yaml.push_str(
            "# In a cluster the sidecar is also told where the egress gateway is and what its start gate looks at.\n",
        );
    }
    for yaml in [serde_saphyr::to_string(&objects.policy), serde_saphyr::to_string(&objects.pod)] {
        rendered.yaml.push_str("---\n");
        rendered.yaml.push_str(&yaml.map_err(|error| error.to_string())?);
    }
    Ok(())
}

/// `refusal` with what to do where there is no cluster to look into.
fn offline(mut refusal: Refusal) -> Refusal {
    if refusal.reason == plan::reason::SERVICE_NOT_FOUND && refusal.field.ends_with(".service") {
        refusal.message.push_str("; without a cluster, pass --service or put the Service into the file");
    }
    refusal
}

/// A Service as an option names it. Its ports are the ones that the rules of `sandbox` name.
fn named_service(text: &str, sandbox: &AgentSandbox) -> Result<((String, String), ObservedService), String> {
    let wrong = || format!("--service {text}: write NAMESPACE/NAME=KEY=VALUE[,KEY=VALUE]");
    let (full, selector) = text.split_once('=').ok_or_else(wrong)?;
    let (namespace, name) = full.split_once('/').ok_or_else(wrong)?;
    let pairs = selector.split(',').map(|pair| pair.split_once('=').ok_or_else(wrong));
    let selector = pairs
        .map(|pair| pair.map(|(key, value)| (key.to_owned(), value.to_owned())))
        .collect::<Result<BTreeMap<_, _>, _>>()?;
    let ports = ports_of_rules(sandbox, name);
    Ok(((namespace.to_owned(), name.to_owned()), ObservedService { selector, ports }))
}

/// The ports that the rules of `sandbox` name of a Service of that name, as if Pods had the same.
pub(crate) fn ports_of_rules(sandbox: &AgentSandbox, name: &str) -> Vec<ObservedPort> {
    let rules = sandbox.spec.network.iter().flat_map(|n| &n.egress);
    let ports = rules.filter(|r| r.service.as_ref().is_some_and(|s| s.name == name)).flat_map(|rule| {
        let port = |port: &i32| ObservedPort {
            port: *port,
            target: IntOrString::Int(*port),
            protocol: rule.protocol.unwrap_or_default(),
        };
        rule.ports.iter().map(port)
    });
    ports.collect()
}
