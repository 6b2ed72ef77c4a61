//! Processor time per second, from two readings of a counter.
//!
//! Nothing runs by itself: the readings are those that were made because somebody asked.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Readings closer together than this say the rate of the reading before.
pub const WINDOW_MIN: Duration = Duration::from_secs(10);
/// A reading from before this is forgotten: its mean would hide what is going on now.
pub const WINDOW_MAX: Duration = Duration::from_secs(90);
/// Readings closer together than this say nothing.
const WINDOW_LEAST: Duration = Duration::from_millis(200);

struct Reading {
    at: Instant,
    ns: u64,
    rate: Option<u64>,
}

/// The last reading of each counter. As many as the last round had.
#[derive(Default)]
pub struct Rates {
    readings: HashMap<PathBuf, Reading>,
}

impl Rates {
    /// Nanoseconds of processor time per second; `None`: this is the first reading since long.
    pub fn read(&mut self, now: Instant, counter: &Path, ns: u64) -> Option<u64> {
        let fresh = |rate| Reading { at: now, ns, rate };
        let Some(last) = self.readings.get_mut(counter) else {
            self.readings.insert(counter.into(), fresh(None));
            return None;
        };
        let window = now.saturating_duration_since(last.at);
        // A smaller count is another group of the same name.
        if window > WINDOW_MAX || ns < last.ns {
            *last = fresh(None);
            return None;
        }
        if last.rate.is_some() && window < WINDOW_MIN || window < WINDOW_LEAST {
            return last.rate;
        }
        let rate = u128::from(ns - last.ns) * 1_000_000_000 / window.as_nanos().max(1);
        *last = fresh(u64::try_from(rate).ok());
        last.rate
    }

    /// Forgets counters that were not read for so long that their reading is of no use.
    pub fn forget(&mut self, now: Instant) {
        self.readings.retain(|_, reading| now.saturating_duration_since(reading.at) <= WINDOW_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_come_from_readings_that_are_neither_too_near_nor_too_far() {
        let (mut rates, start, group) = (Rates::default(), Instant::now(), Path::new("kubepods/a"));
        let at = |s: f64| start + Duration::from_secs_f64(s);
        let ms = |ms: u64| ms * 1_000_000;
        assert_eq!(rates.read(at(0.0), group, ms(100)), None, "the first");
        assert_eq!(rates.read(at(0.1), group, ms(900)), None, "too near to say anything");
        assert_eq!(rates.read(at(1.0), group, ms(600)), Some(ms(500)), "half a core");
        assert_eq!(rates.read(at(5.0), group, ms(9000)), Some(ms(500)), "the rate of before");
        assert_eq!(rates.read(at(21.0), group, ms(2600)), Some(ms(100)));
        assert_eq!(rates.read(at(31.0), group, ms(5)), None, "another group");
        assert_eq!(rates.read(at(300.0), group, ms(9)), None, "too long ago");
        rates.forget(at(390.0));
        assert_eq!(rates.readings.len(), 1);
        rates.forget(at(391.0));
        assert!(rates.readings.is_empty());
    }
}
