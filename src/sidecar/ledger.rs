//! Counts what the agent asked for, and records it: one by one as long as it is little.
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::budget::Budget;
use super::journal::Journal;
use crate::audit::{EgressEvent, RecordError};
use crate::egress::wire::{EgressSummary, Refusals};

/// Refusals that are recorded one by one in [`WINDOW`]; an agent that tries more is counted.
const IN_WINDOW: u32 = 64;

/// Time after which [`IN_WINDOW`] begins anew.
const WINDOW: Duration = Duration::from_mins(1);

/// Refusals that are recorded one by one in all, so that they cannot fill the spool, which is there for what
/// `sandbox-init` tells.
const IN_ALL: u32 = 4096;

/// Longest `lastDenied`, in characters.
const LAST_DENIED: usize = 300;

/// Counters and records of the egress.
#[derive(Debug)]
pub struct Ledger {
    journal: Journal,
    budget: Arc<Budget>,
    counts: Mutex<Counts>,
    /// What was refused here and the gateway has not heard of.
    untold: watch::Sender<Refusals>,
    /// Why a record could not be kept.
    lost: watch::Sender<Option<String>>,
}

#[derive(Debug)]
struct Counts {
    allowed: i64,
    denied: i64,
    last_denied: Option<String>,
    window: Instant,
    in_window: u32,
    in_all: u32,
    counted: u64,
}

impl Ledger {
    /// An empty ledger that records to `journal`.
    pub fn new(journal: Journal, budget: Arc<Budget>) -> Self {
        let counts = Counts {
            allowed: 0,
            denied: 0,
            last_denied: None,
            window: Instant::now(),
            in_window: 0,
            in_all: 0,
            counted: 0,
        };
        let (untold, lost) = (watch::Sender::default(), watch::Sender::new(None));
        Self { journal, budget, counts: Mutex::new(counts), untold, lost }
    }

    /// A connection was made.
    pub fn allowed(&self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.allowed = counts.allowed.saturating_add(1);
    }

    /// DNS refused `name`.
    pub fn query_refused(&self, name: &str, kind: &str, reason: &str) {
        let name = printable(name, 255);
        self.denied(&format!("{name} {reason}"));
        // Of a policy that is not known yet there is nothing to say to its owner.
        if reason != "PolicyUnknown" {
            self.not_told(&name, reason);
        }
        self.limited(&EgressEvent::QueryRefused { name, kind: kind.to_owned(), reason: reason.to_owned() });
    }

    /// A connection to `target` (`name:port`) was refused by a decision.
    pub fn connection_refused(&self, target: &str, via: &str, reason: &str) {
        self.denied(&format!("{} {reason}", printable(target, 262)));
        self.connection_failed(target, via, reason);
    }

    /// The gateway refused `refusals` for what was said on connections that it had opened; it has recorded them.
    pub fn refused_later(&self, refusals: &Refusals) {
        let last = format!("{} {}", printable(&refusals.target, 262), printable(&refusals.reason, 64));
        self.count_denied(&last, i64::try_from(refusals.count).unwrap_or(i64::MAX));
    }

    /// `target` was refused here, without the gateway.
    pub fn not_told(&self, target: &str, reason: &str) {
        self.untold.send_modify(|untold| untold.add(&printable(target, 262), &printable(reason, 64)));
    }

    /// Waits until there is something that the gateway has not heard of, and returns it.
    pub async fn untold(&self) -> Refusals {
        let mut untold = self.untold.subscribe();
        match untold.wait_for(|untold| untold.count > 0).await {
            Ok(refusals) => refusals.clone(),
            // The sender is `self`, so that it cannot be gone.
            Err(_) => Refusals::default(),
        }
    }

    /// The gateway has heard of `refusals`.
    pub fn told(&self, refusals: &Refusals) {
        self.untold.send_modify(|untold| untold.count = untold.count.saturating_sub(refusals.count));
    }

    /// A connection to `target` could not be made, and nobody decided so.
    pub fn connection_failed(&self, target: &str, via: &str, reason: &str) {
        self.limited(&EgressEvent::ConnectionRefused {
            target: printable(target, 262),
            via: via.to_owned(),
            reason: printable(reason, 64),
        });
    }

