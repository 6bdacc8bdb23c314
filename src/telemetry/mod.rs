//! Logs, metrics and the admin server of the operator's processes.
mod admin;
mod connections;
mod gateway_metrics;
mod logging;
mod metrics;

pub use admin::{Exposition, Health, serve};
pub use gateway_metrics::{ConnectionLabels, DirectionLabels, GatewayMetrics, ReviewLabels};
pub use logging::{LevelHandle, LogFormat, LoggingError, init};
pub use metrics::{ApplyLabels, CertificateLabels, ErrorLabels, Metrics, ResultLabels};
