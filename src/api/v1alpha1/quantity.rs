//! Quantities of CPU and bytes in the form that Kubernetes writes them.

/// Why a string is not a quantity of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a number with one of the accepted suffixes.
    #[error("`{0}` is not a quantity; write it such as 500m, 1, 256Mi or 1Gi")]
    Syntax(String),
    /// Larger than this API counts (2^53).
    #[error("`{0}` is too large")]
    TooLarge(String),
}

/// CPU in thousandths of a core: `500m` is 500, `2` is 2000. Finer values are rounded up.
///
/// # Errors
/// When `text` is not a decimal number with at most the suffix `m`.
pub fn millicores_of(text: &str) -> Result<i64, QuantityError> {
    match text.strip_suffix('m') {
        Some(number) => scaled(number, 1, text),
        None => scaled(text, 1_000, text),
    }
}

/// Bytes: suffixes Ki, Mi, Gi, Ti, Pi (powers of 1024) and k, M, G, T, P (powers of 1000), or none.
///
/// # Errors
/// When `text` is not a decimal number with one of these suffixes.
pub fn bytes_of(text: &str) -> Result<i64, QuantityError> {
    const UNITS: [(&str, u128); 10] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("Pi", 1 << 50),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("P", 1_000_000_000_000_000),
    ];
    for (suffix, scale) in UNITS {
        if let Some(number) = text.strip_suffix(suffix) {
            return scaled(number, scale, text);
        }
    }
    scaled(text, 1, text)
}

/// What is wrong with `text`, which is no number of bytes that is `bound`, such as `at least 1Ki`.
pub fn wrong_bytes(text: &str, bound: &str, example: &str) -> String {
    let kind =
        if has_exponent(text) { "quantity without exponent" } else { "number with Ki, Mi, Gi, k, M or G" };
    format!("must be a {kind}, {bound}, such as {example}{}", hint_of_bytes(text))
}

/// What is wrong with `text`, which is no amount of CPU that is `bound`, such as `at least 10m`.
pub fn wrong_cpu(text: &str, bound: &str, example: &str) -> String {
    let kind = if has_exponent(text) {
        "quantity without exponent"
    } else {
        "number of CPUs, or of thousandths with m"
    };
    format!("must be a {kind}, {bound}, such as {example}")
}

/// Whether `text` is a number such as `1e3`, which Kubernetes takes for a quantity.
fn has_exponent(text: &str) -> bool {
    let before = text.trim_end_matches(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-'));
    let number = before.strip_suffix(['e', 'E']).filter(|_| before.len() < text.len());
    number.is_some_and(|number| number.ends_with(|c: char| c.is_ascii_digit()))
}

/// What to write instead of `text`, which is no number of bytes, where it is likely what was meant: `m` is for thousandths.
fn hint_of_bytes(text: &str) -> String {
    match text.strip_suffix('m') {
        Some(number) if (1..=8).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit()) => {
            format!("; {text} is {number} thousandths of a byte: write {number}Mi")
        }
        _ => String::new(),
    }
}

/// Most that this API counts, of anything: 2^53, 8Pi.
const MOST: u128 = 1 << 53;
/// Decimals that are looked at one by one; of further ones only whether they are zeros.
const DECIMALS: usize = 18;

/// `number` times `scale`, rounded up: in whole numbers, so that it comes to what the API server compares with its bounds.
fn scaled(number: &str, scale: u128, text: &str) -> Result<i64, QuantityError> {
    let shown = || text.chars().take(64).collect::<String>();
    let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(decimals) {
        return Err(QuantityError::Syntax(shown()));
    }
    exact(whole, decimals, scale)
        .filter(|value| *value <= MOST)
        .and_then(|value| i64::try_from(value).ok())
        .ok_or_else(|| QuantityError::TooLarge(shown()))
}

/// Nothing where it does not fit.
fn exact(whole: &str, decimals: &str, scale: u128) -> Option<u128> {
    let whole: u128 = whole.parse().ok()?;
    let (near, far) = decimals.split_at_checked(DECIMALS).unwrap_or((decimals, ""));
    let unit = 10_u128.checked_pow(u32::try_from(near.len()).ok()?)?;
    let rest = u128::from(far.bytes().any(|byte| byte != b'0'));
    let part = near.parse::<u128>().ok()?.checked_add(rest)?.checked_mul(scale)?;
    whole.checked_mul(scale)?.checked_add(part.div_ceil(unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        assert_eq!(millicores_of("500m"), Ok(500));
        assert_eq!(millicores_of("1.5"), Ok(1500));
        assert_eq!(bytes_of("1Gi"), Ok(1 << 30));
        assert_eq!(bytes_of("1G"), Ok(1_000_000_000));
        assert_eq!(bytes_of("128"), Ok(128));
        assert_eq!(bytes_of("000000000000000000000000001.50Gi"), Ok(3 << 29));
        assert_eq!(bytes_of("0.0000000000000000000000000001"), Ok(1));
        assert_eq!(millicores_of("0.0099999999"), Ok(10));
        for most in ["8Pi", "9007199254.740992M", "9.007199254740992P", "7.9999999999999999999999999999Pi"] {
            assert_eq!(bytes_of(most), Ok(1 << 53), "{most}");
        }
    }

    #[test]
    fn a_small_m_is_told_from_a_large_one() {
        assert!(
            wrong_bytes("256m", "above 0", "1Gi")
                .ends_with("such as 1Gi; 256m is 256 thousandths of a byte: write 256Mi")
        );
        assert_eq!(hint_of_bytes("256m"), "; 256m is 256 thousandths of a byte: write 256Mi");
        for text in ["256Mi", "m", "1.5m", "-1m", "999999999m", "\u{1b}m"] {
            assert_eq!(hint_of_bytes(text), "", "{text}");
        }
    }

    #[test]
    fn an_exponent_is_named_where_there_is_one() {
        for text in ["1e9", "1.5E3", "2e-3", "2e+3"] {
            let told = "must be a quantity without exponent, at least 1Ki, such as 500Mi";
            assert_eq!(wrong_bytes(text, "at least 1Ki", "500Mi"), told, "{text}");
            let told = "must be a quantity without exponent, at least 10m, such as 500m or 2";
            assert_eq!(wrong_cpu(text, "at least 10m", "500m or 2"), told, "{text}");
        }
        for text in ["512MB", "some", "e9", "1e", "1 Mi", "", "0"] {
            let told = "must be a number with Ki, Mi, Gi, k, M or G, at least 1Ki, such as 500Mi";
            assert_eq!(wrong_bytes(text, "at least 1Ki", "500Mi"), told, "{text}");
            let told = "must be a number of CPUs, or of thousandths with m, at least 10m, such as 500m or 2";
            assert_eq!(wrong_cpu(text, "at least 10m", "500m or 2"), told, "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "-1", "1e3", "Mi", "1MiB", "1 Mi", "1.", "0x10"] {
            assert!(bytes_of(text).is_err(), "{text}");
        }
        for text in ["99999Pi", "9007199254.740993M", &"9".repeat(60), "8.0000000000000000001Pi"] {
            assert!(matches!(bytes_of(text), Err(QuantityError::TooLarge(_))), "{text}");
        }
    }
}
