//! Limits of one sandbox and one source.
use std::time::{Duration, Instant};

/// What a sandbox may use of a gateway.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections in all, also those that wait for their request.
    pub places: usize,
    /// Connections to servers of all sandboxes at a time: what one takes of memory is bounded, and so all of it.
    pub tunnels: usize,
    /// Connections of one sandbox at a time.
    pub connections: usize,
    /// Connections of which no sandbox has to give up any for others.
    pub few: usize,
    /// New connections of one sandbox a second, in the long run; twice as many at once.
    pub rate: u32,
    /// Policy streams of one sandbox at a time.
    pub streams: usize,
    /// Time for a handshake.
    pub handshake: Duration,
    /// How long a connection may wait for its request: sidecars keep spare ones for 20 seconds.
    pub spare: Duration,
    /// Time for a head or a hello, from its first byte.
    pub head: Duration,
    /// Time for the first byte of a request or of the agent.
    pub first_byte: Duration,
    /// Time for resolving a name.
    pub resolve: Duration,
    /// Time for connecting to a server.
    pub dial: Duration,
    /// Time without a byte in either direction.
    pub idle: Duration,
    /// The same when one direction has ended.
    pub half_idle: Duration,
    /// Time for which a connection stays on which nothing moves: when memory is short one whose peer does not read, and
    /// when places are, one of a sandbox that has most of them.
    pub still: Duration,
    /// Time after which a connection that is still open is recorded as such.
    pub recorded_open: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            places: 20_000,
            tunnels: 4000,
            connections: 256,
            few: 32,
            rate: 50,
            streams: 4,
            handshake: Duration::from_secs(5),
            spare: Duration::from_secs(30),
            head: Duration::from_secs(5),
            first_byte: Duration::from_secs(30),
            resolve: Duration::from_secs(5),
            dial: Duration::from_secs(10),
            idle: Duration::from_mins(15),
            half_idle: Duration::from_mins(2),
            still: Duration::from_secs(5),
            recorded_open: Duration::from_secs(10),
        }
    }
}

/// A token bucket.
#[derive(Debug)]
pub struct Bucket {
    /// Millionths of a token.
    level: u64,
    capacity: u64,
    /// Millionths of a token a microsecond: tokens a second.
    rate: u64,
    last: Instant,
}

const ONE: u64 = 1_000_000;

impl Bucket {
    /// A full bucket of `capacity` tokens, filled with `rate` a second.
    pub fn new(rate: u32, capacity: u32, now: Instant) -> Self {
        let capacity = u64::from(capacity) * ONE;
        Self { level: capacity, capacity, rate: u64::from(rate), last: now }
    }

    /// Takes a token, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let passed = u64::try_from(now.saturating_duration_since(self.last).as_micros()).unwrap_or(u64::MAX);
        self.last = now.max(self.last);
        self.level = self.level.saturating_add(passed.saturating_mul(self.rate)).min(self.capacity);
        match self.level.checked_sub(ONE) {
            Some(left) => {
                self.level = left;
                true
            }
            None => false,
        }
    }

    /// Whether it is as full as a new one.
    pub fn is_full(&self, now: Instant) -> bool {
        let passed = u64::try_from(now.saturating_duration_since(self.last).as_micros()).unwrap_or(u64::MAX);
        self.level.saturating_add(passed.saturating_mul(self.rate)) >= self.capacity
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10, 20, start);
        assert_eq!((0..100).filter(|_| bucket.take(start)).count(), 20);
        let later = start + Duration::from_millis(500);
        assert_eq!((0..100).filter(|_| bucket.take(later)).count(), 5);
        assert!(!bucket.is_full(later) && bucket.is_full(later + Duration::from_secs(2)));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn never_more_than_burst_and_rate(steps in prop::collection::vec(0..2_000_u64, 0..200)) {
            let start = Instant::now();
            let mut bucket = Bucket::new(7, 5, start);
            let (mut taken, mut passed) = (0, 0);
            for step in steps {
                passed += step;
                taken += u64::from(bucket.take(start + Duration::from_millis(passed)));
                prop_assert!(taken <= 5 + passed * 7 / 1000);
            }
        }
    }
}
