//! Fields of GPIO devices (README.md, section GPIO).

use super::{fields::Fields, level};
use crate::limits::{HOLDER_DEADLINE_MS_DEFAULT, HOLDER_DEADLINE_MS_MAX, HOLDER_DEADLINE_MS_MIN};

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

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineSpec {
    /// Label; `None` is the header chip of a Pi.
    pub chip: Option<String>,
    pub line: LineRef,
    pub direction: Direction,
    pub bias: Bias,
    pub active_low: bool,
    pub edge: Edge,
    pub debounce_ms: u32,
    pub drive: Drive,
    /// `None` keeps the level that the line has.
    pub initial: Option<bool>,
    pub failsafe: Option<bool>,
    /// 0: never.
    pub deadline_ms: u64,
}

pub const BIASES: [(&str, Bias); 4] = [
    ("as-is", Bias::AsIs),
    ("pull-up", Bias::PullUp),
    ("pull-down", Bias::PullDown),
    ("disabled", Bias::Disabled),
];
pub const DRIVES: [(&str, Drive); 3] =
    [("push-pull", Drive::PushPull), ("open-drain", Drive::OpenDrain), ("open-source", Drive::OpenSource)];

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
    let direction = fields
        .choice("direction", &[("input", Direction::Input), ("output", Direction::Output)])?
        .unwrap_or(Direction::Input);
    let bias = fields.choice("bias", &BIASES)?.unwrap_or(Bias::AsIs);
    let active_low = fields.switch("activeLow")?.unwrap_or(false);
    let edges =
        [("both", Edge::Both), ("rising", Edge::Rising), ("falling", Edge::Falling), ("none", Edge::None)];
    let edge = fields.choice("edge", &edges)?;
    let debounce = fields.number("debounceMs", 0, 10_000)?;
    let drive = fields.choice("drive", &DRIVES)?;
    let initial = fields.text("initial")?.filter(|initial| initial != "keep");
    let failsafe = fields.text("failsafe")?;
    let deadline_ms = match fields.number("deadlineMs", 0, HOLDER_DEADLINE_MS_MAX)? {
        Some(short) if short > 0 && short < HOLDER_DEADLINE_MS_MIN => {
            return Err(format!(
                "{}: {short} is too short; write 0 or {HOLDER_DEADLINE_MS_MIN} to {HOLDER_DEADLINE_MS_MAX}",
                fields.path("deadlineMs")
            ));
        }
        given => given,
    };
    let for_other = match direction {
        Direction::Input => [
            ("drive", drive.is_some()),
            ("initial", initial.is_some()),
            ("failsafe", failsafe.is_some()),
            ("deadlineMs", deadline_ms.is_some()),
        ],
        Direction::Output => {
            [("edge", edge.is_some()), ("debounceMs", debounce.is_some()), ("", false), ("", false)]
        }
    };
    if let Some((key, _)) = for_other.iter().find(|(_, given)| *given) {
        let other = if direction == Direction::Input { "output" } else { "input" };
        return Err(format!(
            "{}: has a meaning for an {other} only; remove it or set direction to {other}",
            fields.path(key)
        ));
    }
    let level_of = |key: &str, text: Option<String>| match text {
        None => Ok(None),
        Some(text) => level(&text).map(Some).ok_or_else(|| {
            format!("{}: {text} is no level; write 1, 0, true, false, on or off", fields.path(key))
        }),
    };
    let (initial, failsafe) = (level_of("initial", initial)?, level_of("failsafe", failsafe)?);
    Ok(LineSpec {
        chip,
        line,
        direction,
        bias,
        active_low,
        edge: edge.unwrap_or(Edge::Both),
        debounce_ms: debounce.unwrap_or(0) as u32,
        drive: drive.unwrap_or(Drive::PushPull),
        initial,
        failsafe,
        deadline_ms: deadline_ms.unwrap_or(if failsafe.is_some() { HOLDER_DEADLINE_MS_DEFAULT } else { 0 }),
    })
}
