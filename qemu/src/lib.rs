//! Starts an image in QEMU's `virt` machine and drives it from outside, as a bench technician would: console, power, GPIO lines,
//! serial cables, forwarded ports. Nothing inside the guest is asked to help.
//!
//! Is not: a judge of what the guest does; tests are. It knows no Kinglet program.
//! Invariants: a [`Machine`] that is dropped has no process left; no fixed port and no fixed path is used.
//! Start at [`Machine::start`] ([`RaspberryPi3::start`] for the other machine, [`Bare::start`] for a kernel with one program); [`disk::provision`] prepares the image first.

mod bare;
mod console;
pub mod disk;
mod gpio;
mod machine;
mod qmp;
mod qtest;
mod raspi;

pub use bare::{Bare, InitFile};
pub use console::Console;
pub use gpio::Gpio;
pub use machine::{Config, Machine, Programs, USB_SERIAL_NUMBER};
pub use qmp::Qmp;
pub use raspi::{CHIP_ADDRESS, RaspberryPi3, THERMOMETER_ADDRESS};
