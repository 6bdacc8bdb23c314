//! Durations as Go writes them, the form that Kubernetes uses in every API.
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A Go duration string such as `1h30m` or `500ms`, kept as the user wrote it.
///
/// Any string is held, because a stored object must always be readable; [`GoDuration::parse`] says whether it is one.
/// Source: <https://pkg.go.dev/time#ParseDuration>, without signs and without units below a millisecond.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(transparent)]
pub struct GoDuration(String);

/// Why a string is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a duration; write it such as 30s, 5m or 1h30m")]
pub struct DurationError(pub String);

impl GoDuration {
    /// Holds `text` as it is.
    pub fn from_text(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// `time` as a person would write it, to the millisecond: `20s`, `1m30s`, `1.5s`.
    pub fn of(time: Duration) -> Self {
        let (seconds, milliseconds) = (time.as_secs(), time.subsec_millis());
        if seconds == 0 && milliseconds > 0 {
            return Self(format!("{milliseconds}ms"));
        }
        let mut text = String::new();
        for (amount, unit) in [(seconds / 3600, 'h'), (seconds / 60 % 60, 'm')] {
            if amount > 0 {
                text.push_str(&format!("{amount}{unit}"));
            }
        }
        if seconds % 60 > 0 || milliseconds > 0 || text.is_empty() {
            let exact = format!("{}.{milliseconds:03}", seconds % 60);
            text.push_str(exact.trim_end_matches('0').trim_end_matches('.'));
            text.push('s');
        }
        Self(text)
    }

    /// The string as the user wrote it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The length of time that the string means.
    ///
    /// # Errors
    /// [`DurationError`] when it is empty, has a sign, a unit other than `h`, `m`, `s`, `ms`, or does not fit.
    pub fn parse(&self) -> Result<Duration, DurationError> {
        parse(&self.0).ok_or_else(|| DurationError(self.0.chars().take(64).collect()))
    }
}

fn parse(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at_checked(end)?;
        let (scale_ms, tail) = [("ms", 1.0), ("h", 3_600_000.0), ("m", 60_000.0), ("s", 1_000.0)]
            .into_iter()
            .find_map(|(unit, scale)| tail.strip_prefix(unit).map(|t| (scale, t)))?;
        if number.starts_with('.') || number.ends_with('.') || number.len() > 15 {
            return None;
        }
        let value: f64 = number.parse().ok()?;
        total = total.checked_add(Duration::try_from_secs_f64(value * scale_ms / 1_000.0).ok()?)?;
        rest = tail;
    }
    (total <= Duration::from_secs(10 * 365 * 24 * 3600)).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, ms) in [
            ("1s", 1_000),
            ("1h30m", 5_400_000),
            ("500ms", 500),
            ("1.5h", 5_400_000),
            ("0s", 0),
            ("2m3s4ms", 123_004),
        ] {
            assert_eq!(GoDuration::from_text(text).parse().unwrap(), Duration::from_millis(ms), "{text}");
        }
    }

    #[test]
    fn durations_are_written_as_people_write_them() {
        for (ms, text) in [
            (0, "0s"),
            (700, "700ms"),
            (1_500, "1.5s"),
            (10_000, "10s"),
            (20_010, "20.01s"),
            (90_000, "1m30s"),
            (300_000, "5m"),
            (3_605_000, "1h5s"),
            (604_800_000, "168h"),
        ] {
            let written = GoDuration::of(Duration::from_millis(ms));
            assert_eq!((written.as_str(), written.parse()), (text, Ok(Duration::from_millis(ms))));
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "5", "-5s", "s", "1d", "1 s", ".5s", "5.s", "1..5s", "99999999999999h", "1h ", "é"]
        {
            assert!(GoDuration::from_text(text).parse().is_err(), "{text}");
        }
    }
}
