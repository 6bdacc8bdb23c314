//! Durations as Go writes them, the form that Kubernetes uses in every API.
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A Go duration string such as `1h30m` or `500ms`, kept as the user wrote it.
///
/// Any string is held, because a stored object must always be readable; [`GoDuration::parse`] says whether it is one.
/// Source: <https://pkg.go.dev/time#ParseDuration>, without signs and without units below a millisecond.
///
/// The API server judges the same text by that function, when it compares it with a bound. Both have to come to the same
/// nanosecond: what it takes and the operator does not is a spec that is refused only after it is stored.
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
    /// [`DurationError`] when it is empty, has a sign, a unit other than `h`, `m`, `s`, `ms`, more than 32 characters, or
    /// is longer than ten years.
    pub fn parse(&self) -> Result<Duration, DurationError> {
        parse(&self.0).ok_or_else(|| DurationError(self.0.chars().take(64).collect()))
    }
}

/// Characters that the schema allows.
const MOST_CHARACTERS: usize = 32;
/// Longest time; every field's own bound is far below.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

fn parse(text: &str) -> Option<Duration> {
    if text.is_empty() || text.len() > MOST_CHARACTERS {
        return None;
    }
    let mut rest = text;
    let mut nanoseconds = 0_u64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at_checked(end)?;
        let (unit, tail) =
            [("ms", 1_000_000), ("h", 3_600_000_000_000), ("m", 60_000_000_000), ("s", 1_000_000_000_u64)]
                .into_iter()
                .find_map(|(name, unit)| tail.strip_prefix(name).map(|tail| (unit, tail)))?;
        let (whole, fraction) = match number.split_once('.') {
            Some((whole, fraction)) => (whole, part(fraction, unit)?),
            None => (number, 0),
        };
        let whole = whole.parse::<u64>().ok()?.checked_mul(unit)?;
        nanoseconds = nanoseconds.checked_add(whole)?.checked_add(fraction)?;
        rest = tail;
    }
    Some(Duration::from_nanos(nanoseconds)).filter(|time| *time <= LONGEST)
}

/// Nanoseconds of a `unit`'s part with these decimals, cut as Go cuts them, in floating point as well: `leadingFraction`.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "from 0 to one unit, and as inexact as Go"
)]
fn part(decimals: &str, unit: u64) -> Option<u64> {
    if decimals.is_empty() || decimals.contains('.') {
        return None;
    }
    let (mut value, mut scale) = (0_u64, 1_f64);
    for digit in decimals.bytes().map(|byte| u64::from(byte.wrapping_sub(b'0'))) {
        if value > i64::MAX as u64 / 10 {
            break;
        }
        let longer = value * 10 + digit;
        if longer > 1 << 63 {
            break;
        }
        value = longer;
        scale *= 10.0;
    }
    Some((value as f64 * (unit as f64 / scale)) as u64)
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
            ("0000000000000000001h", 3_600_000),
            ("604800.00000000000000000000009s", 604_800_000),
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
        for text in
            [&format!("{:032}h", 1)[..], "1h\u{0661}m", "18446744073709551615h", "18446744073709551616s"]
        {
            assert!(GoDuration::from_text(text).parse().is_err(), "{text}");
        }
    }
}
