//! Reads for TLS in pieces of more than a record. By itself the TLS library asks for 4 KiB at a time, which is five system
//! calls for each full record, and as many updates of the window.
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// Room for a first read.
const SMALL: usize = 4 * 1024;

/// Room for the reads of a busy stream. It counts on the sidecar's memory as long as the agent does not take the bytes.
const LARGE: usize = 32 * 1024;

/// A stream that is read ahead. Who waits for bytes has no buffer.
#[derive(Debug)]
pub struct ReadAhead<S> {
    inner: S,
    ahead: Vec<u8>,
    /// Bytes of `ahead` that were taken.
    taken: usize,
    /// Room for the next read: it grows with a stream that fills it.
    room: usize,
}

impl<S> ReadAhead<S> {
    /// `inner`, read ahead.
    pub fn new(inner: S) -> Self {
        Self { inner, ahead: Vec::new(), taken: 0, room: SMALL }
    }

    fn take(&mut self, buffer: &mut ReadBuf<'_>) {
        let rest = self.ahead.get(self.taken..).unwrap_or_default();
        let piece = rest.get(..rest.len().min(buffer.remaining())).unwrap_or_default();
        buffer.put_slice(piece);
        self.taken += piece.len();
        if self.taken == self.ahead.len() {
            self.ahead.clear();
            self.taken = 0;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ahead.is_empty() {
            this.ahead.reserve_exact(this.room);
            // Without a state of its own: it may be dropped and made again.
            match pin!(this.inner.read_buf(&mut this.ahead)).poll(context) {
                Poll::Ready(Ok(count)) => {
                    if count >= this.room && this.room < LARGE {
                        this.room *= 2;
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    this.ahead = Vec::new();
                    return Poll::Pending;
                }
            }
        }
        this.take(buffer);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn bytes_come_whole_and_in_order_and_the_buffer_goes() {
        let sent: Vec<u8> = (0..400_000_u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let (near, mut far) = duplex(100_000);
        let mut stream = ReadAhead::new(near);
        let expected = sent.clone();
        let write = async move {
            far.write_all(&sent).await.unwrap();
            far
        };
        let read = async {
            let (mut all, mut piece) = (Vec::new(), [0; 5000]);
            while all.len() < expected.len() {
                let count = stream.read(&mut piece).await.unwrap();
                all.extend_from_slice(&piece[..count]);
            }
            (all, stream)
        };
        let (far, (all, mut stream)) = tokio::join!(write, read);
        assert!(all == expected);
        assert_eq!(stream.room, LARGE);
        let mut byte = [0];
        assert!(futures::poll!(pin!(stream.read(&mut byte))).is_pending());
        assert_eq!(stream.ahead.capacity(), 0, "who waits has no buffer");
        drop(far);
        assert_eq!(stream.read(&mut byte).await.unwrap(), 0);
        assert_eq!(stream.read(&mut byte).await.unwrap(), 0, "the end stays the end");
    }
}
