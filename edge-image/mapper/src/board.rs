//! What board this is: rppal knows Pis (feature `rppal`), the device tree knows the others.
//!
//! This file is the place of rppal: the board's model, I2C and SPI. Not GPIO: it needs /dev/gpiomem, and the character device
//! works on every board (design decision 9). Not PWM: it finds its chip by number, which moved on the Pi 5 between kernels; ours
//! is found by label (`crate::pwm`).

#[cfg(feature = "rppal")]
use std::io;

use crate::{
    plan::register::{I2cPlace, SpiPlace},
    polled::Bus,
};

/// For example `Raspberry Pi Zero 2 W`, or `linux,dummy-virt` in QEMU.
pub fn model() -> String {
    pi_model().or_else(device_tree_model).unwrap_or_else(|| "unknown board".into())
}

#[cfg(feature = "rppal")]
fn pi_model() -> Option<String> {
    rppal::system::DeviceInfo::new().ok().map(|info| info.model().to_string())
}

#[cfg(not(feature = "rppal"))]
fn pi_model() -> Option<String> {
    None
}

fn device_tree_model() -> Option<String> {
    let text = std::fs::read_to_string("/proc/device-tree/model").ok()?;
    let text = text.trim_end_matches('\0').trim();
    (!text.is_empty()).then(|| text.to_owned())
}

pub fn open_i2c(place: &I2cPlace) -> Result<Box<dyn Bus>, String> {
    i2c(place).map_err(|error| {
        format!("cannot open /dev/i2c-{}: {error}; is I2C on (on a Pi: dtparam=i2c_arm=on)?", place.bus)
    })
}

pub fn open_spi(place: &SpiPlace) -> Result<Box<dyn Bus>, String> {
    spi(place).map_err(|error| {
        format!(
            "cannot open /dev/spidev{}.{}: {error}; is SPI on (on a Pi: dtparam=spi=on)?",
            place.bus, place.select
        )
    })
}

#[cfg(not(feature = "rppal"))]
use crate::polled::kernel::{i2c, spi};

#[cfg(feature = "rppal")]
fn i2c(place: &I2cPlace) -> io::Result<Box<dyn Bus>> {
    let mut i2c = rppal::i2c::I2c::with_bus(place.bus).map_err(i2c_error)?;
    i2c.set_slave_address(place.address).map_err(i2c_error)?;
    Ok(Box::new(i2c))
}

#[cfg(feature = "rppal")]
impl Bus for rppal::i2c::I2c {
    fn exchange(&mut self, send: &[u8], receive: &mut [u8]) -> io::Result<()> {
        if receive.is_empty() {
            return self.write(send).map(drop).map_err(i2c_error);
        }
        self.write_read(send, receive).map_err(i2c_error)
    }
}

#[cfg(feature = "rppal")]
fn i2c_error(error: rppal::i2c::Error) -> io::Error {
    match error {
        rppal::i2c::Error::Io(error) => error,
        other => io::Error::other(other.to_string()),
    }
}

#[cfg(feature = "rppal")]
fn spi(place: &SpiPlace) -> io::Result<Box<dyn Bus>> {
    use rppal::spi::{Bus as Number, Mode, SlaveSelect, Spi};
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    let numbers =
        [Number::Spi0, Number::Spi1, Number::Spi2, Number::Spi3, Number::Spi4, Number::Spi5, Number::Spi6];
    let selects = [SlaveSelect::Ss0, SlaveSelect::Ss1, SlaveSelect::Ss2, SlaveSelect::Ss3];
    let bus = numbers.get(usize::from(place.bus)).ok_or_else(missing)?;
    let select = selects.get(usize::from(place.select)).ok_or_else(missing)?;
    let mode = [Mode::Mode0, Mode::Mode1, Mode::Mode2, Mode::Mode3][usize::from(place.mode & 3)];
    Spi::new(*bus, *select, place.hz, mode).map(|spi| Box::new(spi) as Box<dyn Bus>).map_err(spi_error)
}

#[cfg(feature = "rppal")]
impl Bus for rppal::spi::Spi {
    fn exchange(&mut self, send: &[u8], receive: &mut [u8]) -> io::Result<()> {
        // Both directions run at once: what is sent first brings nothing back yet.
        let mut out = send.to_vec();
        out.resize(send.len() + receive.len(), 0);
        let mut back = vec![0; out.len()];
        self.transfer(&mut back, &out).map_err(spi_error)?;
        receive.copy_from_slice(&back[send.len()..]);
        Ok(())
    }
}

#[cfg(feature = "rppal")]
fn spi_error(error: rppal::spi::Error) -> io::Error {
    match error {
        rppal::spi::Error::Io(error) => error,
        other => io::Error::other(other.to_string()),
    }
}
