//! The words of the line-holder's protocol (docs/gpio.md): what is to be held, as it stands in a request.

use std::fmt::Write;

use crate::{
    limits::{HOLDER_DEADLINE_MS_MAX, HOLDER_DEADLINE_MS_MIN},
    plan::{
        gpio::{BIASES, Bias, DRIVES, Direction, Drive, EDGES, Edge, Function, LineRef, LineSpec},
        pwm::PwmSpec,
        safety::Safety,
    },
};

/// What the line-holder holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    Line(LineSpec),
    Pwm(PwmSpec),
}

impl Target {
    pub fn safety(&self) -> &Safety {
        match self {
            Target::Line(line) => &line.safety,
            Target::Pwm(pwm) => &pwm.safety,
        }
    }

    pub fn initial(&self) -> Option<u32> {
        match self {
            Target::Line(line) => line.initial,
            Target::Pwm(pwm) => pwm.initial,
        }
    }

    pub fn counts(&self) -> bool {
        matches!(
            self,
            Target::Line(LineSpec { function: Function::Count { .. } | Function::Frequency { .. }, .. })
        )
    }

    /// The largest value that can be set.
    pub fn value_max(&self) -> u32 {
        match self {
            Target::Line(LineSpec { function: Function::Level, .. }) => 1,
            _ => 1_000_000,
        }
    }

    /// Equal but for what can change while the line is held: its initial value and when it falls back.
    pub fn holds_as(&self, other: &Target) -> bool {
        let bare = |target: &Target| {
            let mut target = target.clone();
            match &mut target {
                Target::Line(line) => (line.initial, line.safety) = (None, Safety::default()),
                Target::Pwm(pwm) => (pwm.initial, pwm.safety) = (None, Safety::default()),
            }
            target.render()
        };
        bare(self) == bare(other)
    }

    /// As `KEY=VALUE` words, each with a space before it.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let mut say = |key: &str, value: &dyn std::fmt::Display| {
            let _ = write!(text, " {key}={value}");
        };
        match self {
            Target::Line(line) => {
                if let Some(chip) = &line.chip {
                    say("chip", chip);
                }
                match &line.line {
                    LineRef::Offset(offset) => say("line", offset),
                    LineRef::Name(name) => say("line", name),
                }
                if line.active_low {
                    say("active-low", &1);
                }
                if let (Some(name), true) = (name_of(&DRIVES, line.drive), line.drive != Drive::PushPull) {
                    say("drive", &name);
                }
                if let (Some(name), true) = (name_of(&BIASES, line.bias), line.bias != Bias::AsIs) {
                    say("bias", &name);
                }
                match line.function {
                    Function::Level => {}
                    Function::Pwm { period_us } => say("period-us", &period_us),
                    Function::Count { .. } | Function::Frequency { .. } => {
                        say("count", &name_of(&EDGES, line.edge).unwrap_or("rising"));
                        say("debounce-us", &line.debounce_us);
                    }
                }
            }
            Target::Pwm(pwm) => {
                if let Some(chip) = &pwm.chip {
                    say("chip", chip);
                }
                say("channel", &pwm.channel);
                say("period-ns", &pwm.period_ns);
                if pwm.inverted {
                    say("active-low", &1);
                }
            }
        }
        if let Some(initial) = self.initial() {
            say("initial", &initial);
        }
        if let Some(failsafe) = self.safety().value {
            say("failsafe", &failsafe);
        }
        if self.safety().deadline_ms > 0 {
            say("deadline-ms", &self.safety().deadline_ms);
        }
        text
    }

    pub fn parse<'a>(words: impl Iterator<Item = &'a str>) -> Result<Target, String> {
        let mut line = empty_line();
        let mut pwm = PwmSpec {
            chip: None,
            channel: 0,
            period_ns: 0,
            inverted: false,
            initial: None,
            safety: Safety::default(),
        };
        let (mut named, mut channel, mut debounced) = (false, false, false);
        for word in words {
            let (key, value) = word.split_once('=').ok_or_else(|| format!("{word} is not KEY=VALUE"))?;
            let wrong = || format!("{key}={value} has no meaning");
            let number = || value.parse::<u32>().map_err(|_| wrong());
            match key {
                "chip" => line.chip = Some(value.into()),
                "line" => {
                    named = !value.is_empty();
                    line.line = value.parse().map_or_else(|_| LineRef::Name(value.into()), LineRef::Offset);
                }
                "channel" => (channel, pwm.channel) = (true, number()?),
                "period-ns" => pwm.period_ns = number()?,
                "period-us" => {
                    let period_us = number()?;
                    line.function = Function::Pwm { period_us };
                }
                "count" => {
                    line.edge = find(&EDGES, value).ok_or_else(wrong)?;
                    line.function = Function::Count { scale: 1.0 };
                    line.direction = Direction::Input;
                }
                "debounce-us" => (debounced, line.debounce_us) = (true, number()?),
                "active-low" => line.active_low = bit(value).ok_or_else(wrong)?,
                "drive" => line.drive = find(&DRIVES, value).ok_or_else(wrong)?,
                "bias" => line.bias = find(&BIASES, value).ok_or_else(wrong)?,
                "initial" => line.initial = if value == "keep" { None } else { Some(number()?) },
                "failsafe" => line.safety.value = Some(number()?),
                "deadline-ms" => {
                    line.safety.deadline_ms = deadline(value).ok_or_else(|| {
                        format!("deadline-ms is 0 or {HOLDER_DEADLINE_MS_MIN} to {HOLDER_DEADLINE_MS_MAX}")
                    })?
                }
                _ => return Err(format!("{key} is unknown")),
            }
        }
        let target = match (named, channel) {
            (true, false) if debounced && line.direction == Direction::Output => {
                return Err("debounce-us needs count=".into());
            }
            (true, false) => Target::Line(line),
            (false, true) if pwm.period_ns > 0 => Target::Pwm(PwmSpec {
                chip: line.chip,
                inverted: line.active_low,
                initial: line.initial,
                safety: line.safety,
                ..pwm
            }),
            (false, true) => return Err("period-ns= is missing".into()),
            (true, true) => return Err("line= and channel= are two things".into()),
            (false, false) => return Err("line= is missing".into()),
        };
        check(&target)?;
        Ok(target)
    }
}

