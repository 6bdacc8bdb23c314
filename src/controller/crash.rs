//! Fault injection for the end-to-end tests: the process ends in front of a write, as if it had been killed there. What
//! follows must find everything right whichever write it was.
use std::sync::atomic::{AtomicU64, Ordering};

/// Exit code of a process that ended so.
const CODE: i32 = 86;

/// Ends the process after a number of writes; never without one.
#[derive(Debug, Default)]
pub struct Crash {
    after: Option<u64>,
    writes: AtomicU64,
}

impl Crash {
    /// Lets `after` writes pass; all of them if there is no number.
    pub fn after(after: Option<u64>) -> Self {
        Self { after, writes: AtomicU64::new(0) }
    }

    /// To be called before every write.
    pub fn before_write(&self) {
        let Some(after) = self.after else { return };
        if self.writes.fetch_add(1, Ordering::Relaxed) >= after {
            tracing::error!(after, "ending in front of a write, as --exit-after-writes says");
            std::process::exit(CODE);
        }
    }
}
