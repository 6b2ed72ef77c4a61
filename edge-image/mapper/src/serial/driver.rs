//! A serial device: some properties of what comes over a port.

use std::{cell::RefCell, rc::Rc};

use frames::{Frame, FrameValue, Frames};

use super::{
    lines::Lines,
    shared::{Ports, SharedPort},
};
use crate::{
    driver::{Driver, Reading, Wait},
    plan::{
        Access, Property,
        serial::{Framing, Port},
        text::TextField,
        value_is_allowed,
    },
};

/// A Set frame that is not answered is sent again after these pauses.
const SET_RETRY_MS: [u64; 3] = [1_000, 2_000, 4_000];
/// Between two questions, so that the device can answer the first.
const ASK_PAUSE_MS: u64 = 50;

pub struct SerialDriver {
    port: Rc<RefCell<SharedPort>>,
    client: u32,
    settings: Port,
    properties: Vec<Property>,
    lines: Lines,
    frames: Frames,
    /// The Set frames that wait for their Done, one per property.
    asked: Vec<Asked>,
    /// When each property's question is due; none without `ask`.
    ask_due_ms: Vec<Option<u64>>,
    ask_not_before_ms: u64,
    /// The last value of each property: lines repeat, and only changes are news.
    last: Vec<Option<String>>,
    /// A value that no twin takes, said once per property.
    odd: Vec<bool>,
    complaint: Option<String>,
    heard_ms: u64,
    silent: bool,
    /// What is taken as done since the port was opened, not told yet.
    opened: Vec<Reading>,
}

struct Asked {
    property: usize,
    sequence: u16,
    value: FrameValue,
    tries: usize,
    due_ms: u64,
}

impl SerialDriver {
    pub fn open(
        now_ms: u64,
        device: &str,
        settings: &Port,
        properties: &[Property],
        ports: &mut Ports,
    ) -> Result<SerialDriver, String> {
        let port = ports.open(device, settings)?;
        let client = port.borrow_mut().join();
        let ask_due = |property: &Property| match &property.access {
            Access::Text(text) if text.ask.is_some() => Some(now_ms),
            _ => None,
        };
        let mut driver = SerialDriver {
            port,
            client,
            settings: settings.clone(),
            properties: properties.to_vec(),
            lines: Lines::default(),
            frames: Frames::default(),
            asked: Vec::new(),
            ask_due_ms: properties.iter().map(ask_due).collect(),
            ask_not_before_ms: now_ms,
            last: vec![None; properties.len()],
            odd: vec![false; properties.len()],
            complaint: None,
            heard_ms: now_ms,
            silent: false,
            opened: Vec::new(),
        };
        let mut opened = Vec::new();
        for (at, property) in properties.iter().enumerate() {
            if let Some(value) = &property.desired {
                driver.set(now_ms, at, value, &mut opened)?;
            }
        }
        driver.opened = opened;
        Ok(driver)
    }

    fn send(&mut self, line: &str) -> Result<(), String> {
        self.port.borrow_mut().send(format!("{line}{}", self.settings.line_end).as_bytes())
    }

    fn text(&self, property: usize) -> Option<&TextField> {
        match &self.properties[property].access {
            Access::Text(text) => Some(text),
            _ => None,
        }
    }

    fn take_value(&mut self, property: usize, value: &str, readings: &mut Vec<Reading>) {
        if self.last[property].as_deref() == Some(value) {
            return;
        }
        if !value_is_allowed(value) {
            if !std::mem::replace(&mut self.odd[property], true) {
                let name = &self.properties[property].name;
                eprintln!(
                    "mapper: {name}: {value:?} is no twin value (letters, digits and -_.,:/@#); not reported"
                );
            }
            return;
        }
        self.odd[property] = false;
        self.last[property] = Some(value.to_owned());
        readings.push(Reading::good(property, value));
    }

