//! Kubernetes quantities (`500m`, `100Mi`, `2`), as far as resources of a node need them.

/// The value in thousandths.
pub fn parse_milli(text: &str) -> Option<u64> {
    const SUFFIXES: [(&str, f64); 11] = [
        ("Ki", 1024.0),
        ("Mi", 1048576.0),
        ("Gi", 1073741824.0),
        ("Ti", 1099511627776.0),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("", 1.0),
        ("e0", 1.0),
    ];
    let number_len = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..number_len].parse().ok()?;
    let factor = SUFFIXES.iter().find(|(suffix, _)| *suffix == &text[number_len..])?.1;
    let milli = number * factor * 1e3;
    (milli.is_finite() && milli < 9e18).then_some(milli as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        for (text, milli) in
            [("500m", 500), ("2", 2000), ("1.5", 1500), ("100Mi", 104_857_600_000), ("1k", 1_000_000)]
        {
            assert_eq!(parse_milli(text), Some(milli), "{text}");
        }
        for bad in ["", "x", "1Q", "-1", "99999999999999999T"] {
            assert_eq!(parse_milli(bad), None, "{bad}");
        }
    }
}
