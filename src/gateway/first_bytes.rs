//! The first bytes of the agent: whether they are what the rule says, and for the name of the connection.
use tokio::io::{AsyncBufRead, AsyncBufReadExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::client_hello::{ClientHello, HelloReader};
use super::limits::Limits;
use super::refusal::{Cause, Refusal};
use super::sniff::classify;
use crate::policy::{AppProtocol, HostName, Reason};

/// How the agent is told of a refusal after its connection was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tell {
    /// By nothing: the connection is closed.
    Close,
    /// By a TLS alert of this number.
    Alert(u8),
    /// By an HTTP response.
    Response,
}

/// Alerts of RFC 8446, section 6, and RFC 6066.
const ACCESS_DENIED: u8 = 49;
const DECODE_ERROR: u8 = 50;
const UNRECOGNIZED_NAME: u8 = 112;

/// How the beginning went wrong.
#[derive(Debug)]
pub enum Failure {
    /// What was said is refused.
    Refused(Refusal, Tell),
    /// The agent left, or broke off, without saying anything that matters.
    Left,
    /// The agent said nothing.
    Silent,
    /// The server left before the agent said anything.
    ServerLeft,
}

/// What the agent began with.
#[derive(Debug)]
pub struct Beginning {
    /// The protocol.
    pub protocol: AppProtocol,
    /// All bytes so far.
    pub bytes: Vec<u8>,
}

/// Decides about a protocol: `Err` refuses it.
pub trait Decide {
    /// Whether the connection may carry `protocol`.
    fn decide(&mut self, protocol: AppProtocol, encrypted: bool) -> Result<(), Refusal>;
}

/// Reads until it is known what the agent speaks and that it may. Nothing is sent to the server before. A server that
/// speaks first speaks neither TLS nor HTTP.
pub async fn read<A>(
    agent: &mut A,
    server: &TcpStream,
    name: &HostName,
    limits: &Limits,
    decide: &mut impl Decide,
) -> Result<Beginning, Failure>
where
    A: AsyncBufRead + Unpin,
{
    let mut bytes = Vec::new();
    let mut hello = HelloReader::default();
    let mut protocol = None;
    let mut deadline = Instant::now() + limits.first_byte;
    loop {
        let before = bytes.len();
        let mut byte = [0];
        tokio::select! {
            biased;
            piece = timeout_at(deadline, agent.fill_buf()) => {
                let piece = match piece {
                    Err(_) if bytes.is_empty() => return Err(Failure::Silent),
                    Err(_) => return Err(too_slow(protocol)),
                    Ok(Err(_) | Ok([])) => return Err(Failure::Left),
                    Ok(Ok(piece)) => piece,
                };
                if bytes.is_empty() {
                    deadline = Instant::now() + limits.head;
                }
                bytes.extend_from_slice(piece);
                let length = piece.len();
                agent.consume(length);
            }
            peeked = server.peek(&mut byte), if bytes.is_empty() => match peeked {
                Ok(0) | Err(_) => return Err(Failure::ServerLeft),
                Ok(_) => {
                    decide.decide(AppProtocol::Other, false).map_err(|refusal| Failure::Refused(refusal, Tell::Close))?;
                    return Ok(Beginning { protocol: AppProtocol::Other, bytes });
                }
            }
        }
        let piece = match protocol {
            Some(_) => bytes.get(before..).unwrap_or_default(),
            None => match classify(&bytes) {
                None => continue,
                Some(found) => {
                    decide.decide(found, false).map_err(|refusal| Failure::Refused(refusal, tell(found)))?;
                    if found != AppProtocol::Tls {
                        return Ok(Beginning { protocol: found, bytes });
                    }
                    protocol = Some(found);
                    bytes.as_slice()
                }
            },
        };
        let refuse = |reason, message: String, alert| {
            Failure::Refused(Refusal::new(Cause::Policy(reason), message), Tell::Alert(alert))
        };
        let found =
            hello.push(piece).map_err(|error| refuse(Reason::Malformed, error.to_string(), DECODE_ERROR))?;
        let Some(ClientHello { server_name, encrypted }) = found else { continue };
        match server_name {
            Some(asked) if HostName::parse(&asked).is_ok_and(|asked| asked == *name) => {}
            Some(asked) => {
                let message =
                    format!("the TLS hello is for `{}`, and the connection for {name}", shown(&asked));
                return Err(refuse(Reason::NameMismatch, message, UNRECOGNIZED_NAME));
            }
            None => {
                let message = format!("the TLS hello names no server, and the connection is for {name}");
                return Err(refuse(Reason::NameMismatch, message, UNRECOGNIZED_NAME));
            }
        }
        if encrypted {
            decide
                .decide(AppProtocol::Tls, true)
                .map_err(|refusal| Failure::Refused(refusal, Tell::Alert(ACCESS_DENIED)))?;
        }
        return Ok(Beginning { protocol: AppProtocol::Tls, bytes });
    }
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

fn tell(protocol: AppProtocol) -> Tell {
    match protocol {
        AppProtocol::Tls => Tell::Alert(ACCESS_DENIED),
        AppProtocol::Http => Tell::Response,
        AppProtocol::Other => Tell::Close,
    }
}

fn too_slow(protocol: Option<AppProtocol>) -> Failure {
    let message = "the first message did not come to its end in time";
    Failure::Refused(Refusal::new(Cause::TooSlow, message), protocol.map_or(Tell::Close, tell))
}

/// A fatal alert, in the clear as before the keys are known.
pub fn alert(number: u8) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, number]
}
