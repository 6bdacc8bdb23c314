//! A listener for each allowed name and port, on the name's own address: the agent's servers on 127.0.0.1 and ::1 keep
//! every port, and whoever connects has said by the address which name is meant.
//!
//! Listeners are opened when the name is first asked for, also for names that a rule has as they are. A listener costs
//! the kernel 3.8 KiB, which count on the sidecar's memory, and 10 us: 256 rules with 16 ports each would hold 15 MiB and
//! cost 80 ms at the start (4,096 listeners, Linux 6.18), where most agents use a handful.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use super::dns::Directory;
use super::held::{Held, Policy};
use super::kernel_buffers::{self, narrow};
use super::ledger::Ledger;
use super::names::{Names, NoAddress};
use super::pause;
use super::relay::relay;
use super::tunnel::{Agent, Target, Tunnels, Via};
use crate::audit::EgressEvent;
use crate::egress::sockets;
use crate::policy::HostName;

/// Most listeners at once.
const MAX_LISTENERS: usize = 4096;

/// Time without a question after which a name may lose its listeners to another one. Its address stays, and the next
/// question opens them again; an answer holds for 5 s.
const QUIET: Duration = Duration::from_mins(5);

/// Connections that wait to be accepted.
const BACKLOG: u32 = 128;

/// The names and their listeners.
#[derive(Debug)]
pub struct Listeners {
    held: Arc<Held>,
    ledger: Arc<Ledger>,
    tunnels: Arc<Tunnels>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    names: Names,
    open: HashMap<HostName, Open>,
    /// Listeners of all names.
    count: usize,
    most: usize,
}

/// A name that was asked for.
#[derive(Debug)]
struct Open {
    address: Ipv4Addr,
    asked: Instant,
    ports: BTreeMap<u16, AbortOnDropHandle<()>>,
    /// Ports that could not be opened. They are tried again, and told once.
    failed: BTreeSet<u16>,
}

impl Listeners {
    /// No listeners yet; the first name gets the address `first`.
    pub fn new(first: Ipv4Addr, held: Arc<Held>, ledger: Arc<Ledger>, tunnels: Arc<Tunnels>) -> Self {
        // Half of the descriptors at most: the rest is for connections.
        let descriptors = usize::try_from(raise_descriptors() / 2).unwrap_or(usize::MAX);
        let most = MAX_LISTENERS.min(descriptors);
        let state = State { names: Names::new(first), open: HashMap::new(), count: 0, most };
        Self { held, ledger, tunnels, state: Mutex::new(state) }
    }

    /// Follows the policy: opens the new ports of names that were asked for, and closes those that may not be reached
    /// any more.
    pub async fn follow(&self) {
        let mut policies = self.held.policies();
        loop {
            let policy = policies.borrow_and_update().clone();
            if let Some(policy) = policy {
                self.adapt(&policy);
            }
            if policies.changed().await.is_err() {
                return;
            }
        }
    }

    fn adapt(&self, policy: &Policy) {
        let mut state = self.state();
        let names: Vec<HostName> = state.open.keys().cloned().collect();
        for name in names {
            let ports = policy.allowed(&name).map(|allowed| allowed.ports).unwrap_or_default();
            self.open(&mut state, &name, &ports);
        }
    }

    /// Makes the open ports of `name` those of `ports`, as far as it can.
    fn open(&self, state: &mut State, name: &HostName, ports: &BTreeSet<u16>) {
        let Some(open) = state.open.get_mut(name) else { return };
        let before = open.ports.len();
        open.ports.retain(|port, listener| ports.contains(port) && !listener.is_finished());
        open.failed.retain(|port| ports.contains(port));
        let missing: Vec<u16> = ports.iter().copied().filter(|port| !open.ports.contains_key(port)).collect();
        state.count = state.count.saturating_sub(before - open.ports.len());
        for port in missing {
            let room = state.make_room(name);
            let Some(open) = state.open.get_mut(name) else { return };
            let address = SocketAddr::from((open.address, port));
            let listener = if room { listen(address) } else { Err(io::Error::other("too many listeners")) };
            match listener {
                Ok(listener) => {
                    let target = Target { name: name.clone(), port };
                    let task = tokio::spawn(accept(listener, target, Arc::clone(&self.tunnels)));
                    open.ports.insert(port, AbortOnDropHandle::new(task));
                    open.failed.remove(&port);
                    state.count += 1;
                }
                Err(error) => {
                    if open.failed.insert(port) {
                        self.ledger.limited(&EgressEvent::ListenerFailed {
                            name: name.to_string(),
                            address: address.to_string(),
                            detail: error.to_string(),
                        });
                    }
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Makes room for one more listener, where there is none by closing those of the name that nobody asked for longest.
    fn make_room(&mut self, for_whom: &HostName) -> bool {
        if self.count < self.most {
            return true;
        }
        let others = self.open.iter_mut().filter(|(name, open)| *name != for_whom && !open.ports.is_empty());
        match others.map(|(_, open)| open).min_by_key(|open| open.asked) {
            Some(oldest) if oldest.asked.elapsed() >= QUIET => {
                self.count = self.count.saturating_sub(oldest.ports.len());
                oldest.ports.clear();
                true
            }
            _ => false,
        }
    }
}

impl Directory for Listeners {
    fn allows(&self, name: &HostName) -> Result<(), String> {
        let policy = self.held.policy().ok_or("PolicyUnknown")?;
        policy.allowed(name).map(drop).ok_or_else(|| "NoRule".to_owned())
    }

    fn address(&self, name: &HostName) -> Result<Ipv4Addr, String> {
        let policy = self.held.policy().ok_or("PolicyUnknown")?;
        let allowed = policy.allowed(name).ok_or("NoRule")?;
        let now = Instant::now();
        let mut state = self.state();
        let address = state.names.address(name, allowed.exact, now).map_err(|no| match no {
            NoAddress::TooMany => "TooManyNames",
            NoAddress::TooFast => "TooManyNewNames",
        })?;
        let fresh = || Open { address, asked: now, ports: BTreeMap::new(), failed: BTreeSet::new() };
        state.open.entry(name.clone()).or_insert_with(fresh).asked = now;
        self.open(&mut state, name, &allowed.ports);
        Ok(address)
    }

    fn name(&self, address: Ipv4Addr) -> Option<HostName> {
        self.state().names.name(address).cloned()
    }

    fn refused(&self, name: &str, kind: &str, reason: &str) {
        self.ledger.query_refused(name, kind, reason);
    }
}

/// Listens at `address`, for the agent.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    sockets::listen(address, kernel_buffers::AGENT, BACKLOG)
}

async fn accept(listener: TcpListener, target: Target, tunnels: Arc<Tunnels>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // The peer is gone already, or there are too many open files: the next one may be better.
            pause().await;
            continue;
        };
        let (target, tunnels) = (target.clone(), Arc::clone(&tunnels));
        tokio::spawn(async move {
            if tunnels.are_many() {
                narrow(&stream);
            }
            let agent = Agent::new(stream);
            match tunnels.open(&target, Via::Transparent).await {
                Ok(tunnel) => relay(agent, tunnel).await,
                Err(_) => agent.reset(),
            }
        });
    }
}

/// Raises the limit of open descriptors as far as it goes, and returns it.
fn raise_descriptors() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::SandboxRecords;
    use crate::init::config::SandboxIdentity;
    use crate::sidecar::gateway::{GatewayConfig, Gateways};
    use crate::sidecar::held::tests::{name, update};
    use crate::sidecar::journal::Journal;
    use crate::sidecar::tests::fake::{Authority, NAME};

