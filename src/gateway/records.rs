//! Where the records of connections go: to standard output, in a thread of its own, since that may block. When it
//! does, connections wait to be recorded and new ones are refused; when it fails, the gateway ends, because nothing may
//! pass unrecorded.
use std::io::Write;

use tokio::sync::{mpsc, oneshot, watch};

use crate::audit::{NetworkEvent, NetworkLog};

/// Records that wait at most.
const WAITING: usize = 4096;

enum Job {
    Write(Box<NetworkEvent>),
    Flush(oneshot::Sender<()>),
}

/// The records.
#[derive(Clone, Debug)]
pub struct Records {
    jobs: mpsc::Sender<Job>,
    failure: watch::Receiver<Option<String>>,
}

impl Records {
    /// Writes to `sink` from now on.
    pub fn start(instance: &str, sink: impl Write + Send + 'static) -> std::io::Result<Self> {
        let (jobs, mut waiting) = mpsc::channel(WAITING);
        let (failed, failure) = watch::channel(None);
        let mut log = NetworkLog::new(instance, sink);
        std::thread::Builder::new().name("records".to_owned()).spawn(move || {
            while let Some(job) = waiting.blocking_recv() {
                match job {
                    Job::Write(event) => {
                        if let Err(error) = log.record(&event) {
                            failed.send_replace(Some(error.to_string()));
                            return;
                        }
                    }
                    Job::Flush(done) => {
                        // Who asked may be gone.
                        let _ = done.send(());
                    }
                }
            }
        })?;
        Ok(Self { jobs, failure })
    }

    /// Whether a connection that begins now can be recorded without waiting for the reader of standard output.
    pub fn have_room(&self) -> bool {
        self.jobs.capacity() > 0
    }

    /// Hands over a record; waits while there are too many.
    pub async fn write(&self, event: NetworkEvent) {
        // It fails only after the thread has said so, and then the process ends.
        let _ = self.jobs.send(Job::Write(Box::new(event))).await;
    }

    /// Ready when all before is written.
    pub async fn flush(&self) {
        let (done, is_done) = oneshot::channel();
        if self.jobs.send(Job::Flush(done)).await.is_ok() {
            let _ = is_done.await;
        }
    }

    /// Ready when a record could not be written.
    pub async fn failed(&self) -> String {
        let mut failure = self.failure.clone();
        match failure.wait_for(Option::is_some).await.map(|failure| failure.clone()) {
            Ok(Some(failure)) => failure,
            Ok(None) | Err(_) => "the thread of the records ended".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    use tokio::time::timeout;

    use super::super::refusal::{Cause, Refusal};
    use super::super::unheard::of_nobody;
    use super::*;

    /// Writes one line for each word that it gets, and fails when there are no more.
    struct Slow(Receiver<()>);

    impl Write for Slow {
        fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
            self.0.recv().map_err(std::io::Error::other)?;
            Ok(line.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn event() -> NetworkEvent {
        let refusal = Refusal::new(Cause::Unauthenticated, "no token");
        of_nobody("192.0.2.1:1".parse().unwrap(), &refusal, 0)
    }

    fn slow() -> (Records, Sender<()>) {
        let (go, wait) = channel();
        (Records::start("gateway-0", Slow(wait)).unwrap(), go)
    }

    #[tokio::test]
    async fn what_is_not_written_is_waited_for() {
        let (records, go) = slow();
        // One is being written, and the others wait.
        for _ in 0..=WAITING {
            timeout(Duration::from_secs(5), records.write(event())).await.unwrap();
        }
        assert!(!records.have_room());
        assert!(timeout(Duration::from_millis(50), records.write(event())).await.is_err());
        for _ in 0..=WAITING {
            go.send(()).unwrap();
        }
        timeout(Duration::from_secs(5), records.flush()).await.unwrap();
        assert!(records.have_room());
    }

    #[tokio::test]
    async fn a_failure_is_told() {
        let (records, go) = slow();
        drop(go);
        records.write(event()).await;
        timeout(Duration::from_secs(5), records.failed()).await.unwrap();
        timeout(Duration::from_secs(5), records.flush()).await.unwrap();
        // Nobody waits for a thread that is gone.
        timeout(Duration::from_secs(5), records.write(event())).await.unwrap();
    }
}
