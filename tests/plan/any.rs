//! Any valid sandbox, what was seen in the cluster for it, and any settings.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use agentsandbox::{
    api::v1alpha1::{
        AgentSandbox, AgentSandboxSpec, ClaimSource, EgressRule, EmptyDirSource, EnvVar, EnvVarSource,
        Filesystem, GoDuration, Isolation, KeySelector, LandlockMode, Mount, NamedSource, Network, Protocol,
        Requests, Resources, RunAs, ServiceReference, UserNamespaceMode,
    },
    plan::{
        self, GatewayReach, GatewaySettings, METADATA, Observed, ObservedPort, ObservedService, Settings,
    },
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use proptest::{collection, option, prelude::*};

/// A sandbox that [`agentsandbox::plan::validate`] must accept, and the rest of its input.
#[derive(Debug, Clone)]
pub struct Case {
    pub sandbox: AgentSandbox,
    pub observed: Observed,
    pub settings: Settings,
}

/// Namespace and name of the Service that rules of any sandbox may name; there is also one of this name in the
/// sandbox's own namespace, with another selector.
pub const SERVICE: (&str, &str) = ("serving", "model");

/// Ports of both Services.
pub fn service_ports() -> Vec<ObservedPort> {
    let port = |port, target, protocol| ObservedPort { port, target, protocol };
    vec![
        port(80, IntOrString::Int(8080), Protocol::TCP),
        port(443, IntOrString::String("https".to_owned()), Protocol::TCP),
        port(53, IntOrString::Int(5353), Protocol::UDP),
    ]
}

pub fn case() -> impl Strategy<Value = Case> {
    (metadata(), spec(), settings()).prop_map(|((namespace, name, uid), mut spec, settings)| {
        let isolation = spec.isolation.get_or_insert_default();
        let possible = settings.user_namespaces && isolation.runtime_class_name.is_none();
        if isolation.user_namespace == UserNamespaceMode::Required && !possible {
            isolation.user_namespace = UserNamespaceMode::Preferred;
        }
        if let (None, Some(network)) = (&settings.gateway, spec.network.as_mut()) {
            network.egress.retain(|rule| rule.host.is_none());
        }
        let service = |app: &str| ObservedService {
            selector: BTreeMap::from([("app".to_owned(), app.to_owned())]),
            ports: service_ports(),
        };
        let services = BTreeMap::from([
            ((SERVICE.0.to_owned(), SERVICE.1.to_owned()), service("shared")),
            ((namespace.clone(), SERVICE.1.to_owned()), service("own")),
        ]);
        let mut sandbox = AgentSandbox::new(&name, spec);
        sandbox.metadata.namespace = Some(namespace);
        sandbox.metadata.uid = Some(uid);
        sandbox.metadata.generation = Some(3);
        Case { sandbox, observed: Observed { services, ..Observed::default() }, settings }
    })
}

fn metadata() -> impl Strategy<Value = (String, String, String)> {
    let label = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?";
    (
        label,
        collection::vec(label, 1..4)
            .prop_map(|labels| labels.join("."))
            .prop_filter("length", |n| n.len() <= 200),
        "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-8[0-9a-f]{3}-[0-9a-f]{12}",
    )
}

fn settings() -> impl Strategy<Value = Settings> {
    (
        any::<bool>(),
        0_u64..120_000,
        option::of("[a-z]{1,12}"),
        any::<bool>(),
        option::of(gateway()),
        any::<[u8; 32]>(),
    )
        .prop_map(|(user_namespaces, grace, priority_class, reserved, gateway, directory_key)| {
            Settings {
                directory_key,
                image: "registry.example/agentsandbox@sha256:00".to_owned(),
                grace: Duration::from_millis(grace),
                reserved_cidrs: if reserved { vec!["10.0.0.0/8".parse().unwrap()] } else { Vec::new() },
                user_namespaces,
                priority_class,
                gateway,
                ..Settings::default()
            }
        })
}

