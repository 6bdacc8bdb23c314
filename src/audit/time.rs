//! Wall clock of the records.
use std::time::{SystemTime, UNIX_EPOCH};

use k8s_openapi::jiff::Timestamp;

/// Wall clock time in milliseconds since the epoch; 0 for a clock before it.
pub fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}

/// `milliseconds` since the epoch as RFC 3339 in UTC with three decimals; `None` outside of jiff's years.
pub fn rfc3339(milliseconds: i64) -> Option<String> {
    Timestamp::from_millisecond(milliseconds).ok().map(|time| format!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_decimals() {
        assert_eq!(rfc3339(0).as_deref(), Some("1970-01-01T00:00:00.000Z"));
        assert_eq!(rfc3339(1_764_039_738_045).as_deref(), Some("2025-11-25T03:02:18.045Z"));
        assert_eq!(rfc3339(i64::MAX), None);
    }
}
