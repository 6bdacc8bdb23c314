//! Whether the watch caches are filled and the gateway was looked for: before that, an object that exists looks like
//! one that does not.
//!
//! Not `Store::wait_until_ready`: it wakes only the task that asked last (a oneshot receiver holds one waker), so that
//! of several waiters all but one may sleep for ever.
use std::sync::Arc;

use futures::{Stream, StreamExt};
use kube::runtime::watcher;
use tokio::sync::watch;

/// Counts the caches that are not filled yet.
#[derive(Clone, Debug)]
pub struct Filled(Arc<watch::Sender<usize>>);

impl Filled {
    /// Waits for `caches` caches.
    pub fn new(caches: usize) -> Self {
        Self(Arc::new(watch::Sender::new(caches)))
    }

    /// Passes on the events of a watch that a store already took, and counts the store as filled after its first list.
    pub fn count<K, S>(&self, stream: S) -> impl Stream<Item = S::Item> + use<K, S>
    where
        S: Stream<Item = watcher::Result<watcher::Event<K>>>,
    {
        let (left, mut first) = (Arc::clone(&self.0), true);
        stream.inspect(move |event| {
            if first && matches!(event, Ok(watcher::Event::InitDone)) {
                first = false;
                one_less(&left);
            }
        })
    }

    /// Counts what is no cache.
    pub fn done(&self) {
        one_less(&self.0);
    }

    /// Ready when every cache is filled.
    pub async fn wait(&self) {
        // The sender lives in `self`: it cannot be closed.
        let _ = self.0.subscribe().wait_for(|left| *left == 0).await;
    }
}

fn one_less(left: &watch::Sender<usize>) {
    left.send_modify(|left| *left = left.saturating_sub(1));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::stream;

    use super::*;

    #[tokio::test]
    async fn every_waiter_wakes_when_the_last_cache_is_filled() {
        let filled = Filled::new(2);
        let waiters: Vec<_> = (0..8)
            .map(|_| {
                let filled = filled.clone();
                tokio::spawn(async move { filled.wait().await })
            })
            .collect();
        let watch =
            || filled.count(stream::iter([Ok(watcher::Event::<()>::Init), Ok(watcher::Event::InitDone)]));
        watch().for_each(|_| async {}).await;
        assert!(tokio::time::timeout(Duration::from_millis(50), filled.wait()).await.is_err());
        watch().for_each(|_| async {}).await;
        for waiter in waiters {
            tokio::time::timeout(Duration::from_secs(5), waiter).await.unwrap().unwrap();
        }
    }
}
