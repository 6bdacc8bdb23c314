//! Logs, metrics and the admin server of the operator's processes.
mod admin;
mod logging;
mod metrics;

pub use admin::{Health, serve};
pub use logging::{LevelHandle, LogFormat, LoggingError, init};
pub use metrics::{ApplyLabels, CertificateLabels, ErrorLabels, Metrics, ResultLabels};
