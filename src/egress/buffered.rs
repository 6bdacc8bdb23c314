//! A stream that is read ahead, and hands out what it has read in the pieces that a protocol asks for.
//!
//! Below TLS it serves as the stream itself: by itself the TLS library reads 4 KiB at a time, which is five system calls for
//! each full record, and as many updates of the window.
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use futures::FutureExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// Room for a first read.
const SMALL: usize = 4 * 1024;

/// Room for the reads of a busy stream. It counts on the sidecar's memory as long as the agent does not take the bytes.
const LARGE: usize = 32 * 1024;

/// A reader with what it has read and nobody has taken yet. Everything here is cancel safe: bytes stay.
#[derive(Debug)]
pub struct Buffered<R> {
    inner: R,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were taken.
    taken: usize,
    /// Room for the next read: it grows with a stream that fills it, so that an idle one costs little.
    room: usize,
}

impl<R: AsyncRead + Unpin> Buffered<R> {
    /// A reader of `inner`.
    pub fn new(inner: R) -> Self {
        Self { inner, buffer: Vec::new(), taken: 0, room: SMALL }
    }

    /// A reader of `inner` that has read `data` already.
    pub fn with(inner: R, data: Vec<u8>) -> Self {
        Self { buffer: data, ..Self::new(inner) }
    }

    /// The reader beneath, and what is read and not taken.
    pub fn into_parts(mut self) -> (R, Vec<u8>) {
        self.buffer.drain(..self.taken);
        (self.inner, self.buffer)
    }

    /// The reader beneath.
    pub fn inner(&self) -> &R {
        &self.inner
    }

    /// What is read and not taken.
    pub fn data(&self) -> &[u8] {
        self.buffer.get(self.taken..).unwrap_or_default()
    }

    /// Takes the first `count` bytes of [`Buffered::data`].
    pub fn consume(&mut self, count: usize) {
        self.taken = self.taken.saturating_add(count).min(self.buffer.len());
        if self.taken == self.buffer.len() {
            self.buffer.clear();
            self.taken = 0;
        }
    }

    /// Reads once and returns how many bytes came; 0 at the end.
    pub async fn fill(&mut self) -> io::Result<usize> {
        if self.taken > 0 {
            self.buffer.drain(..self.taken);
            self.taken = 0;
        }
        poll_fn(|context| self.poll_fill(context)).await
    }

