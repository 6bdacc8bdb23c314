//! Both directions of a connection, in one task and with little memory: bytes of the agent go to the server straight
//! out of the TLS layer's own buffer, and a buffer for the other direction exists only while bytes arrive.
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use super::http::inspect::Inspector;
use super::limits::Limits;
use super::live::Live;
use super::refusal::Refusal;
use super::standstill::Standstill;

/// Bytes that are read from the server at a time: two TLS records, as many as the TLS layer takes at once.
const PIECE: usize = 32 * 1024;

/// Bytes of the agent's in a full TLS record.
const RECORD: usize = 16 * 1024;

/// How the peers ended a connection.
#[derive(Debug)]
pub enum End {
    /// Both have said all.
    Closed,
    /// The agent's side broke off.
    AgentLost(io::Error),
    /// The server broke off.
    ServerLost(io::Error),
    /// Neither said anything for too long.
    Idle,
    /// The head of a request did not come to its end in time.
    Slow,
    /// A request is refused. `unanswered`: the server may still answer an earlier one.
    Refused {
        /// Why.
        refusal: Refusal,
        /// Whether the server may still answer an earlier request.
        unanswered: bool,
    },
}

/// Bytes that were moved; outlives the relay, however that ends.
#[derive(Debug)]
pub struct Meter {
    born: Instant,
    /// Milliseconds from then until bytes were moved last.
    moved: AtomicU64,
    out: AtomicU64,
    into: AtomicU64,
    /// Whether the server takes what is for it.
    out_still: Standstill,
    /// Whether the agent does.
    into_still: Standstill,
}

impl Default for Meter {
    fn default() -> Self {
        let (out_still, into_still) = (Standstill::default(), Standstill::default());
        let (moved, out, into) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        Self { born: Instant::now(), moved, out, into, out_still, into_still }
    }
}

impl Meter {
    fn moves(&self, now: Instant) {
        let since = u64::try_from((now - self.born).as_millis()).unwrap_or(u64::MAX);
        self.moved.store(since, Ordering::Relaxed);
    }

    /// How long no bytes have been moved.
    pub fn idle(&self) -> Duration {
        self.born.elapsed().saturating_sub(Duration::from_millis(self.moved.load(Ordering::Relaxed)))
    }

    /// Bytes from the agent to the server.
    pub fn outward(&self) -> u64 {
        self.out.load(Ordering::Relaxed)
    }

    /// Bytes from the server to the agent.
    pub fn inward(&self) -> u64 {
        self.into.load(Ordering::Relaxed)
    }

    /// How long bytes have waited for a peer that hardly takes any.
    pub fn stands_still(&self) -> Duration {
        self.out_still.lasts().max(self.into_still.lasts())
    }

    /// Whether bytes wait for either peer.
    pub fn waits(&self) -> bool {
        self.out_still.is_there() || self.into_still.is_there()
    }
}

/// Both directions of a connection.
pub struct Relay<'a, A> {
    agent: &'a mut A,
    server: &'a mut TcpStream,
    /// Checks requests, where they are checked.
    inspector: Option<&'a mut Inspector>,
    meter: &'a Meter,
    live: &'a Live,
    /// Bytes for the server that come before those of the agent.
    out: Vec<u8>,
    out_done: usize,
    /// Bytes for the agent.
    into: Vec<u8>,
    into_done: usize,
    up: Direction,
    down: Direction,
    /// Bytes went to the server since some came from it.
    unanswered: bool,
    last: Instant,
    head_since: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    idle: Duration,
    half_idle: Duration,
    head: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Open,
    /// All is read; what is left has to be written and the end told.
    Ending,
    Ended,
}

impl<A> std::fmt::Debug for Relay<'_, A> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Relay")
            .field("up", &self.up)
            .field("down", &self.down)
            .finish_non_exhaustive()
    }
}

