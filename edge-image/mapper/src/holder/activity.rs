//! What an output line does by itself: a pulse, a blink, pulse width by software. A value that says which level the line has
//! now and when to look again; the line-holder has the line.

/// Times are microseconds of the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    Steady,
    /// The opposite of the steady level until then.
    Pulse {
        end_us: u64,
    },
    /// Begins with the opposite of the steady level. `flips_left`: level changes until it is over; `None` is for ever.
    Blink {
        on_us: u64,
        off_us: u64,
        next_us: u64,
        opposite: bool,
        flips_left: Option<u32>,
    },
    /// Active for `duty` millionths of each period; the phase counts from `start_us`.
    Pwm {
        start_us: u64,
        period_us: u32,
        millionths: u32,
    },
}

impl Activity {
    pub fn blink(now_us: u64, on_us: u64, off_us: u64, count: Option<u32>) -> Activity {
        let flips_left = count.map(|count| count.saturating_mul(2).saturating_sub(1));
        Activity::Blink { on_us, off_us, next_us: now_us + on_us, opposite: true, flips_left }
    }

    /// When the level changes next; `None` when it does not by itself.
    pub fn next_us(&self, now_us: u64) -> Option<u64> {
        match *self {
            Activity::Steady => None,
            Activity::Pulse { end_us } => Some(end_us),
            Activity::Blink { next_us, .. } => Some(next_us),
            Activity::Pwm { millionths: 0 | 1_000_000, .. } => None,
            Activity::Pwm { start_us, period_us, millionths } => {
                let (period, active) = (u64::from(period_us), active_us(period_us, millionths));
                let into = now_us.saturating_sub(start_us) % period;
                Some(now_us + if into < active { active - into } else { period - into })
            }
        }
    }

    /// The level now, moving on over what is past. A late call skips what it missed: it never catches up in a burst.
    pub fn level(&mut self, now_us: u64, steady: bool) -> bool {
        match self {
            Activity::Steady => steady,
            Activity::Pulse { end_us } => {
                if now_us < *end_us {
                    return !steady;
                }
                *self = Activity::Steady;
                steady
            }
            Activity::Blink { on_us, off_us, next_us, opposite, flips_left } => {
                if now_us >= *next_us {
                    if *flips_left == Some(0) {
                        *self = Activity::Steady;
                        return steady;
                    }
                    *flips_left = flips_left.map(|left| left - 1);
                    *opposite = !*opposite;
                    let step = if *opposite { *on_us } else { *off_us };
                    let due_us = *next_us + step;
                    *next_us = if due_us > now_us { due_us } else { now_us + step };
                }
                *opposite != steady
            }
            Activity::Pwm { start_us, period_us, millionths } => {
                let into = now_us.saturating_sub(*start_us) % u64::from(*period_us);
                into < active_us(*period_us, *millionths)
            }
        }
    }
}

fn active_us(period_us: u32, millionths: u32) -> u64 {
    u64::from(period_us) * u64::from(millionths) / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Levels with the time at which each begins, stepping from change to change.
    fn shape(mut activity: Activity, steady: bool, until_us: u64) -> Vec<(u64, bool)> {
        let (mut now_us, mut seen) = (0, Vec::new());
        loop {
            let level = activity.level(now_us, steady);
            if seen.last().is_none_or(|(_, last)| *last != level) {
                seen.push((now_us, level));
            }
            match activity.next_us(now_us) {
                Some(next_us) if next_us <= until_us => {
                    assert!(next_us > now_us, "time goes on");
                    now_us = next_us;
                }
                _ => return seen,
            }
        }
    }

    #[test]
    fn a_pulse_ends_and_is_the_other_way_round_on_a_line_that_is_on() {
        assert_eq!(shape(Activity::Pulse { end_us: 500 }, false, 9999), [(0, true), (500, false)]);
        assert_eq!(shape(Activity::Pulse { end_us: 500 }, true, 9999), [(0, false), (500, true)]);
    }

    #[test]
    fn a_blink_has_its_count_and_ends_as_it_began() {
        assert_eq!(
            shape(Activity::blink(0, 100, 300, Some(2)), false, 9999),
            [(0, true), (100, false), (400, true), (500, false)]
        );
        assert_eq!(shape(Activity::blink(0, 100, 100, None), false, 100_000).len(), 1001);
        let mut late = Activity::blink(0, 100, 100, None);
        assert!(!late.level(1_000_000, false));
        assert_eq!(late.next_us(1_000_000), Some(1_000_100), "no burst after a late turn");
    }

    #[test]
    fn pulse_width_by_software() {
        let pwm = |millionths| Activity::Pwm { start_us: 0, period_us: 1000, millionths };
        assert_eq!(
            shape(pwm(250_000), false, 2000),
            [(0, true), (250, false), (1000, true), (1250, false), (2000, true)]
        );
        assert_eq!(shape(pwm(0), false, 5000), [(0, false)]);
        assert_eq!(shape(pwm(1_000_000), false, 5000), [(0, true)]);
    }
}
