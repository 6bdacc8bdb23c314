//! Metrics of the gateway. Every label has a small fixed set of values: never names, namespaces or hosts.
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::Exposition;

/// How a connection ended.
#[derive(EncodeLabelSet, Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionLabels {
    /// `allowed` or `denied`.
    pub verdict: &'static str,
    /// Word of the refusal or of the end.
    pub reason: &'static str,
}

/// Direction of bytes: `out` from the agent, `in` to it.
#[derive(EncodeLabelSet, Clone, Debug, PartialEq, Eq, Hash)]
pub struct DirectionLabels {
    /// The direction.
    pub direction: &'static str,
}

/// What a question about a token brought: `valid`, `invalid`, `error` or `cached`.
#[derive(EncodeLabelSet, Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReviewLabels {
    /// The result.
    pub result: &'static str,
}

/// Metrics of one gateway.
#[derive(Debug)]
pub struct GatewayMetrics {
    registry: Registry,
    /// Connections that ended or were refused.
    pub connections: Family<ConnectionLabels, Counter>,
    /// Connections that are open.
    pub active: Gauge,
    /// Bytes of connections.
    pub bytes: Family<DirectionLabels, Counter>,
    /// Checks of tokens.
    pub reviews: Family<ReviewLabels, Counter>,
    /// Handshakes that failed or took too long.
    pub handshake_failures: Counter,
    /// Seconds from a request to its answer.
    pub setup: Histogram,
    /// Sandboxes whose policy is known.
    pub sandboxes: Gauge,
    /// Errors of watches.
    pub watch_errors: Counter,
    /// Since when the watches may be behind the API server, in seconds since 1970; 0 while they are not.
    pub stale_since: Gauge,
    /// Seconds until the certificate expires.
    pub certificate_seconds: Gauge,
}

impl Default for GatewayMetrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("agentsandbox_gateway");
        let connections = Family::default();
        registry.register("connections", "Connections that ended or were refused", connections.clone());
        let active = Gauge::default();
        registry.register("connections_active", "Connections that are open", active.clone());
        let bytes = Family::default();
        registry.register("bytes", "Bytes by direction, seen from the agent", bytes.clone());
        let reviews = Family::default();
        registry.register("token_reviews", "Checks of tokens by result", reviews.clone());
        let handshake_failures = Counter::default();
        let help = "Handshakes that failed or took too long";
        registry.register("handshake_failures", help, handshake_failures.clone());
        let setup = Histogram::new(exponential_buckets(0.000_5, 4.0, 9));
        registry.register("setup_seconds", "Time from a request to its answer", setup.clone());
        let sandboxes = Gauge::default();
        registry.register("sandboxes", "Sandboxes whose policy is known", sandboxes.clone());
        let watch_errors = Counter::default();
        registry.register("watch_errors", "Errors of watches", watch_errors.clone());
        let stale_since = Gauge::default();
        let help = "Since when the API server has not been heard of, in seconds since 1970; 0 while it is";
        registry.register("stale_since_seconds", help, stale_since.clone());
        let certificate_seconds = Gauge::default();
        let help = "Seconds until the certificate expires";
        registry.register("certificate_expiry_seconds", help, certificate_seconds.clone());
        Self {
            registry,
            connections,
            active,
            bytes,
            reviews,
            handshake_failures,
            setup,
            sandboxes,
            watch_errors,
            stale_since,
            certificate_seconds,
        }
    }
}

impl GatewayMetrics {
    /// Counts the end of a connection, or a refusal.
    pub fn ended(&self, allowed: bool, reason: &'static str) {
        let verdict = if allowed { "allowed" } else { "denied" };
        self.connections.get_or_create(&ConnectionLabels { verdict, reason }).inc();
    }

    /// Counts bytes of a connection that ended.
    pub fn moved(&self, out: u64, into: u64) {
        self.bytes.get_or_create(&DirectionLabels { direction: "out" }).inc_by(out);
        self.bytes.get_or_create(&DirectionLabels { direction: "in" }).inc_by(into);
    }

    /// Counts a check of a token.
    pub fn reviewed(&self, result: &'static str) {
        self.reviews.get_or_create(&ReviewLabels { result }).inc();
    }
}

impl Exposition for GatewayMetrics {
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
        let metrics = GatewayMetrics::default();
        metrics.ended(false, "NoRule");
        metrics.moved(3, 4);
        metrics.reviewed("valid");
        let text = metrics.encode().unwrap();
        for line in [
            "agentsandbox_gateway_connections_total{verdict=\"denied\",reason=\"NoRule\"} 1",
            "agentsandbox_gateway_connections_active 0",
            "agentsandbox_gateway_bytes_total{direction=\"out\"} 3",
            "agentsandbox_gateway_stale_since_seconds 0",
            "agentsandbox_gateway_token_reviews_total{result=\"valid\"} 1",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