impl<'a, A: AsyncBufRead + AsyncWrite + Unpin> Relay<'a, A> {
    /// Between `agent` and `server`, beginning with `first` for the server.
    pub fn new(
        agent: &'a mut A,
        server: &'a mut TcpStream,
        inspector: Option<&'a mut Inspector>,
        first: Vec<u8>,
        (meter, live, limits): (&'a Meter, &'a Live, &Limits),
    ) -> Self {
        let now = Instant::now();
        let head_since = inspector.as_ref().is_some_and(|inspector| inspector.in_head()).then_some(now);
        Self {
            agent,
            server,
            inspector,
            meter,
            live,
            unanswered: !first.is_empty(),
            out: first,
            out_done: 0,
            into: Vec::new(),
            into_done: 0,
            up: Direction::Open,
            down: Direction::Open,
            last: now,
            head_since,
            timer: Box::pin(sleep_until(now + limits.idle)),
            idle: limits.idle,
            half_idle: limits.half_idle,
            head: limits.head,
        }
    }

    /// Moves bytes until the end.
    pub async fn run(mut self) -> End {
        poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<End> {
        // The answers first: then a refusal knows whether one is missing.
        if let Poll::Ready(Err(end)) = self.poll_down(context) {
            return Poll::Ready(end);
        }
        if let Poll::Ready(Err(end)) = self.poll_up(context) {
            return Poll::Ready(end);
        }
        if (self.up, self.down) == (Direction::Ended, Direction::Ended) {
            return Poll::Ready(End::Closed);
        }
        self.poll_time(context)
    }

    fn poll_up(&mut self, context: &mut Context<'_>) -> Poll<Result<(), End>> {
        loop {
            if self.out_done < self.out.len() {
                let rest = self.out.get(self.out_done..).unwrap_or_default();
                let written = Pin::new(&mut *self.server).poll_write(context, rest);
                match ready!(noting(written, &self.meter.out_still)) {
                    Ok(0) => return Poll::Ready(Err(End::ServerLost(io::ErrorKind::WriteZero.into()))),
                    Ok(written) => {
                        self.out_done += written;
                        self.sent(written);
                    }
                    Err(error) => return Poll::Ready(Err(End::ServerLost(error))),
                }
                continue;
            }
            if self.out.capacity() > 0 {
                (self.out, self.out_done) = (Vec::new(), 0);
            }
            match self.up {
                Direction::Ended => return Poll::Ready(Ok(())),
                Direction::Ending => {
                    // A server that is gone has heard enough.
                    let _ = ready!(Pin::new(&mut *self.server).poll_shutdown(context));
                    self.up = Direction::Ended;
                    continue;
                }
                Direction::Open => {}
            }
            let piece = Pin::new(&mut *self.agent).poll_fill_buf(context);
            if piece.is_pending() {
                self.meter.out_still.is_over();
            }
            let piece = match ready!(piece) {
                Ok(piece) => piece,
                Err(error) => return Poll::Ready(Err(End::AgentLost(error))),
            };
            if piece.is_empty() {
                self.up = Direction::Ending;
                continue;
            }
            let taken = match &mut self.inspector {
                Some(inspector) => {
                    let result = inspector.push(piece, &mut self.out);
                    self.head_since = match self.head_since {
                        _ if !inspector.in_head() => None,
                        None => Some(Instant::now()),
                        since => since,
                    };
                    if let Err(refusal) = result {
                        return Poll::Ready(Err(End::Refused { refusal, unanswered: self.unanswered }));
                    }
                    self.last = Instant::now();
                    piece.len()
                }
                None if piece.len() >= RECORD => {
                    let length = piece.len();
                    self.out.reserve_exact(PIECE);
                    self.out.extend_from_slice(piece);
                    Pin::new(&mut *self.agent).consume(length);
                    // What is there already goes along: a copy costs less than a packet. An end comes up again.
                    if let Poll::Ready(Ok(more)) = Pin::new(&mut *self.agent).poll_fill_buf(context)
                        && self.out.len() + more.len() <= PIECE
                    {
                        let length = more.len();
                        self.out.extend_from_slice(more);
                        Pin::new(&mut *self.agent).consume(length);
                    }
                    continue;
                }
                None => {
                    let written = Pin::new(&mut *self.server).poll_write(context, piece);
                    match ready!(noting(written, &self.meter.out_still)) {
                        Ok(0) => return Poll::Ready(Err(End::ServerLost(io::ErrorKind::WriteZero.into()))),
                        Ok(written) => written,
                        Err(error) => return Poll::Ready(Err(End::ServerLost(error))),
                    }
                }
            };
            Pin::new(&mut *self.agent).consume(taken);
            if self.inspector.is_none() {
                self.sent(taken);
            }
        }
    }

    fn sent(&mut self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.meter.out.fetch_add(bytes, Ordering::Relaxed);
        self.live.count(bytes);
        self.unanswered = true;
        self.last = Instant::now();
        self.meter.moves(self.last);
    }

    fn poll_down(&mut self, context: &mut Context<'_>) -> Poll<Result<(), End>> {
        loop {
            if self.into_done < self.into.len() {
                let rest = self.into.get(self.into_done..).unwrap_or_default();
                let written = Pin::new(&mut *self.agent).poll_write(context, rest);
                match ready!(noting(written, &self.meter.into_still)) {
                    Ok(0) => return Poll::Ready(Err(End::AgentLost(io::ErrorKind::WriteZero.into()))),
                    Ok(written) => {
                        self.into_done += written;
                        let written = u64::try_from(written).unwrap_or(u64::MAX);
                        self.meter.into.fetch_add(written, Ordering::Relaxed);
                        self.live.count(written);
                        self.last = Instant::now();
                        self.meter.moves(self.last);
                    }
                    Err(error) => return Poll::Ready(Err(End::AgentLost(error))),
                }
                continue;
            }
            match self.down {
                Direction::Ended => return Poll::Ready(Ok(())),
                Direction::Ending => {
                    let _ = ready!(Pin::new(&mut *self.agent).poll_shutdown(context));
                    self.down = Direction::Ended;
                    continue;
                }
                Direction::Open => {}
            }
            match self.server.poll_read_ready(context) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(End::ServerLost(error))),
                Poll::Pending => {
                    (self.into, self.into_done) = (Vec::new(), 0);
                    let flushed = Pin::new(&mut *self.agent).poll_flush(context);
                    return match ready!(noting(flushed.map_ok(|()| 0), &self.meter.into_still)) {
                        Ok(_) => {
                            self.meter.into_still.is_over();
                            Poll::Pending
                        }
                        Err(error) => Poll::Ready(Err(End::AgentLost(error))),
                    };
                }
            }
            self.into.clear();
            self.into_done = 0;
            self.into.reserve_exact(PIECE);
            match self.server.try_read_buf(&mut self.into) {
                Ok(0) => self.down = Direction::Ending,
                Ok(_) => {
                    self.unanswered = false;
                    self.last = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(End::ServerLost(error))),
            }
        }
    }

    fn poll_time(&mut self, context: &mut Context<'_>) -> Poll<End> {
        loop {
            let half = Direction::Open != self.up || Direction::Open != self.down;
            let idle = self.last + if half { self.half_idle } else { self.idle };
            let (deadline, end) = match self.head_since.map(|since| since + self.head) {
                Some(head) if head < idle => (head, End::Slow),
                _ => (idle, End::Idle),
            };
            // A timer that is early is set again when it rings, and not with every byte.
            if deadline < self.timer.deadline() {
                self.timer.as_mut().reset(deadline);
            }
            ready!(self.timer.as_mut().poll(context));
            if Instant::now() >= deadline {
                return Poll::Ready(end);
            }
            self.timer.as_mut().reset(deadline);
        }
    }
}

/// Notes whether a peer takes what is written to it.
fn noting(written: Poll<io::Result<usize>>, standstill: &Standstill) -> Poll<io::Result<usize>> {
    match &written {
        Poll::Pending => standstill.waits(),
        Poll::Ready(Ok(bytes)) => standstill.took(u64::try_from(*bytes).unwrap_or(u64::MAX)),
        Poll::Ready(Err(_)) => {}
    }
    written
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
