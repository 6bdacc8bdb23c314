//! What one sandbox does on this gateway now: its connections, streams, rate and bytes.
use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};

use super::connection::{Connection, Ending};
use super::limits::{Bucket, Limits};
use super::notices::Told;
use super::overflow::Overflow;
use super::refusal::{Cause, Refusal};
use super::sandboxes::Sandbox;
use crate::egress::wire::Refusals;
use crate::policy::HostName;

/// Policy streams of one sandbox at once, and how many more a second.
const STREAMS: (u32, u32) = (20, 1);

/// Questions of one sandbox to name servers at a time: those that nobody answers must not take the connections to them, which
/// all sandboxes share.
const LOOKUPS: usize = 32;

/// What one sandbox does on this gateway.
#[derive(Debug)]
pub struct Live {
    sandbox: watch::Sender<Option<Arc<Sandbox>>>,
    connections: Mutex<HashMap<u64, Arc<Connection>>>,
    next: AtomicU64,
    rate: Mutex<Bucket>,
    streams: Mutex<Bucket>,
    moved: AtomicI64,
    most: AtomicI64,
    told: Told,
    lookups: Semaphore,
    overflow: Overflow,
    /// What was refused on connections that were opened, of which the sidecar has not heard.
    later: watch::Sender<Refusals>,
}

impl Live {
    /// Nothing yet of `sandbox`.
    pub fn new(sandbox: Arc<Sandbox>, limits: &Limits) -> Self {
        let most = AtomicI64::new(sandbox.most_bytes());
        Self {
            sandbox: watch::Sender::new(Some(sandbox)),
            connections: Mutex::default(),
            next: AtomicU64::new(0),
            rate: Mutex::new(Bucket::new(limits.rate, limits.rate.saturating_mul(2), Instant::now())),
            streams: Mutex::new(Bucket::new(STREAMS.1, STREAMS.0, Instant::now())),
            moved: AtomicI64::new(0),
            most,
            told: Told::default(),
            lookups: Semaphore::new(LOOKUPS),
            overflow: Overflow::new(Instant::now()),
            later: watch::Sender::default(),
        }
    }

    /// Room for questions to name servers.
    pub fn lookups(&self) -> &Semaphore {
        &self.lookups
    }

    /// The sandbox as it is now; `None` when it is deleted.
    pub fn sandbox(&self) -> Option<Arc<Sandbox>> {
        self.sandbox.borrow().clone()
    }

    /// Tells of every change.
    pub fn watch(&self) -> watch::Receiver<Option<Arc<Sandbox>>> {
        self.sandbox.subscribe()
    }

    /// The sandbox changed, or is deleted. What it does not allow any more ends.
    pub fn update(&self, sandbox: Option<Arc<Sandbox>>) {
        // First the sandbox, then the walk: whoever enters between the two is judged by the new one.
        self.sandbox.send_replace(sandbox.clone());
        let Some(sandbox) = sandbox else { return self.end_all(Ending::SandboxGone) };
        self.most.store(sandbox.most_bytes(), Ordering::SeqCst);
        for connection in self.all() {
            connection.review(&sandbox);
        }
        if self.exceeded() {
            self.end_tunnels(Ending::BytesExceeded);
        }
    }

    /// The Pod with this UID ended.
    pub fn pod_gone(&self, pod_uid: &str) {
        self.all().iter().filter(|c| c.is_of(pod_uid)).for_each(|c| c.end(Ending::PodGone));
    }

    /// Ends everything.
    pub fn end_all(&self, ending: Ending) {
        self.all().iter().for_each(|connection| connection.end(ending));
    }

    /// Ends the policy streams.
    pub fn end_streams(&self, ending: Ending) {
        self.all().iter().filter(|c| !c.is_tunnel()).for_each(|c| c.end(ending));
    }

    /// Ends the tunnel on which nothing has moved for longest, if that is `idle` or more. Whether there was one.
    pub fn make_room(&self, idle: Duration) -> bool {
        let all = self.all().into_iter().filter(|connection| connection.is_tunnel());
        let idlest =
            all.filter_map(|connection| Some((connection.idle()?, connection))).max_by_key(|(idle, _)| *idle);
        let Some((_, connection)) = idlest.filter(|(longest, _)| *longest >= idle) else { return false };
        connection.end(Ending::MadeRoom);
        true
    }

    fn end_tunnels(&self, ending: Ending) {
        self.all().iter().filter(|c| c.is_tunnel()).for_each(|c| c.end(ending));
    }