    /// Takes along what is there already, if it is little so far: one write instead of several. Never waits.
    pub fn gather(&mut self) -> io::Result<()> {
        while (1..=LARGE / 2).contains(&self.data().len()) {
            match self.fill().now_or_never() {
                Some(Ok(0)) | None => break,
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
            }
        }
        Ok(())
    }

    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let before = self.buffer.len();
        self.buffer.reserve(self.room);
        // Without a state of its own: it may be dropped and made again.
        let read = pin!(self.inner.read_buf(&mut self.buffer)).poll(context);
        match read {
            Poll::Ready(Ok(count)) if before == 0 && count >= self.room && self.room < LARGE => {
                self.room *= 2;
            }
            // Who waits has no buffer: most connections wait most of the time.
            Poll::Pending if before == 0 => self.buffer = Vec::new(),
            _ => {}
        }
        read
    }

    /// Everything up to and with the first `end`, which is not longer than `most` bytes; `None` where the stream ends
    /// before its first byte.
    pub async fn until(&mut self, end: &[u8], most: usize) -> io::Result<Option<Vec<u8>>> {
        let mut searched: usize = 0;
        loop {
            let data = self.data();
            let from = searched.saturating_sub(end.len().saturating_sub(1));
            let rest = data.get(from..).unwrap_or_default();
            if let Some(at) = rest.windows(end.len()).position(|window| window == end) {
                let length = from + at + end.len();
                if length > most {
                    return Err(too_long(most));
                }
                let piece = data.get(..length).unwrap_or_default().to_vec();
                self.consume(length);
                return Ok(Some(piece));
            }
            searched = data.len();
            if searched >= most {
                return Err(too_long(most));
            }
            if self.fill().await? == 0 {
                return if self.data().is_empty() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        }
    }

    /// Exactly `count` bytes.
    pub async fn exactly(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.data().len() < count {
            if self.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let piece = self.data().get(..count).unwrap_or_default().to_vec();
        self.consume(count);
        Ok(piece)
    }

    /// Waits until there is something to take; tells whether there is, or the stream has ended.
    pub async fn some(&mut self) -> io::Result<bool> {
        Ok(!self.data().is_empty() || self.fill().await? > 0)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Buffered<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.data().is_empty() {
            ready!(this.poll_fill(context))?;
        }
        let data = this.data();
        let count = data.len().min(buffer.remaining());
        buffer.put_slice(data.get(..count).unwrap_or_default());
        this.consume(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Buffered<S> {
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

fn too_long(most: usize) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("more than {most} bytes"))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn pieces_are_found_however_they_arrive() {
        let reader = tokio_test_reader(&[b"ab\r", b"\ncd", b"\r\n", b"rest"]);
        let mut stream = Buffered::new(reader);
        assert_eq!(stream.until(b"\r\n", 16).await.unwrap().unwrap(), b"ab\r\n");
        assert_eq!(stream.until(b"\r\n", 16).await.unwrap().unwrap(), b"cd\r\n");
        assert_eq!(stream.exactly(2).await.unwrap(), b"re");
        assert!(stream.some().await.unwrap());
        assert_eq!(stream.until(b"\r\n", 16).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let mut empty = Buffered::new(tokio_test_reader(&[]));
        assert!(empty.until(b"\n", 16).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_is_there_is_taken_along_and_no_error_is_lost() {
        let (piece, rest) = (vec![7; LARGE / 2], vec![8; LARGE]);
        let mut stream = Buffered::new(piece.chain(&rest[..]));
        stream.room = LARGE;
        assert!(stream.some().await.unwrap());
        assert_eq!(stream.data().len(), LARGE / 2);
        stream.gather().unwrap();
        assert_eq!(stream.data().len(), LARGE / 2 + LARGE, "what is there");
        stream.gather().unwrap();
        assert_eq!(stream.data().len(), LARGE / 2 + LARGE, "enough");
        let (near, mut far) = tokio::io::duplex(64);
        let mut stream = Buffered::new(near);
        far.write_all(b"some").await.unwrap();
        assert!(stream.some().await.unwrap());
        stream.gather().unwrap();
        assert_eq!(stream.data(), b"some", "nobody waits for more");
        let broken = tokio_test_reader(&[b"some"]).chain(Broken);
        let mut stream = Buffered::new(broken);
        assert!(stream.some().await.unwrap());
        assert!(stream.gather().is_err());
        assert_eq!(stream.data(), b"some");
    }

    struct Broken;

    impl AsyncRead for Broken {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }
    }

    #[tokio::test]
    async fn bytes_come_whole_and_in_order_and_the_buffer_goes() {
        let sent: Vec<u8> = (0..400_000_u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let (near, mut far) = tokio::io::duplex(100_000);
        let mut stream = Buffered::new(near);
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
        assert_eq!(stream.buffer.capacity(), 0, "who waits has no buffer");
        drop(far);
        assert_eq!(stream.read(&mut byte).await.unwrap(), 0);
        assert_eq!(stream.read(&mut byte).await.unwrap(), 0, "the end stays the end");
    }

    #[tokio::test]
    async fn length_is_bounded() {
        for text in [&b"123456\n"[..], b"12345678"] {
            let mut stream = Buffered::new(text);
            assert_eq!(stream.until(b"\n", 6).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        let mut stream = Buffered::new(&b"12345\n"[..]);
        assert!(stream.until(b"\n", 6).await.unwrap().is_some());
    }

    /// A reader that gives one piece at a time.
    fn tokio_test_reader(pieces: &[&'static [u8]]) -> impl AsyncRead + Unpin + use<> {
        pieces.iter().fold(Box::new(tokio::io::empty()) as Box<dyn AsyncRead + Unpin>, |before, piece| {
            Box::new(before.chain(*piece))
        })
    }
}
