//! Go's duration text (`10s`, `5m0s`, `1h30m`, `500ms`), as Kubernetes writes it in files.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de::Error};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoDuration(pub Duration);

impl GoDuration {
    pub const fn from_secs(seconds: u64) -> GoDuration {
        GoDuration(Duration::from_secs(seconds))
    }

    pub fn parse(text: &str) -> Option<GoDuration> {
        if text == "0" {
            return Some(GoDuration(Duration::ZERO));
        }
        let (mut rest, mut total) = (text, 0.0);
        while !rest.is_empty() {
            let number_len = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
            let number: f64 = rest[..number_len].parse().ok()?;
            rest = &rest[number_len..];
            let unit_len = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
            total += number
                * match &rest[..unit_len] {
                    "h" => 3600.0,
                    "m" => 60.0,
                    "s" => 1.0,
                    "ms" => 1e-3,
                    "us" | "µs" => 1e-6,
                    "ns" => 1e-9,
                    _ => return None,
                };
            rest = &rest[unit_len..];
        }
        (!text.is_empty()).then(|| Duration::try_from_secs_f64(total).ok()).flatten().map(GoDuration)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        GoDuration::parse(&text)
            .ok_or_else(|| D::Error::custom(format!("{text:?} is not a duration such as 10s or 5m")))
    }
}
