//! An endpoint that the gateway reaches and a sandbox must not: what a start gate finds closed is worth something only
//! if it is known to be open elsewhere.
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::endpoints::Endpoints;
use crate::egress::wire;

/// Time between two tries.
const EVERY: Duration = Duration::from_secs(15);

/// Time between two tries while there is no success.
const RETRY: Duration = Duration::from_secs(2);

/// Time for one try.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a success counts.
const GOOD_FOR: Duration = Duration::from_mins(1);

/// The canary.
#[derive(Debug)]
pub struct Canary {
    endpoints: Arc<Endpoints>,
    last: Mutex<Option<(SocketAddr, Instant)>>,
}

impl Canary {
    /// One of `endpoints`; none was tried yet.
    pub fn new(endpoints: Arc<Endpoints>) -> Self {
        Self { endpoints, last: Mutex::default() }
    }

    /// Those that may be one.
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// The last that was reached, if it was within the minute.
    pub fn current(&self) -> Option<wire::Canary> {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (address, when) = last.filter(|(_, when)| when.elapsed() < GOOD_FOR)?;
        let age_ms = u64::try_from(when.elapsed().as_millis()).unwrap_or(u64::MAX);
        Some(wire::Canary { address, age_ms })
    }

    /// Tries for ever.
    pub async fn keep(&self) {
        loop {
            self.try_once().await;
            sleep(if self.current().is_some() { EVERY } else { RETRY }).await;
        }
    }

    /// Tries the endpoints in order, the one that was good last first, until one is reached.
    pub async fn try_once(&self) {
        let mut endpoints = self.endpoints.ready();
        let good = self.current().map(|canary| canary.address);
        endpoints.sort_by_key(|endpoint| Some(*endpoint) != good);
        for endpoint in endpoints.into_iter().take(3) {
            if let Ok(Ok(_)) = timeout(PATIENCE, TcpStream::connect(endpoint)).await {
                *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((endpoint, Instant::now()));
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::runtime::watcher::Event;
    use tokio::net::TcpListener;

    use super::super::endpoints::tests::slice;
    use super::*;

    #[tokio::test]
    async fn it_is_known_only_when_it_was_reached() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let endpoints = Arc::new(Endpoints::new(address.port()));
        let canary = Canary::new(Arc::clone(&endpoints));
        canary.try_once().await;
        assert_eq!(canary.current(), None);
        endpoints.take(Event::Apply(slice("a", &[("127.0.0.1", Some(true))])));
        canary.try_once().await;
        assert_eq!(canary.current().unwrap().address, address);
        // Gone, but not for a minute yet.
        drop(listener);
        canary.try_once().await;
        assert!(canary.current().is_some());
        let long_ago = Instant::now().checked_sub(GOOD_FOR).unwrap();
        canary.last.lock().unwrap().as_mut().unwrap().1 = long_ago;
        assert_eq!(canary.current(), None);
    }
}
