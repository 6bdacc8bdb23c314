//! What a sidecar hears of its sandbox's policy, and what it tells of what it refused itself.
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::connection::Ending;
use super::context::Context;
use super::identity::Peer;
use super::refusal::{Cause, Refusal};
use super::sandboxes::Sandbox;
use crate::egress::wire::{HEARTBEAT, MAX_REPORT, MAX_UPDATE, PolicyUpdate, Refusals};

/// Time for one line.
const PATIENCE: Duration = Duration::from_secs(5);

/// Begins well within [`HEARTBEAT`].
const EVERY: Duration = Duration::from_secs(HEARTBEAT.as_secs() * 4 / 5);

/// Time in which refusals are gathered before the sidecar hears of them.
const GATHER: Duration = Duration::from_millis(200);

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n";

/// Serves until either side hangs up; `Err` before the first byte is sent.
pub async fn serve<A>(context: &Context, agent: &mut A, peer: &Peer) -> Result<(), Refusal>
where
    A: AsyncBufRead + AsyncWrite + Unpin,
{
    if context.is_draining() {
        return Err(Refusal::new(Cause::Draining, "this gateway is about to end"));
    }
    peer.live.admit_stream()?;
    let entered = peer.live.enter(&peer.pod.uid, None, &context.limits)?;
    let (mut changes, mut report) = (peer.live.watch(), Vec::new());
    let mut out = HEAD.to_vec();
    loop {
        let sandbox = changes.borrow_and_update().clone();
        let refused = peer.live.take_untold();
        let line = sandbox.as_deref().and_then(|sandbox| line(context, sandbox, refused.clone()));
        match line {
            Some(mut line) => out.append(&mut line),
            // Nothing is said, so that it may be said later: the sidecar asks again.
            None if !out.is_empty() => {
                return Err(Refusal::new(Cause::PolicyUnknown, unreadable(sandbox.as_deref())));
            }
            None => break,
        }
        let writing = async {
            agent.write_all(&out).await?;
            agent.flush().await
        };
        if !matches!(timeout(PATIENCE, writing).await, Ok(Ok(()))) {
            if let Some(refusals) = refused {
                peer.live.put_back(refusals);
            }
            return Ok(());
        }
        out.clear();
        let next = Instant::now() + EVERY;
        let is_over = loop {
            tokio::select! {
                alive = changes.changed() => break alive.is_err(),
                () = sleep_until(next) => break false,
                () = peer.live.untold() => {
                    sleep(GATHER).await;
                    break false;
                }
                ending = entered.ended() => {
                    if ending != Ending::Draining {
                        tracing::debug!(sandbox = peer.sandbox.full_name(), reason = ending.word(), "policy stream ends");
                    }
                    break true;
                }
                // It hangs up, or says what no sidecar says.
                heard = hear(agent, &mut report) => match heard {
                    Some(refusals) => context.notices.refused_in_pod(&peer.live, &peer.sandbox, &refusals),
                    None => break true,
                },
            }
        };
        if is_over {
            break;
        }
    }
    let _ = timeout(PATIENCE, agent.shutdown()).await;
    Ok(())
}

/// What the sidecar says next; `None` at its end, and where it is not understood. Cancel safe: `line` has what was read.
async fn hear(agent: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>) -> Option<Refusals> {
    loop {
        let piece = agent.fill_buf().await.ok()?;
        let (end, length) = match piece.iter().position(|byte| *byte == b'\n') {
            Some(at) => (true, at + 1),
            None => (false, piece.len()),
        };
        if length == 0 || line.len() + length > MAX_REPORT {
            return None;
        }
        line.extend_from_slice(piece.get(..length)?);
        agent.consume(length);
        if end {
            return serde_json::from_slice(&std::mem::take(line)).ok();
        }
    }
}

fn unreadable(sandbox: Option<&Sandbox>) -> String {
    match sandbox.map(|sandbox| &sandbox.policy) {
        Some(Err(error)) => format!("spec.network of the sandbox cannot be read: {error}"),
        _ => "the sandbox is not known here any more".to_owned(),
    }
}

fn line(context: &Context, sandbox: &Sandbox, refused: Option<Refusals>) -> Option<Vec<u8>> {
    let policy = sandbox.policy.as_ref().ok()?;
    let update = PolicyUpdate {
        generation: sandbox.generation,
        digest: policy.digest().to_owned(),
        hosts: policy.allowed_hosts(),
        bytes: policy.bytes(),
        gateways: context.gateways(),
        canary: context.canary.current(),
        refused,
    };
    let mut line = serde_json::to_vec(&update).ok()?;
    line.push(b'\n');
    (line.len() <= MAX_UPDATE).then_some(line)
}
