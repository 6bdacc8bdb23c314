//! Refusals that have no record of their own, because there are too many of them: their number is recorded with the next one
//! that has, and here where there is no next one.
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::context::Context;
use super::refusal::{Cause, Refusal};
use crate::audit::{NetworkEvent, NetworkOutcome, now_ms};

/// How long a number may wait for the next record.
const LATE: Duration = Duration::from_mins(1);

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(10);

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
