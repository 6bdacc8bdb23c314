//! SOCKS5 (RFC 1928), `CONNECT` only, without authentication: who can reach it is the agent.
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::accept;
use super::dns::Directory;
use super::gateway::denial;
use super::relay::relay;
use super::tunnel::{Agent, Target, Tunnels, Via, is_failure};
use crate::egress::buffered::Buffered;
use crate::egress::wire::Denial;
use crate::policy::HostName;

/// Longest wait for a request.
const PATIENCE: Duration = Duration::from_secs(10);

const VERSION: u8 = 5;

/// Reply codes.
mod reply {
    pub const DONE: u8 = 0;
    pub const FAILED: u8 = 1;
    pub const NOT_ALLOWED: u8 = 2;
    pub const HOST_UNREACHABLE: u8 = 4;
    pub const REFUSED: u8 = 5;
    pub const NO_SUCH_COMMAND: u8 = 7;
    pub const NO_SUCH_ADDRESS: u8 = 8;
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A name, as the agent wrote it, and a port.
    Name(Vec<u8>, u16),
    /// An address and a port.
    Address(Ipv4Addr, u16),
    /// Something that is not served, with the reply to it.
    Other(u8),
}

/// Serves connections.
pub async fn serve(
    listener: TcpListener,
    tunnels: Arc<Tunnels>,
    directory: Arc<dyn Directory + Send + Sync>,
) {
    accept::serve(listener, move |agent| {
        let (tunnels, directory) = (Arc::clone(&tunnels), Arc::clone(&directory));
        async move { converse(agent, &tunnels, directory.as_ref()).await }
    })
    .await;
}

async fn converse(
    mut agent: Agent,
    tunnels: &Tunnels,
    directory: &(dyn Directory + Send + Sync),
) -> io::Result<()> {
    let asked = timeout(PATIENCE, async {
        if !greet(&mut agent.reader).await? {
            agent.writer.write_all(&[VERSION, 0xff]).await?;
            return Ok(None);
        }
        agent.writer.write_all(&[VERSION, 0]).await?;
        read_request(&mut agent.reader).await.map(Some)
    });
    let Some(asked) = asked.await?? else { return Ok(()) };
    let target = match resolve(&asked, directory) {
        Ok(target) => target,
        Err((code, refusal)) => {
            if let Some((target, denial)) = refusal {
                tunnels.refuse(&target, Via::Socks5, &denial);
            }
            return answer(&mut agent, code).await;
        }
    };
    match tunnels.open(&target, Via::Socks5).await {
        Ok(tunnel) => {
            answer(&mut agent, reply::DONE).await?;
            relay(agent, tunnel).await;
            Ok(())
        }
        Err(denial) => answer(&mut agent, code(&denial.reason)).await,
    }
}

/// Reads the greeting; tells whether the peer is content without authentication.
pub async fn greet<R: AsyncRead + Unpin>(reader: &mut Buffered<R>) -> io::Result<bool> {
    let [VERSION, count] = *reader.exactly(2).await? else { return Err(io::ErrorKind::InvalidData.into()) };
    Ok(reader.exactly(usize::from(count)).await?.contains(&0))
}

/// Reads what follows the greeting.
pub async fn read_request<R: AsyncRead + Unpin>(reader: &mut Buffered<R>) -> io::Result<Asked> {
    const CONNECT: u8 = 1;
    let [VERSION, command, 0, kind] = *reader.exactly(4).await? else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let length = match kind {
        1 => 4,
        3 => usize::from(reader.exactly(1).await?.first().copied().unwrap_or_default()),
        4 => 16,
        _ => return Ok(Asked::Other(reply::NO_SUCH_ADDRESS)),
    };
    let host = reader.exactly(length).await?;
    let port = match *reader.exactly(2).await? {
        [high, low] => u16::from_be_bytes([high, low]),
        _ => 0,
    };
    Ok(match (command, kind, host.as_slice()) {
        (CONNECT, 1, [a, b, c, d]) => Asked::Address(Ipv4Addr::new(*a, *b, *c, *d), port),
        (CONNECT, 3, _) => Asked::Name(host, port),
        (CONNECT, ..) => Asked::Other(reply::NO_SUCH_ADDRESS),
        _ => Asked::Other(reply::NO_SUCH_COMMAND),
    })
}

