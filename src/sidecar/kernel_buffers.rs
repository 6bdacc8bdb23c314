//! What the kernel keeps of connections: it counts on the sidecar's memory, and an agent may have hundreds that stall.
use std::os::fd::AsFd;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::sync::Semaphore;

/// Bytes each way of a connection to a gateway. Enough within a cluster.
pub const TUNNEL: u32 = 128 * 1024;

/// Bytes each way of a connection of the agent's: within one Pod more are not faster.
pub const AGENT: u32 = 64 * 1024;

/// Connections that have all of it. If all 256 had, and stalled in both directions, it would come to 220 MiB.
const FEW: usize = 24;

/// Bytes each way of every further one.
const NARROW: usize = 16 * 1024;

/// Whether more than [`FEW`] of the `most` places in `room` are taken.
pub fn are_many(room: &Semaphore, most: usize) -> bool {
    room.available_permits() + FEW < most
}

/// Has the kernel keep little of this connection.
pub fn narrow(socket: &impl AsFd) {
    // It fails for what is no socket.
    let _ = setsockopt(socket, sockopt::SndBuf, &NARROW);
    let _ = setsockopt(socket, sockopt::RcvBuf, &NARROW);
}
