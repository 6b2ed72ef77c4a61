//! 1-Wire thermometers through the kernel's files (Documentation/w1/slaves/w1_therm.rst): `devices/<id>/w1_slave` holds the
//! sensor's nine bytes twice, whether their CRC is right, and the temperature.

use std::{fs, io, path::PathBuf};

use super::{Failure, Source};
use crate::{
    gpio::listed,
    limits::ONEWIRE_FILE_BYTES_MAX,
    plan::{gpio::decimal_text, sensor::Thermometer},
};

pub const ROOT: &str = "/sys/bus/w1";
/// Families that the kernel's thermometer driver knows: DS18S20, DS1822, DS18B20, DS1825, DS28EA00.
const FAMILIES: [&str; 5] = ["10-", "22-", "28-", "3b-", "42-"];

pub struct OneWire {
    root: PathBuf,
    sensors: Vec<Thermometer>,
    /// What each sensor said last, in thousandths of a degree.
    last: Vec<Option<i32>>,
    doubted: Vec<Option<i32>>,
}

/// What a reading says.
#[derive(Debug, PartialEq, Eq)]
pub enum Scratchpad {
    Millidegrees { value: i32, after_power_on: bool },
    Wrong(&'static str),
}

impl OneWire {
    pub fn new(root: impl Into<PathBuf>, sensors: Vec<Thermometer>) -> OneWire {
        let last = vec![None; sensors.len()];
        OneWire { root: root.into(), doubted: last.clone(), sensors, last }
    }

    /// Ids of the thermometers that the kernel sees.
    pub fn there(&self) -> Vec<String> {
        let entries = fs::read_dir(self.root.join("devices")).map(|entries| entries.flatten().collect());
        let mut ids: Vec<String> = entries
            .unwrap_or_else(|_| Vec::new())
            .iter()
            .map(|entry: &fs::DirEntry| entry.file_name().to_string_lossy().into_owned())
            .filter(|id| FAMILIES.iter().any(|family| id.starts_with(family)))
            .collect();
        ids.sort();
        ids
    }

    /// The id of a sensor; one without is the only one on the wire.
    fn id(&self, property: usize) -> Result<String, Failure> {
        if let Some(id) = &self.sensors[property].id {
            return Ok(id.clone());
        }
        let there = self.there();
        match there.as_slice() {
            [only] => Ok(only.clone()),
            [] => Err(Failure::Passing(
                "there is no thermometer on the 1-Wire bus; is dtoverlay=w1-gpio on, and the pull-up there?"
                    .into(),
            )),
            several => Err(Failure::Passing(format!(
                "there are several thermometers; write configData.id: one of {}",
                listed(several.iter().map(String::as_str))
            ))),
        }
    }

    fn scratchpad(&self, id: &str) -> Result<Scratchpad, Failure> {
        let path = self.root.join("devices").join(id).join("w1_slave");
        let mut text = Vec::new();
        let read = fs::File::open(&path).and_then(|file| {
            io::Read::read_to_end(&mut io::Read::take(file, ONEWIRE_FILE_BYTES_MAX), &mut text)
        });
        match read {
            Ok(_) => Ok(parse(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Failure::Passing(format!(
                "sensor {id} is not on the bus; there are: {}",
                listed(self.there().iter().map(String::as_str))
            ))),
            Err(error) => Err(Failure::Passing(format!("sensor {id} does not answer: {error}"))),
        }
    }
}

impl Source for OneWire {
    fn read(&mut self, property: usize) -> Result<String, Failure> {
        let id = self.id(property)?;
        let (value, after_power_on) = match self.scratchpad(&id)? {
            Scratchpad::Millidegrees { value, after_power_on } => (value, after_power_on),
            Scratchpad::Wrong(reason) => return Err(Failure::Passing(format!("sensor {id}: {reason}"))),
        };
        // 85.000 is what a sensor says that was not asked to measure. A real 85 is near what it said before, or says so twice.
        let near = self.last[property].is_some_and(|last| last.abs_diff(value) <= 5_000);
        if value == 85_000 && (after_power_on || !(near || self.doubted[property] == Some(value))) {
            self.doubted[property] = (!after_power_on).then_some(value);
            return Err(Failure::Passing(format!(
                "sensor {id} says 85 degrees, its value after power-on: it has lost power; check its supply"
            )));
        }
        (self.last[property], self.doubted[property]) = (Some(value), None);
        Ok(decimal_text(f64::from(value) / 1000.0 + self.sensors[property].offset, 3))
    }
}

/// Reads the kernel's text. Nothing in it is trusted: the CRC is computed again.
pub fn parse(text: &[u8]) -> Scratchpad {
    let text = String::from_utf8_lossy(text);
    let mut lines = text.lines();
    let (Some(first), Some(second)) = (lines.next(), lines.next()) else {
        return Scratchpad::Wrong("it said nothing");
    };
    let mut bytes = [0u8; 9];
    let mut words = first.split_ascii_whitespace();
    for byte in &mut bytes {
        let Some(read) = words.next().and_then(|word| u8::from_str_radix(word, 16).ok()) else {
            return Scratchpad::Wrong("it said something odd");
        };
        *byte = read;
    }
    if bytes == [0; 9] {
        return Scratchpad::Wrong("it says only zeros: the data wire has a short circuit to ground");
    }
    if bytes == [0xff; 9] {
        return Scratchpad::Wrong("nothing answers: it was unplugged");
    }
    if !first.trim_end().ends_with("YES") || crc8(&bytes[..8]) != bytes[8] {
        return Scratchpad::Wrong("its checksum is wrong: check cable, length and pull-up (4.7 kOhm)");
    }
    let value = second.rsplit_once("t=").and_then(|(_, number)| number.trim().parse::<i32>().ok());
    match value {
        Some(value) if (-55_000..=125_000).contains(&value) => {
            // The seventh byte is 0x0c after power-on, and 0x10 or counted down after a conversion.
            Scratchpad::Millidegrees { value, after_power_on: bytes[6] == 0x0c && bytes[..2] == [0x50, 0x05] }
        }
        Some(_) => Scratchpad::Wrong("its temperature is outside of -55 to 125 degrees"),
        None => Scratchpad::Wrong("it said something odd"),
    }
}

/// Dallas/Maxim CRC-8 (polynomial x^8 + x^5 + x^4 + 1, low bit first; Maxim application note 27).
fn crc8(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ byte, |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0x8c } else { crc >> 1 })
    })
}
