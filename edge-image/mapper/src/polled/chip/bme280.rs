//! Bosch BME280 (temperature, pressure, humidity) and BMP280 (the first two). Source: data sheets BST-BME280-DS002 (sections 4.2.3, 5.3)
//! and BST-BMP280-DS001 (section 3.12, an example with numbers).
//!
//! The raw numbers mean something only with the chip's factory constants. Each measurement is started by us (forced mode): the chip sleeps
//! in between and does not warm itself.

use std::time::{Duration, Instant};

use super::{Bus, Wrong};
use crate::plan::{chip::Quantity, gpio::decimal_text};

const CHIP_ID: u8 = 0xd0;
const BME280: u8 = 0x60;
const BMP280: [u8; 3] = [0x56, 0x57, 0x58];
const CONSTANTS: u8 = 0x88;
const HUMIDITY_CONSTANTS: u8 = 0xe1;
const CONTROL_HUMIDITY: u8 = 0xf2;
const STATUS: u8 = 0xf3;
const CONTROL: u8 = 0xf4;
const DATA: u8 = 0xf7;
/// Each quantity once, and start.
const ONCE: u8 = 0b001;
const FORCED: u8 = 0b01;
const MEASURING: u8 = 0b1000;
/// A measurement takes 9.3 ms at most (appendix B).
const LOOKS_MAX: usize = 20;
const LOOK_PAUSE: Duration = Duration::from_millis(2);
/// The three values of one turn come from one measurement.
const FRESH: Duration = Duration::from_millis(200);

/// The factory's constants, as the data sheet names them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Constants {
    t: [f64; 3],
    p: [f64; 9],
    /// A BMP280 has none.
    h: Option<[f64; 6]>,
}

impl Constants {
    /// `first`: 26 bytes from 0x88; `second`: 7 bytes from 0xe1.
    pub fn new(first: &[u8; 26], second: Option<&[u8; 7]>) -> Constants {
        let unsigned = |at: usize| f64::from(u16::from_le_bytes([first[at], first[at + 1]]));
        let signed = |at: usize| f64::from(i16::from_le_bytes([first[at], first[at + 1]]));
        let mut p = [0.0; 9];
        p[0] = unsigned(6);
        for (at, p) in p.iter_mut().enumerate().skip(1) {
            *p = signed(6 + 2 * at);
        }
        let h = second.map(|b| {
            // Two constants of twelve bits share the middle byte.
            let h4 = i16::from(b[3] as i8) << 4 | i16::from(b[4] & 0x0f);
            let h5 = i16::from(b[5] as i8) << 4 | i16::from(b[4] >> 4);
            [
                f64::from(first[25]),
                f64::from(i16::from_le_bytes([b[0], b[1]])),
                f64::from(b[2]),
                f64::from(h4),
                f64::from(h5),
                f64::from(b[6] as i8),
            ]
        });
        Constants { t: [unsigned(0), signed(2), signed(4)], p, h }
    }

    /// °C, hPa, and % if the chip has that. `data`: 8 bytes from 0xf7.
    pub fn values(&self, data: &[u8; 8]) -> Values {
        let twenty = |at: usize| {
            f64::from(u32::from(data[at]) << 12 | u32::from(data[at + 1]) << 4 | u32::from(data[at + 2]) >> 4)
        };
        let (raw_p, raw_t) = (twenty(0), twenty(3));
        let raw_h = f64::from(u16::from_be_bytes([data[6], data[7]]));
        let fine = self.fine(raw_t);
        Values {
            temperature: fine / 5120.0,
            pressure: self.pressure(raw_p, fine) / 100.0,
            humidity: self.h.as_ref().map(|h| humidity(h, raw_h, fine)),
        }
    }

    /// The temperature in the unit that the other quantities are corrected with.
    fn fine(&self, raw: f64) -> f64 {
        let [t1, t2, t3] = self.t;
        let first = (raw / 16384.0 - t1 / 1024.0) * t2;
        let second = (raw / 131_072.0 - t1 / 8192.0).powi(2) * t3;
        first + second
    }

