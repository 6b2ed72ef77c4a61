//! The line-holder's lines and deadlines: a request in, an answer out.

use std::{collections::BTreeMap, fmt::Write};

use crate::{
    gpio::{Chips, Line},
    limits::{HOLDER_DEADLINE_MS_MAX, HOLDER_DEADLINE_MS_MIN, HOLDER_LINES_MAX, NAME_BYTES_MAX},
    plan::gpio::{BIASES, Bias, DRIVES, Direction, Drive, Edge, LineRef, LineSpec},
};

struct Held {
    spec: LineSpec,
    line: Box<dyn Line>,
    due_ms: Option<u64>,
    failed_safe: bool,
}

pub struct Holder {
    chips: Box<dyn Chips>,
    lines: BTreeMap<String, Held>,
}

impl Holder {
    pub fn new(chips: Box<dyn Chips>) -> Holder {
        Holder { chips, lines: BTreeMap::new() }
    }

    /// Answers one request; the answer has no newline at its end.
    pub fn handle(&mut self, now_ms: u64, request: &str) -> String {
        let mut words = request.split_ascii_whitespace();
        let result = match (words.next(), words.next()) {
            (Some("request"), Some(name)) => self.request(now_ms, name, words),
            (Some("set"), Some(name)) => self.set(now_ms, name, words.next()),
            (Some("get"), Some(name)) => self.read(name, None),
            (Some("refresh"), Some(name)) => self.read(name, Some(now_ms)),
            (Some("release"), Some(name)) => match self.lines.remove(name) {
                Some(_) => Ok("ok".into()),
                None => Err(unknown(name)),
            },
            (Some("list"), None) => Ok(self.list()),
            _ => Err("unknown request; use request, set, get, refresh, release or list".into()),
        };
        result.unwrap_or_else(|error| format!("error {error}"))
    }

    /// Applies fail-safe values whose time has come.
    pub fn tick(&mut self, now_ms: u64) {
        for (name, held) in &mut self.lines {
            let (Some(due_ms), Some(value)) = (held.due_ms, held.spec.failsafe) else { continue };
            if now_ms < due_ms {
                continue;
            }
            held.due_ms = None;
            held.failed_safe = true;
            match held.line.set(value) {
                Ok(()) => eprintln!(
                    "line-holder: {name}: nobody has spoken for it; set to its fail-safe value {}",
                    u8::from(value)
                ),
                Err(error) => {
                    eprintln!("line-holder: {name}: the fail-safe value cannot be set: {error}");
                    held.due_ms = Some(now_ms + HOLDER_DEADLINE_MS_MIN);
                }
            }
        }
    }

    pub fn deadline_ms(&self) -> Option<u64> {
        self.lines.values().filter_map(|held| held.due_ms).min()
    }

    fn request<'a>(
        &mut self,
        now_ms: u64,
        name: &str,
        words: impl Iterator<Item = &'a str>,
    ) -> Result<String, String> {
        if name.len() > NAME_BYTES_MAX * 3 {
            return Err("the name is too long".into());
        }
        let spec = parse_spec(words)?;
        if let Some(held) = self.lines.get_mut(name) {
            let same = LineSpec { initial: held.spec.initial, ..spec.clone() } == held.spec;
            if same {
                held.due_ms = due(now_ms, &held.spec);
                return answer(held);
            }
            self.lines.remove(name);
        }
        if self.lines.len() >= HOLDER_LINES_MAX {
            return Err(format!("{HOLDER_LINES_MAX} lines are held already; release some"));
        }
        let line = self.chips.request(&spec).map_err(|error| error.to_string())?;
        let mut held = Held { due_ms: due(now_ms, &spec), spec, line, failed_safe: false };
        let text = answer(&mut held)?;
        self.lines.insert(name.into(), held);
        Ok(text)
    }

    fn set(&mut self, now_ms: u64, name: &str, value: Option<&str>) -> Result<String, String> {
        let held = self.lines.get_mut(name).ok_or_else(|| unknown(name))?;
        let active = value.and_then(bit).ok_or("the value is 0 or 1")?;
        held.line.set(active).map_err(|error| error.to_string())?;
        held.failed_safe = false;
        held.due_ms = due(now_ms, &held.spec);
        answer(held)
    }

    fn read(&mut self, name: &str, refreshed_ms: Option<u64>) -> Result<String, String> {
        let held = self.lines.get_mut(name).ok_or_else(|| unknown(name))?;
        if let Some(now_ms) = refreshed_ms
            && !held.failed_safe
        {
            held.due_ms = due(now_ms, &held.spec);
        }
        answer(held)
    }

    fn list(&mut self) -> String {
        let mut text = format!("ok {}", self.lines.len());
        for (name, held) in &mut self.lines {
            let chip = held.spec.chip.as_deref().unwrap_or("header");
            let value = held.line.get().map_or("?", |active| if active { "1" } else { "0" });
            let state = if held.failed_safe { "failsafe" } else { "held" };
            let _ = match &held.spec.line {
                LineRef::Offset(offset) => write!(text, "\n{name} {chip} {offset} {value} {state}"),
                LineRef::Name(line) => write!(text, "\n{name} {chip} {line} {value} {state}"),
            };
        }
        text
    }
}

