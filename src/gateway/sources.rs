//! What one address may do before it has said who it is: an agent reaches the gateway without its sidecar, too.
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use super::crowd::Crowd;
use super::limits::Bucket;

/// Connections of one address that are not authenticated; one more ends the oldest. Each sandbox has a few spare ones, and
/// the addresses of a node's Pods may all look like the node's.
const MAX_WAITING: usize = 512;

/// Refused tokens of one address at once, and how many more a second.
const FAILURES: (u32, u32) = (20, 2);

/// Unknown tokens of one address about which the API server is asked at once, and how many more a second: more than a
/// node has Pods.
const QUESTIONS: (u32, u32) = (200, 20);

/// New connections of one address a second, in new connections of one sandbox: several may be behind it. A handshake costs the
/// gateway more than its peer. At once there may be as many as in [`BURST`] seconds.
const SANDBOXES: u32 = 4;
const BURST: u32 = 5;

/// Connections of one address that hang up by themselves without having said a word, a second and at once: sidecars do so with
/// spare ones, every ten seconds or so each, and many may be behind one address. What goes beyond that counts as refused.
const SPARES: (u32, u32) = (10, 512);

/// Addresses that are remembered.
const MAX_SOURCES: usize = 16_384;

/// Everybody who is not authenticated.
#[derive(Debug, Clone)]
pub struct Sources {
    all: Arc<Mutex<All>>,
    /// New connections of one address a second.
    rate: u32,
}

#[derive(Debug, Default)]
struct All {
    sources: HashMap<IpAddr, Source>,
    /// Their connections.
    waiting: Crowd<IpAddr, CancellationToken>,
}

#[derive(Debug)]
struct Source {
    arrivals: Bucket,
    failures: Bucket,
    questions: Bucket,
    spares: Bucket,
    /// Refusals that nobody was told of.
    unheard: u64,
    /// When the first of them was.
    since: Instant,
}

impl Source {
    fn new(rate: u32, now: Instant) -> Self {
        Self {
            arrivals: Bucket::new(rate, rate.saturating_mul(BURST), now),
            failures: Bucket::new(FAILURES.1, FAILURES.0, now),
            questions: Bucket::new(QUESTIONS.1, QUESTIONS.0, now),
            spares: Bucket::new(SPARES.0, SPARES.1, now),
            unheard: 0,
            since: now,
        }
    }

    /// Whether there is nothing to remember of it.
    fn is_fresh(&self, now: Instant) -> bool {
        let buckets = [&self.arrivals, &self.failures, &self.questions, &self.spares];
        self.unheard == 0 && buckets.iter().all(|bucket| bucket.is_full(now))
    }

    fn count(&mut self, now: Instant) {
        if self.unheard == 0 {
            self.since = now;
        }
        self.unheard = self.unheard.saturating_add(1);
    }
}

impl All {
    /// Ends the oldest connection of `address` that waits.
    fn end_oldest(&mut self, address: IpAddr, now: Instant) {
        let Some(end) = self.waiting.take_oldest(&address) else { return };
        end.cancel();
        if let Some(source) = self.sources.get_mut(&address) {
            source.count(now);
        }
    }

    fn forget(&mut self, now: Instant) {
        let waiting = &self.waiting;
        self.sources.retain(|address, source| waiting.count(address) > 0 || !source.is_fresh(now));
    }
}

/// One connection that is not authenticated yet.
#[derive(Debug)]
pub struct Waiting {
    sources: Sources,
    address: IpAddr,
    id: u64,
    end: CancellationToken,
}

