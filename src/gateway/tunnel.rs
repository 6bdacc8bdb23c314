//! One connection of an agent, from its request to its record.
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::connection::Ending;
use super::context::Context;
use super::current_policy::CurrentPolicy;
use super::first_bytes::{self, Failure, Tell};
use super::http::inspect::Inspector;
use super::identity::Peer;
use super::overflow::Counted;
use super::refusal::{Cause, Refusal};
use super::relay::{End, Relay};
use super::request::Connect;
use super::standstill::Pace;
use super::story::{Judgement, Story};
use super::tunnels::Place;
use crate::audit::NetworkOutcome;
use crate::policy::{AppProtocol, HostName, Reason};

const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection Established\r\n\r\n";

/// Time for an answer to be taken, and for the peer to hang up after it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Bytes of a refused connection that are read and dropped, so that the answer is not lost in a reset.
const DROPPED: usize = 256 * 1024;

/// Time in which a connection that makes room has ended.
const MAKING_ROOM: Duration = Duration::from_secs(1);

/// Why a connection is over.
#[derive(Debug)]
enum Over {
    /// Refused before it was made.
    Before(Refusal),
    /// Refused for what was said on it.
    After(Refusal, Tell),
    /// Ended by the peers, or by a time limit.
    End(End),
    /// Cut off.
    Cut(Ending),
    /// The agent never said anything.
    Silent,
}

/// Serves a request of `peer` for a connection.
pub async fn serve<A>(context: &Context, agent: &mut A, peer: &Peer, wish: &Connect, source: SocketAddr)
where
    A: AsyncBufRead + AsyncWrite + Unpin,
{
    let mut story = Story::begin(peer, wish, source);
    context.metrics.active.inc();
    let over = match attempt(context, agent, peer, wish, &mut story).await {
        Ok(over) | Err(over) => over,
    };
    context.metrics.active.dec();
    // Recorded before anybody is told.
    tell(context, peer, wish, &story, &over).await;
    farewell(agent, &over).await;
}

/// Writes the record, and tells the owner.
async fn tell(context: &Context, peer: &Peer, wish: &Connect, story: &Story<'_>, over: &Over) {
    let mut judgement = judgement(over);
    context.metrics.ended(judgement.outcome != NetworkOutcome::Refused, judgement.reason);
    context.metrics.moved(story.meter.outward(), story.meter.inward());
    let refusal = match over {
        Over::Before(refusal) | Over::After(refusal, _) | Over::End(End::Refused { refusal, .. }) => {
            Some(refusal)
        }
        _ => None,
    };
    if refusal.is_some_and(|refusal| refusal.cause == Cause::TooManyConnections) {
        match peer.live.overflow().count(Instant::now()) {
            Counted::Record(suppressed) => judgement.suppressed = suppressed,
            Counted::First => return context.unheard.await_end(&peer.live, story.event(judgement)),
            Counted::More => return,
        }
    }
    judgement.rule = refusal.and_then(|refusal| refusal.rule);
    context.records.write(story.event(judgement)).await;
    if let Some(refusal) = refusal {
        // The sidecar has heard of those that came before.
        if !matches!(over, Over::Before(_)) {
            peer.live.refused_later(&wish.written, refusal.cause.word());
        }
        let sandbox = peer.live.sandbox().unwrap_or_else(|| Arc::clone(&peer.sandbox));
        context.notices.refused(&peer.live, &sandbox, &wish.written, refusal);
    }
}

/// Writes a record of a connection that stays open, so that there is one should this process be killed: after a while, for
/// most connections are short, and at once where so many are open that the memory might run out.
async fn record_open(context: &Context, story: &Story<'_>) -> Infallible {
    if !context.tunnels.is_half_full() {
        sleep(context.limits.recorded_open).await;
    }
    context.records.write(story.event(Judgement::open())).await;
    std::future::pending().await
}