/// Name and port of what was asked for; else the reply, and what to record.
pub fn resolve(
    asked: &Asked,
    directory: &(dyn Directory + Send + Sync),
) -> Result<Target, (u8, Option<(String, Denial)>)> {
    let refused = |target: String, reason: &str, why: String| {
        Err((reply::NOT_ALLOWED, Some((target, denial(reason, why)))))
    };
    match asked {
        Asked::Other(code) => Err((*code, None)),
        Asked::Name(host, port) => match HostName::from_bytes(host) {
            Ok(name) if *port > 0 => Ok(Target { name, port: *port }),
            Ok(name) => refused(format!("{name}:0"), "PortNotAllowed", "port 0".to_owned()),
            Err(error) => {
                let text = format!("{}:{port}", String::from_utf8_lossy(host));
                refused(text, "InvalidName", error.to_string())
            }
        },
        // The agent asked our DNS first, as clients do that resolve by themselves.
        Asked::Address(address, port) => match directory.name(*address) {
            Some(name) if *port > 0 => Ok(Target { name, port: *port }),
            _ => refused(
                format!("{address}:{port}"),
                "AddressNotAllowed",
                "not an address of a name".to_owned(),
            ),
        },
    }
}

fn code(reason: &str) -> u8 {
    match reason {
        "ResolutionFailed" => reply::HOST_UNREACHABLE,
        "DialFailed" => reply::REFUSED,
        "TooManyConnections" => reply::FAILED,
        reason if is_failure(reason) => reply::FAILED,
        _ => reply::NOT_ALLOWED,
    }
}

async fn answer(agent: &mut Agent, code: u8) -> io::Result<()> {
    // The address that we are bound to is nobody's concern.
    timeout(PATIENCE, agent.writer.write_all(&[VERSION, code, 0, 1, 0, 0, 0, 0, 0, 0])).await?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    struct One;

    impl Directory for One {
        fn allows(&self, _: &HostName) -> Result<(), String> {
            Ok(())
        }
        fn address(&self, _: &HostName) -> Result<Ipv4Addr, String> {
            Err(String::new())
        }
        fn name(&self, address: Ipv4Addr) -> Option<HostName> {
            (address == Ipv4Addr::new(127, 64, 1, 0)).then(|| HostName::parse("a.example").unwrap())
        }
        fn refused(&self, _: &str, _: &str, _: &str) {}
    }

    async fn target(bytes: &[u8]) -> Result<String, u8> {
        let asked = read_request(&mut Buffered::new(bytes)).await.map_err(|_| 255)?;
        resolve(&asked, &One).map(|target| target.to_string()).map_err(|(code, _)| code)
    }

    #[rstest]
    #[case::name(b"\x05\x01\x00\x03\x09A.example\x01\xbb", Ok("a.example:443"))]
    #[case::trailing_dot(b"\x05\x01\x00\x03\x0aa.example.\x01\xbb", Ok("a.example:443"))]
    #[case::own_address(b"\x05\x01\x00\x01\x7f\x40\x01\x00\x00\x16", Ok("a.example:22"))]
    #[case::other_address(b"\x05\x01\x00\x01\x08\x08\x08\x08\x00\x16", Err(2))]
    #[case::address_as_name(b"\x05\x01\x00\x03\x078.8.8.8\x01\xbb", Err(2))]
    #[case::nul(b"\x05\x01\x00\x03\x05a.ex\x00\x01\xbb", Err(2))]
    #[case::empty(b"\x05\x01\x00\x03\x00\x01\xbb", Err(2))]
    #[case::port_0(b"\x05\x01\x00\x03\x09a.example\x00\x00", Err(2))]
    #[case::v6(b"\x05\x01\x00\x04\0\0\0\0\0\0\0\0\0\0\xff\xff\x08\x08\x08\x08\x01\xbb", Err(8))]
    #[case::bind(b"\x05\x02\x00\x03\x09a.example\x01\xbb", Err(7))]
    #[case::udp(b"\x05\x03\x00\x01\x7f\x40\x01\x00\x00\x16", Err(7))]
    #[case::kind(b"\x05\x01\x00\x09\x00", Err(8))]
    #[case::version(b"\x04\x01\x00\x50\x00\x00\x00\x01", Err(255))]
    #[case::short(b"\x05\x01\x00\x03\x09a.ex", Err(255))]
    #[tokio::test]
    async fn requests_are_understood(#[case] bytes: &[u8], #[case] expected: Result<&str, u8>) {
        assert_eq!(target(bytes).await, expected.map(str::to_owned));
    }

    #[tokio::test]
    async fn who_wants_to_authenticate_is_not_served() {
        assert!(greet(&mut Buffered::new(&b"\x05\x02\x02\x00"[..])).await.unwrap());
        assert!(!greet(&mut Buffered::new(&b"\x05\x01\x02"[..])).await.unwrap());
        assert!(!greet(&mut Buffered::new(&b"\x05\x00"[..])).await.unwrap());
        assert!(greet(&mut Buffered::new(&b"GET / HTTP/1.1"[..])).await.is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let _ = greet(&mut Buffered::new(bytes.as_slice())).await;
                let request = [b"\x05\x01\x00".as_slice(), &bytes].concat();
                let _ = target(&request).await;
            });
        }
    }
}
