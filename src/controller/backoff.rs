//! Back-off per object: kube has none of its own.
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_mins(1);

/// Failures in a row, by UID.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: Mutex<HashMap<String, u32>>,
    random: RandomState,
}

impl Backoff {
    /// Delay before the next try of `uid`: 200 ms, doubled with every failure up to 60 s, give or take a fifth.
    pub fn next(&self, uid: &str) -> Duration {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(uid.to_owned()).or_default();
        let failure = *count;
        *count = count.saturating_add(1);
        delay(failure, self.random.hash_one((uid, failure)))
    }

    /// Forgets the failures of `uid`: it succeeded, or it is gone.
    pub fn reset(&self, uid: &str) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// Forgets every sandbox that `exists` does not know: one that is deleted while it waits is not reconciled again.
    pub fn retain(&self, exists: impl Fn(&str) -> bool) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid, _| exists(uid));
    }
}

/// Delay after `failure` failures before this one; `random` spreads it from 80 to 120 %.
fn delay(failure: u32, random: u64) -> Duration {
    let base = FIRST.saturating_mul(1_u32.checked_shl(failure).unwrap_or(u32::MAX)).min(LONGEST);
    let percent = u32::try_from(80 + random % 41).unwrap_or(100);
    (base.saturating_mul(percent) / 100).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_a_minute_and_are_spread_by_a_fifth() {
        for random in [0, 20, 40] {
            let mut last = Duration::ZERO;
            for failure in 0..100 {
                let delay = delay(failure, random);
                assert!(delay >= last && delay >= Duration::from_millis(160) && delay <= LONGEST);
                last = delay;
            }
            assert!(last >= Duration::from_secs(48));
        }
    }

    #[test]
    fn success_starts_again() {
        let backoff = Backoff::default();
        for _ in 0..10 {
            backoff.next("a");
        }
        assert!(backoff.next("a") > Duration::from_secs(40));
        backoff.reset("a");
        assert!(backoff.next("a") < Duration::from_secs(1));
    }

    #[test]
    fn what_is_gone_is_forgotten_and_what_waits_is_not() {
        let backoff = Backoff::default();
        for uid in ["gone", "here"].repeat(10) {
            backoff.next(uid);
        }
        backoff.retain(|uid| uid == "here");
        assert_eq!(backoff.failures.lock().unwrap().len(), 1);
        assert!(backoff.next("here") > Duration::from_secs(40));
    }
}