async fn attempt<A>(
    context: &Context,
    agent: &mut A,
    peer: &Peer,
    wish: &Connect,
    story: &mut Story<'_>,
) -> Result<Over, Over>
where
    A: AsyncBufRead + AsyncWrite + Unpin,
{
    if context.is_draining() {
        let message = "this gateway is about to end; another one takes new connections";
        return Err(Over::Before(Refusal::new(Cause::Draining, message)));
    }
    if !context.records.have_room() {
        let message = "this gateway cannot write its records now; another one may";
        return Err(Over::Before(Refusal::new(Cause::Draining, message)));
    }
    if context.memory.is_short() {
        let message = "this gateway has no memory for more connections now; another one may have";
        return Err(Over::Before(Refusal::new(Cause::Busy, message)));
    }
    peer.live.admit(&context.limits).map_err(Over::Before)?;
    let (name, port) = wish.target.clone().map_err(|error| {
        Over::Before(Refusal::new(
            Cause::Policy(Reason::InvalidName),
            format!("a host name is needed, not {error}"),
        ))
    })?;
    // First entered and then judged: a change of the policy finds it, or is already in force.
    let target = Some((name.clone(), port));
    let entered = peer.live.enter(&peer.pod.uid, target, &context.limits).map_err(Over::Before)?;
    let (live, connection, rule) = (Arc::clone(&peer.live), Arc::clone(&entered), Arc::clone(&story.rule));
    let mut policy = CurrentPolicy { live, connection, name, port, rule };
    peer.live.moved_at_least(wish.moved);
    story.policy = policy
        .sandbox()
        .ok()
        .and_then(|sandbox| Some((sandbox.generation, sandbox.policy.as_ref().ok()?.digest().to_owned())));
    policy.allows().map_err(Over::Before)?;
    if peer.live.exceeded() {
        let message = "the sandbox has moved the bytes that spec.network.limits.egressBytes allows";
        return Err(Over::Before(Refusal::new(Cause::EgressBytesExceeded, message)));
    }
    // Last of all, since others may have to give up a connection for this one.
    entered.measured_by(&story.meter);
    let Some(_place) = place(context, peer).await else {
        let message = "this gateway has as many connections as it takes; another one may have room";
        return Err(Over::Before(Refusal::new(Cause::Busy, message)));
    };
    let mut server = tokio::select! {
        ending = entered.ended() => return Err(Over::Cut(ending)),
        server = connect(context, peer, &policy.name, port, story) => server.map_err(Over::Before)?,
    };
    if !matches!(timeout(PATIENCE, established(agent)).await, Ok(Ok(()))) {
        return Err(Over::End(End::AgentLost(std::io::ErrorKind::TimedOut.into())));
    }
    context.metrics.setup.observe(story.clock.elapsed().as_secs_f64());
    let (first, mut inspector) = tokio::select! {
        ending = entered.ended() => return Err(Over::Cut(ending)),
        begun = begin(context, agent, &server, &mut policy, story) => begun?,
    };
    let meters = (story.meter.as_ref(), peer.live.as_ref(), &context.limits);
    let relay = Relay::new(agent, &mut server, inspector.as_mut(), first, meters);
    let over = tokio::select! {
        biased;
        ending = entered.ended() => Over::Cut(ending),
        // Before the relay, which might otherwise leave them no turn.
        () = shed(context, story) => Over::Cut(Ending::MemoryShort),
        never = record_open(context, story) => match never {},
        end = relay.run() => Over::End(end),
    };
    story.requests = inspector.map(|inspector| inspector.requests());
    Ok(over)
}

/// A place for one more connection of `peer`'s sandbox. Where they become few, the sandbox that has most makes room.
async fn place<'a>(context: &'a Context, peer: &Peer) -> Option<Place<'a>> {
    let sandbox = &peer.sandbox.identity.uid;
    let crowd = context.tunnels.crowd(sandbox, context.limits.few);
    let live = crowd.and_then(|uid| context.identity.sandboxes.live(&uid));
    let is_made = live.is_some_and(|live| live.make_room(context.limits.still));
    context.tunnels.take(sandbox, if is_made { MAKING_ROOM } else { Duration::ZERO }).await
}

/// Ready when memory is short and nothing moves here, or too little.
async fn shed(context: &Context, story: &Story<'_>) {
    let mut looks = context.memory.looks();
    let mut pace = Pace::default();
    loop {
        let short = context.memory.shortage(&mut looks).await;
        let meter = &story.meter;
        let (waits, moved) = (meter.waits(), meter.outward().saturating_add(meter.inward()));
        if meter.stands_still() >= context.limits.still
            || pace.is_too_slow(tokio::time::Instant::now(), waits, moved, short, context.limits.still)
        {
            return;
        }
    }
}

async fn established<A: AsyncWrite + Unpin>(agent: &mut A) -> std::io::Result<()> {
    agent.write_all(ESTABLISHED).await?;
    agent.flush().await
}

/// A connection to an address of `name` that may be dialled.
async fn connect(
    context: &Context,
    peer: &Peer,
    name: &HostName,
    port: u16,
    story: &mut Story<'_>,
) -> Result<TcpStream, Refusal> {
    let addresses = context
        .resolver
        .resolve(name, peer.live.lookups())
        .await
        .map_err(|error| Refusal::new(Cause::ResolutionFailed, error.to_string()))?;
    let vetted = context.vetting.sort(addresses, port);
    if !vetted.bad.is_empty() {
        let bad: Vec<String> = vetted.bad.iter().map(|(ip, class)| format!("{ip} ({class})")).collect();
        story.detail = Some(format!("{name} leads to addresses that no rule opens: {}", bad.join(", ")));
        if vetted.good.is_empty() {
            // The agent is not told the addresses, which may be inside.
            let classes: BTreeSet<&str> = vetted.bad.iter().map(|(_, class)| *class).collect();
            let classes = classes.into_iter().collect::<Vec<_>>().join(", ");
            let message = format!("{name} leads only to addresses that no rule opens ({classes})");
            return Err(Refusal::new(Cause::AddressRefused, message));
        }
    }
    let (server, address) = context.dialer.dial(&vetted.good).await.map_err(|error| {
        Refusal::new(Cause::DialFailed, format!("{name}:{port} takes no connection: {error}"))
    })?;
    story.address = Some(address);
    Ok(server)
}

