//! Whether what the gateway knows may be behind the API server.
//!
//! A watch says that it broke, and nothing when it stands again and nothing has changed. So while one broke the API server
//! is asked for its version every few seconds, and only then.
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kube::{Client, Error};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// Time between two questions.
const EVERY: Duration = Duration::from_secs(5);

/// As many questions long no watch may break before all is well: they try again every half a minute at the latest.
const QUIET: u32 = 8;

/// Since when the gateway goes by what it knew before.
#[derive(Debug)]
pub struct Freshness {
    since: watch::Sender<Option<SystemTime>>,
    /// When a watch broke last.
    last: Mutex<Instant>,
    /// The same in seconds since 1970; 0 while all is fresh.
    gauge: Gauge,
}

impl Freshness {
    /// Fresh, as `gauge` tells from now on.
    pub fn new(gauge: Gauge) -> Self {
        Self { since: watch::Sender::new(None), last: Mutex::new(Instant::now()), gauge }
    }

    /// A watch broke.
    pub fn lost(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.since.send_if_modified(|since| {
            let first = since.is_none();
            if first {
                let now = SystemTime::now();
                *since = Some(now);
                let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                self.gauge.set(i64::try_from(seconds).unwrap_or(i64::MAX));
            }
            first
        });
    }

    fn lost_since(&self, while_ago: Duration) -> bool {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).elapsed() < while_ago
    }

    /// Finds out when it is over, for ever.
    pub async fn keep(&self, client: &Client) {
        self.keep_every(client, EVERY).await;
    }

    async fn keep_every(&self, client: &Client, every: Duration) {
        let mut since = self.since.subscribe();
        loop {
            // The sender is `self`, so that it cannot be gone.
            let _ = since.wait_for(Option::is_some).await;
            sleep(every).await;
            match timeout(EVERY, client.apiserver_version()).await {
                // Another watch may still be broken: it would have said so by now.
                _ if self.lost_since(every.saturating_mul(QUIET)) => {}
                // Who refuses an answer is there.
                Ok(Ok(_) | Err(Error::Api(_))) => {
                    self.since.send_replace(None);
                    self.gauge.set(0);
                    tracing::info!("the API server answers again");
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the API server does not answer; the last state stays");
                }
                Err(_) => tracing::warn!("the API server does not answer in time; the last state stays"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use http::{Request, Response};
    use kube::client::Body;

    use super::*;

    #[tokio::test]
    async fn it_is_stale_until_the_api_server_answers() {
        let up = Arc::new(AtomicBool::new(false));
        let answers = Arc::clone(&up);
        let service = tower::service_fn(move |_: Request<Body>| {
            let up = answers.load(Ordering::SeqCst);
            async move {
                let version = r#"{"major":"1","minor":"35","gitVersion":"v1.35.0","gitCommit":"","gitTreeState":"","buildDate":"","goVersion":"","compiler":"","platform":""}"#;
                if up { Ok(Response::new(Body::from(version.as_bytes().to_vec()))) } else { Err("away") }
            }
        });
        let (client, gauge) = (Client::new(service, "default"), Gauge::default());
        let freshness = Freshness::new(gauge.clone());
        let every = Duration::from_millis(20);
        let keeping = freshness.keep_every(&client, every);
        let course = async {
            sleep(every * 4).await;
            assert_eq!(gauge.get(), 0);
            freshness.lost();
            let since = gauge.get();
            assert!(since > 1_700_000_000);
            sleep(every * 4).await;
            freshness.lost();
            assert_eq!(gauge.get(), since, "the first time counts");
            up.store(true, Ordering::SeqCst);
            while gauge.get() != 0 {
                sleep(every).await;
            }
        };
        tokio::select! {
            () = keeping => {}
            () = course => {}
        }
    }
}
