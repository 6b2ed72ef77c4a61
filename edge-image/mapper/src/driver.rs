//! What the engine asks of a driver, whatever the protocol.

use std::os::fd::RawFd;

/// A value that was read, as text for the twin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Index of the property in the plan.
    pub property: usize,
    pub value: String,
}

/// A descriptor to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    pub fd: RawFd,
    /// Wait for room to write too.
    pub write: bool,
}

/// One open device. An error means that the device is of no use until it was opened anew; its text goes to the user.
pub trait Driver {
    fn waits(&self, waits: &mut Vec<Wait>);
    /// Called when one of the descriptors is ready.
    fn ready(&mut self, now_ms: u64, readings: &mut Vec<Reading>) -> Result<(), String>;
    /// Called when the deadline has passed.
    fn tick(&mut self, now_ms: u64, readings: &mut Vec<Reading>) -> Result<(), String>;
    fn deadline_ms(&self) -> Option<u64>;
    /// Applies a desired value. What the device then really has comes as a reading.
    fn set(
        &mut self,
        now_ms: u64,
        property: usize,
        value: &str,
        readings: &mut Vec<Reading>,
    ) -> Result<(), String>;
    /// Something to tell although the device works.
    fn complaint(&self) -> Option<String> {
        None
    }
}
