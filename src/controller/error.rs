//! What can go wrong in one reconcile. Every error is tried again with back-off; what waits for a change of the
//! object is a condition and no error.
use kube::core::Status;

/// Why a reconcile failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused.
    #[error("{action}: {}", .status.message)]
    Api {
        /// What was tried.
        action: &'static str,
        /// What the server said.
        status: Box<Status>,
    },
    /// The API server was not reached, or its answer was not understood.
    #[error("{action}: {source}")]
    Client {
        /// What was tried.
        action: &'static str,
        /// What happened.
        source: Box<kube::Error>,
    },
    /// The lease was not renewed in time: another process may be writing.
    #[error("the lease is not held; nothing is written")]
    NotLeader,
    /// The reconcile took too long.
    #[error("the reconcile took longer than {0:?}")]
    TimedOut(std::time::Duration),
    /// The reconcile panicked. A fault of this program.
    #[error("the reconcile panicked")]
    Panicked,
    /// An object has no JSON form.
    #[error("an object cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The audit record could not be written.
    #[error("{0}")]
    Audit(#[from] crate::audit::RecordError),
    /// A certificate could not be made.
    #[error("the gateway's certificate cannot be made: {0}")]
    Certificate(#[from] super::certificates::MakeError),
}

impl Error {
    /// One word of a small fixed set, for the metric.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Api { status, .. } if status.is_conflict() => "Conflict",
            Self::Api { status, .. } if status.is_forbidden() => "Forbidden",
            Self::Api { status, .. } if status.is_invalid() => "Invalid",
            Self::Api { status, .. } if status.is_not_found() => "NotFound",
            Self::Api { .. } => "Refused",
            Self::Client { .. } => "Unreachable",
            Self::NotLeader => "NotLeader",
            Self::TimedOut(_) => "TimedOut",
            Self::Panicked => "Panicked",
            Self::Json(_) => "Json",
            Self::Audit(_) => "Audit",
            Self::Certificate(_) => "Certificate",
        }
    }
}

/// Says what was tried when the API server refuses.
pub trait Doing<T> {
    /// Adds `action`.
    fn doing(self, action: &'static str) -> Result<T, Error>;
}

impl<T> Doing<T> for Result<T, kube::Error> {
    fn doing(self, action: &'static str) -> Result<T, Error> {
        self.map_err(|error| match error {
            kube::Error::Api(status) => Error::Api { action, status },
            source => Error::Client { action, source: Box::new(source) },
        })
    }
}