    fn line(&mut self, line: &str, readings: &mut Vec<Reading>) {
        for at in 0..self.properties.len() {
            if let Some(value) = self.text(at).and_then(|text| text.value(line)) {
                self.take_value(at, &value, readings);
            }
        }
    }

    fn frame(&mut self, frame: Frame, readings: &mut Vec<Reading>) {
        match frame {
            Frame::Report { channel, value, .. } => {
                self.complaint = None;
                let wanted = Access::Channel(channel);
                for at in 0..self.properties.len() {
                    if self.properties[at].access == wanted {
                        self.take_value(at, &value.to_string(), readings);
                    }
                }
            }
            Frame::Done { sequence, accepted } => {
                let Some(at) = self.asked.iter().position(|asked| asked.sequence == sequence) else { return };
                self.complaint = None;
                let asked = self.asked.swap_remove(at);
                if accepted {
                    self.take_value(asked.property, &asked.value.to_string(), readings);
                } else {
                    self.complaint = Some(format!(
                        "the sensor refused {} for {}",
                        asked.value, self.properties[asked.property].name
                    ));
                }
            }
            // Ours to say; an echo of a port in loop-back.
            Frame::Set { .. } => {}
        }
    }

    fn work(&mut self, now_ms: u64, readings: &mut Vec<Reading>) -> Result<(), String> {
        readings.append(&mut self.opened);
        let bytes = self.port.borrow_mut().pump(self.client)?;
        if !bytes.is_empty() {
            self.heard(now_ms);
            // Taken out while they call back into the driver.
            if self.settings.framing == Framing::Frames {
                let mut frames = std::mem::take(&mut self.frames);
                frames.feed(&bytes, |frame| self.frame(frame, readings));
                self.frames = frames;
            } else {
                let mut lines = std::mem::take(&mut self.lines);
                lines.feed(&bytes, |line| self.line(line, readings));
                self.lines = lines;
            }
        }
        Ok(())
    }

    fn heard(&mut self, now_ms: u64) {
        self.heard_ms = now_ms;
        if std::mem::take(&mut self.silent) {
            // Told again even when they are as before: they were stale.
            self.last.fill(None);
        }
    }

    fn silence_due_ms(&self) -> Option<u64> {
        let after_ms = self.settings.silent_after_ms;
        (after_ms > 0 && !self.silent).then_some(self.heard_ms + after_ms)
    }

    fn look_for_silence(&mut self, now_ms: u64, readings: &mut Vec<Reading>) {
        if self.silence_due_ms().is_none_or(|due_ms| due_ms > now_ms) {
            return;
        }
        self.silent = true;
        for (property, last) in self.last.iter().enumerate() {
            readings.push(match last {
                Some(last) => Reading::stale(property, last.clone()),
                None => Reading::bad(property),
            });
        }
    }

    /// The next question that is due, one at a time.
    fn ask(&mut self, now_ms: u64) -> Result<(), String> {
        let due = self.ask_due_ms.iter().enumerate().filter_map(|(at, due_ms)| Some((due_ms.as_ref()?, at)));
        let Some((due_ms, at)) = due.min().map(|(due_ms, at)| (*due_ms, at)) else { return Ok(()) };
        if due_ms.max(self.ask_not_before_ms) > now_ms {
            return Ok(());
        }
        self.ask_due_ms[at] = Some(now_ms + self.properties[at].collect_cycle_ms);
        self.ask_not_before_ms = now_ms + ASK_PAUSE_MS;
        let question = self.text(at).and_then(|text| text.ask.as_ref()).map(|ask| ask.line(""));
        question.transpose()?.map_or(Ok(()), |line| self.send(&line))
    }

