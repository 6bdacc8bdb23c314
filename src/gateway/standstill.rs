//! Whether bytes of a connection wait for a peer that hardly takes any.
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Bytes that a peer has to take for its connection to be one that moves: a byte now and then is a standstill.
const ENOUGH: u64 = 64 * 1024;

/// One direction of a connection. Outlives the relay that tells it, however that ends.
#[derive(Debug, Default)]
pub struct Standstill(Mutex<Option<Waiting>>);

#[derive(Debug)]
struct Waiting {
    since: Instant,
    taken: u64,
}

impl Standstill {
    fn state(&self) -> std::sync::MutexGuard<'_, Option<Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes wait.
    pub fn waits(&self) {
        self.state().get_or_insert_with(|| Waiting { since: Instant::now(), taken: 0 });
    }

    /// The peer took `bytes`.
    pub fn took(&self, bytes: u64) {
        let mut state = self.state();
        if let Some(waiting) = &mut *state {
            waiting.taken = waiting.taken.saturating_add(bytes);
            if waiting.taken >= ENOUGH {
                *state = None;
            }
        }
    }

    /// Nothing waits.
    pub fn is_over(&self) {
        *self.state() = None;
    }

    /// How long bytes have waited.
    pub fn lasts(&self) -> Duration {
        self.state().as_ref().map_or(Duration::ZERO, |waiting| waiting.since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_now_and_then_is_a_standstill() {
        let standstill = Standstill::default();
        assert_eq!(standstill.lasts(), Duration::ZERO);
        standstill.waits();
        std::thread::sleep(Duration::from_millis(5));
        standstill.took(1);
        standstill.waits();
        assert!(standstill.lasts() >= Duration::from_millis(5));
        standstill.took(ENOUGH);
        assert_eq!(standstill.lasts(), Duration::ZERO);
        standstill.waits();
        standstill.is_over();
        assert_eq!(standstill.lasts(), Duration::ZERO);
    }
}
