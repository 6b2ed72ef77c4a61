//! Certificate times as Unix seconds.

use crate::der::{self, Element, GENERALIZED_TIME, UTC_TIME};

/// From when until when a certificate is good, in Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    pub not_before: u64,
    pub not_after: u64,
}

/// How a certificate's times fit a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    Valid,
    /// The clock is behind (wait for a time server, or set it to the certificate's start), unless the issuer's is ahead.
    NotYet {
        not_before: u64,
    },
    Expired {
        not_after: u64,
    },
}

impl Validity {
    /// From a little before `now` (`BACKDATE_S`) until `days` after it.
    pub fn days(now: u64, days: u64) -> Validity {
        Validity::seconds(now, days * 86_400)
    }

    /// As [`Validity::days`]. A short life begins only a little earlier, so that most of it still lies ahead.
    pub fn seconds(now: u64, seconds: u64) -> Validity {
        let before = crate::limits::BACKDATE_S.min(seconds / 24);
        Validity { not_before: now.saturating_sub(before), not_after: now.saturating_add(seconds) }
    }

    pub fn fit(&self, now: u64) -> Fit {
        match now {
            _ if now < self.not_before => Fit::NotYet { not_before: self.not_before },
            _ if now > self.not_after => Fit::Expired { not_after: self.not_after },
            _ => Fit::Valid,
        }
    }

    /// When to ask for the next certificate: after `0.7 + 0.2 * jitter` of its life, `jitter` from 0 to 1.
    pub fn renew_at(&self, jitter: f64) -> u64 {
        let life = self.not_after.saturating_sub(self.not_before);
        self.not_before + (life as f64 * (0.7 + 0.2 * jitter.clamp(0.0, 1.0))).round() as u64
    }
}

/// `2026-11-21 08:00:00 UTC`, for messages.
pub fn format_utc(seconds: u64) -> String {
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = clock(seconds);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

fn clock(seconds: u64) -> (u64, u64, u64) {
    (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)
}

pub(crate) fn encode(seconds: u64) -> Vec<u8> {
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = clock(seconds);
    let rest = format!("{month:02}{day:02}{hour:02}{minute:02}{second:02}Z");
    // X.509 wants the two-digit form before 2050 and the four-digit form from then on.
    match year {
        1950..2050 => der::tlv(UTC_TIME, &[format!("{:02}{rest}", year % 100).as_bytes()]),
        _ => der::tlv(GENERALIZED_TIME, &[format!("{year:04}{rest}").as_bytes()]),
    }
}

pub(crate) fn decode(element: Element<'_>) -> Result<u64, &'static str> {
    let bad = "a time is not DER";
    let (year_len, len) = match element.tag {
        UTC_TIME => (2, 13),
        GENERALIZED_TIME => (4, 15),
        _ => return Err(bad),
    };
    let text = element.content;
    if text.len() != len || text[len - 1] != b'Z' || !text[..len - 1].iter().all(u8::is_ascii_digit) {
        return Err(bad);
    }
    let number =
        |from: usize, to: usize| text[from..to].iter().fold(0, |n, digit| n * 10 + (digit - b'0') as u64);
    let year = match (element.tag, number(0, year_len)) {
        (UTC_TIME, year @ 50..) => 1900 + year,
        (UTC_TIME, year) => 2000 + year,
        (_, year) => year,
    };
    let [month, day, hour, minute, second] =
        std::array::from_fn(|i| number(year_len + 2 * i, year_len + 2 * i + 2));
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return Err(bad);
    }
    // Before 1970 counts as 1970: long over in any case.
    let Some(days) = days(year, month, day) else { return Ok(0) };
    Ok(days * 86_400 + hour * 3600 + minute * 60 + second)
}

/// Year, month, day of a day since 1970 (Gregorian; eras of 400 years that begin in March).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    let year = year.checked_sub(u64::from(month <= 2))?;
    let (era, year_of_era) = (year / 400, year % 400);
    let month_from_march = if month > 2 { month - 3 } else { month + 9 };
    let day_of_era =
        year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + (153 * month_from_march + 2) / 5 + day - 1;
    (era * 146_097 + day_of_era).checked_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_written() {
        // 2000-02-29, 2026-11-21, the last second before the four-digit form, the first of it, 2100-03-01.
        for seconds in
            [0, 951_782_400, 1_795_248_000, 2_524_607_999, 2_524_608_000, 4_107_542_400, 10_413_791_999]
        {
            let raw = encode(seconds);
            assert_eq!(
                decode(der::Reader::new(&raw).element().unwrap()),
                Ok(seconds),
                "{}",
                format_utc(seconds)
            );
        }
        assert_eq!(format_utc(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(encode(2_524_608_000)[0], GENERALIZED_TIME);
        assert_eq!(format_utc(4_107_542_400), "2100-03-01 00:00:00 UTC");
    }

    #[test]
    fn a_clock_is_behind_right_or_past() {
        let validity = Validity { not_before: 100, not_after: 200 };
        assert_eq!(validity.fit(99), Fit::NotYet { not_before: 100 });
        assert_eq!((validity.fit(100), validity.fit(200)), (Fit::Valid, Fit::Valid));
        assert_eq!(validity.fit(201), Fit::Expired { not_after: 200 });
        assert_eq!((validity.renew_at(0.0), validity.renew_at(1.0)), (170, 190));
        assert_eq!(Validity::seconds(1_000, 240), Validity { not_before: 990, not_after: 1_240 });
    }
}
