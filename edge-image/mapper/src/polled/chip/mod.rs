//! Decoders of chips that need more than reading registers: a measurement that must be started, or factory constants and arithmetic.
//!
//! One [`Source`] for each device; the arithmetic is in [`bme280`] and [`ads1115`], as plain functions of bytes.

pub mod ads1115;
pub mod bme280;

use super::{Bus, Failure, Source, registers::failure};
use crate::plan::chip::Chip;

/// The properties of one device, in the plan's order.
pub struct Chips {
    bus: Box<dyn Bus>,
    chips: Vec<Chip>,
    place: String,
    bme280: bme280::Sensor,
}

impl Chips {
    pub fn new(bus: Box<dyn Bus>, chips: Vec<Chip>, place: String) -> Chips {
        Chips { bus, chips, place, bme280: bme280::Sensor::default() }
    }
}

/// What can go wrong with a chip that answers.
#[derive(Debug)]
pub enum Wrong {
    Bus(std::io::Error),
    /// A line for the user.
    Chip(String),
}

impl From<std::io::Error> for Wrong {
    fn from(error: std::io::Error) -> Wrong {
        Wrong::Bus(error)
    }
}

impl Source for Chips {
    fn read(&mut self, property: usize) -> Result<String, Failure> {
        let bus = self.bus.as_mut();
        let result = match self.chips[property] {
            Chip::Bme280(quantity) => self.bme280.read(bus, quantity),
            Chip::Ads1115(input) => ads1115::read(bus, input),
        };
        result.map_err(|wrong| match wrong {
            Wrong::Bus(error) => failure(&self.place, &error),
            Wrong::Chip(reason) => Failure::Passing(format!("{}: {reason}", self.place)),
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
