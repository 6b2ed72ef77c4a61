//! A serial device: one port, many properties.

use super::{
    frames::{self, Frame, FrameValue, Frames},
    lines::Lines,
    port::OpenPort,
};
use crate::{
    driver::{Driver, Reading, Wait},
    limits::{SERIAL_OUTPUT_BYTES_MAX, SERIAL_READ_BYTES},
    plan::{Access, Property, serial::Port, value_is_allowed},
};

/// A Set frame that is not answered is sent again after these pauses.
const SET_RETRY_MS: [u64; 3] = [1_000, 2_000, 4_000];

pub struct SerialDriver {
    port: OpenPort,
    properties: Vec<Property>,
    lines: Lines,
    frames: Frames,
    output: heapless::Vec<u8, SERIAL_OUTPUT_BYTES_MAX>,
    /// The Set frames that wait for their Done, one per property.
    asked: Vec<Asked>,
    sequence: u16,
    /// The last value of each property: lines repeat, and only changes are news.
    last: Vec<Option<String>>,
    /// A value that no twin takes, said once per property.
    odd: Vec<bool>,
    silent: Option<String>,
}

struct Asked {
    property: usize,
    sequence: u16,
    value: FrameValue,
    tries: usize,
    due_ms: u64,
}

impl SerialDriver {
    pub fn open(now_ms: u64, port: &Port, properties: &[Property]) -> Result<SerialDriver, String> {
        let mut driver = SerialDriver {
            port: OpenPort::open(port)?,
            properties: properties.to_vec(),
            lines: Lines::default(),
            frames: Frames::default(),
            output: heapless::Vec::new(),
            asked: Vec::new(),
            sequence: 0,
            last: vec![None; properties.len()],
            odd: vec![false; properties.len()],
            silent: None,
        };
        for (at, property) in properties.iter().enumerate() {
            if let Some(value) = &property.desired {
                driver.set(now_ms, at, value, &mut Vec::new())?;
            }
        }
        Ok(driver)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        if self.output.extend_from_slice(bytes).is_err() {
            return Err(format!(
                "the port takes no output: {SERIAL_OUTPUT_BYTES_MAX} bytes wait; check the cable and flowControl"
            ));
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<(), String> {
        while !self.output.is_empty() {
            let written = self.port.write(&self.output)?;
            if written == 0 {
                break;
            }
            self.output.rotate_left(written);
            self.output.truncate(self.output.len() - written);
        }
        Ok(())
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
            if let Access::Text(text) = &self.properties[at].access
                && let Some(value) = text.value(line)
            {
                self.take_value(at, value, readings);
            }
        }
    }

    fn frame(&mut self, frame: Frame, readings: &mut Vec<Reading>) {
        match frame {
            Frame::Report { channel, value, .. } => {
                self.silent = None;
                let wanted = Access::Channel(channel);
                for at in 0..self.properties.len() {
                    if self.properties[at].access == wanted {
                        self.take_value(at, &value.text(), readings);
                    }
                }
            }
            Frame::Done { sequence, accepted } => {
                self.silent = None;
                let Some(at) = self.asked.iter().position(|asked| asked.sequence == sequence) else { return };
                let asked = self.asked.swap_remove(at);
                if accepted {
                    self.take_value(asked.property, &asked.value.text(), readings);
                } else {
                    self.silent = Some(format!(
                        "the sensor refused {} for {}",
                        asked.value.text(),
                        self.properties[asked.property].name
                    ));
                }
            }
            // Ours to say; an echo of a port in loop-back.
            Frame::Set { .. } => {}
        }
    }
}

impl Driver for SerialDriver {
    fn waits(&self, waits: &mut Vec<Wait>) {
        waits.push(Wait { fd: self.port.fd(), write: !self.output.is_empty() });
    }

    fn ready(&mut self, _now_ms: u64, readings: &mut Vec<Reading>) -> Result<(), String> {
        self.flush()?;
        let mut buffer = [0; SERIAL_READ_BYTES];
        let len = self.port.read(&mut buffer)?;
        // Taken out while they call back into the driver.
        if self.properties.iter().any(|property| matches!(property.access, Access::Channel(_))) {
            let mut frames = std::mem::take(&mut self.frames);
            frames.feed(&buffer[..len], |frame| self.frame(frame, readings));
            self.frames = frames;
        } else {
            let mut lines = std::mem::take(&mut self.lines);
            lines.feed(&buffer[..len], |line| self.line(line, readings));
            self.lines = lines;
        }
        Ok(())
    }

    fn tick(&mut self, now_ms: u64, _readings: &mut Vec<Reading>) -> Result<(), String> {
        let mut again: heapless::Vec<frames::Encoded, 8> = heapless::Vec::new();
        let mut silent = None;
        let properties = &self.properties;
        self.asked.retain_mut(|asked| {
            if now_ms < asked.due_ms || again.is_full() {
                return true;
            }
            let Some(pause_ms) = SET_RETRY_MS.get(asked.tries) else {
                let name = &properties[asked.property].name;
                silent = Some(format!(
                    "the sensor does not answer to {name} = {}; check the cable and the baud rate",
                    asked.value.text()
                ));
                return false;
            };
            asked.tries += 1;
            asked.due_ms = now_ms + pause_ms;
            let Property { access: Access::Channel(channel), .. } = properties[asked.property] else {
                return false;
            };
            let set = Frame::Set { sequence: asked.sequence, channel, value: asked.value.clone() };
            again.push(frames::encode(&set)).is_ok()
        });
        for bytes in &again {
            self.send(bytes)?;
        }
        if silent.is_some() {
            self.silent = silent;
        }
        Ok(())
    }

    fn deadline_ms(&self) -> Option<u64> {
        self.asked.iter().map(|asked| asked.due_ms).min()
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
                let line = format!("{}\n", write.replace("{}", value));
                self.send(line.as_bytes())?;
                // Text devices do not acknowledge: what was sent is taken as done until the device says otherwise.
                self.take_value(property, value, readings);
                Ok(())
            }
            Access::Channel(channel) => {
                let Some(wanted) = FrameValue::from_text(value) else {
                    return Err(format!("{value:?} is too long for a frame"));
                };
                self.sequence = self.sequence.wrapping_add(1);
                let set = Frame::Set { sequence: self.sequence, channel: *channel, value: wanted.clone() };
                self.asked.retain(|asked| asked.property != property);
                self.asked.push(Asked {
                    property,
                    sequence: self.sequence,
                    value: wanted,
                    tries: 1,
                    due_ms: now_ms + SET_RETRY_MS[0],
                });
                self.send(&frames::encode(&set))
            }
            _ => Err(format!("{} is no serial property", self.properties[property].name)),
        }
    }

    fn complaint(&self) -> Option<String> {
        self.silent.clone()
    }
}