fn unknown(name: &str) -> String {
    format!("unknown line {name}; request it first")
}

fn due(now_ms: u64, spec: &LineSpec) -> Option<u64> {
    (spec.deadline_ms > 0 && spec.failsafe.is_some()).then_some(now_ms + spec.deadline_ms)
}

fn answer(held: &mut Held) -> Result<String, String> {
    held.line.get().map(|active| format!("ok {}", u8::from(active))).map_err(|error| error.to_string())
}

fn bit(text: &str) -> Option<bool> {
    match text {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}

/// A spec as it stands in a request.
pub fn render_spec(spec: &LineSpec) -> String {
    let mut text = String::new();
    if let Some(chip) = &spec.chip {
        let _ = write!(text, " chip={chip}");
    }
    let _ = match &spec.line {
        LineRef::Offset(offset) => write!(text, " line={offset}"),
        LineRef::Name(name) => write!(text, " line={name}"),
    };
    if spec.active_low {
        text.push_str(" active-low=1");
    }
    if let Some((name, _)) =
        DRIVES.iter().find(|(_, drive)| *drive == spec.drive && *drive != Drive::PushPull)
    {
        let _ = write!(text, " drive={name}");
    }
    if let Some((name, _)) = BIASES.iter().find(|(_, bias)| *bias == spec.bias && *bias != Bias::AsIs) {
        let _ = write!(text, " bias={name}");
    }
    if let Some(initial) = spec.initial {
        let _ = write!(text, " initial={}", u8::from(initial));
    }
    if let Some(failsafe) = spec.failsafe {
        let _ = write!(text, " failsafe={}", u8::from(failsafe));
    }
    if spec.deadline_ms > 0 {
        let _ = write!(text, " deadline-ms={}", spec.deadline_ms);
    }
    text
}

fn parse_spec<'a>(words: impl Iterator<Item = &'a str>) -> Result<LineSpec, String> {
    let mut spec = LineSpec {
        chip: None,
        line: LineRef::Name(String::new()),
        direction: Direction::Output,
        bias: Bias::AsIs,
        active_low: false,
        edge: Edge::Both,
        debounce_ms: 0,
        drive: Drive::PushPull,
        initial: None,
        failsafe: None,
        deadline_ms: 0,
    };
    for word in words {
        let (key, value) = word.split_once('=').ok_or_else(|| format!("{word} is not KEY=VALUE"))?;
        let wrong = || format!("{key}={value} has no meaning");
        match key {
            "chip" => spec.chip = Some(value.into()),
            "line" => spec.line = value.parse().map_or_else(|_| LineRef::Name(value.into()), LineRef::Offset),
            "active-low" => spec.active_low = bit(value).ok_or_else(wrong)?,
            "drive" => spec.drive = DRIVES.iter().find(|(name, _)| *name == value).ok_or_else(wrong)?.1,
            "bias" => spec.bias = BIASES.iter().find(|(name, _)| *name == value).ok_or_else(wrong)?.1,
            "initial" => {
                spec.initial = if value == "keep" { None } else { Some(bit(value).ok_or_else(wrong)?) }
            }
            "failsafe" => spec.failsafe = Some(bit(value).ok_or_else(wrong)?),
            "deadline-ms" => {
                let deadline_ms = value.parse().map_err(|_| wrong())?;
                if deadline_ms != 0
                    && !(HOLDER_DEADLINE_MS_MIN..=HOLDER_DEADLINE_MS_MAX).contains(&deadline_ms)
                {
                    return Err(format!(
                        "deadline-ms is 0 or {HOLDER_DEADLINE_MS_MIN} to {HOLDER_DEADLINE_MS_MAX}"
                    ));
                }
                spec.deadline_ms = deadline_ms;
            }
            _ => return Err(format!("{key} is unknown")),
        }
    }
    if spec.line == LineRef::Name(String::new()) {
        return Err("line= is missing".into());
    }
    Ok(spec)
}

/// Total on any bytes: requests, answers and the clock.
pub fn fuzz_requests(chips: Box<dyn Chips>, data: &[u8]) {
    let mut holder = Holder::new(chips);
    for (at, line) in data.split(|byte| *byte == b'\n').enumerate() {
        let answer = holder.handle(at as u64 * 700, &String::from_utf8_lossy(line));
        assert!(answer.starts_with("ok") || answer.starts_with("error "), "{answer}");
        holder.tick(at as u64 * 700);
        assert!(holder.lines.len() <= HOLDER_LINES_MAX);
    }
}
