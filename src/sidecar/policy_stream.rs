//! Keeps the policy: holds the stream to a gateway, and opens another one when it breaks.
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::gateway::{Gateways, Wire};
use super::held::Held;
use super::ledger::Ledger;
use crate::egress::buffered::Buffered;
use crate::egress::wire::{HEARTBEAT, MAX_UPDATE, PolicyUpdate, REPORT_EVERY, Refusals};

/// First pause before another try.
const FIRST: Duration = Duration::from_millis(100);

/// Longest pause.
const LONGEST: Duration = Duration::from_secs(10);

/// Time after which a silent gateway is taken for gone.
const SILENCE: Duration = HEARTBEAT.saturating_mul(3);

/// Time for a line to be taken.
const PATIENCE: Duration = Duration::from_secs(2);

/// A stream that stood for so long has not failed: the next try is a first one.
const STEADY: Duration = Duration::from_secs(30);

/// Keeps `held` up to date, and tells the gateway what was refused here.
pub async fn follow(gateways: Arc<Gateways>, held: Arc<Held>, ledger: Arc<Ledger>) {
    let random = RandomState::new();
    let mut next_report = Instant::now();
    let mut failures: u32 = 0;
    loop {
        let began = Instant::now();
        let trouble = stream(&gateways, &held, &ledger, &mut next_report).await;
        held.lose(&trouble);
        failures = if began.elapsed() >= STEADY { 0 } else { failures.saturating_add(1) };
        sleep(pause(failures, random.hash_one(failures))).await;
    }
}

/// Takes updates until it breaks; returns why.
async fn stream(gateways: &Gateways, held: &Held, ledger: &Ledger, next_report: &mut Instant) -> String {
    let answer = gateways.request("GET /v1/policy HTTP/1.1", gateways.host(), "").await;
    let mut stream = match answer {
        Ok(stream) => stream,
        Err(denial) => return format!("{}: {}", denial.reason, denial.message),
    };
    loop {
        let due = async {
            let refusals = ledger.untold().await;
            sleep_until(*next_report).await;
            refusals
        };
        let line = tokio::select! {
            line = timeout(SILENCE, stream.until(b"\n", MAX_UPDATE)) => line,
            refusals = due => {
                if let Err(error) = report(&mut stream, &refusals).await {
                    return format!("the policy stream: {error}");
                }
                ledger.told(&refusals);
                *next_report = Instant::now() + REPORT_EVERY;
                continue;
            }
        };
        match line {
            Ok(Ok(Some(line))) => match serde_json::from_slice::<PolicyUpdate>(&line) {
                Ok(update) => {
                    held.take(&update);
                    update.refused.iter().for_each(|refusals| ledger.refused_later(refusals));
                }
                Err(error) => return format!("the gateway's policy cannot be read: {error}"),
            },
            Ok(Ok(None)) => return "the gateway ended the policy stream".to_owned(),
            Ok(Err(error)) => return format!("the policy stream: {error}"),
            Err(_) => return "the gateway is silent".to_owned(),
        }
    }
}

/// Tells the gateway.
async fn report(stream: &mut Buffered<Wire>, refusals: &Refusals) -> io::Result<()> {
    let mut line = serde_json::to_vec(refusals)?;
    line.push(b'\n');
    let writing = async {
        stream.write_all(&line).await?;
        stream.flush().await
    };
    timeout(PATIENCE, writing).await?
}

/// Pause after `failures` in a row: doubled each time, spread by a half, so that the sandboxes of a gateway that ended do
/// not come back at once.
fn pause(failures: u32, random: u64) -> Duration {
    let base = FIRST.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX)).min(LONGEST);
    let percent = u32::try_from(50 + random % 101).unwrap_or(100);
    (base.saturating_mul(percent) / 100).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_bounded() {
        assert_eq!(pause(0, 50), Duration::from_millis(100));
        assert_eq!(pause(3, 50), Duration::from_millis(800));
        for failures in 0..100 {
            for random in [0, 7, 100] {
                let pause = pause(failures, random);
                assert!(pause >= Duration::from_millis(50) && pause <= LONGEST);
            }
        }
    }
}
