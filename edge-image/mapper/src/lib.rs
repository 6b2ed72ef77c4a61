//! mapper: drives the devices of a node (GPIO lines, serial lines, Modbus) from descriptions on the MQTT bus.
//!
//! Not here: twins, the cloud, brokers. One thread and one `poll` loop; it needs no runtime.
//!
//! Invariants: what cannot work is a device state with a reason, never an exit; one device's fault does not stop the others;
//! outputs belong to the line-holder process ([`holder`]) and so survive this program; every buffer is bounded ([`limits`]).
//!
//! Start at [`run`] (the loop), [`engine`] (what happens to devices), [`plan`] (what a Device's fields mean).

// The conformance suite of `tests/lines` is a unit test too.
#[cfg(test)]
extern crate self as mapper;

pub mod board;
pub mod check;
pub mod cli;
#[cfg(feature = "dmi")]
pub mod dmi;
pub mod driver;
pub mod engine;
pub mod expression;
pub mod gpio;
pub mod holder;
pub mod hotplug;
pub mod limits;
pub mod modbus;
#[cfg(feature = "laptop")]
pub mod new;
pub mod plan;
pub mod polled;
pub mod pwm;
pub mod run;
pub mod scan;
pub mod serial;
#[cfg(feature = "laptop")]
pub mod wiring;

/// Microseconds of a clock that never steps; the kernel stamps edges with it.
pub fn monotonic_us() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .unwrap_or(nix::sys::time::TimeSpec::new(0, 0));
    (now.tv_sec() as u64) * 1_000_000 + (now.tv_nsec() as u64) / 1_000
}

pub fn monotonic_ms() -> u64 {
    monotonic_us() / 1000
}

/// Milliseconds since 1970, for messages.
pub fn wall_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}
