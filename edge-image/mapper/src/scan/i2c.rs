//! Addresses on I2C buses that answer. Only reads: one byte is asked of each address, as `i2cdetect -r` does. A write, even an empty one,
//! can change a device (some EEPROMs and displays), a read of one byte hardly any.

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Read},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
};

/// Addresses below are for the bus itself, those above reserved.
const FIRST: u8 = 0x08;
const LAST: u8 = 0x77;
/// `ioctl` I2C_SLAVE of linux/i2c-dev.h.
const I2C_SLAVE: u64 = 0x0703;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Answers,
    /// A driver of the kernel has it.
    Taken,
}

/// A bus, or a test's.
pub trait Bus {
    fn look(&mut self, address: u8) -> Option<Seen>;
}

pub struct KernelBus(File);

impl KernelBus {
    pub fn open(path: &str) -> std::io::Result<KernelBus> {
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(path).map(KernelBus)
    }
}

impl Bus for KernelBus {
    #[allow(unsafe_code)]
    fn look(&mut self, address: u8) -> Option<Seen> {
        // SAFETY: I2C_SLAVE takes a number, not a pointer, and the descriptor is ours.
        let chosen = unsafe { libc::ioctl(self.0.as_raw_fd(), I2C_SLAVE as _, libc::c_ulong::from(address)) };
        if chosen < 0 {
            let busy = std::io::Error::last_os_error().kind() == ErrorKind::ResourceBusy;
            return busy.then_some(Seen::Taken);
        }
        self.0.read(&mut [0]).is_ok_and(|len| len == 1).then_some(Seen::Answers)
    }
}

/// What answers, with what it often is.
pub fn report(bus: &mut dyn Bus) -> Vec<String> {
    let seen = (FIRST..=LAST).filter_map(|address| Some((address, bus.look(address)?)));
    seen.map(|(address, seen)| {
        let what = match seen {
            Seen::Taken => " used by the kernel".into(),
            Seen::Answers => common(address).map(|name| format!(" ({name}?)")).unwrap_or_default(),
        };
        format!("address: 0x{address:02x}{what}")
    })
    .collect()
}

fn common(address: u8) -> Option<&'static str> {
    Some(match address {
        0x20..=0x27 => "MCP23017 or PCF8574 expander",
        0x3c | 0x3d => "display",
        0x40..=0x47 => "INA219 or HTU21",
        0x48..=0x4b => "ADS1115 or LM75",
        0x50..=0x57 => "EEPROM",
        0x68 => "clock or MPU6050",
        0x76 | 0x77 => "BME280 or BMP280",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_answers_is_listed_and_the_bus_own_addresses_are_left_alone() {
        struct Fake(Vec<u8>);
        impl Bus for Fake {
            fn look(&mut self, address: u8) -> Option<Seen> {
                self.0.push(address);
                match address {
                    0x76 => Some(Seen::Answers),
                    0x1a => Some(Seen::Answers),
                    0x68 => Some(Seen::Taken),
                    _ => None,
                }
            }
        }
        let mut bus = Fake(Vec::new());
        assert_eq!(
            report(&mut bus),
            ["address: 0x1a", "address: 0x68 used by the kernel", "address: 0x76 (BME280 or BMP280?)"]
        );
        assert_eq!((bus.0.len(), bus.0[0], bus.0[111]), (112, 0x08, 0x77));
    }
}
