//! Refusals of one sandbox that are too many to have a record each.
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::limits::Bucket;

/// Records at once, and how many more a second.
const RECORDS: (u32, u32) = (5, 1);

/// The refusals.
#[derive(Debug)]
pub struct Overflow(Mutex<State>);

#[derive(Debug)]
struct State {
    records: Bucket,
    /// Those that no record tells of.
    unheard: u64,
    /// Whether somebody will call [`Overflow::settle`].
    awaited: bool,
}

/// What becomes of a refusal.
#[derive(Debug, PartialEq, Eq)]
pub enum Counted {
    /// It has a record, with the number of those before it that have none.
    Record(u64),
    /// It is counted, and somebody has to see to it that the number is recorded in the end.
    First,
    /// It is counted.
    More,
}

impl Overflow {
    /// None yet.
    pub fn new(now: Instant) -> Self {
        Self(Mutex::new(State {
            records: Bucket::new(RECORDS.1, RECORDS.0, now),
            unheard: 0,
            awaited: false,
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a refusal.
    pub fn count(&self, now: Instant) -> Counted {
        let mut state = self.state();
        if state.records.take(now) {
            return Counted::Record(std::mem::take(&mut state.unheard));
        }
        state.unheard = state.unheard.saturating_add(1);
        if std::mem::replace(&mut state.awaited, true) { Counted::More } else { Counted::First }
    }

    /// Takes the number of those that no record tells of.
    pub fn settle(&self) -> u64 {
        let mut state = self.state();
        state.awaited = false;
        std::mem::take(&mut state.unheard)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_number_is_told_with_the_next_record_or_when_it_is_settled() {
        let start = Instant::now();
        let overflow = Overflow::new(start);
        let counted: Vec<_> = (0..20).map(|_| overflow.count(start)).collect();
        assert!(counted[..5].iter().all(|counted| *counted == Counted::Record(0)));
        assert_eq!(counted[5], Counted::First);
        assert!(counted[6..].iter().all(|counted| *counted == Counted::More));
        assert_eq!(overflow.count(start + Duration::from_secs(1)), Counted::Record(15));
        assert_eq!(overflow.count(start + Duration::from_secs(1)), Counted::More, "it is awaited already");
        assert_eq!((overflow.settle(), overflow.settle()), (1, 0));
        assert_eq!(overflow.count(start + Duration::from_secs(1)), Counted::First);
    }
}
