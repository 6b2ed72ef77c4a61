//! Registers on I2C and SPI: the description's bytes to values and back. The buses themselves are rppal's (`crate::board`), or
//! the kernel's own interface where rppal is left out.

use super::{Bus, Failure, Source};
use crate::{limits::REGISTER_BYTES_MAX, plan::register::Register};

/// A device with registers on some bus.
pub struct Registers {
    bus: Box<dyn Bus>,
    registers: Vec<Register>,
    /// For errors: `address 0x76 of /dev/i2c-1`.
    place: String,
}

impl Registers {
    pub fn new(bus: Box<dyn Bus>, registers: Vec<Register>, place: String) -> Registers {
        Registers { bus, registers, place }
    }

    fn raw(&mut self, property: usize) -> Result<u64, Failure> {
        let register = &self.registers[property];
        let mut answer = vec![0; register.skip + register.length];
        self.bus.exchange(&register.read, &mut answer).map_err(|error| failure(&self.place, &error))?;
        debug_assert!(register.length <= REGISTER_BYTES_MAX);
        Ok(register.raw(&answer[register.skip..]))
    }
}

pub(super) fn failure(place: &str, error: &std::io::Error) -> Failure {
    match error.raw_os_error() {
        // What drivers of I2C answer when nobody acknowledged (Documentation/i2c/fault-codes.rst).
        Some(libc::ENXIO | libc::EREMOTEIO) => Failure::Passing(format!(
            "nothing answers at {place}; check wiring and address (mapper scan prints them)"
        )),
        Some(libc::ETIMEDOUT | libc::EAGAIN) => {
            Failure::Passing(format!("the bus of {place} is held by somebody: {error}"))
        }
        Some(libc::ENODEV | libc::ENOENT | libc::EBADF) => Failure::Gone(format!("{place} is gone: {error}")),
        _ => Failure::Passing(format!("{place}: {error}")),
    }
}

impl Source for Registers {
    fn read(&mut self, property: usize) -> Result<String, Failure> {
        let raw = self.raw(property)?;
        Ok(self.registers[property].value(raw))
    }

    fn write(&mut self, property: usize, value: &str) -> Result<(), Failure> {
        // What the mask leaves out stays as it is.
        let full =
            self.registers[property].bytes(self.registers[property].mask).iter().all(|byte| *byte == 0xff);
        let before = if full { 0 } else { self.raw(property)? };
        let register = &self.registers[property];
        let Some(number) = &register.write else {
            return Err(Failure::Passing("it is read only; set configData.write to true".into()));
        };
        let raw = register.with_value(before, value).map_err(Failure::Passing)?;
        let mut send = number.clone();
        send.extend(register.bytes(raw));
        self.bus.exchange(&send, &mut []).map_err(|error| failure(&self.place, &error))
    }
}
