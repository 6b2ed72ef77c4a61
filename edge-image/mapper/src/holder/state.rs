//! The line-holder's things and deadlines: a request in, an answer out. It has the chips; sockets and files are the shell's.

use std::{collections::BTreeMap, fmt::Write, os::fd::RawFd};

use super::{
    activity::Activity,
    answer::{Answer, State, Why},
    counter::Counter,
    request::Target,
};
use crate::{
    gpio::{Chips, Line},
    limits::{
        BLINK_MS_MIN, COUNT_PAUSE_US, EDGES_PER_TURN_MAX, FAILSAFE_WAIT_MS_MAX, HOLDER_DEADLINE_MS_MIN,
        HOLDER_LINES_MAX, NAME_BYTES_MAX, PULSE_MS_MAX, SOFT_PWM_LINES_MAX,
    },
    plan::gpio::{Function, LineRef, LineSpec},
    pwm::{PwmChips, PwmOutput},
};

enum Thing {
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

struct Held {
    target: Target,
    thing: Thing,
    /// When nobody will have spoken for too long, and when the mapper said that the fail-safe value is due for another reason.
    silence_us: Option<u64>,
    other: Option<(u64, Why)>,
    safe: Option<Why>,
}

pub struct Holder {
    chips: Box<dyn Chips>,
    pwm: Box<dyn PwmChips>,
    things: BTreeMap<String, Held>,
    /// Counts from before, for lines that are not requested yet.
    counts: BTreeMap<String, u64>,
    count_at_us: u64,
}

impl Holder {
    pub fn new(chips: Box<dyn Chips>, pwm: Box<dyn PwmChips>, counts: BTreeMap<String, u64>) -> Holder {
        Holder { chips, pwm, things: BTreeMap::new(), counts, count_at_us: 0 }
    }

    /// Answers one request; the answer has no newline at its end.
    pub fn handle(&mut self, now_us: u64, request: &str) -> String {
        let mut words = request.split_ascii_whitespace();
        let (verb, name) = (words.next().unwrap_or_default(), words.next());
        let result = match (verb, name) {
            ("request", Some(name)) => self.request(now_us, name, words),
            ("release", Some(name)) => self.release(name),
            ("list", None) => Ok(self.list(now_us)),
            ("get" | "refresh" | "set" | "reset" | "toggle" | "pulse" | "blink", Some(name)) => {
                let words: Vec<&str> = words.take(4).collect();
                let may_switch = self.pwm_lines_but(name) < SOFT_PWM_LINES_MAX;
                match self.things.get_mut(name) {
                    Some(held) => held.act(now_us, name, verb, &words, may_switch),
                    None => Err(format!("unknown line {name}; request it first")),
                }
                .and_then(|()| self.answer(now_us, name))
            }
            _ => Err("unknown request; use request, set, get, refresh, toggle, pulse, blink, reset, release or list"
                .into()),
        };
        result.unwrap_or_else(|error| format!("error {error}"))
    }

    fn answer(&mut self, now_us: u64, name: &str) -> Result<String, String> {
        let held = self.things.get_mut(name).ok_or("it is gone")?;
        held.answer(now_us).map(|answer| format!("ok {answer}"))
    }

    /// Fail-safe values whose time has come, and levels that change by themselves.
    pub fn tick(&mut self, now_us: u64) {
        for (name, held) in &mut self.things {
            if let Some(why) = held.due(now_us) {
                held.fail_safe(now_us, name, why);
            }
            if let Err(error) = held.move_on(now_us) {
                eprintln!("line-holder: {name}: {error}");
                held.stop();
            }
        }
    }

    pub fn deadline_us(&self, now_us: u64) -> Option<u64> {
        let times = self.things.values().flat_map(|held| {
            let own = match &held.thing {
                Thing::Output { activity, .. } => activity.next_us(now_us),
                _ => None,
            };
            [held.silence_us, held.other.map(|(due_us, _)| due_us), own]
        });
        times.flatten().min()
    }

