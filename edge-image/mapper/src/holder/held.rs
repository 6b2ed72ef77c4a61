//! One thing that the line-holder holds: what it does by itself, when it falls back, and what is asked of it.

use super::{
    activity::Activity,
    answer::{Answer, State, Why},
    counter::Counter,
    request::Target,
};
use crate::{
    gpio::Line,
    limits::{BLINK_MS_MIN, FAILSAFE_WAIT_MS_MAX, HOLDER_DEADLINE_MS_MIN, PULSE_MS_MAX, SOFT_PWM_LINES_MAX},
    pwm::PwmOutput,
};

pub(super) enum Thing {
    Output {
        line: Box<dyn Line>,
        /// The level without pulse or blink.
        steady: bool,
        level: bool,
        activity: Activity,
        /// Of pulse width by software.
        millionths: u32,
    },
    Pwm(Box<dyn PwmOutput>),
    Input {
        line: Box<dyn Line>,
        counter: Counter,
    },
}

pub(super) struct Held {
    pub(super) target: Target,
    pub(super) thing: Thing,
    /// When nobody will have spoken for too long, and when the mapper said that the fail-safe value is due for another reason.
    pub(super) silence_us: Option<u64>,
    pub(super) other: Option<(u64, Why)>,
    pub(super) safe: Option<Why>,
}

pub(super) fn too_many_switched() -> String {
    format!("{SOFT_PWM_LINES_MAX} lines are switched by software already; use a PWM chip")
}

impl Held {
    pub(super) fn spoken(&mut self, now_us: u64, other: Option<(u64, Why)>) {
        let safety = self.target.safety();
        let guarded = safety.value.is_some();
        self.silence_us = (guarded && safety.deadline_ms > 0).then_some(now_us + safety.deadline_ms * 1000);
        self.other = other.filter(|_| guarded);
    }

    pub(super) fn due(&self, now_us: u64) -> Option<Why> {
        if self.silence_us.is_some_and(|due_us| due_us <= now_us) {
            return Some(Why::Silence);
        }
        self.other.filter(|(due_us, _)| *due_us <= now_us).map(|(_, why)| why)
    }

    pub(super) fn fail_safe(&mut self, now_us: u64, name: &str, why: Why) {
        let Some(value) = self.target.safety().value else { return };
        match self.put(now_us, value, true) {
            Ok(()) => {
                (self.silence_us, self.other, self.safe) = (None, None, Some(why));
                eprintln!("line-holder: {name}: set to its fail-safe value {value} ({})", why.word());
            }
            Err(error) => {
                eprintln!("line-holder: {name}: the fail-safe value cannot be set: {error}");
                (self.silence_us, self.other) = (None, Some((now_us + HOLDER_DEADLINE_MS_MIN * 1000, why)));
            }
        }
    }

    pub(super) fn act(
        &mut self,
        now_us: u64,
        name: &str,
        verb: &str,
        words: &[&str],
        may_switch: bool,
    ) -> Result<(), String> {
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
        match verb {
            "get" => Ok(()),
            "refresh" => {
                let other = due_words(now_us, words)?;
                // What fell back stays there until it is set again.
                if self.safe.is_none() {
                    self.spoken(now_us, other);
                    if let Some(why) = self.due(now_us) {
                        self.fail_safe(now_us, name, why);
                    }
                }
                Ok(())
            }
            "set" => {
                let max = self.target.value_max();
                let value = number(0).filter(|value| *value <= u64::from(max));
                let value = value.ok_or_else(|| format!("the value is 0 to {max}"))? as u32;
                let other = due_words(now_us, &words[1..])?;
                self.put(now_us, value, may_switch)?;
                self.safe = None;
                self.spoken(now_us, other);
                Ok(())
            }
            "reset" => match &mut self.thing {
                Thing::Input { counter, .. } => {
                    counter.count = number(0).ok_or("the count is missing")?;
                    counter.lost = 0;
                    Ok(())
                }
                _ => Err("it counts nothing".into()),
            },
            _ => self.begin(now_us, verb, [number(0), number(1), number(2)]),
        }
    }

