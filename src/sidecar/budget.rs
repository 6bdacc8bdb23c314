//! The bytes that a sandbox has moved and may move.
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

/// Bytes of the whole sandbox, and their limit.
#[derive(Debug)]
pub struct Budget {
    outwards: AtomicU64,
    inwards: AtomicU64,
    /// `u64::MAX` for none.
    limit: AtomicU64,
    spent: watch::Sender<bool>,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            outwards: AtomicU64::new(0),
            inwards: AtomicU64::new(0),
            limit: AtomicU64::new(u64::MAX),
            spent: watch::Sender::new(false),
        }
    }
}

impl Budget {
    /// Bytes from the agent and to the agent.
    pub fn moved(&self) -> (u64, u64) {
        (self.outwards.load(Ordering::Relaxed), self.inwards.load(Ordering::Relaxed))
    }

    /// Bytes of both ways.
    pub fn total(&self) -> u64 {
        let (outwards, inwards) = self.moved();
        outwards.saturating_add(inwards)
    }

    /// Sets the limit of both ways. A higher one than before opens again.
    pub fn limit(&self, bytes: Option<i64>) {
        let limit = bytes.map_or(u64::MAX, |bytes| u64::try_from(bytes).unwrap_or(0));
        self.limit.store(limit, Ordering::Relaxed);
        self.look();
    }

    /// Whether nothing more may be moved.
    pub fn is_spent(&self) -> bool {
        self.room() == 0
    }

    /// Waits until nothing more may be moved.
    pub async fn spent(&self) {
        let mut spent = self.spent.subscribe();
        // The sender is `self`, so that it cannot be gone.
        let _ = spent.wait_for(|spent| *spent).await;
    }

    /// Waits until bytes may be moved.
    pub async fn refilled(&self) {
        let mut spent = self.spent.subscribe();
        let _ = spent.wait_for(|spent| !*spent).await;
    }

    fn room(&self) -> u64 {
        self.limit.load(Ordering::Relaxed).saturating_sub(self.total())
    }

    /// How many of `most` bytes may be moved, none where the limit is reached.
    fn grant(&self, most: usize) -> io::Result<usize> {
        match usize::try_from(self.room()).unwrap_or(usize::MAX).min(most) {
            0 if most > 0 => {
                Err(io::Error::new(io::ErrorKind::QuotaExceeded, "limits.egressBytes is reached"))
            }
            granted => Ok(granted),
        }
    }

    fn look(&self) {
        let spent = self.is_spent();
        self.spent.send_if_modified(|before| std::mem::replace(before, spent) != spent);
    }
}

/// A stream to the gateway whose bytes count. Nothing beyond the limit goes through, in either direction.
#[derive(Debug)]
pub struct Counted<S> {
    inner: S,
    meter: Arc<Meter>,
}

/// What a stream has done last.
#[derive(Debug)]
pub struct Meter {
    budget: Arc<Budget>,
    since: Instant,
    /// Milliseconds from `since` to the last byte.
    last: AtomicU64,
}

impl Meter {
    /// A meter that counts on `budget`.
    pub fn new(budget: Arc<Budget>) -> Arc<Self> {
        Arc::new(Self { budget, since: Instant::now(), last: AtomicU64::new(0) })
    }

    /// Time since the last byte.
    pub fn idle(&self) -> Duration {
        self.since.elapsed().saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)))
    }

    /// The sandbox's budget.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Counts bytes to the agent that were read before the stream was counted; tells whether there was room for them.
    pub fn take_inwards(&self, bytes: usize) -> bool {
        let granted = self.budget.grant(bytes).is_ok_and(|granted| granted == bytes);
        if granted {
            self.count(&self.budget.inwards, bytes);
        }
        granted
    }

    fn count(&self, counter: &AtomicU64, bytes: usize) {
        if bytes > 0 {
            counter.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
            let now = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.last.store(now, Ordering::Relaxed);
            self.budget.look();
        }
    }
}

impl<S> Counted<S> {
    /// `inner`, counted on `meter`.
    pub fn new(inner: S, meter: Arc<Meter>) -> Self {
        Self { inner, meter }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let granted = self.meter.budget.grant(buffer.remaining())?;
        let count = if granted == buffer.remaining() {
            // The usual case, in which nothing has to be filled with zeros first.
            let before = buffer.filled().len();
            ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
            buffer.filled().len().saturating_sub(before)
        } else {
            let mut part = ReadBuf::new(buffer.initialize_unfilled_to(granted));
            ready!(Pin::new(&mut self.inner).poll_read(context, &mut part))?;
            let count = part.filled().len();
            buffer.advance(count);
            count
        };
        self.meter.count(&self.meter.budget.inwards, count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let granted = self.meter.budget.grant(bytes.len())?;
        let part = bytes.get(..granted).unwrap_or_default();
        let count = ready!(Pin::new(&mut self.inner).poll_write(context, part))?;
        self.meter.count(&self.meter.budget.outwards, count);
        Poll::Ready(Ok(count))
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
    async fn not_a_byte_more_than_the_limit() {
        let budget = Arc::new(Budget::default());
        budget.limit(Some(10));
        let (near, mut far) = duplex(64);
        let mut near = Counted::new(near, Meter::new(Arc::clone(&budget)));
        near.write_all(b"123456").await.unwrap();
        far.write_all(b"abcdefgh").await.unwrap();
        let mut buffer = [0; 16];
        assert_eq!(near.read(&mut buffer).await.unwrap(), 4);
        budget.spent().await;
        assert_eq!(near.read(&mut buffer).await.unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
        assert_eq!(near.write_all(b"7").await.unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
        assert_eq!((budget.moved(), budget.total(), budget.is_spent()), ((6, 4), 10, true));
    }

    #[tokio::test]
    async fn a_write_is_cut_at_the_limit() {
        let budget = Arc::new(Budget::default());
        budget.limit(Some(4));
        let (near, mut far) = duplex(64);
        let mut near = Counted::new(near, Meter::new(Arc::clone(&budget)));
        assert!(near.write_all(b"123456").await.is_err());
        drop(near);
        let mut seen = Vec::new();
        far.read_to_end(&mut seen).await.unwrap();
        assert_eq!(seen, b"1234");
    }

    #[test]
    fn a_higher_limit_opens_again() {
        let budget = Budget::default();
        budget.limit(Some(0));
        assert!(budget.is_spent() && *budget.spent.borrow());
        budget.limit(Some(1));
        assert!(!budget.is_spent() && !*budget.spent.borrow());
        budget.limit(None);
        assert_eq!(budget.grant(usize::MAX).unwrap(), usize::MAX);
    }
}