    /// Descriptors of counted lines; none for a moment after they were read, which bounds how often a storm wakes this process.
    pub fn waits(&self, now_us: u64, fds: &mut Vec<RawFd>) -> Option<u64> {
        let lines = || {
            self.things.values().filter_map(|held| match &held.thing {
                Thing::Input { line, .. } => line.fd(),
                _ => None,
            })
        };
        if now_us >= self.count_at_us {
            fds.extend(lines());
            return None;
        }
        lines().next().map(|_| self.count_at_us)
    }

    /// Takes the edges of counted lines. A line that fails is given up: the mapper asks for it again.
    pub fn count(&mut self, now_us: u64) {
        self.count_at_us = now_us + COUNT_PAUSE_US;
        let mut failed = Vec::new();
        for (name, held) in &mut self.things {
            let Thing::Input { line, counter } = &mut held.thing else { continue };
            // The kernel's buffer is bounded, so this is, too; the factor is for edges that come while it is read.
            for _ in 0..EDGES_PER_TURN_MAX * 64 {
                match line.next_edge() {
                    Ok(Some(event)) => counter.take(&event),
                    Ok(None) => break,
                    Err(error) => {
                        eprintln!("line-holder: {name}: {error}");
                        failed.push(name.clone());
                        break;
                    }
                }
            }
        }
        for name in failed {
            self.forget(&name);
        }
    }

    /// All counts, for the disk.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let held = self.things.iter().filter_map(|(name, held)| match &held.thing {
            Thing::Input { counter, .. } => Some((name.clone(), counter.count)),
            _ => None,
        });
        self.counts.clone().into_iter().chain(held).collect()
    }

    /// What outlives the thing is its count.
    fn forget(&mut self, name: &str) -> bool {
        let Some(held) = self.things.remove(name) else { return false };
        if let Thing::Input { counter, .. } = &held.thing {
            if self.counts.len() >= HOLDER_LINES_MAX {
                self.counts.pop_first();
            }
            self.counts.insert(name.into(), counter.count);
        }
        true
    }

    fn release(&mut self, name: &str) -> Result<String, String> {
        if !self.forget(name) {
            return Err(format!("unknown line {name}; request it first"));
        }
        // The device is gone: one of this name that comes later begins anew.
        self.counts.remove(name);
        Ok("ok".into())
    }

    fn pwm_lines_but(&self, name: &str) -> usize {
        let switched = |held: &Held| {
            matches!(
                held.thing,
                Thing::Output { activity: Activity::Pwm { millionths: 1..=999_999, .. }, .. }
            )
        };
        self.things.iter().filter(|(other, held)| *other != name && switched(held)).count()
    }

    fn request<'a>(
        &mut self,
        now_us: u64,
        name: &str,
        words: impl Iterator<Item = &'a str>,
    ) -> Result<String, String> {
        if name.len() > NAME_BYTES_MAX * 3 {
            return Err("the name is too long".into());
        }
        let target = Target::parse(words)?;
        if let Some(held) = self.things.get_mut(name) {
            // One that cannot be read is of no use any more: its chip was unplugged, and may be back.
            if held.target.holds_as(&target) && held.answer(now_us).is_ok() {
                // Another fail-safe value or deadline is no reason to let go of the line.
                held.target = target;
                if held.safe.is_none() {
                    held.spoken(now_us, None);
                }
                return self.answer(now_us, name);
            }
            self.forget(name);
        }
        if self.things.len() >= HOLDER_LINES_MAX {
            return Err(format!("{HOLDER_LINES_MAX} lines are held already; release some"));
        }
        let thing = self.open(now_us, name, &target)?;
        let mut held = Held { target, thing, silence_us: None, other: None, safe: None };
        held.spoken(now_us, None);
        self.things.insert(name.into(), held);
        self.answer(now_us, name)
    }

    fn open(&mut self, now_us: u64, name: &str, target: &Target) -> Result<Thing, String> {
        let spec = match target {
            Target::Pwm(spec) => {
                return self.pwm.request(spec).map(Thing::Pwm).map_err(|error| error.to_string());
            }
            Target::Line(spec) => spec,
        };
        if let Function::Pwm { period_us } = spec.function {
            let millionths = spec.initial.unwrap_or(0);
            if self.pwm_lines_but(name) >= SOFT_PWM_LINES_MAX {
                return Err(too_many_switched());
            }
            let first = LineSpec { initial: Some(u32::from(millionths > 0)), ..spec.clone() };
            let line = self.chips.request(&first).map_err(|error| error.to_string())?;
            let activity = Activity::Pwm { start_us: now_us, period_us, millionths };
            return Ok(Thing::Output { line, steady: false, level: millionths > 0, activity, millionths });
        }
        let mut line = self.chips.request(spec).map_err(|error| error.to_string())?;
        if target.counts() {
            if line.fd().is_none() {
                return Err(
                    "the chip of this line has no interrupts, so its edges cannot be counted; use a line of another chip"
                        .into(),
                );
            }
            let debounce_ns = if line.debounces() { 0 } else { u64::from(spec.debounce_us) * 1000 };
            let count = self.counts.remove(name).unwrap_or(0);
            return Ok(Thing::Input { line, counter: Counter::new(spec.edge, debounce_ns, count) });
        }
        let level = line.get().map_err(|error| error.to_string())?;
        Ok(Thing::Output { line, steady: level, level, activity: Activity::Steady, millionths: 0 })
    }

    fn list(&mut self, now_us: u64) -> String {
        let mut text = format!("ok {}", self.things.len());
        for (name, held) in &mut self.things {
            let told = held.answer(now_us).map_or_else(|_| "? held".to_owned(), |answer| answer.to_string());
            let (chip, place) = match &held.target {
                Target::Line(LineSpec { chip, line: LineRef::Offset(offset), .. }) => {
                    (chip, offset.to_string())
                }
                Target::Line(LineSpec { chip, line: LineRef::Name(line), .. }) => (chip, line.clone()),
                Target::Pwm(spec) => (&spec.chip, format!("pwm{}", spec.channel)),
            };
            let _ = write!(text, "\n{name} {} {place} {told}", chip.as_deref().unwrap_or("header"));
        }
        text
    }
}