    fn repeat_sets(&mut self, now_ms: u64) -> Result<(), String> {
        let mut again: Vec<frames::Encoded> = Vec::new();
        let properties = &self.properties;
        let mut silent = None;
        self.asked.retain_mut(|asked| {
            if now_ms < asked.due_ms {
                return true;
            }
            let Some(pause_ms) = SET_RETRY_MS.get(asked.tries) else {
                silent = Some(format!(
                    "the sensor does not answer to {} = {}; check the cable and the baud rate",
                    properties[asked.property].name, asked.value
                ));
                return false;
            };
            asked.tries += 1;
            asked.due_ms = now_ms + pause_ms;
            let Access::Channel(channel) = properties[asked.property].access else { return false };
            let set = Frame::Set { sequence: asked.sequence, channel, value: asked.value.clone() };
            again.push(frames::encode(&set));
            true
        });
        if silent.is_some() {
            self.complaint = silent;
        }
        again.iter().try_for_each(|bytes| self.port.borrow_mut().send(bytes))
    }
}

impl Driver for SerialDriver {
    fn waits(&self, waits: &mut Vec<Wait>) {
        if let Some((fd, write)) = self.port.borrow().wait() {
            waits.push(Wait { fd, write });
        }
    }

    fn ready(&mut self, now_ms: u64, readings: &mut Vec<Reading>) -> Result<(), String> {
        self.work(now_ms, readings)
    }

    fn tick(&mut self, now_ms: u64, readings: &mut Vec<Reading>) -> Result<(), String> {
        self.work(now_ms, readings)?;
        self.repeat_sets(now_ms)?;
        self.ask(now_ms)?;
        self.look_for_silence(now_ms, readings);
        self.work(now_ms, readings)
    }

    fn deadline_ms(&self) -> Option<u64> {
        if !self.opened.is_empty() || self.port.borrow().has_news(self.client) {
            return Some(0);
        }
        let sets = self.asked.iter().map(|asked| asked.due_ms).min();
        let asks = self.ask_due_ms.iter().flatten().min().map(|due_ms| self.ask_not_before_ms.max(*due_ms));
        [sets, asks, self.silence_due_ms()].into_iter().flatten().min()
    }

    fn set(
        &mut self,
        now_ms: u64,
        property: usize,
        value: &str,
        readings: &mut Vec<Reading>,
    ) -> Result<(), String> {
        match &self.properties[property].access {
            Access::Text(text) => {
                let Some(write) = &text.write else {
                    return Err(format!("{} is read only", self.properties[property].name));
                };
                match write.line(value) {
                    Ok(line) => {
                        self.complaint = None;
                        self.send(&line)?;
                        // Text devices do not acknowledge: what was sent is taken as done until the device says otherwise.
                        self.take_value(property, value, readings);
                    }
                    Err(reason) => {
                        let name = &self.properties[property].name;
                        self.complaint = Some(format!("{name} cannot be written: {reason}"));
                    }
                }
            }
            Access::Channel(channel) => {
                let Some(wanted) = FrameValue::from_text(value) else {
                    self.complaint = Some(format!("{value:?} is too long for a frame"));
                    return Ok(());
                };
                let sequence = self.port.borrow_mut().next_sequence();
                let set = Frame::Set { sequence, channel: *channel, value: wanted.clone() };
                self.asked.retain(|asked| asked.property != property);
                self.asked.push(Asked {
                    property,
                    sequence,
                    value: wanted,
                    tries: 1,
                    due_ms: now_ms + SET_RETRY_MS[0],
                });
                self.port.borrow_mut().send(&frames::encode(&set))?;
            }
            _ => return Err(format!("{} is no serial property", self.properties[property].name)),
        }
        self.work(now_ms, readings)
    }

    fn complaint(&self) -> Option<String> {
        let silence = || {
            let after_ms = self.settings.silent_after_ms;
            let path = &self.settings.path;
            format!("nothing came from {path} for {after_ms} ms; check that the device is on, and baudRate")
        };
        self.complaint.clone().or_else(|| self.silent.then(silence))
    }
}

impl Drop for SerialDriver {
    fn drop(&mut self) {
        self.port.borrow_mut().leave(self.client);
    }
}
