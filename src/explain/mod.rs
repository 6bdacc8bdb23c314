//! `agentsandbox explain`: which rule of a sandbox allows or refuses an endpoint, and why. Decides by the code that the
//! gateway runs; with a file it needs no cluster.
mod accepted;
mod answer;
mod by_address;
mod by_name;
mod live;
mod loopback;
mod services;
mod target;

use std::{
    io::Write as _,
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use ipnet::IpNet;

use crate::{
    api::v1alpha1::AgentSandbox,
    policy::{AddressPolicy, shown},
    render::{self, Document},
};

pub use answer::{Answer, Finding, answer};
pub use services::{SeenService, Services};
pub use target::{Endpoint, Said, Target};

/// Exit code when there is no answer.
const UNKNOWN: u8 = 2;

/// End of the long help.
const HELP: &str = "\
Exit codes:
  0  allowed
  1  denied, or the sandbox is refused and nothing of it runs
  2  no answer: the target, the file or the cluster cannot be read, or only the cluster knows

Where a rule names a Service, the Service and its EndpointSlices are read with your rights, for
an address and for a name of the Service. With --file nothing is, and what they say is not known.

Examples:
  agentsandbox explain -f sandbox.yaml --to https://pypi.org/simple
  agentsandbox explain -f sandbox.yaml --to http://intake.example/v1/results --method POST
  agentsandbox explain fix-issue-42 -n team-a --to tcp://git.example:22
  agentsandbox explain fix-issue-42 -n team-a --to model.serving:80";

/// Options of `agentsandbox explain`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = HELP)]
pub struct Options {
    /// A sandbox in the cluster; with --file, the one in the file that is meant.
    #[arg(value_name = "NAME", required_unless_present = "file")]
    pub name: Option<String>,
    /// File with the AgentSandbox; - is the standard input. Nothing is asked of any cluster then.
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Namespace of the sandbox in the cluster; without it the one of the kubeconfig.
    #[arg(short, long, conflicts_with = "file")]
    pub namespace: Option<String>,
    /// Context of the kubeconfig.
    #[arg(long, conflicts_with = "file")]
    pub context: Option<String>,
    /// Where to: https://host, https://host:8443/path, http://host/path, tcp://host:22, udp://198.51.100.7:53, or
    /// host:port for whether it may be connected to at all; host alone is https://host. The host may be an address.
    #[arg(long, value_name = "TARGET")]
    #[allow(rustdoc::bare_urls, reason = "the text is the command's help")]
    pub to: String,
    /// Method of a plain HTTP request.
    #[arg(long, default_value = "GET")]
    pub method: String,
    /// The TLS client encrypts the server name (ECH), or sends what looks like it.
    #[arg(long)]
    pub ech: bool,
    /// An address that the name resolves to: whether the gateway would dial it. May be repeated.
    #[arg(long, value_delimiter = ',', value_name = "ADDRESS")]
    pub address: Vec<IpAddr>,
    /// The cluster's own networks, as the gateway was told. May be repeated.
    #[arg(long, visible_alias = "reserved-cidr", value_delimiter = ',', value_name = "NETWORK")]
    pub cluster_cidr: Vec<IpNet>,
    /// Networks that the administrator opened although they are not global, as the gateway was told. May be repeated.
    #[arg(long, value_delimiter = ',', value_name = "NETWORK")]
    pub reachable_cidr: Vec<IpNet>,
}

/// Prints the answer. Exit code 0: allowed; 1: denied; 2: no answer, since the target, the file or the cluster cannot be
/// read, or only the cluster knows.
#[allow(clippy::print_stderr, reason = "for the person who typed the command")]
pub fn run(options: &Options) -> ExitCode {
    match explain(options) {
        Ok(answer) => {
            for warning in &answer.warnings {
                eprintln!("warning: {warning}");
            }
            if std::io::stdout().write_all(answer.to_string().as_bytes()).is_err() {
                return ExitCode::from(UNKNOWN);
            }
            match answer.finding {
                Finding::Allowed => ExitCode::SUCCESS,
                Finding::Denied => ExitCode::FAILURE,
                Finding::Unknown => ExitCode::from(UNKNOWN),
            }
        }
        Err(message) => {
            eprintln!("agentsandbox explain: {message}");
            ExitCode::from(UNKNOWN)
        }
    }
}

fn explain(options: &Options) -> Result<Answer, String> {
    let target = Target::parse(&options.to, &options.method, options.ech)?;
    let addresses =
        AddressPolicy { cluster: options.cluster_cidr.clone(), reachable: options.reachable_cidr.clone() };
    match (&options.file, &options.name) {
        (Some(file), name) => {
            let sandbox = from_file(file, name.as_deref())?;
            let mut answer = answer(&sandbox, &target, &addresses, &options.address, &Services::new());
            if options.cluster_cidr.is_empty() && render::has_cidr_rule(&sandbox) {
                answer.say("note", &render::no_reserved_ranges("--cluster-cidr"));
            }
            Ok(answer)
        }
        (None, Some(name)) => {
            let (sandbox, services) =
                live::read(name, options.namespace.as_deref(), options.context.clone(), &target)?;
            let refusal = live::refusal(&sandbox);
            let in_part = refusal.is_some() && live::has_agent(&sandbox);
            let judge = if in_part { answer::by_rules } else { answer };
            let mut answer = judge(&sandbox, &target, &addresses, &options.address, &services);
            match refusal {
                Some(refusal) if in_part => answer.refuse_in_part(&target, &refusal),
                Some(refusal) => answer.refuse(&refusal),
                None => {}
            }
            answer.say("in force", &live::in_force(&sandbox));
            for (condition, text) in live::conditions(&sandbox) {
                answer.say(&condition, &text);
            }
            Ok(answer)
        }
        (None, None) => Err("name a sandbox, or a file with --file".to_owned()),
    }
}

fn from_file(file: &Path, name: Option<&str>) -> Result<AgentSandbox, String> {
    let documents = render::documents(&render::read(file)?)?;
    let sandboxes = documents.into_iter().filter_map(|document| match document {
        Document::Sandbox(sandbox) => Some(*sandbox),
        _ => None,
    });
    let mut found: Vec<_> = sandboxes.collect();
    if let Some(name) = name {
        found.retain(|sandbox| sandbox.metadata.name.as_deref() == Some(name));
    }
    match (found.pop(), found.is_empty(), name) {
        (Some(sandbox), true, _) => Ok(sandbox),
        (Some(_), false, Some(name)) => Err(format!("{} is several times in the file", shown(name))),
        (Some(_), false, None) => Err("the file has several AgentSandboxes; name one".to_owned()),
        (None, _, Some(name)) => Err(format!("no AgentSandbox {} in the file", shown(name))),
        (None, _, None) => Err("no AgentSandbox in the file".to_owned()),
    }
}