impl Sources {
    /// Nobody yet; `rate` new connections of one sandbox a second are allowed.
    pub fn new(rate: u32) -> Self {
        Self { all: Arc::default(), rate: rate.saturating_mul(SANDBOXES) }
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a connection of `address` wait; `None` when too many have come. Where too many wait it is not the new one that
    /// goes, since whoever holds all places by being silent would keep everybody else out: of the address the oldest, and
    /// where it is `crowded` the oldest of the address that has most. Behind one address there may be many sandboxes, whose
    /// oldest connections are spare ones that are made anew; who has something to say does so at once.
    pub fn enter(&self, address: IpAddr, crowded: bool) -> Option<Waiting> {
        let now = Instant::now();
        let mut all = self.lock();
        if all.sources.len() >= MAX_SOURCES && !all.sources.contains_key(&address) {
            all.forget(now);
            if all.sources.len() >= MAX_SOURCES {
                return None;
            }
        }
        let source = all.sources.entry(address).or_insert_with(|| Source::new(self.rate, now));
        if !source.arrivals.take(now) {
            source.count(now);
            return None;
        }
        if all.waiting.count(&address) >= MAX_WAITING {
            all.end_oldest(address, now);
        } else if crowded && let Some((most, _)) = all.waiting.most() {
            let most = *most;
            all.end_oldest(most, now);
        }
        let end = CancellationToken::new();
        let id = all.waiting.enter(&address, end.clone());
        drop(all);
        Some(Waiting { sources: self.clone(), address, id, end })
    }

    /// Takes what nobody was told of since `before` or longer: how many refusals of which address.
    pub fn settle(&self, before: Instant) -> Vec<(IpAddr, u64)> {
        let mut all = self.lock();
        let late = |source: &&mut Source| source.unheard > 0 && source.since <= before;
        let counts = all
            .sources
            .iter_mut()
            .filter_map(|(address, source)| Some((*address, late(&source).then_some(source)?)))
            .map(|(address, source)| (address, std::mem::take(&mut source.unheard)))
            .collect();
        all.forget(Instant::now());
        counts
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.lock().sources.len()
    }
}

impl Waiting {
    fn source<R>(&self, what: impl FnOnce(&mut Source) -> R) -> Option<R> {
        self.sources.lock().sources.get_mut(&self.address).map(what)
    }

    /// Ready when it has to make room for another one.
    pub async fn ended(&self) {
        self.end.cancelled().await;
    }

    /// Whether the API server may be asked about one more unknown token of this address.
    pub fn may_ask(&self) -> bool {
        self.source(|source| source.questions.take(Instant::now())).unwrap_or(false)
    }

    /// Counts a refusal. `Some` if it should be recorded, with the number of those before it that were not.
    pub fn refused(&self) -> Option<u64> {
        let now = Instant::now();
        self.source(|source| {
            if source.failures.take(now) {
                return Some(std::mem::take(&mut source.unheard));
            }
            source.count(now);
            None
        })?
    }

    /// Counts a connection that was waited for in vain. It has no record of its own.
    pub fn silent(&self) {
        self.source(|source| source.count(Instant::now()));
    }

