//! When a refused spec is looked at again. What may heal it without an edit, a Service or a name that is given up, is not
//! watched; and a spec that is refused costs its author nothing, so that many of them must not cost much.
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time until the first look.
const FIRST: Duration = Duration::from_mins(1);
/// Longest time between two looks.
const LONGEST: Duration = Duration::from_mins(16);

/// Since when specs are refused as they are, by UID.
#[derive(Debug, Default)]
pub struct Looks {
    refused: Mutex<HashMap<String, (u64, Instant)>>,
    random: RandomState,
}

impl Looks {
    /// Time until the next look at `uid`, whose spec of this generation is refused with `message`: one minute, then two,
    /// four and so on up to 16, for as long as both stay the same. It goes by the time that has passed, since an object is
    /// looked at for other reasons as well.
    pub fn next(&self, uid: &str, generation: Option<i64>, message: &str, now: Instant) -> Duration {
        let what = self.random.hash_one((generation, message));
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let since = match refused.get(uid) {
            Some((same, since)) if *same == what => *since,
            _ => {
                refused.insert(uid.to_owned(), (what, now));
                now
            }
        };
        now.saturating_duration_since(since).saturating_add(FIRST).min(LONGEST)
    }

    /// Forgets `uid`: its spec is accepted, or it has finished.
    pub fn forget(&self, uid: &str) {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// Forgets every sandbox that `exists` does not know.
    pub fn retain(&self, exists: impl Fn(&str) -> bool) {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid, _| exists(uid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    #[test]
    fn a_refused_spec_is_looked_at_ever_less_often() {
        let (looks, begun) = (Looks::default(), Instant::now());
        let mut now = begun;
        for minutes in [1, 2, 4, 8, 16, 16, 16] {
            let delay = looks.next("a", Some(1), "no", now);
            assert_eq!(delay, MINUTE * minutes);
            // That something else wakes it makes no difference.
            assert_eq!(looks.next("a", Some(1), "no", now), delay);
            now += delay;
        }
        assert_eq!(looks.next("b", Some(1), "no", now), MINUTE);
    }

    #[test]
    fn an_edit_another_refusal_and_an_acceptance_start_anew() {
        let (looks, begun) = (Looks::default(), Instant::now());
        looks.next("a", Some(1), "no", begun);
        let later = begun + MINUTE * 60;
        assert_eq!(looks.next("a", Some(1), "no", later), LONGEST);
        assert_eq!(looks.next("a", Some(2), "no", later), FIRST);
        assert_eq!(looks.next("a", Some(2), "other", later + MINUTE), FIRST);
        looks.forget("a");
        assert_eq!(looks.next("a", Some(2), "other", later + MINUTE * 60), FIRST);
        looks.retain(|uid| uid == "b");
        assert!(looks.refused.lock().unwrap().is_empty());
    }
}
