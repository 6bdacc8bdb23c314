//! Connecting to the first address that answers (RFC 8305, section 5).
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::egress::sockets::socket;

/// Time after which the next address is tried as well.
const NEXT_AFTER: Duration = Duration::from_millis(250);

/// Bytes that the kernel may keep for a connection in each direction; the node's own limit may be lower. Without it an
/// agent that reads nothing could have six million kept for each of its connections.
const KERNEL_BUFFER: u32 = 256 * 1024;

/// Makes a connection. There are others than TCP only in tests.
type Connect = dyn Fn(SocketAddr) -> BoxFuture<'static, std::io::Result<TcpStream>> + Send + Sync;

/// Connects to servers.
#[derive(Clone)]
pub struct Dialer {
    connect: Arc<Connect>,
    patience: Duration,
}

impl std::fmt::Debug for Dialer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Dialer").field("patience", &self.patience).finish_non_exhaustive()
    }
}

impl Dialer {
    /// One connection has to be there within `patience`.
    pub fn new(patience: Duration) -> Self {
        Self::through(patience, Arc::new(|address| Box::pin(connect(address))))
    }

    /// The same by another way.
    pub fn through(patience: Duration, connect: Arc<Connect>) -> Self {
        Self { connect, patience }
    }

    /// Connects to the first of `addresses` that answers, and says which it is. `Err` says what happened to each.
    pub async fn dial(&self, addresses: &[SocketAddr]) -> Result<(TcpStream, SocketAddr), String> {
        let mut failures = Vec::new();
        match timeout(self.patience, self.race(addresses, &mut failures)).await {
            Ok(Some(connection)) => Ok(connection),
            Ok(None) => Err(failures.join("; ")),
            Err(_) => {
                failures.push(format!("no answer within {:?}", self.patience));
                Err(failures.join("; "))
            }
        }
    }

    async fn race(
        &self,
        addresses: &[SocketAddr],
        failures: &mut Vec<String>,
    ) -> Option<(TcpStream, SocketAddr)> {
        let mut left = addresses.iter().copied();
        let mut running = FuturesUnordered::new();
        let start = |address: SocketAddr| {
            let connecting = (self.connect)(address);
            async move { (address, connecting.await) }
        };
        running.push(start(left.next()?));
        loop {
            let more = left.len() > 0;
            tokio::select! {
                Some((address, result)) = running.next() => match result.and_then(prepare) {
                    Ok(stream) => return Some((stream, address)),
                    Err(error) => {
                        failures.push(format!("{address}: {error}"));
                        match left.next() {
                            Some(next) => running.push(start(next)),
                            None if running.is_empty() => return None,
                            None => {}
                        }
                    }
                },
                () = sleep(NEXT_AFTER), if more => running.extend(left.next().map(start)),
            }
        }
    }
}

async fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    socket(address, KERNEL_BUFFER)?.connect(address).await
}

/// What every connection gets. A socket that the kernel connected to itself (the port was its own) is none.
fn prepare(stream: TcpStream) -> std::io::Result<TcpStream> {
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(std::io::Error::other("the connection leads to itself"));
    }
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::*;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 443))
    }

    /// 192.0.2.1 refuses, .2 never answers, the others are `real`.
    fn dialer(real: SocketAddr) -> Dialer {
        let connect = move |asked: SocketAddr| -> BoxFuture<'static, std::io::Result<TcpStream>> {
            Box::pin(async move {
                match asked {
                    _ if asked == address(1) => Err(std::io::ErrorKind::ConnectionRefused.into()),
                    _ if asked == address(2) => std::future::pending().await,
                    _ => TcpStream::connect(real).await,
                }
            })
        };
        Dialer::through(Duration::from_millis(600), Arc::new(connect))
    }

    #[tokio::test]
    async fn the_first_that_answers_is_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialer = dialer(listener.local_addr().unwrap());
        let start = Instant::now();
        let (_, dialled) = dialer.dial(&[address(1), address(3), address(2)]).await.unwrap();
        assert_eq!(dialled, address(3));
        assert!(start.elapsed() < Duration::from_millis(200), "a refusal is not waited for");
        let (_, dialled) = dialer.dial(&[address(2), address(4), address(1)]).await.unwrap();
        assert_eq!(dialled, address(4), "one that does not answer is passed");
    }

    #[tokio::test]
    async fn the_usual_way_is_tcp() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let real = listener.local_addr().unwrap();
        let (stream, dialled) = Dialer::new(Duration::from_secs(5)).dial(&[real]).await.unwrap();
        assert_eq!((dialled, stream.peer_addr().unwrap()), (real, real));
        assert!(stream.nodelay().unwrap());
    }

    #[tokio::test]
    async fn failures_are_told() {
        let dialer = dialer(address(9));
        let error = dialer.dial(&[address(1)]).await.unwrap_err();
        assert!(error.contains("192.0.2.1:443"), "{error}");
        let error = dialer.dial(&[address(1), address(2)]).await.unwrap_err();
        assert!(error.contains("192.0.2.1:443") && error.contains("no answer within"), "{error}");
        assert!(dialer.dial(&[]).await.is_err());
    }
}