    /// Counts a connection that was hung up on by its peer, if it is one of too many.
    pub fn left(&self) {
        let now = Instant::now();
        self.source(|source| {
            if !source.spares.take(now) {
                source.count(now);
            }
        });
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut all = self.sources.lock();
        all.waiting.leave(&self.address, self.id);
        let fresh = |source: &Source| source.is_fresh(Instant::now());
        if all.waiting.count(&self.address) == 0 && all.sources.get(&self.address).is_some_and(fresh) {
            all.sources.remove(&self.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn left(waiting: &[Waiting]) -> usize {
        waiting.iter().filter(|waiting| !waiting.end.is_cancelled()).count()
    }

    #[test]
    fn of_one_address_only_so_many_wait_and_the_oldest_goes_first() {
        let sources = Sources::new(1000);
        let all: Vec<_> = (0..MAX_WAITING + 3).map(|_| sources.enter(address(1), false).unwrap()).collect();
        assert!(all[..3].iter().all(|waiting| waiting.end.is_cancelled()));
        assert_eq!(left(&all), MAX_WAITING);
        let other = sources.enter(address(2), false).unwrap();
        assert!(!other.end.is_cancelled());
        assert_eq!(sources.settle(Instant::now()), [(address(1), 3)]);
    }

    #[test]
    fn in_a_crowd_whoever_holds_most_makes_room() {
        let sources = Sources::new(1000);
        // A node's address with many sandboxes, one sandbox, and three that hold what they can.
        let mut node: Vec<_> = (0..30).map(|_| sources.enter(address(1), false).unwrap()).collect();
        let one = sources.enter(address(2), false).unwrap();
        let silent: Vec<_> =
            (0..100).flat_map(|_| 10..13).map(|n| sources.enter(address(n), false).unwrap()).collect();
        // However often the silent ones come again, nobody else's goes.
        let more: Vec<_> =
            (0..100).flat_map(|_| 10..13).map(|n| sources.enter(address(n), true).unwrap()).collect();
        assert_eq!((left(&node), left(std::slice::from_ref(&one))), (30, 1));
        assert_eq!(left(&silent) + left(&more), 300);
        assert_eq!(left(&more), 300, "the oldest go first");
        node.extend((0..30).map(|_| sources.enter(address(1), true).unwrap()));
        assert_eq!((left(&node), left(&more)), (60, 270));
        let counted: u64 = sources.settle(Instant::now()).iter().map(|(_, count)| count).sum();
        assert_eq!(counted, 330);
        drop((node, one, silent, more));
        assert!(sources.lock().waiting.most().is_none());
    }

    #[test]
    fn a_crowd_of_one_each_is_not_kept_either() {
        let sources = Sources::new(1000);
        let all: Vec<_> = (0..100).map(|n| sources.enter(address(n), false).unwrap()).collect();
        let new = sources.enter(address(200), true).unwrap();
        assert!(all[0].end.is_cancelled() && left(&all) == 99);
        assert!(!new.end.is_cancelled());
    }

    #[test]
    fn who_comes_again_and_again_is_hung_up_on() {
        let sources = Sources::new(5);
        let (a, b) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let came = (0..1000).filter(|_| sources.enter(a, false).is_some()).count();
        assert!((100..140).contains(&came), "{came}");
        assert!(sources.enter(b, false).is_some());
        assert_eq!(sources.len(), 2, "it is remembered");
    }

    #[test]
    fn refusals_are_recorded_up_to_a_rate_and_then_counted() {
        let sources = Sources::new(50);
        let waiting = sources.enter(address(1), false).unwrap();
        let heard = (0..1000).filter(|_| waiting.refused().is_some()).count();
        assert!((20..40).contains(&heard), "{heard}");
        let asked = (0..1000).filter(|_| waiting.may_ask()).count();
        assert!((200..300).contains(&asked), "{asked}");
        drop(waiting);
        assert_eq!(sources.len(), 1, "it is remembered");
    }

    #[test]
    fn what_says_nothing_is_counted_and_told_when_it_is_late() {
        let sources = Sources::new(1000);
        let start = Instant::now();
        let waiting = sources.enter(address(1), false).unwrap();
        (0..7).for_each(|_| waiting.silent());
        assert_eq!(sources.settle(start.checked_sub(Duration::from_secs(1)).unwrap()), [], "not yet");
        assert_eq!(sources.settle(Instant::now()), [(address(1), 7)]);
        assert_eq!(sources.settle(Instant::now()), [], "once");
        (0..SPARES.1).for_each(|_| waiting.left());
        assert_eq!(sources.settle(Instant::now()), [], "sidecars hang up on what they do not need");
        (0..1000).for_each(|_| waiting.left());
        let counted = sources.settle(Instant::now())[0].1;
        assert!((900..=1000).contains(&counted), "{counted}");
        waiting.silent();
        drop(waiting);
        assert_eq!(sources.settle(Instant::now()), [(address(1), 1)], "also of those who are gone");
    }

    #[test]
    fn who_came_too_often_is_counted() {
        let sources = Sources::new(5);
        let came = (0..1000).filter(|_| sources.enter(address(1), false).is_some()).count();
        assert_eq!(sources.settle(Instant::now()), [(address(1), 1000 - came as u64)]);
    }
}