    fn listeners(directory: &std::path::Path) -> Listeners {
        let sandbox = SandboxIdentity { namespace: "n".into(), name: "s".into(), uid: "u".into() };
        let records =
            SandboxRecords { sandbox, generation: 1, policy_digest: String::new(), hostname: String::new() };
        let journal = Journal::open(records, directory, Box::new(io::sink())).unwrap();
        let (held, budget) = (Arc::new(Held::default()), Arc::default());
        let ledger = Arc::new(Ledger::new(journal, Arc::clone(&budget)));
        let config = GatewayConfig {
            service: "127.0.0.1:1".parse().unwrap(),
            authorities: Authority::new().pem(),
            name: NAME.to_owned(),
            token_file: directory.join("token"),
        };
        let gateways = Arc::new(Gateways::new(&config, Arc::clone(&held)).unwrap());
        let tunnels = Arc::new(Tunnels::new(gateways, Arc::clone(&held), budget, Arc::clone(&ledger)));
        let first = crate::sidecar::tests::plan().first;
        Listeners::new(first, held, ledger, tunnels)
    }

    /// Ports at which something listens.
    fn open(listeners: &Listeners, text: &str) -> usize {
        listeners.state().open.get(&name(text)).map_or(0, |open| open.ports.len())
    }

    #[tokio::test]
    async fn who_was_not_asked_for_longest_makes_room() {
        let directory = tempfile::tempdir().unwrap();
        let listeners = listeners(directory.path());
        listeners.state().most = 5;
        let ports: &[u16] = &[7001, 7002];
        listeners.held.take(&update(1, &[("*.example", ports)]));
        let addresses =
            ["a.example", "b.example", "c.example"].map(|text| listeners.address(&name(text)).unwrap());
        // Nobody has been quiet for long enough.
        assert_eq!(["a.example", "b.example", "c.example"].map(|text| open(&listeners, text)), [2, 2, 1]);
        assert_eq!(listeners.state().count, 5);
        let age = |text: &str, minutes| {
            let past = Instant::now().checked_sub(Duration::from_mins(minutes)).unwrap();
            listeners.state().open.get_mut(&name(text)).unwrap().asked = past;
        };
        age("a.example", 6);
        age("b.example", 7);
        assert_eq!(listeners.address(&name("c.example")), Ok(addresses[2]));
        assert_eq!(["a.example", "b.example", "c.example"].map(|text| open(&listeners, text)), [2, 0, 2]);
        assert_eq!(listeners.state().count, 4);
        // It comes back at its own address, once the tasks of its old listeners have ended.
        tokio::task::yield_now().await;
        assert_eq!(listeners.address(&name("b.example")), Ok(addresses[1]));
        assert_eq!(["a.example", "b.example", "c.example"].map(|text| open(&listeners, text)), [0, 2, 2]);
        let records = std::fs::read_to_string(directory.path().join("records.jsonl")).unwrap();
        assert_eq!(records.matches("too many listeners").count(), 1);
    }

    #[tokio::test]
    async fn without_a_policy_there_is_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let listeners = listeners(directory.path());
        assert_eq!(listeners.allows(&name("a.example")), Err("PolicyUnknown".to_owned()));
        assert_eq!(listeners.address(&name("a.example")), Err("PolicyUnknown".to_owned()));
    }
}