    /// What a line does by itself, with its numbers.
    fn begin(&mut self, now_us: u64, verb: &str, numbers: [Option<u64>; 3]) -> Result<(), String> {
        if let Some(why) = self.safe {
            return Err(format!("it is at its fail-safe value ({}); set a value first", why.word()));
        }
        let Thing::Output { steady, activity, .. } = &mut self.thing else {
            return Err(format!("{verb} is for an output line"));
        };
        if matches!(activity, Activity::Pwm { .. }) {
            return Err(format!("{verb} is not for a line with a duty cycle"));
        }
        let time = |at: usize, least: u64| {
            numbers[at]
                .filter(|ms| (least..=PULSE_MS_MAX).contains(ms))
                .map(|ms| ms * 1000)
                .ok_or_else(|| format!("{verb} needs a time of {least} to {PULSE_MS_MAX} milliseconds"))
        };
        match verb {
            "toggle" => {
                *steady = !*steady;
                *activity = Activity::Steady;
            }
            "pulse" => *activity = Activity::Pulse { end_us: now_us + time(0, 1)? },
            _ => {
                let count =
                    numbers[2].filter(|count| *count > 0).map(|count| count.min(u64::from(u32::MAX)) as u32);
                *activity = Activity::blink(now_us, time(0, BLINK_MS_MIN)?, time(1, BLINK_MS_MIN)?, count);
            }
        }
        self.move_on(now_us)
    }

    /// Sets a value; what the line did by itself ends.
    fn put(&mut self, now_us: u64, value: u32, may_switch: bool) -> Result<(), String> {
        match &mut self.thing {
            Thing::Output { line, steady, level, activity, millionths } => {
                if let Activity::Pwm { start_us, millionths: now, .. } = activity {
                    if !may_switch && (1..1_000_000).contains(&value) {
                        return Err(too_many_switched());
                    }
                    (*start_us, *now, *millionths) = (now_us, value, value);
                } else {
                    *activity = Activity::Steady;
                    (*steady, *level) = (value != 0, value != 0);
                    return line.set(value != 0).map_err(|error| error.to_string());
                }
            }
            Thing::Pwm(pwm) => return pwm.set(value).map_err(|error| error.to_string()),
            Thing::Input { .. } => return Err("it is an input; reset NAME COUNT sets its count".into()),
        }
        self.move_on(now_us)
    }

    /// The level that the line has to have now.
    pub(super) fn move_on(&mut self, now_us: u64) -> Result<(), String> {
        let Thing::Output { line, steady, level, activity, .. } = &mut self.thing else { return Ok(()) };
        let wanted = activity.level(now_us, *steady);
        if wanted != *level {
            line.set(wanted).map_err(|error| error.to_string())?;
            *level = wanted;
        }
        Ok(())
    }

    /// A line that cannot be set does nothing by itself any more: it would be tried at each turn.
    pub(super) fn stop(&mut self) {
        if let Thing::Output { activity, .. } = &mut self.thing {
            *activity = Activity::Steady;
        }
    }

    pub(super) fn answer(&mut self, now_us: u64) -> Result<Answer, String> {
        let (value, mut state) = match &mut self.thing {
            Thing::Output { activity: Activity::Pwm { millionths, .. }, .. } => {
                (u64::from(*millionths), State::Steady)
            }
            Thing::Output { line, activity, .. } => {
                let value = line.get().map_err(|error| error.to_string())?;
                let state = match activity {
                    Activity::Pulse { end_us } => {
                        State::Pulse { left_ms: end_us.saturating_sub(now_us).div_ceil(1000) }
                    }
                    Activity::Blink { .. } => State::Blink,
                    _ => State::Steady,
                };
                (u64::from(value), state)
            }
            Thing::Pwm(pwm) => (u64::from(pwm.get().map_err(|error| error.to_string())?), State::Steady),
            Thing::Input { counter, .. } => {
                let millihertz = counter.millihertz(now_us * 1000);
                (counter.count, State::Count { lost: counter.lost, millihertz })
            }
        };
        if let Some(why) = self.safe {
            state = State::FailSafe(why);
        }
        Ok(Answer { value, state })
    }
}

/// `due-ms=N why=WORD`: the mapper knows another reason for the fail-safe value.
fn due_words(now_us: u64, words: &[&str]) -> Result<Option<(u64, Why)>, String> {
    let find = |key: &str| words.iter().find_map(|word| word.strip_prefix(key));
    match (find("due-ms="), find("why=")) {
        (None, None) => Ok(None),
        (Some(ms), Some(why)) => {
            let ms = ms.parse::<u64>().ok().filter(|ms| *ms <= FAILSAFE_WAIT_MS_MAX);
            match (ms, Why::parse(why)) {
                (Some(ms), Some(why)) => Ok(Some((now_us + ms * 1000, why))),
                _ => Err("due-ms= is a time, why= is silence, link or stale".into()),
            }
        }
        _ => Err("due-ms= and why= belong together".into()),
    }
}