    /// Records `event` unless there were many.
    pub fn limited(&self, event: &EgressEvent) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let before = if counts.window.elapsed() >= WINDOW { counts.begin() } else { 0 };
        let record = counts.in_window < IN_WINDOW && counts.in_all < IN_ALL;
        if record {
            counts.in_window += 1;
            counts.in_all += 1;
        } else {
            counts.counted = counts.counted.saturating_add(1);
        }
        drop(counts);
        self.record_count(before);
        if record {
            self.record(event);
        }
    }

    /// Records `event`, which nobody can cause at will.
    pub fn record(&self, event: &EgressEvent) {
        if let Err(error) = self.journal.of_egress(event) {
            self.lose(&error);
        }
    }

    /// Records what was only counted so far.
    pub fn settle(&self) {
        let before = self.counts.lock().unwrap_or_else(PoisonError::into_inner).begin();
        self.record_count(before);
    }

    /// The counters.
    pub fn summary(&self) -> EgressSummary {
        let (outwards, inwards) = self.budget.moved();
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        EgressSummary {
            allowed: counts.allowed,
            denied: counts.denied,
            bytes_out: i64::try_from(outwards).unwrap_or(i64::MAX),
            bytes_in: i64::try_from(inwards).unwrap_or(i64::MAX),
            last_denied: counts.last_denied.clone(),
        }
    }

    /// Waits until a record could not be kept: nothing may run unrecorded then. Returns why.
    pub async fn lost(&self) -> String {
        let mut lost = self.lost.subscribe();
        match lost.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            // The sender is `self`, so that it cannot be gone.
            Err(_) => String::new(),
        }
    }

    fn denied(&self, what: &str) {
        self.count_denied(what, 1);
    }

    fn count_denied(&self, what: &str, count: i64) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.denied = counts.denied.saturating_add(count);
        counts.last_denied = Some(printable(what, LAST_DENIED));
    }

    fn record_count(&self, count: u64) {
        if count > 0 {
            self.record(&EgressEvent::RefusalsCounted { count });
        }
    }

    fn lose(&self, error: &RecordError) {
        self.lost.send_replace(Some(error.to_string()));
    }
}

impl Counts {
    /// Begins a window and returns what the one before only counted.
    fn begin(&mut self) -> u64 {
        self.window = Instant::now();
        self.in_window = 0;
        std::mem::take(&mut self.counted)
    }
}

/// `text` so that it is as long as JSON as it is here, and at most `most` long: it is the agent's, and goes to where
/// room is short.
pub fn printable(text: &str, most: usize) -> String {
    let plain =
        |c: char| if (c.is_ascii_graphic() && !matches!(c, '"' | '\\')) || c == ' ' { c } else { '?' };
    text.chars().take(most).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};

    use super::*;
    use crate::audit::SandboxRecords;
    use crate::init::config::SandboxIdentity;

    fn records() -> SandboxRecords {
        SandboxRecords {
            sandbox: SandboxIdentity { namespace: "n".into(), name: "s".into(), uid: "u".into() },
            generation: 1,
            policy_digest: String::new(),
            hostname: String::new(),
        }
    }

    #[test]
    fn refusals_are_recorded_up_to_a_number_and_then_counted() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(records(), directory.path(), Box::new(io::sink())).unwrap();
        let ledger = Ledger::new(journal, Arc::default());
        for index in 0..1000 {
            ledger.query_refused(&format!("{index}.example"), "A", "NoRule");
        }
        let text = || std::fs::read_to_string(directory.path().join("records.jsonl")).unwrap();
        assert_eq!(text().lines().count(), 64);
        ledger.settle();
        ledger.settle();
        assert_eq!(text().lines().count(), 65);
        assert!(text().contains(r#""RefusalsCounted":{"count":936}"#));
        let summary = ledger.summary();
        assert_eq!((summary.allowed, summary.denied), (0, 1000));
        assert_eq!(summary.last_denied.as_deref(), Some("999.example NoRule"));
    }

    #[test]
    fn the_summary_is_short_whatever_the_agent_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(records(), directory.path(), Box::new(io::sink())).unwrap();
        let ledger = Ledger::new(journal, Arc::default());
        ledger.connection_refused(&"\u{1}\"\\é".repeat(1000), "socks5", "InvalidName");
        let line = serde_json::to_string(&ledger.summary()).unwrap();
        assert!(line.len() < crate::init::wire::MAX_ANSWER - 32, "{}", line.len());
    }

    #[tokio::test]
    async fn what_was_refused_here_waits_until_the_gateway_has_heard_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(records(), directory.path(), Box::new(io::sink())).unwrap();
        let ledger = Ledger::new(journal, Arc::default());
        ledger.query_refused("early.example", "A", "PolicyUnknown");
        ledger.query_refused("a.example", "A", "NoRule");
        ledger.query_refused("b.example", "A", "NoRule");
        let told = ledger.untold().await;
        assert_eq!((told.count, told.target.as_str()), (2, "b.example"));
        ledger.query_refused("c.example", "A", "NoRule");
        ledger.told(&told);
        assert_eq!(ledger.untold().await.count, 1);
        ledger.refused_later(&Refusals {
            count: 3,
            target: "d.example:443".into(),
            reason: "NameMismatch".into(),
        });
        let summary = ledger.summary();
        assert_eq!((summary.denied, summary.last_denied.as_deref()), (7, Some("d.example:443 NameMismatch")));
    }

    #[tokio::test]
    async fn a_lost_record_is_told() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(records(), directory.path(), Box::new(Broken)).unwrap();
        let ledger = Ledger::new(journal, Arc::default());
        ledger.query_refused("a.example", "A", "NoRule");
        assert!(ledger.lost().await.contains("broken pipe"));
    }
}