    fn pressure(&self, raw: f64, fine: f64) -> f64 {
        let [p1, p2, p3, p4, p5, p6, p7, p8, p9] = self.p;
        let x = fine / 2.0 - 64000.0;
        let slope = ((p3 * x * x / 524_288.0 + p2 * x) / 524_288.0 / 32768.0 + 1.0) * p1;
        if slope == 0.0 {
            return 0.0;
        }
        let shift = (x * x * p6 / 32768.0 + x * p5 * 2.0) / 4.0 + p4 * 65536.0;
        let p = (1_048_576.0 - raw - shift / 4096.0) * 6250.0 / slope;
        p + (p9 * p * p / 2_147_483_648.0 + p * p8 / 32768.0 + p7) / 16.0
    }
}

fn humidity(h: &[f64; 6], raw: f64, fine: f64) -> f64 {
    let [h1, h2, h3, h4, h5, h6] = *h;
    let x = fine - 76800.0;
    let linear = raw - (h4 * 64.0 + h5 / 16384.0 * x);
    let warm = 1.0 + h6 / 67_108_864.0 * x * (1.0 + h3 / 67_108_864.0 * x);
    let value = linear * (h2 / 65536.0 * warm);
    (value * (1.0 - h1 * value / 524_288.0)).clamp(0.0, 100.0)
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Values {
    pub temperature: f64,
    pub pressure: f64,
    pub humidity: Option<f64>,
}

/// A chip on a bus: its constants, once they were read, and the last measurement.
#[derive(Default)]
pub struct Sensor {
    constants: Option<Constants>,
    last: Option<(Instant, Values)>,
}

impl Sensor {
    pub fn read(&mut self, bus: &mut dyn Bus, quantity: Quantity) -> Result<String, Wrong> {
        let values = match self.last.filter(|(at, _)| at.elapsed() < FRESH) {
            Some((_, values)) => values,
            None => {
                let values = self.measure(bus).inspect_err(|_| {
                    // It may be another chip when it answers again.
                    self.constants = None;
                })?;
                self.last = Some((Instant::now(), values));
                values
            }
        };
        match quantity {
            Quantity::Temperature => Ok(decimal_text(values.temperature, 2)),
            Quantity::Pressure => Ok(decimal_text(values.pressure, 2)),
            Quantity::Humidity => values.humidity.map(|value| decimal_text(value, 1)).ok_or_else(|| {
                Wrong::Chip("it is a BMP280, which has no humidity; remove that property".into())
            }),
        }
    }

    fn measure(&mut self, bus: &mut dyn Bus) -> Result<Values, Wrong> {
        let constants = match &self.constants {
            Some(constants) => constants.clone(),
            None => read_constants(bus)?,
        };
        bus.exchange(&[CONTROL_HUMIDITY, ONCE], &mut [])?;
        bus.exchange(&[CONTROL, ONCE << 5 | ONCE << 2 | FORCED], &mut [])?;
        for _ in 0..LOOKS_MAX {
            std::thread::sleep(LOOK_PAUSE);
            let mut status = [0];
            bus.exchange(&[STATUS], &mut status)?;
            if status[0] & MEASURING == 0 {
                let mut data = [0; 8];
                bus.exchange(&[DATA], &mut data)?;
                // What it holds after a reset, before it has measured.
                if data[..6] == [0x80, 0, 0, 0x80, 0, 0] {
                    return Err(Wrong::Chip("it has not measured yet".into()));
                }
                let values = constants.values(&data);
                self.constants = Some(constants);
                return Ok(values);
            }
        }
        Err(Wrong::Chip("it measures and does not end; take it from its supply for a moment".into()))
    }
}

fn read_constants(bus: &mut dyn Bus) -> Result<Constants, Wrong> {
    let mut id = [0];
    bus.exchange(&[CHIP_ID], &mut id)?;
    let has_humidity = id[0] == BME280;
    if !has_humidity && !BMP280.contains(&id[0]) {
        let id = id[0];
        return Err(Wrong::Chip(format!(
            "the chip there says that it is {id:#04x}, and a BME280 is 0x60; correct address or chip"
        )));
    }
    let (mut first, mut second) = ([0; 26], [0; 7]);
    bus.exchange(&[CONSTANTS], &mut first)?;
    if has_humidity {
        bus.exchange(&[HUMIDITY_CONSTANTS], &mut second)?;
    }
    Ok(Constants::new(&first, has_humidity.then_some(&second)))
}