/// What goes to the server first, and who checks the rest.
async fn begin<A>(
    context: &Context,
    agent: &mut A,
    server: &TcpStream,
    policy: &mut CurrentPolicy,
    story: &mut Story<'_>,
) -> Result<(Vec<u8>, Option<Inspector>), Over>
where
    A: AsyncBufRead + AsyncWrite + Unpin,
{
    if policy.allows_anything() {
        return Ok((Vec::new(), None));
    }
    let name = policy.name.clone();
    let begun = first_bytes::read(agent, server, &name, &context.limits, policy).await;
    let begun = begun.map_err(|failure| match failure {
        Failure::Refused(refusal, tell) => Over::After(refusal, tell),
        Failure::Left | Failure::ServerLeft => Over::End(End::Closed),
        Failure::Silent => Over::Silent,
    })?;
    story.protocol = Some(match begun.protocol {
        AppProtocol::Tls => "tls",
        AppProtocol::Http => "http",
        AppProtocol::Other => "other",
    });
    if begun.protocol != AppProtocol::Http {
        return Ok((begun.bytes, None));
    }
    let mut inspector = Inspector::new(name, policy.port, Box::new(policy.clone()));
    let mut first = Vec::new();
    match inspector.push(&begun.bytes, &mut first) {
        Ok(()) => Ok((first, Some(inspector))),
        Err(refusal) => Err(Over::After(refusal, Tell::Response)),
    }
}

/// Tells the agent, where it can be told.
async fn farewell<A: AsyncBufRead + AsyncWrite + Unpin>(agent: &mut A, over: &Over) {
    let last = match over {
        Over::Before(refusal)
        | Over::After(refusal, Tell::Response)
        | Over::End(End::Refused { refusal, unanswered: false }) => refusal.response(),
        Over::After(_, Tell::Alert(number)) => first_bytes::alert(*number).to_vec(),
        Over::After(_, Tell::Close) | Over::Silent | Over::End(End::Closed | End::Idle) => Vec::new(),
        // Broken off, and seen to be: the end of the connection is not the end of what was said.
        Over::End(_) | Over::Cut(_) => return,
    };
    finish(agent, &last).await;
}

/// Says `last`, ends, and waits a little until the peer hangs up.
pub async fn finish<A: AsyncBufRead + AsyncWrite + Unpin>(agent: &mut A, last: &[u8]) {
    let ending = async {
        agent.write_all(last).await?;
        agent.shutdown().await?;
        let mut dropped = 0;
        while dropped < DROPPED {
            let length = agent.fill_buf().await?.len();
            if length == 0 {
                break;
            }
            agent.consume(length);
            dropped += length;
        }
        Ok::<(), std::io::Error>(())
    };
    // Who does not listen does not want to know.
    let _ = timeout(PATIENCE, ending).await;
}

/// How a connection is recorded.
fn judgement(over: &Over) -> Judgement {
    let (outcome, reason, detail) = match over {
        Over::Before(refusal) | Over::After(refusal, _) | Over::End(End::Refused { refusal, .. }) => {
            let failed = refusal.cause.is_failure();
            let outcome = if failed { NetworkOutcome::Failed } else { NetworkOutcome::Refused };
            (outcome, refusal.cause.word(), Some(refusal.message.clone()))
        }
        Over::End(End::Closed) => (NetworkOutcome::Closed, Reason::AllowedByRule.as_str(), None),
        Over::End(End::AgentLost(error)) => (NetworkOutcome::Reset, "AgentReset", Some(lost(error))),
        Over::End(End::ServerLost(error)) => (NetworkOutcome::Reset, "ServerReset", Some(lost(error))),
        Over::End(End::Idle) | Over::Silent => (NetworkOutcome::Reset, "IdleTimeout", None),
        Over::End(End::Slow) => (NetworkOutcome::Reset, Cause::TooSlow.word(), None),
        Over::Cut(ending) => {
            let detail = match ending {
                Ending::PolicyChanged(decision) => Some(format!("not allowed any more: {}", decision.reason)),
                Ending::MemoryShort => Some("memory was short, and its peer took nothing".to_owned()),
                Ending::MadeRoom => {
                    Some("most connections were of this sandbox, and nothing moved on it".to_owned())
                }
                _ => None,
            };
            (NetworkOutcome::Reset, ending.word(), detail)
        }
    };
    Judgement { outcome, reason, detail, rule: None, suppressed: 0 }
}

fn lost(error: &std::io::Error) -> String {
    match error.kind() {
        // What the TLS layer says of it is a page of its manual.
        std::io::ErrorKind::UnexpectedEof => "the connection ended in the middle".to_owned(),
        _ => error.to_string(),
    }
}
