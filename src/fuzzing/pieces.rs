//! Streams that come in pieces.
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, ReadBuf};

/// Gives bytes in pieces of at most `size`, and makes its reader wait before each.
pub struct Pieces<'a> {
    rest: &'a [u8],
    size: usize,
    ready: bool,
}

impl<'a> Pieces<'a> {
    /// All of `bytes`, in pieces.
    pub fn new(bytes: &'a [u8], size: usize) -> Self {
        Self { rest: bytes, size, ready: false }
    }
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.ready = !self.ready;
        if self.ready {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let (piece, rest) = self.rest.split_at(self.size.min(buffer.remaining()).min(self.rest.len()));
        buffer.put_slice(piece);
        self.rest = rest;
        Poll::Ready(Ok(()))
    }
}

/// Sizes in which `bytes` come another time than whole: one by one, and one that goes with their number, so that the
/// fuzzer has a say in it.
pub fn sizes(bytes: &[u8]) -> [usize; 2] {
    [1, bytes.len() % 13 + 2]
}

/// What `future` comes to, which waits for [`Pieces`] only.
pub fn finish<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
    }
}
