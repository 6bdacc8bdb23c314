//! Where the records of connections go: to standard output, in a thread of its own, since that may block. When it
//! does, connections wait to be recorded; when it fails, the gateway ends, because nothing may pass unrecorded.
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
