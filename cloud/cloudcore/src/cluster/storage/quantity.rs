//! Sizes as Kubernetes writes them (`5Gi`, `500M`, `1e9`), compared as bytes.

use serde_json::Value;

/// Bytes, rounded up; `None` when it is not a size.
pub fn bytes(value: &Value) -> Option<u128> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '+')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    // As a fraction, so that `1.5Gi` and `1500m` are exact.
    let (times, over): (u128, u128) = match suffix {
        "" => (1, 1),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1000_u128.pow(2), 1),
        "G" => (1000_u128.pow(3), 1),
        "T" => (1000_u128.pow(4), 1),
        "P" => (1000_u128.pow(5), 1),
        "E" => (1000_u128.pow(6), 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        other => {
            let exponent: u32 = other.strip_prefix(['e', 'E'])?.parse().ok().filter(|e| *e <= 18)?;
            (10_u128.pow(exponent), 1)
        }
    };
    let number = number.strip_prefix('+').unwrap_or(number);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |part: &str| part.len() <= 18 && part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() && fraction.is_empty() || !digits(whole) || !digits(fraction) {
        return None;
    }
    let mantissa: u128 = format!("0{whole}{fraction}").parse().ok()?;
    let over = over * 10_u128.pow(fraction.len() as u32);
    Some(mantissa.checked_mul(times)?.div_ceil(over))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("1Gi", Some(1 << 30)),
            ("1.5Gi", Some(3 << 29)),
            ("500M", Some(500_000_000)),
            ("1e9", Some(1_000_000_000)),
            ("1500m", Some(2)),
            ("7", Some(7)),
            ("", None),
            ("Gi", None),
            ("-1", None),
            ("1Xi", None),
            ("1e99", None),
            ("9999999999999999999", None),
        ] {
            assert_eq!(bytes(&Value::from(text)), expected, "{text}");
        }
        assert_eq!(bytes(&Value::from(5)), Some(5));
        assert_eq!(bytes(&Value::Null), None);
    }
}
