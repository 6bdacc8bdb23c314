//! What the kernel keeps of connections: it counts on the sidecar's memory, and an agent may have hundreds that stall.
use std::net::SocketAddr;
use std::os::fd::AsFd;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpSocket;

/// Bytes each way of a connection to a gateway; the kernel takes twice as many (socket(7)). Enough within a cluster.
pub const TUNNEL: u32 = 128 * 1024;

/// Bytes each way of a connection of the agent's: within one Pod more are not faster.
pub const AGENT: u32 = 64 * 1024;

/// Connections that have all of it. If all 256 had, and stalled in both directions, it would come to 220 MiB.
pub const FEW: usize = 24;

/// Bytes each way of every further one.
const NARROW: usize = 16 * 1024;

/// A socket for connections to or from `address` with `bytes` each way.
pub fn socket(address: SocketAddr, bytes: u32) -> std::io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_send_buffer_size(bytes)?;
    socket.set_recv_buffer_size(bytes)?;
    Ok(socket)
}

/// Has the kernel keep little of this connection.
pub fn narrow(socket: &impl AsFd) {
    // It fails for what is no socket.
    let _ = setsockopt(socket, sockopt::SndBuf, &NARROW);
    let _ = setsockopt(socket, sockopt::RcvBuf, &NARROW);
}
