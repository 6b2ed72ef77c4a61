//! The line-holder's things and deadlines: a request in, an answer out. It has the chips; sockets and files are the shell's.

use std::{collections::BTreeMap, fmt::Write, os::fd::RawFd};

use super::{
    activity::Activity,
    counter::Counter,
    held::{Held, Thing, too_many_switched},
    request::Target,
};
use crate::{
    gpio::Chips,
    limits::{COUNT_PAUSE_US, EDGES_PER_TURN_MAX, HOLDER_LINES_MAX, NAME_BYTES_MAX, SOFT_PWM_LINES_MAX},
    plan::gpio::{Function, LineRef, LineSpec},
    pwm::PwmChips,
};

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
