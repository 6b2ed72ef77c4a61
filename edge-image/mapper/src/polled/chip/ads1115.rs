//! Texas Instruments ADS1115: four analog inputs of 16 bits. Source: data sheet SBAS444 (sections "Single-shot mode" and "Config register").
//!
//! An input is measured when it is read: the chip sleeps in between.

use std::time::Duration;

use super::{Bus, Wrong};
use crate::plan::{chip::Input, gpio::decimal_text};

const CONVERSION: u8 = 0;
const CONFIG: u8 = 1;
/// Start, and "done" when it is read.
const START: u16 = 1 << 15;
const AGAINST_GROUND: u16 = 1 << 14;
const SINGLE_SHOT: u16 = 1 << 8;
/// 128 a second.
const RATE: u16 = 0b100 << 5;
const NO_COMPARATOR: u16 = 0b11;
const LOOKS_MAX: usize = 20;
const LOOK_PAUSE: Duration = Duration::from_millis(2);

/// The chip's 16 bits as the property's value.
pub fn value(input: Input, raw: i16) -> String {
    let volts = f64::from(raw) * input.range.volts / 32768.0;
    decimal_text(volts * input.scale + input.offset, 5)
}

pub fn read(bus: &mut dyn Bus, input: Input) -> Result<String, Wrong> {
    let config = START
        | AGAINST_GROUND
        | u16::from(input.channel) << 12
        | u16::from(input.range.code) << 9
        | SINGLE_SHOT
        | RATE
        | NO_COMPARATOR;
    let [high, low] = config.to_be_bytes();
    bus.exchange(&[CONFIG, high, low], &mut [])?;
    for _ in 0..LOOKS_MAX {
        std::thread::sleep(LOOK_PAUSE);
        let mut status = [0; 2];
        bus.exchange(&[CONFIG], &mut status)?;
        if u16::from_be_bytes(status) & START != 0 {
            let mut raw = [0; 2];
            bus.exchange(&[CONVERSION], &mut raw)?;
            return Ok(value(input, i16::from_be_bytes(raw)));
        }
    }
    Err(Wrong::Chip("the conversion does not end; is it an ADS1115?".into()))
}
