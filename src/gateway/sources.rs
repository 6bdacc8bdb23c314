//! What one address may do before it has said who it is: an agent reaches the gateway without its sidecar, too.
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::limits::Bucket;

/// Connections of one address that are not authenticated. Each sandbox has a few spare ones, and the addresses of a
/// node's Pods may all look like the node's.
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

/// Addresses that are remembered.
const MAX_SOURCES: usize = 16_384;

/// Everybody who is not authenticated.
#[derive(Debug, Clone)]
pub struct Sources {
    all: Arc<Mutex<HashMap<IpAddr, Source>>>,
    /// New connections of one address a second.
    rate: u32,
}

#[derive(Debug)]
struct Source {
    waiting: usize,
    arrivals: Bucket,
    failures: Bucket,
    questions: Bucket,
    /// Refusals that nobody was told of.
    unheard: u64,
}

impl Source {
    /// Whether there is nothing to remember of it.
    fn is_fresh(&self, now: Instant) -> bool {
        self.arrivals.is_full(now) && self.failures.is_full(now) && self.questions.is_full(now)
    }
}

/// One connection that is not authenticated yet.
#[derive(Debug)]
pub struct Waiting {
    sources: Sources,
    address: IpAddr,
}

impl Sources {
    /// Nobody yet; `rate` new connections of one sandbox a second are allowed.
    pub fn new(rate: u32) -> Self {
        Self { all: Arc::default(), rate: rate.saturating_mul(SANDBOXES) }
    }

    /// Lets a connection of `address` wait; `None` when too many do.
    pub fn enter(&self, address: IpAddr) -> Option<Waiting> {
        let now = Instant::now();
        let mut sources = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if sources.len() >= MAX_SOURCES && !sources.contains_key(&address) {
            sources.retain(|_, source| source.waiting > 0 || !source.is_fresh(now));
            if sources.len() >= MAX_SOURCES {
                return None;
            }
        }
        let source = sources.entry(address).or_insert_with(|| Source {
            waiting: 0,
            arrivals: Bucket::new(self.rate, self.rate.saturating_mul(BURST), now),
            failures: Bucket::new(FAILURES.1, FAILURES.0, now),
            questions: Bucket::new(QUESTIONS.1, QUESTIONS.0, now),
            unheard: 0,
        });
        if source.waiting >= MAX_WAITING || !source.arrivals.take(now) {
            return None;
        }
        source.waiting += 1;
        drop(sources);
        Some(Waiting { sources: self.clone(), address })
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.all.lock().unwrap().len()
    }
}

impl Waiting {
    /// Whether the API server may be asked about one more unknown token of this address.
    pub fn may_ask(&self) -> bool {
        let mut sources = self.sources.all.lock().unwrap_or_else(PoisonError::into_inner);
        sources.get_mut(&self.address).is_some_and(|source| source.questions.take(Instant::now()))
    }

    /// Counts a refusal. `Some` if it should be recorded, with the number of those before it that were not.
    pub fn refused(&self) -> Option<u64> {
        let mut sources = self.sources.all.lock().unwrap_or_else(PoisonError::into_inner);
        let source = sources.get_mut(&self.address)?;
        if source.failures.take(Instant::now()) {
            return Some(std::mem::take(&mut source.unheard));
        }
        source.unheard += 1;
        None
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut sources = self.sources.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = sources.get_mut(&self.address) {
            source.waiting = source.waiting.saturating_sub(1);
            if source.waiting == 0 && source.unheard == 0 && source.is_fresh(Instant::now()) {
                sources.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_all() {
        let sources = Sources::new(1000);
        let (a, b) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let mut waiting: Vec<_> = (0..MAX_WAITING).map(|_| sources.enter(a).unwrap()).collect();
        assert!(sources.enter(a).is_none());
        assert!(sources.enter(b).is_some());
        waiting.pop();
        waiting.push(sources.enter(a).unwrap());
    }

    #[test]
    fn who_comes_again_and_again_is_hung_up_on() {
        let sources = Sources::new(5);
        let (a, b) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let came = (0..1000).filter(|_| sources.enter(a).is_some()).count();
        assert!((100..140).contains(&came), "{came}");
        assert!(sources.enter(b).is_some());
        assert_eq!(sources.len(), 2, "it is remembered");
    }

    #[test]
    fn refusals_are_recorded_up_to_a_rate_and_then_counted() {
        let sources = Sources::new(50);
        let waiting = sources.enter("192.0.2.1".parse().unwrap()).unwrap();
        let heard = (0..1000).filter(|_| waiting.refused().is_some()).count();
        assert!((20..40).contains(&heard), "{heard}");
        let asked = (0..1000).filter(|_| waiting.may_ask()).count();
        assert!((200..300).contains(&asked), "{asked}");
        drop(waiting);
        assert_eq!(sources.len(), 1, "it is remembered");
    }
}
