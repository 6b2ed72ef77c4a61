//! Devices that are asked by the clock and answer slowly: 1-Wire, I2C, SPI. The asking may block in the kernel (a 1-Wire sensor
//! takes 750 ms, a bus that hangs takes seconds), so that each device has a thread of its own; the mapper's loop never waits.
//!
//! [`Source`] is what a kind of bus implements, [`PolledDriver`] is what the engine drives.

pub mod chip;
pub mod driver;
#[cfg(not(feature = "rppal"))]
pub mod kernel;
pub mod onewire;
pub mod registers;
mod worker;

pub use driver::PolledDriver;

/// Why a value could not be had; a line for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Not this time: noise, a sensor that does not answer. The last value stands for a while.
    Passing(String),
    /// The bus itself is gone: the device is opened anew.
    Gone(String),
}

/// Reads and writes properties by their index in the plan. Runs on the device's own thread; may block.
pub trait Source: Send {
    fn read(&mut self, property: usize) -> Result<String, Failure>;
    fn write(&mut self, property: usize, _value: &str) -> Result<(), Failure> {
        Err(Failure::Passing(format!("property {property} is read only")))
    }
}

/// A bus on which bytes are sent and others come back: I2C (a repeated start in between) or SPI (what comes after what was sent).
pub trait Bus: Send {
    fn exchange(&mut self, send: &[u8], receive: &mut [u8]) -> std::io::Result<()>;
}

#[cfg(test)]
mod tests;