fn gateway() -> impl Strategy<Value = GatewaySettings> {
    let address = || (any::<IpAddr>(), 1_u16..).prop_map(SocketAddr::from);
    let reach = (address(), address(), option::of(address()), "[A-Za-z0-9 $()\n-]{1,40}").prop_map(
        |(address, api_server, dns, authorities)| GatewayReach {
            address,
            server_name: plan::gateway_name("operators"),
            authorities,
            api_server,
            dns,
            metadata: METADATA,
        },
    );
    // No namespace that a rule names: nothing in it may be opened.
    ("[a-z]{1,8}-system", option::of(reach)).prop_map(|(namespace, reach)| GatewaySettings {
        namespace,
        reachable_cidrs: Vec::new(),
        reach,
    })
}

fn spec() -> impl Strategy<Value = AgentSandboxSpec> {
    let text = || "[ -~\n\u{e9}]{1,24}|[$()A-Z]{1,12}";
    let program = (
        "[a-z0-9./:@-]{1,40}",
        collection::vec(text(), 1..4),
        collection::vec(text(), 0..4),
        env(),
        option::of("(/[a-z]{1,8}){1,3}"),
    );
    let user = prop_oneof![1_i64..65_532, Just(65_533)];
    let group = prop_oneof![1_i64..65_532, Just(65_533)];
    let times = (1_u32..604_800, 1_u32..86_400, option::of(0_u32..100_000));
    let guards = (option::of(filesystem()), option::of(network()), option::of(isolation()));
    (program, option::of(user), group, times, resources(), guards).prop_map(
        |((image, command, args, env, working_dir), user, group, times, resources, guards)| {
            let seconds = |seconds: u32| GoDuration::from_text(&format!("{seconds}s"));
            AgentSandboxSpec {
                image,
                command,
                args,
                env,
                working_dir,
                run_as: RunAs { user, group },
                timeout: seconds(times.0),
                startup_timeout: seconds(times.1),
                ttl_after_finished: times.2.map(seconds),
                resources,
                filesystem: guards.0,
                network: guards.1,
                isolation: guards.2,
            }
        },
    )
}

fn env() -> impl Strategy<Value = Vec<EnvVar>> {
    let source = ("[a-z]{1,8}", "[a-z.]{1,3}[a-z]", any::<bool>()).prop_map(|(name, key, secret)| {
        let selector = Some(KeySelector { name, key: key.trim_start_matches('.').to_owned() });
        if secret {
            EnvVarSource { secret_key_ref: selector, config_map_key_ref: None }
        } else {
            EnvVarSource { secret_key_ref: None, config_map_key_ref: selector }
        }
    });
    let value = prop_oneof![
        option::of("[ -~]{0,24}|[$()A-Z]{0,12}").prop_map(|value| (value, None)),
        source.prop_map(|source| (None, Some(source))),
    ];
    collection::btree_map("[A-Za-z_][A-Za-z0-9_]{0,8}", value, 0..5).prop_map(|variables| {
        variables.into_iter().map(|(name, (value, value_from))| EnvVar { name, value, value_from }).collect()
    })
}

fn resources() -> impl Strategy<Value = Resources> {
    (10_u32..64_000, 16_u32..4096, 1_u32..4096, 4_i64..32_769, option::of((0_u32..11, 0_u32..17))).prop_map(
        |(cpu, memory, disk, pids, requests)| Resources {
            cpu: format!("{cpu}m"),
            memory: format!("{memory}Mi"),
            ephemeral_storage: format!("{disk}Mi"),
            pids,
            requests: requests.map(|(cpu, memory)| Requests {
                cpu: Some(format!("{cpu}m")),
                memory: Some(format!("{memory}Mi")),
            }),
        },
    )
}

fn isolation() -> impl Strategy<Value = Isolation> {
    let mode = prop_oneof![
        Just(UserNamespaceMode::Preferred),
        Just(UserNamespaceMode::Required),
        Just(UserNamespaceMode::Disabled)
    ];
    (option::weighted(0.3, "[a-z]{1,12}"), mode)
        .prop_map(|(runtime_class_name, user_namespace)| Isolation { runtime_class_name, user_namespace })
}