/// Values that would be outside of the output's range later.
fn check(target: &Target) -> Result<(), String> {
    for (key, value) in [("initial", target.initial()), ("failsafe", target.safety().value)] {
        if value.is_some_and(|value| value > target.value_max()) {
            return Err(format!("{key} is 0 to {}", target.value_max()));
        }
    }
    if let Target::Line(LineSpec { function: Function::Pwm { period_us }, .. }) = target {
        let fastest_us = (1e6 / crate::limits::SOFT_PWM_HZ_MAX) as u32;
        if *period_us < fastest_us {
            return Err(format!("period-us is at least {fastest_us}; use a PWM chip for more"));
        }
    }
    Ok(())
}

fn empty_line() -> LineSpec {
    LineSpec {
        chip: None,
        line: LineRef::Name(String::new()),
        direction: Direction::Output,
        function: Function::Level,
        bias: Bias::AsIs,
        active_low: false,
        edge: Edge::Both,
        debounce_us: 0,
        drive: Drive::PushPull,
        initial: None,
        safety: Safety::default(),
    }
}

fn name_of<T: Copy + PartialEq>(names: &[(&'static str, T)], wanted: T) -> Option<&'static str> {
    names.iter().find(|(_, value)| *value == wanted).map(|(name, _)| *name)
}

fn find<T: Copy>(names: &[(&str, T)], wanted: &str) -> Option<T> {
    names.iter().find(|(name, _)| *name == wanted).map(|(_, value)| *value)
}

fn deadline(text: &str) -> Option<u64> {
    let ms = text.parse().ok()?;
    (ms == 0 || (HOLDER_DEADLINE_MS_MIN..=HOLDER_DEADLINE_MS_MAX).contains(&ms)).then_some(ms)
}

fn bit(text: &str) -> Option<bool> {
    match text {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}

/// Total on any bytes; what was understood is said again as the same.
pub fn fuzz_words(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let _ = super::Answer::parse(&text)
        .map(|answer| assert_eq!(super::Answer::parse(&answer.to_string()), Some(answer)));
    let Ok(target) = Target::parse(text.split_ascii_whitespace()) else { return };
    let again = Target::parse(target.render().split_ascii_whitespace()).expect("our own words");
    assert_eq!(again.render(), target.render());
    assert!(again.holds_as(&target));
}
