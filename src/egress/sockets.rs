//! TCP sockets of which the kernel keeps no more than is asked for: what it keeps counts on the memory limit of the
//! program that has them, and left to itself it would be megabytes. It takes twice as many bytes as it is told (socket(7)).
use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

/// A socket for connections to or from `address`, with `bytes` each way. Before the connection is made: the peers agree
/// then on how large a window may get.
pub fn socket(address: SocketAddr, bytes: u32) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_send_buffer_size(bytes)?;
    socket.set_recv_buffer_size(bytes)?;
    Ok(socket)
}

/// Listens at `address`; connections inherit the buffers. `SO_REUSEADDR` is for connections of an earlier listener that
/// are still closing; two listeners at one address it allows nobody.
pub fn listen(address: SocketAddr, bytes: u32, backlog: u32) -> io::Result<TcpListener> {
    let socket = socket(address, bytes)?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(backlog)
}