/// Every mount has a first component of its own, so that none is inside another.
fn filesystem() -> impl Strategy<Value = Filesystem> {
    let rest = "(/[A-Za-z0-9_ -]{1,6}){0,2}";
    let mount =
        (rest, option::of(any::<bool>()), 0..4_u8, "[a-z]{8}|claim", option::of("[a-z]{1,5}(/[a-z]{1,5})?"));
    let mounts = collection::btree_map("[a-z]{4,10}", mount, 0..6).prop_map(|mounts| {
        mounts.into_iter().map(|(first, rest)| one_mount(&first, rest)).collect::<Vec<Mount>>()
    });
    (mounts, prop_oneof![Just(LandlockMode::BestEffort), Just(LandlockMode::Required)])
        .prop_map(|(mounts, landlock)| Filesystem { mounts, landlock })
}

fn one_mount(
    first: &str,
    (rest, read_only, kind, name, sub_path): (String, Option<bool>, u8, String, Option<String>),
) -> Mount {
    let mut mount = Mount {
        path: format!("/m{first}{rest}"),
        read_only,
        empty_dir: None,
        persistent_volume_claim: None,
        config_map: None,
        secret: None,
    };
    match kind {
        0 => {
            mount.read_only = Some(false);
            mount.empty_dir = Some(EmptyDirSource { size_limit: "1Mi".to_owned() });
        }
        1 => mount.persistent_volume_claim = Some(ClaimSource { claim_name: name, sub_path }),
        kind => {
            mount.read_only = read_only.map(|_| true);
            let source = Some(NamedSource { name, sub_path });
            if kind == 2 { mount.config_map = source } else { mount.secret = source }
        }
    }
    mount
}

fn network() -> impl Strategy<Value = Network> {
    (collection::vec(prop_oneof![cidr_rule(), service_rule(), host_rule()], 0..6), any::<bool>())
        .prop_map(|(egress, proxy_environment)| Network { egress, proxy_environment, ..Network::default() })
}

fn protocol() -> impl Strategy<Value = Option<Protocol>> {
    prop_oneof![Just(None), Just(Some(Protocol::TCP)), Just(Some(Protocol::UDP))]
}

fn host_rule() -> impl Strategy<Value = EgressRule> {
    let ports = collection::vec(1_i32..65_536, 1..4);
    ("([*]{1,2}[.])?[a-z]{1,8}[.]example", ports).prop_map(|(host, ports)| EgressRule {
        host: Some(host),
        ports,
        ..EgressRule::default()
    })
}

/// Networks that hold nothing reserved: their first octet says so, and no prefix is shorter.
fn cidr_rule() -> impl Strategy<Value = EgressRule> {
    let first = (1_u8..224).prop_filter("reserved", |octet| ![10, 100, 127, 168, 169, 192].contains(octet));
    let v4 = (first, any::<[u8; 3]>(), 8..=32_u8)
        .prop_map(|(a, [b, c, d], bits)| IpNet::from(Ipv4Net::new(Ipv4Addr::new(a, b, c, d), bits).unwrap()));
    let v6 = (any::<u128>(), 8..=128_u8).prop_map(|(address, bits)| {
        IpNet::from(Ipv6Net::new(Ipv6Addr::from_bits(0x2a << 120 | address >> 8), bits).unwrap())
    });
    (prop_oneof![v4, v6], collection::vec(1..=65_535_i32, 1..5), protocol()).prop_map(
        |(network, ports, protocol)| EgressRule {
            cidr: Some(network.trunc().to_string()),
            ports,
            protocol,
            ..EgressRule::default()
        },
    )
}

fn service_rule() -> impl Strategy<Value = EgressRule> {
    (any::<bool>(), protocol(), any::<bool>()).prop_map(|(own, protocol, all)| {
        let mut ports: BTreeSet<i32> = service_ports()
            .iter()
            .filter(|p| p.protocol == protocol.unwrap_or_default())
            .map(|p| p.port)
            .collect();
        if !all {
            ports.pop_first().filter(|only| ports.is_empty() && ports.insert(*only));
        }
        let service =
            ServiceReference { name: SERVICE.1.to_owned(), namespace: (!own).then(|| SERVICE.0.to_owned()) };
        EgressRule {
            service: Some(service),
            ports: ports.into_iter().collect(),
            protocol,
            ..EgressRule::default()
        }
    })
}