fn too_many_switched() -> String {
    format!("{SOFT_PWM_LINES_MAX} lines are switched by software already; use a PWM chip")
}

impl Held {
    fn spoken(&mut self, now_us: u64, other: Option<(u64, Why)>) {
        let safety = self.target.safety();
        let guarded = safety.value.is_some();
        self.silence_us = (guarded && safety.deadline_ms > 0).then_some(now_us + safety.deadline_ms * 1000);
        self.other = other.filter(|_| guarded);
    }

    fn due(&self, now_us: u64) -> Option<Why> {
        if self.silence_us.is_some_and(|due_us| due_us <= now_us) {
            return Some(Why::Silence);
        }
        self.other.filter(|(due_us, _)| *due_us <= now_us).map(|(_, why)| why)
    }

    fn fail_safe(&mut self, now_us: u64, name: &str, why: Why) {
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

    fn act(
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
    fn move_on(&mut self, now_us: u64) -> Result<(), String> {
        let Thing::Output { line, steady, level, activity, .. } = &mut self.thing else { return Ok(()) };
        let wanted = activity.level(now_us, *steady);
        if wanted != *level {
            line.set(wanted).map_err(|error| error.to_string())?;
            *level = wanted;
        }
        Ok(())
    }

    /// A line that cannot be set does nothing by itself any more: it would be tried at each turn.
    fn stop(&mut self) {
        if let Thing::Output { activity, .. } = &mut self.thing {
            *activity = Activity::Steady;
        }
    }

    fn answer(&mut self, now_us: u64) -> Result<Answer, String> {
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

/// Total on any bytes: requests, answers and the clock.
pub fn fuzz_requests(chips: Box<dyn Chips>, pwm: Box<dyn PwmChips>, data: &[u8]) {
    let mut holder = Holder::new(chips, pwm, BTreeMap::new());
    for (at, line) in data.split(|byte| *byte == b'\n').enumerate() {
        let now_us = at as u64 * 700_000;
        let answer = holder.handle(now_us, &String::from_utf8_lossy(line));
        assert!(answer.starts_with("ok") || answer.starts_with("error "), "{answer}");
        holder.tick(now_us);
        holder.count(now_us);
        assert!(holder.deadline_us(now_us).is_none_or(|due_us| due_us > now_us), "a deadline that is past");
        assert!(holder.things.len() <= HOLDER_LINES_MAX && holder.counts.len() <= HOLDER_LINES_MAX);
    }
}
