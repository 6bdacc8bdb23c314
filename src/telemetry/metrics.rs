//! Metrics of the controller. Every label has a small fixed set of values: never names or namespaces.
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::Exposition;

/// Result of a reconcile: `ok`, `error` or `panic`.
#[derive(EncodeLabelSet, Clone, Debug, PartialEq, Eq, Hash)]
pub struct ResultLabels {
    /// The result.
    pub result: &'static str,
}

/// Reason of an error, as [`crate::controller::Error::reason`] names it.
#[derive(EncodeLabelSet, Clone, Debug, PartialEq, Eq, Hash)]
pub struct ErrorLabels {
    /// The reason.
    pub reason: &'static str,
}

/// A write to the API server.
#[derive(EncodeLabelSet, Clone, Debug, PartialEq, Eq, Hash)]
pub struct ApplyLabels {
    /// Kind that was written.
    pub kind: &'static str,
    /// `create`, `repair`, `delete`, `release` or `status`.
    pub op: &'static str,
}

/// A certificate: `authority` or `gateway`.
#[derive(EncodeLabelSet, Clone, Debug, PartialEq, Eq, Hash)]
pub struct CertificateLabels {
    /// Whose it is.
    pub certificate: &'static str,
}

/// Metrics of one process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Reconciles by result.
    pub reconciles: Family<ResultLabels, Counter>,
    /// Failed reconciles by reason.
    pub errors: Family<ErrorLabels, Counter>,
    /// Writes by kind and operation.
    pub applies: Family<ApplyLabels, Counter>,
    /// 1 in the process that holds the lease.
    pub leader: Gauge,
    /// Time that reconciles take, in seconds.
    pub duration: Histogram,
    /// Objects in the watch caches.
    pub sandboxes: Gauge<f64, AtomicU64>,
    /// End of the certificates in force, in seconds since the epoch.
    pub certificates: Family<CertificateLabels, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("agentsandbox");
        let reconciles = Family::default();
        registry.register("reconcile", "Reconciles by result", reconciles.clone());
        let errors = Family::default();
        registry.register("reconcile_errors", "Failed reconciles by reason", errors.clone());
        let applies = Family::default();
        registry.register("apply", "Writes by kind and operation", applies.clone());
        let leader = Gauge::default();
        registry.register("leader", "1 in the process that holds the lease", leader.clone());
        let duration = Histogram::new(exponential_buckets(0.001, 4.0, 8));
        registry.register("reconcile_duration_seconds", "Time that reconciles take", duration.clone());
        let sandboxes = Gauge::default();
        registry.register("sandboxes", "AgentSandboxes in the cluster", sandboxes.clone());
        let certificates = Family::default();
        registry.register(
            "certificate_end_seconds",
            "End of the certificates in force, in seconds since the epoch",
            certificates.clone(),
        );
        Self { registry, reconciles, errors, applies, leader, duration, sandboxes, certificates }
    }
}

impl Metrics {
    /// Counts a write.
    pub fn applied(&self, kind: &'static str, op: &'static str) {
        self.applies.get_or_create(&ApplyLabels { kind, op }).inc();
    }

    /// Notes when a certificate ends.
    pub fn certificate_ends(&self, certificate: &'static str, end: i64) {
        self.certificates.get_or_create(&CertificateLabels { certificate }).set(end);
    }
}

impl Exposition for Metrics {
    fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_carry_the_documented_names() {
        let metrics = Metrics::default();
        metrics.applied("Pod", "create");
        metrics.reconciles.get_or_create(&ResultLabels { result: "ok" }).inc();
        metrics.certificate_ends("gateway", 1_800_000_000);
        let text = metrics.encode().unwrap();
        let end = "agentsandbox_certificate_end_seconds{certificate=\"gateway\"} 1800000000";
        assert!(text.contains(end), "{text}");
        assert!(text.contains("agentsandbox_apply_total{kind=\"Pod\",op=\"create\"} 1"), "{text}");
        assert!(text.contains("agentsandbox_reconcile_total{result=\"ok\"} 1"), "{text}");
        assert!(text.contains("agentsandbox_leader 0"), "{text}");
    }
}
