//! What the engine asks of a driver, whatever the protocol.

use std::os::fd::RawFd;

/// How much a value can be trusted. Its name is in the twin's metadata, up to the cloud's DeviceStatus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quality {
    #[default]
    Good,
    /// The device did not answer this time; its last value stands.
    Stale,
    /// There is no value: the device is not there.
    Bad,
}

impl Quality {
    pub fn name(self) -> &'static str {
        match self {
            Quality::Good => "good",
            Quality::Stale => "stale",
            Quality::Bad => "disconnected",
        }
    }
}

/// A value that was read, as text for the twin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Index of the property in the plan.
    pub property: usize,
    /// Of no meaning when the quality is bad.
    pub value: String,
    /// Wall clock of the source in ms, when it knows better than "now".
    pub at_ms: Option<i64>,
    pub quality: Quality,
}

impl Reading {
    /// A good value, read just now.
    pub fn good(property: usize, value: impl Into<String>) -> Reading {
        Reading { property, value: value.into(), at_ms: None, quality: Quality::Good }
    }

    /// The device did not answer: what it said last stands.
    pub fn stale(property: usize, value: impl Into<String>) -> Reading {
        Reading { quality: Quality::Stale, ..Reading::good(property, value) }
    }

    pub fn bad(property: usize) -> Reading {
        Reading { quality: Quality::Bad, ..Reading::good(property, "") }
    }
}

/// What fail-safe values depend on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// The node's agent is there: the connection to its broker is up.
    pub agent: bool,
    /// Since when there is no link to the cloud, on the monotonic clock; `None` while there is one.
    pub cloud_lost_ms: Option<u64>,
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
    /// Applies a desired value; its type, range and access mode were checked ([`crate::plan::Domain::wish`]). What the device then really has comes as a reading.
    fn set(
        &mut self,
        now_ms: u64,
        property: usize,
        value: &str,
        readings: &mut Vec<Reading>,
    ) -> Result<(), String>;
    /// Runs a device method. An error is the caller's answer; the device stays open.
    fn call(
        &mut self,
        _now_ms: u64,
        method: &str,
        _argument: &str,
        _readings: &mut Vec<Reading>,
    ) -> Result<(), String> {
        Err(format!("no such method: {method}"))
    }
    /// How old the desired value is that [`Driver::set`] gets next for this property.
    fn desired_age(&mut self, _property: usize, _age_ms: u64) {}
    /// Agent or link came or went. Called after the opening too, and before anything that depends on it.
    fn surroundings(
        &mut self,
        _now_ms: u64,
        _around: &Surroundings,
        _readings: &mut Vec<Reading>,
    ) -> Result<(), String> {
        Ok(())
    }
    /// Something to tell although the device works.
    fn complaint(&self) -> Option<String> {
        None
    }
}
