//! Who holds how many of something of which there is only so much, so that whoever holds most makes room first. Nothing
//! here is walked through: what strangers can cause in any number has to cost little.
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;

/// What each holder has, the oldest first.
#[derive(Debug)]
pub struct Crowd<K, T> {
    next: u64,
    holders: HashMap<K, BTreeMap<u64, T>>,
    /// Every holder: by how many it has and, among equals, by who has the oldest.
    ranks: BTreeSet<(usize, Reverse<u64>, K)>,
}

impl<K, T> Default for Crowd<K, T> {
    fn default() -> Self {
        Self { next: 0, holders: HashMap::new(), ranks: BTreeSet::new() }
    }
}

impl<K: Clone + Eq + Hash + Ord, T> Crowd<K, T> {
    /// `holder` has one more. The number is for [`Crowd::leave`].
    pub fn enter(&mut self, holder: &K, what: T) -> u64 {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        self.change(holder, |held| held.insert(id, what));
        id
    }

    /// It has this one no more; `None` if it had not.
    pub fn leave(&mut self, holder: &K, id: u64) -> Option<T> {
        self.change(holder, |held| held.remove(&id))
    }

    /// Takes the oldest of `holder`.
    pub fn take_oldest(&mut self, holder: &K) -> Option<T> {
        self.change(holder, |held| held.pop_first().map(|(_, what)| what))
    }

    /// The holder that has most, and how many.
    pub fn most(&self) -> Option<(&K, usize)> {
        self.ranks.last().map(|(count, _, holder)| (holder, *count))
    }

    /// How many `holder` has.
    pub fn count(&self, holder: &K) -> usize {
        self.holders.get(holder).map_or(0, BTreeMap::len)
    }

    fn change<R>(&mut self, holder: &K, change: impl FnOnce(&mut BTreeMap<u64, T>) -> R) -> R {
        let held = self.holders.entry(holder.clone()).or_default();
        if let Some(rank) = rank(holder, held) {
            self.ranks.remove(&rank);
        }
        let result = change(held);
        match rank(holder, held) {
            Some(rank) => drop(self.ranks.insert(rank)),
            None => drop(self.holders.remove(holder)),
        }
        result
    }
}

/// Where a holder stands; nowhere when it has nothing.
fn rank<K: Clone, T>(holder: &K, held: &BTreeMap<u64, T>) -> Option<(usize, Reverse<u64>, K)> {
    held.first_key_value().map(|(oldest, _)| (held.len(), Reverse(*oldest), holder.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_most_is_known_and_among_equals_who_has_the_oldest() {
        let mut crowd = Crowd::default();
        assert_eq!(crowd.most(), None);
        let first = crowd.enter(&"a", "a0");
        crowd.enter(&"b", "b0");
        assert_eq!(crowd.most(), Some((&"a", 1)));
        crowd.enter(&"b", "b1");
        assert_eq!(crowd.most(), Some((&"b", 2)));
        assert_eq!(crowd.take_oldest(&"b"), Some("b0"));
        assert_eq!(crowd.most(), Some((&"a", 1)), "its one is older than what is left of the other");
        assert_eq!(crowd.leave(&"a", first), Some("a0"));
        assert_eq!(crowd.leave(&"a", first), None);
        assert_eq!((crowd.most(), crowd.count(&"a"), crowd.count(&"b")), (Some((&"b", 1)), 0, 1));
        assert_eq!(crowd.take_oldest(&"b"), Some("b1"));
        assert_eq!(crowd.take_oldest(&"b"), None);
        assert_eq!(crowd.most(), None);
        assert!(crowd.holders.is_empty() && crowd.ranks.is_empty(), "nothing is kept of who has nothing");
    }
}
