//! The clock: a floor it never runs before, and where that floor is kept.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

const SAVED: &str = "/var/lib/kinglet/clock";

/// Since the kernel started.
pub fn uptime() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The latest of the known lower bounds.
pub fn floor(build: u64, saved: Option<u64>, certificate: Option<u64>) -> u64 {
    build.max(saved.unwrap_or(0)).max(certificate.unwrap_or(0))
}

/// Sets the clock forward to `floor` when it is behind. Returns by how many seconds.
pub fn raise_to(floor: u64) -> Option<u64> {
    let behind = floor.checked_sub(now()).filter(|behind| *behind > 0)?;
    set(Duration::from_secs(floor)).ok()?;
    Some(behind)
}

pub fn set(since_epoch: Duration) -> nix::Result<()> {
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(since_epoch))
}

pub fn load_saved(build: u64) -> Option<u64> {
    parse_saved(&fs::read_to_string(SAVED).ok()?, build)
}

/// A time so far ahead that only damage explains it is none: it would be a floor for ever.
fn parse_saved(text: &str, build: u64) -> Option<u64> {
    const TWENTY_YEARS: u64 = 20 * 365 * 86_400;
    text.trim().parse().ok().filter(|saved| *saved < build.saturating_add(TWENTY_YEARS))
}

/// Keeps the present time for the next boot of a board without a battery.
pub fn save() {
    let partial = format!("{SAVED}.partial");
    if Path::new(SAVED).parent().is_some_and(Path::exists)
        && fs::write(&partial, format!("{}\n", now())).is_ok()
        && fs::File::open(&partial).is_ok_and(|file| file.sync_all().is_ok())
    {
        let _ = fs::rename(&partial, SAVED);
    }
}

/// `2026-11-21 08:00:00Z`, without a time library.
pub fn render(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days to year, month, day: Howard Hinnant's civil_from_days, for dates after 1970.
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_the_latest_bound() {
        assert_eq!(floor(10, None, None), 10);
        assert_eq!(floor(10, Some(30), Some(20)), 30);
        assert_eq!(floor(10, Some(5), Some(20)), 20);
        let build = 1_790_000_000;
        assert_eq!(parse_saved("1800000000\n", build), Some(1_800_000_000));
        for damaged in ["garbage", "", "-1", "\0\0\0", "18446744073709551615", "9999999999"] {
            assert_eq!(parse_saved(damaged, build), None, "{damaged:?} is no bound");
        }
    }

    #[test]
    fn dates_are_rendered() {
        assert_eq!(render(0), "1970-01-01 00:00:00Z");
        assert_eq!(render(951_782_400), "2000-02-29 00:00:00Z");
        assert_eq!(render(1_795_248_000), "2026-11-21 08:00:00Z");
    }
}
