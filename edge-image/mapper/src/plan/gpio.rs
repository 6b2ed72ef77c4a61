//! Fields of GPIO devices (docs/gpio.md).

use super::{
    fields::Fields,
    level,
    safety::{self, Safety},
};
use crate::limits::{SOFT_PWM_HZ_DEFAULT, SOFT_PWM_HZ_MAX, SOFT_PWM_HZ_MIN};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LineRef {
    Offset(u32),
    Name(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Input,
    Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    AsIs,
    PullUp,
    PullDown,
    Disabled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    None,
    Rising,
    Falling,
    Both,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drive {
    PushPull,
    OpenDrain,
    OpenSource,
}

/// What a line is to us.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Function {
    /// 0 or 1.
    Level,
    /// Edges are counted by the line-holder; the value is the count times `scale`.
    Count { scale: f64 },
    /// Edges in a second times `scale`.
    Frequency { scale: f64 },
    /// The line-holder switches the line; the value is the duty cycle in percent.
    Pwm { period_us: u32 },
}

#[derive(Clone, Debug, PartialEq)]
pub struct LineSpec {
    /// Label; `None` is the header chip of a Pi, or any chip that has a line of this name.
    pub chip: Option<String>,
    pub line: LineRef,
    pub direction: Direction,
    pub function: Function,
    pub bias: Bias,
    pub active_low: bool,
    pub edge: Edge,
    pub debounce_us: u32,
    pub drive: Drive,
    /// `None` keeps the level that the line has. Millionths with [`Function::Pwm`].
    pub initial: Option<u32>,
    pub safety: Safety,
}

impl LineSpec {
    /// The same input, whatever is computed from it: count and frequency of one meter are one line.
    pub fn counts_as(&self, other: &LineSpec) -> bool {
        let counts =
            |spec: &LineSpec| matches!(spec.function, Function::Count { .. } | Function::Frequency { .. });
        counts(self) && counts(other) && *self == LineSpec { function: self.function, ..other.clone() }
    }
}

pub const BIASES: [(&str, Bias); 4] = [
    ("as-is", Bias::AsIs),
    ("pull-up", Bias::PullUp),
    ("pull-down", Bias::PullDown),
    ("disabled", Bias::Disabled),
];
pub const DRIVES: [(&str, Drive); 3] =
    [("push-pull", Drive::PushPull), ("open-drain", Drive::OpenDrain), ("open-source", Drive::OpenSource)];

pub const EDGES: [(&str, Edge); 4] =
    [("both", Edge::Both), ("rising", Edge::Rising), ("falling", Edge::Falling), ("none", Edge::None)];

pub fn chip(fields: &mut Fields<'_>) -> Result<Option<String>, String> {
    match fields.text("chip")? {
        Some(chip) if chip.is_empty() || chip.len() > 31 || chip.contains(char::is_whitespace) => {
            Err(format!("{}: {chip:?} is no chip label; mapper scan prints them", fields.path("chip")))
        }
        chip => Ok(chip),
    }
}

pub fn line(fields: &mut Fields<'_>, device_chip: Option<&str>) -> Result<LineSpec, String> {
    let chip = chip(fields)?.or(device_chip.map(str::to_owned));
    let Some(line) = fields.text("line")? else {
        return Err(format!(
            "{} is missing: write the line's offset (17) or its name (\"GPIO17\")",
            fields.path("line")
        ));
    };
    let line = match line.parse::<u32>() {
        Ok(offset) if offset < 1024 => LineRef::Offset(offset),
        Ok(offset) => {
            return Err(format!("{}: {offset} is no offset; they are below 1024", fields.path("line")));
        }
        Err(_) if line.is_empty() || line.len() > 31 || line.contains(char::is_whitespace) => {
            return Err(format!(
                "{}: {line:?} is no line name; mapper scan prints them",
                fields.path("line")
            ));
        }
        Err(_) => LineRef::Name(line),
    };
    let function = function(fields)?;
    let counts = matches!(function, Function::Count { .. } | Function::Frequency { .. });
    let drives = matches!(function, Function::Pwm { .. });
    let direction = fields
        .choice("direction", &[("input", Direction::Input), ("output", Direction::Output)])?
        .unwrap_or(if drives { Direction::Output } else { Direction::Input });
    if (counts && direction == Direction::Output) || (drives && direction == Direction::Input) {
        let other = if drives { "output" } else { "input" };
        return Err(format!("{}: this function needs an {other}", fields.path("direction")));
    }
    let bias = fields.choice("bias", &BIASES)?.unwrap_or(Bias::AsIs);
    let active_low = fields.switch("activeLow")?.unwrap_or(false);
    let edge = fields.choice("edge", &EDGES)?;
    if counts && edge == Some(Edge::None) {
        return Err(format!(
            "{}: this function counts edges; write rising, falling or both",
            fields.path("edge")
        ));
    }
    let debounce_us = debounce(fields)?;
    let drive = fields.choice("drive", &DRIVES)?;
    let value_of = |text: &str| value(function, text);
    let initial = match fields.text("initial")?.filter(|initial| initial != "keep") {
        None => None,
        Some(text) => Some(value_of(&text).map_err(|error| format!("{}: {error}", fields.path("initial")))?),
    };
    let safety = safety::safety(fields, value_of)?;
    let (other, foreign): (_, &[(&str, bool)]) = match direction {
        Direction::Input => (
            "output",
            &[
                ("drive", drive.is_some()),
                ("initial", initial.is_some()),
                ("failsafe", safety.value.is_some()),
            ],
        ),
        Direction::Output => ("input", &[("edge", edge.is_some()), ("debounceMs", debounce_us.is_some())]),
    };
    if let Some((key, _)) = foreign.iter().find(|(_, given)| *given) {
        return Err(format!(
            "{}: has a meaning for an {other} only; remove it or set direction to {other}",
            fields.path(key)
        ));
    }
    Ok(LineSpec {
        chip,
        line,
        direction,
        function,
        bias,
        active_low,
        edge: edge.unwrap_or(if counts { Edge::Rising } else { Edge::Both }),
        debounce_us: debounce_us.unwrap_or(0),
        drive: drive.unwrap_or(Drive::PushPull),
        initial,
        safety,
    })
}

fn function(fields: &mut Fields<'_>) -> Result<Function, String> {
    #[derive(Clone, Copy, PartialEq)]
    enum Name {
        Level,
        Count,
        Frequency,
        Pwm,
    }
    let names =
        [("level", Name::Level), ("count", Name::Count), ("frequency", Name::Frequency), ("pwm", Name::Pwm)];
    let name = fields.choice("function", &names)?.unwrap_or(Name::Level);
    let scale = fields.decimal("scale")?;
    let hz = fields.decimal("pwmHz")?;
    if hz.is_some() && name != Name::Pwm {
        return Err(format!("{}: has a meaning with function: pwm only", fields.path("pwmHz")));
    }
    if scale.is_some() && !matches!(name, Name::Count | Name::Frequency) {
        return Err(format!(
            "{}: has a meaning with function: count or frequency only",
            fields.path("scale")
        ));
    }
    let scale = scale.unwrap_or(1.0);
    Ok(match name {
        Name::Level => Function::Level,
        Name::Count => Function::Count { scale },
        Name::Frequency => Function::Frequency { scale },
        Name::Pwm => {
            let hz = hz.unwrap_or(SOFT_PWM_HZ_DEFAULT);
            if !(SOFT_PWM_HZ_MIN..=SOFT_PWM_HZ_MAX).contains(&hz) {
                return Err(format!(
                    "{}: {hz} is not from {SOFT_PWM_HZ_MIN} to {SOFT_PWM_HZ_MAX}; for more use a PWM chip (protocolName: pwm)",
                    fields.path("pwmHz")
                ));
            }
            Function::Pwm { period_us: (1e6 / hz) as u32 }
        }
    })
}

fn debounce(fields: &mut Fields<'_>) -> Result<Option<u32>, String> {
    let (ms, us) = (fields.number("debounceMs", 0, 10_000)?, fields.number("debounceUs", 0, 10_000_000)?);
    match (ms, us) {
        (Some(_), Some(_)) => {
            Err(format!("{}: debounceMs says it already; remove one", fields.path("debounceUs")))
        }
        (Some(ms), None) => Ok(Some(ms as u32 * 1000)),
        (None, us) => Ok(us.map(|us| us as u32)),
    }
}

/// A value of an output, in its own unit.
pub fn value(function: Function, text: &str) -> Result<u32, String> {
    match function {
        Function::Pwm { .. } => duty(text),
        _ => level(text)
            .map(u32::from)
            .ok_or_else(|| format!("{text:?} is no level; write 1, 0, true, false, on or off")),
    }
}

/// A duty cycle in percent, as millionths.
pub fn duty(text: &str) -> Result<u32, String> {
    match text.parse::<f64>() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok((percent * 10_000.0).round() as u32),
        _ => Err(format!("{text:?} is no duty cycle; write percent, 0 to 100")),
    }
}

/// Millionths as percent, without zeros at the end.
pub fn duty_text(millionths: u32) -> String {
    decimal_text(f64::from(millionths) / 10_000.0, 4)
}

/// At most `digits` decimals, and none that says nothing.
pub fn decimal_text(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}