    fn all(&self) -> Vec<Arc<Connection>> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one more request is not too many for this second.
    pub fn admit(&self, limits: &Limits) -> Result<(), Refusal> {
        if self.rate.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now()) {
            return Ok(());
        }
        let message = format!("more than {} new connections of one sandbox a second", limits.rate);
        Err(Refusal::new(Cause::TooManyConnections, message))
    }

    /// The same for a policy stream. By themselves, so that an agent's connections do not keep its sidecar from them.
    pub fn admit_stream(&self) -> Result<(), Refusal> {
        if self.streams.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now()) {
            return Ok(());
        }
        Err(Refusal::new(
            Cause::TooManyConnections,
            "more than one new policy stream of one sandbox a second",
        ))
    }

    /// Its refusals of too many connections.
    pub fn overflow(&self) -> &Overflow {
        &self.overflow
    }

    /// Enters a connection of the Pod `pod_uid` to `target`, or a stream, before it is decided about, so that a change
    /// of the policy finds it.
    pub fn enter(
        self: &Arc<Self>,
        pod_uid: &str,
        target: Option<(HostName, u16)>,
        limits: &Limits,
    ) -> Result<Entered, Refusal> {
        let connection = Arc::new(Connection::new(pod_uid, target));
        let tunnel = connection.is_tunnel();
        let mut connections = self.lock();
        let most = if tunnel { limits.connections } else { limits.streams };
        if connections.values().filter(|c| c.is_tunnel() == tunnel).count() >= most {
            let message = format!("more than {most} connections of one sandbox at a time");
            return Err(Refusal::new(Cause::TooManyConnections, message));
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        connections.insert(id, Arc::clone(&connection));
        drop(connections);
        Ok(Entered { live: Arc::clone(self), id, connection })
    }

    /// At least this many bytes were moved: what the sidecar knows of all gateways.
    pub fn moved_at_least(&self, bytes: i64) {
        let before = self.moved.fetch_max(bytes, Ordering::SeqCst);
        self.reached(before, bytes);
    }

    /// Whether the sandbox has moved the bytes that it may.
    pub fn exceeded(&self) -> bool {
        self.moved.load(Ordering::SeqCst) >= self.most.load(Ordering::SeqCst)
    }

    /// Counts bytes; when they are too many, every connection of the sandbox ends.
    pub fn count(&self, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        let add = |moved: i64| Some(moved.saturating_add(bytes));
        let before = match self.moved.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add) {
            Ok(before) | Err(before) => before,
        };
        self.reached(before, before.saturating_add(bytes));
    }

    /// Ends every connection when the bytes that were moved have become too many.
    fn reached(&self, before: i64, now: i64) {
        let most = self.most.load(Ordering::SeqCst);
        if before < most && now >= most {
            self.end_tunnels(Ending::BytesExceeded);
        }
    }

    /// What was taken was not told after all.
    pub fn put_back(&self, refusals: Refusals) {
        self.later.send_modify(|later| {
            if later.count == 0 {
                *later = refusals;
            } else {
                later.count = later.count.saturating_add(refusals.count);
            }
        });
    }

    /// What the owner was told of refusals.
    pub fn told(&self) -> &Told {
        &self.told
    }

    /// `target` was refused for `reason` after its connection was opened: the sidecar is to hear of it.
    pub fn refused_later(&self, target: &str, reason: &str) {
        self.later.send_modify(|later| later.add(target, reason));
    }

    /// Ready when there is something of which the sidecar has not heard.
    pub async fn untold(&self) {
        // The sender lives in `self`: the channel cannot be closed.
        let _ = self.later.subscribe().wait_for(|later| later.count > 0).await;
    }

    /// What the sidecar has not heard of; from now on it has.
    pub fn take_untold(&self) -> Option<Refusals> {
        let mut taken = Refusals::default();
        self.later.send_if_modified(|later| {
            taken = std::mem::take(later);
            false
        });
        (taken.count > 0).then_some(taken)
    }

    /// Connections and streams now.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.lock().len()
    }
}

/// A connection that is entered, until it is dropped.
#[derive(Debug)]
pub struct Entered {
    live: Arc<Live>,
    id: u64,
    connection: Arc<Connection>,
}

impl Deref for Entered {
    type Target = Arc<Connection>;

