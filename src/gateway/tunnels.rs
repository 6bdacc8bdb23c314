//! Room for connections to servers, and who makes some before it runs out.
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::crowd::Crowd;

/// Room for connections to servers.
#[derive(Debug)]
pub struct Tunnels {
    room: Semaphore,
    most: usize,
    /// Sandboxes by their UID.
    holders: Mutex<Crowd<String, ()>>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub struct Place<'a> {
    tunnels: &'a Tunnels,
    sandbox: String,
    id: u64,
    _permit: SemaphorePermit<'a>,
}

impl Tunnels {
    /// Room for `most`.
    pub fn new(most: usize) -> Self {
        Self { room: Semaphore::new(most), most, holders: Mutex::default() }
    }

    fn holders(&self) -> MutexGuard<'_, Crowd<String, ()>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether half of it is taken.
    pub fn is_half_full(&self) -> bool {
        self.room.available_permits() <= self.most / 2
    }

    /// From three quarters on, the sandbox that should make room for one more connection of `sandbox`: the one that has most,
    /// if it has more than that one and more than `few`.
    pub fn crowd(&self, sandbox: &str, few: usize) -> Option<String> {
        if self.room.available_permits() > self.most / 4 {
            return None;
        }
        let holders = self.holders();
        let own = holders.count(&sandbox.to_owned());
        holders.most().filter(|(_, count)| *count > own.max(few)).map(|(holder, _)| holder.clone())
    }

    /// A place for a connection of `sandbox`, for which it waits as long as `patience`.
    pub async fn take(&self, sandbox: &str, patience: Duration) -> Option<Place<'_>> {
        let permit = timeout(patience, self.room.acquire()).await.ok()?.ok()?;
        let sandbox = sandbox.to_owned();
        let id = self.holders().enter(&sandbox, ());
        Some(Place { tunnels: self, sandbox, id, _permit: permit })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.tunnels.holders().leave(&self.sandbox, self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn from_three_quarters_on_who_has_most_makes_room_for_who_has_less() {
        let tunnels = Tunnels::new(8);
        let mut held = Vec::new();
        for (at, sandbox) in ["a", "a", "a", "a", "b", "b"].into_iter().enumerate() {
            assert_eq!(tunnels.crowd("b", 2), None, "{at}");
            held.push(tunnels.take(sandbox, Duration::ZERO).await.unwrap());
        }
        assert!(tunnels.is_half_full());
        for (sandbox, few, expected) in
            [("b", 2, Some("a")), ("c", 3, Some("a")), ("c", 4, None), ("a", 2, None)]
        {
            assert_eq!(tunnels.crowd(sandbox, few).as_deref(), expected, "{sandbox} {few}");
        }
        held.push(tunnels.take("c", Duration::ZERO).await.unwrap());
        held.push(tunnels.take("c", Duration::ZERO).await.unwrap());
        assert!(tunnels.take("c", Duration::from_millis(10)).await.is_none());
        held.truncate(2);
        assert_eq!(tunnels.crowd("c", 0), None);
        assert!(!tunnels.is_half_full() && tunnels.take("c", Duration::ZERO).await.is_some());
    }
}
