//! Times as the API writes them, and ages as kubectl shows them.

use jiff::Timestamp;

/// Second precision, as `metav1.Time`.
pub fn rfc3339(seconds: i64) -> String {
    let at = Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH);
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Microsecond precision, as `metav1.MicroTime`.
pub fn rfc3339_micro(seconds: i64, nanos: i32) -> String {
    let at = Timestamp::new(seconds, nanos.clamp(0, 999_999_999)).unwrap_or(Timestamp::UNIX_EPOCH);
    at.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// Seconds since the epoch of an RFC 3339 text.
pub fn parse(text: &str) -> Option<i64> {
    text.parse::<Timestamp>().ok().map(|at| at.as_second())
}

/// An age such as `5s`, `3m12s`, `4h`, `2d3h`, `3y45d`, with kubectl's thresholds.
pub fn human_duration(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    const YEAR: i64 = 365 * DAY;
    let two = |big: i64, big_unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{big}{big_unit}") } else { format!("{big}{big_unit}{small}{small_unit}") }
    };
    match seconds {
        s if s < -1 => "<invalid>".into(),
        s if s < 0 => "0s".into(),
        s if s < 2 * MINUTE => format!("{s}s"),
        s if s < 10 * MINUTE => two(s / MINUTE, "m", s % MINUTE, "s"),
        s if s < 3 * HOUR => format!("{}m", s / MINUTE),
        s if s < 8 * HOUR => two(s / HOUR, "h", s % HOUR / MINUTE, "m"),
        s if s < 2 * DAY => format!("{}h", s / HOUR),
        s if s < 8 * DAY => two(s / DAY, "d", s % DAY / HOUR, "h"),
        s if s < 2 * YEAR => format!("{}d", s / DAY),
        s if s < 8 * YEAR => two(s / YEAR, "y", s % YEAR / DAY, "d"),
        s => format!("{}y", s / YEAR),
    }
}

/// How long ago `text` was at `now`; `<unknown>` if it is no time.
pub fn age(text: Option<&str>, now: i64) -> String {
    match text.and_then(parse) {
        Some(at) => human_duration(now - at),
        None => "<unknown>".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_as_kubectl_writes_them() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (601, "10m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 61, "3h1m"),
            (86_400, "24h"),
            (3 * 86_400 + 3600, "3d1h"),
            (9 * 86_400, "9d"),
            (3 * 365 * 86_400, "3y"),
        ] {
            assert_eq!(human_duration(seconds), text);
        }
        assert_eq!(age(Some("2020-01-01T00:00:00Z"), parse("2020-01-01T00:00:07Z").unwrap()), "7s");
        assert_eq!(age(Some("soon"), 0), "<unknown>");
        assert_eq!(rfc3339_micro(1, 5000), "1970-01-01T00:00:01.000005Z");
    }
}
