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

    /// Whether bytes wait.
    pub fn is_there(&self) -> bool {
        self.state().is_some()
    }

    /// How long bytes have waited.
    pub fn lasts(&self) -> Duration {
        self.state().as_ref().map_or(Duration::ZERO, |waiting| waiting.since.elapsed())
    }
}

/// How much a connection moves while memory is short. A peer that takes just enough not to stand still keeps as much memory as
/// one that takes nothing, for as long as it likes: so what is asked doubles with every ten looks that the shortage lasts.
#[derive(Debug, Default)]
pub struct Pace(Option<(Instant, u64)>);

impl Pace {
    /// Whether less moved within `window` than is asked at the `short`th look in a row, while bytes waited at every look.
    /// `moved` are the bytes that have in all.
    pub fn is_too_slow(
        &mut self,
        now: Instant,
        waits: bool,
        moved: u64,
        short: u64,
        window: Duration,
    ) -> bool {
        if !waits {
            self.0 = None;
            return false;
        }
        let (since, before) = *self.0.get_or_insert((now, moved));
        if now.duration_since(since) < window {
            return false;
        }
        self.0 = Some((now, moved));
        let doublings = u32::try_from(short / 10).unwrap_or(u32::MAX).min(32);
        moved.saturating_sub(before) < ENOUGH << doublings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Duration = Duration::from_millis(500);

    #[test]
    fn who_takes_just_enough_is_not_borne_for_long() {
        const WINDOW: Duration = Duration::from_secs(5);
        // Bytes at each look, of which there are two a second, and after how many the connection ends.
        for (each, most) in [(ENOUGH / 10 + 1, 30), (16 * ENOUGH / 10 + 1, 70), (u64::MAX / 1000, u64::MAX)] {
            let (mut pace, mut moved, mut ended) = (Pace::default(), 0_u64, u64::MAX);
            let begun = Instant::now();
            for look in 1..400 {
                moved = moved.saturating_add(each);
                if pace.is_too_slow(begun + LOOK * u32::try_from(look).unwrap(), true, moved, look, WINDOW) {
                    ended = look;
                    break;
                }
            }
            assert!(ended <= most && (most == u64::MAX || ended > 10), "{each}: {ended}");
        }
    }

    #[test]
    fn who_lets_nothing_wait_may_be_as_slow_as_he_likes() {
        let (mut pace, begun) = (Pace::default(), Instant::now());
        for look in 1..400_u32 {
            // Something waits now and then only.
            let now = begun + LOOK * look;
            assert!(!pace.is_too_slow(now, look % 8 > 0, 0, look.into(), Duration::from_secs(5)));
        }
    }

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
