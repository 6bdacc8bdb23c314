//! What an egress policy means: its digest, and the addresses that no policy may open. No I/O.
pub(crate) mod digest;
pub mod reserved;

pub use digest::digest;
