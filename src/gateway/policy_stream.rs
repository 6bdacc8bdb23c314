//! What a sidecar hears of its sandbox's policy.
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use super::context::Context;
use super::identity::Peer;
use super::live::Ending;
use super::refusal::{Cause, Refusal};
use super::sandboxes::Sandbox;
use crate::egress::wire::{HEARTBEAT, MAX_UPDATE, PolicyUpdate};

/// Time for one line.
const PATIENCE: Duration = Duration::from_secs(5);

/// Begins well within [`HEARTBEAT`].
const EVERY: Duration = Duration::from_secs(HEARTBEAT.as_secs() * 4 / 5);

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n";

/// Serves until either side hangs up; `Err` before the first byte is sent.
pub async fn serve<A>(context: &Context, agent: &mut A, peer: &Peer) -> Result<(), Refusal>
where
    A: AsyncBufRead + AsyncWrite + Unpin,
{
    if context.is_draining() {
        return Err(Refusal::new(Cause::Draining, "this gateway is about to end"));
    }
    peer.live.admit(&context.limits)?;
    let entered = peer.live.enter(&peer.pod.uid, None, &context.limits)?;
    let mut changes = peer.live.watch();
    let mut out = HEAD.to_vec();
    loop {
        let sandbox = changes.borrow_and_update().clone();
        let line = sandbox.as_deref().and_then(|sandbox| line(context, sandbox));
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
            return Ok(());
        }
        out.clear();
        tokio::select! {
            alive = changes.changed() => if alive.is_err() { break },
            () = sleep(EVERY) => {}
            ending = entered.ended() => {
                if ending != Ending::Draining {
                    tracing::debug!(sandbox = peer.sandbox.full_name(), reason = ending.word(), "policy stream ends");
                }
                break;
            }
            // The sidecar has nothing to say: it hangs up, or it is none.
            _ = agent.fill_buf() => break,
        }
    }
    let _ = timeout(PATIENCE, agent.shutdown()).await;
    Ok(())
}

fn unreadable(sandbox: Option<&Sandbox>) -> String {
    match sandbox.map(|sandbox| &sandbox.policy) {
        Some(Err(error)) => format!("spec.network of the sandbox cannot be read: {error}"),
        _ => "the sandbox is not known here any more".to_owned(),
    }
}

fn line(context: &Context, sandbox: &Sandbox) -> Option<Vec<u8>> {
    let policy = sandbox.policy.as_ref().ok()?;
    let update = PolicyUpdate {
        generation: sandbox.generation,
        digest: policy.digest().to_owned(),
        hosts: policy.allowed_hosts(),
        bytes: policy.bytes(),
        gateways: context.gateways(),
        canary: context.canary.current(),
    };
    let mut line = serde_json::to_vec(&update).ok()?;
    line.push(b'\n');
    (line.len() <= MAX_UPDATE).then_some(line)
}
