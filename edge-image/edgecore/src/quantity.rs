//! Kubernetes quantities (`100m`, `64Mi`, `1e3`) as thousandths.

/// The value in thousandths, rounded up; `None` if the text is not a quantity or does not fit.
pub fn parse_milli(text: &str) -> Option<i128> {
    let text = text.trim();
    let number_len =
        text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '+' || c == '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(number_len);
    // Thousandths per unit, as numerator and denominator.
    let (scale, divisor): (i128, i128) = match suffix {
        "" => (1000, 1),
        "n" => (1, 1_000_000),
        "u" => (1, 1000),
        "m" => (1, 1),
        "k" => (1_000_000, 1),
        "M" => (1_000_000_000, 1),
        "G" => (1_000_000_000_000, 1),
        "T" => (1_000_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1000 << 10, 1),
        "Mi" => (1000 << 20, 1),
        "Gi" => (1000 << 30, 1),
        "Ti" => (1000 << 40, 1),
        "Pi" => (1000 << 50, 1),
        _ => {
            let exponent: u32 = suffix.strip_prefix(['e', 'E'])?.parse().ok().filter(|e| *e <= 18)?;
            (1000 * 10_i128.pow(exponent), 1)
        }
    };
    let (negative, digits) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |part: &str| part.chars().all(|c| c.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    if whole.len() > 15 || fraction.len() > 9 {
        return None;
    }
    let mantissa: i128 = format!("0{whole}{fraction}").parse().ok()?;
    let denominator = divisor * 10_i128.pow(u32::try_from(fraction.len()).ok()?);
    let scaled = mantissa.checked_mul(scale)?;
    let value = (scaled + denominator - 1) / denominator;
    Some(if negative { -value } else { value })
}

/// Whole units (bytes), rounded up.
pub fn parse_units(text: &str) -> Option<i64> {
    i64::try_from((parse_milli(text)? + 999).div_euclid(1000)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        for (text, milli) in [
            ("0", 0),
            ("100m", 100),
            ("1", 1000),
            ("0.5", 500),
            ("1.5Gi", 1_610_612_736_000),
            ("64Mi", 67_108_864_000),
            ("1e3", 1_000_000),
            ("2k", 2_000_000),
            ("1n", 1),
            ("-1", -1000),
        ] {
            assert_eq!(parse_milli(text), Some(milli), "{text}");
        }
        for bad in ["", "m", "1.2.3", "abc", "1Xi", "--1", "1e99", "9999999999999999999", "1 2"] {
            assert_eq!(parse_milli(bad), None, "{bad}");
        }
        assert_eq!(parse_units("1Ki"), Some(1024));
        assert_eq!(parse_units("1500m"), Some(2));
    }
}