    fn deref(&self) -> &Arc<Connection> {
        &self.connection
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.live.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::task::{Context, Poll, Waker};

    use super::super::sandboxes::tests::{sandbox, sandbox_of, sandbox_with_bytes};
    use super::*;
    use crate::policy::AppProtocol;

    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    fn target(name: &str) -> (HostName, u16) {
        (name.parse().unwrap(), 443)
    }

    fn live(hosts: &[&str]) -> Arc<Live> {
        Arc::new(Live::new(Arc::new(sandbox(1, hosts)), &Limits::default()))
    }

    #[test]
    fn a_change_ends_what_it_does_not_allow_and_nothing_else() {
        let (live, limits) = (live(&["a.example", "b.example"]), Limits::default());
        let a = live.enter("p", Some(target("a.example")), &limits).unwrap();
        let b = live.enter("p", Some(target("b.example")), &limits).unwrap();
        b.carries(AppProtocol::Tls, false);
        let stream = live.enter("p", None, &limits).unwrap();
        live.update(Some(Arc::new(sandbox(2, &["b.example", "c.example"]))));
        assert!(matches!(now(a.ended()), Some(Ending::PolicyChanged(_))));
        assert_eq!(now(b.ended()), None);
        assert_eq!(now(stream.ended()), None);
        live.update(None);
        assert_eq!(now(b.ended()), Some(Ending::SandboxGone));
        assert!(matches!(now(a.ended()), Some(Ending::PolicyChanged(_))), "the first reason stays");
        drop((a, b, stream));
        assert_eq!(live.len(), 0);
    }

    #[test]
    fn every_request_of_a_connection_has_to_be_allowed_still() {
        let sandbox = |generation, prefixes: &[&str]| {
            let http = serde_json::json!({"pathPrefixes": prefixes});
            let rule = serde_json::json!({"host": "a.example", "ports": [443], "http": http});
            sandbox_of(generation, vec![serde_json::from_value(rule).unwrap()])
        };
        let limits = Limits::default();
        let live = Arc::new(Live::new(Arc::new(sandbox(1, &["/big", "/small"])), &limits));
        let enter = || live.enter("p", Some(target("a.example")), &limits).unwrap();
        let (both, small, many) = (enter(), enter(), enter());
        both.requests("GET", "/big");
        both.requests("GET", "/small");
        small.requests("GET", "/small");
        (0..1000).for_each(|number| many.requests("GET", &format!("/small/{number}")));
        live.update(Some(Arc::new(sandbox(2, &["/small"]))));
        assert!(matches!(now(both.ended()), Some(Ending::PolicyChanged(_))), "an earlier one counts");
        assert_eq!(now(small.ended()), None);
        assert_eq!(now(many.ended()), Some(Ending::PolicyUnknown), "what is not known is not allowed");
    }

    #[test]
    fn a_pod_takes_only_its_own_with_it() {
        let (live, limits) = (live(&["a.example"]), Limits::default());
        let old = live.enter("old", Some(target("a.example")), &limits).unwrap();
        let new = live.enter("new", Some(target("a.example")), &limits).unwrap();
        live.pod_gone("old");
        assert_eq!(now(old.ended()), Some(Ending::PodGone));
        assert_eq!(now(new.ended()), None);
    }

    #[test]
    fn numbers_are_limited() {
        let limits = Limits { connections: 3, streams: 1, ..Limits::default() };
        let live = live(&["a.example"]);
        let all: Vec<_> = (0..4)
            .map(|_| live.enter("p", Some(target("a.example")), &limits))
            .filter_map(Result::ok)
            .collect();
        assert_eq!(all.len(), 3);
        let stream = live.enter("p", None, &limits).unwrap();
        assert!(live.enter("p", None, &limits).is_err());
        drop((all, stream));
        let passed = (0..200).filter(|_| live.admit(&limits).is_ok()).count();
        assert!((90..120).contains(&passed), "{passed}");
    }

    #[test]
    fn bytes_are_limited_over_all_connections() {
        let limits = Limits::default();
        let live = Arc::new(Live::new(Arc::new(sandbox_with_bytes(1, 10_000)), &limits));
        let a = live.enter("p", Some(target("a.example")), &limits).unwrap();
        let b = live.enter("p", Some(target("a.example")), &limits).unwrap();
        live.count(6000);
        assert_eq!(now(a.ended()), None);
        assert_eq!(now(b.ended()), None);
        live.moved_at_least(7000);
        live.moved_at_least(10);
        live.count(3000);
        assert_eq!(now(a.ended()), Some(Ending::BytesExceeded));
        assert_eq!(now(b.ended()), Some(Ending::BytesExceeded));
        assert!(live.exceeded());
        live.update(Some(Arc::new(sandbox_with_bytes(2, 100_000))));
        assert!(!live.exceeded(), "a raised limit opens again");
        let d = live.enter("p", Some(target("a.example")), &limits).unwrap();
        live.moved_at_least(i64::MAX);
        live.count(1);
        assert_eq!(now(d.ended()), Some(Ending::BytesExceeded), "also by what was moved elsewhere");
        assert!(live.exceeded(), "the sum does not start again");
        let live = Arc::new(Live::new(Arc::new(sandbox_with_bytes(2, 100_000)), &limits));
        live.count(10_000);
        let c = live.enter("p", Some(target("a.example")), &limits).unwrap();
        live.update(Some(Arc::new(sandbox_with_bytes(3, 5000))));
        assert_eq!(now(c.ended()), Some(Ending::BytesExceeded));
    }
}
