//! Refusals that have no record of their own, because there are too many of them: their number is recorded with the next one
//! that has, and here where there is no next one.
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::context::Context;
use super::live::Live;
use super::refusal::{Cause, Refusal};
use crate::audit::{NetworkEvent, NetworkOutcome, now_ms};

/// How long a number may wait for the next record.
const LATE: Duration = Duration::from_mins(1);

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(10);

/// Sandboxes of whose refusals some are only counted. Each is here once at most: nobody goes through all sandboxes.
#[derive(Debug, Default)]
pub struct Unheard(Mutex<Vec<Late>>);

#[derive(Debug)]
struct Late {
    since: Instant,
    live: Arc<Live>,
    /// Record of the first.
    event: Box<NetworkEvent>,
}

impl Unheard {
    fn lock(&self) -> MutexGuard<'_, Vec<Late>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The refusal of `event` is the first one of `live` that is only counted.
    pub fn await_end(&self, live: &Arc<Live>, event: NetworkEvent) {
        self.lock().push(Late { since: Instant::now(), live: Arc::clone(live), event: Box::new(event) });
    }
}

/// Records for ever what is late.
pub async fn keep(context: &Context) {
    loop {
        sleep(LOOK).await;
        if let Some(before) = Instant::now().checked_sub(LATE) {
            settle(context, before).await;
        }
    }
}

/// Records what nobody was told of since `before` or longer.
pub async fn settle(context: &Context, before: Instant) {
    for (address, count) in context.sources.settle(before) {
        context.records.write(of_address(address, count)).await;
    }
    let late: Vec<Late> = context.unheard.lock().extract_if(.., |late| late.since <= before).collect();
    for Late { live, event, .. } in late {
        let count = live.overflow().settle();
        if count > 0 {
            context.records.write(of_sandbox(*event, count)).await;
        }
    }
}

/// `count` refusals like the one of `event` have no record.
fn of_sandbox(event: NetworkEvent, count: u64) -> NetworkEvent {
    NetworkEvent {
        connection: None,
        host: None,
        port: None,
        via: None,
        detail: Some("connections that were too many; counted only".to_owned()),
        suppressed: count,
        ..event
    }
}

/// `count` connections of `address` came to nothing, and none of them has a record.
fn of_address(address: IpAddr, count: u64) -> NetworkEvent {
    let message = "connections without a good token, which said nothing, came too often or made room for others; counted only";
    let refusal = Refusal::new(Cause::Unauthenticated, message);
    of_nobody(SocketAddr::new(address, 0), &refusal, count)
}

/// The record of a refusal of somebody who did not say who it is.
pub fn of_nobody(source: SocketAddr, refusal: &Refusal, suppressed: u64) -> NetworkEvent {
    NetworkEvent {
        connection: None,
        sandbox: None,
        pod: None,
        policy: None,
        source,
        via: None,
        host: None,
        port: None,
        address: None,
        protocol: None,
        outcome: NetworkOutcome::Refused,
        rule: None,
        reason: refusal.cause.word(),
        detail: Some(refusal.message.clone()),
        bytes_out: 0,
        bytes_in: 0,
        requests: None,
        started: now_ms(),
        duration: 0,
        suppressed,
    }
}
