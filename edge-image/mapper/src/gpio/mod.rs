//! GPIO lines: the trait that the kernel's character device and the fake implement, and the driver over it.

mod count;
mod driver;
#[cfg(test)]
pub mod fake;
mod input;
pub mod linux;
mod output;
mod uapi;
mod watched;

pub use driver::GpioDriver;

use std::os::fd::RawFd;

use crate::plan::gpio::LineSpec;

#[derive(Debug, thiserror::Error)]
pub enum GpioError {
    #[error("there is no GPIO chip with the label {wanted}; there are: {there}")]
    NoChip { wanted: String, there: String },
    #[error("this board has no known header chip; write configData.chip; there are: {there}")]
    NoHeader { there: String },
    #[error("chip {chip} has no line {line}; it has {there}")]
    NoLine { chip: String, line: String, there: String },
    #[error("the chips {there} have each a line {line}; write configData.chip")]
    Ambiguous { line: String, there: String },
    #[error("line {line} of chip {chip} is used by {user}; free it there, or choose another line")]
    Busy { chip: String, line: String, user: String },
    #[error("cannot {action} line {line} of chip {chip}: {error}")]
    Line { action: &'static str, chip: String, line: String, error: std::io::Error },
}

/// Names for an error, at most so many that it stays a line.
pub fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const NAMES_MAX: usize = 60;
    let mut text = String::new();
    for (at, name) in names.enumerate() {
        if at == NAMES_MAX {
            return text + ", ...";
        }
        text = if at == 0 { name.to_owned() } else { text + ", " + name };
    }
    if text.is_empty() { "none".into() } else { text }
}

/// The value after an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EdgeEvent {
    pub active: bool,
    /// Of the kernel's monotonic clock, taken in the interrupt.
    pub timestamp_ns: u64,
    /// Rises by one with each edge of the line, also with those that the kernel then had no room for.
    pub sequence: u32,
}

/// One line that this process holds, until it is dropped. Levels are logical: active-low is applied below.
pub trait Line {
    fn get(&mut self) -> Result<bool, GpioError>;
    fn set(&mut self, active: bool) -> Result<(), GpioError>;
    /// The next edge that waits, oldest first.
    fn next_edge(&mut self) -> Result<Option<EdgeEvent>, GpioError>;
    /// Readable when an edge waits; `None` when the line has no edges (wait for the clock then).
    fn fd(&self) -> Option<RawFd>;
    /// Edges come debounced as the spec says; else whoever reads them has to.
    fn debounces(&self) -> bool;
}

/// The chips of the machine.
pub trait Chips {
    /// Takes a line. An output gets its initial level in the same step, so that it never shows another one.
    fn request(&mut self, spec: &LineSpec) -> Result<Box<dyn Line>, GpioError>;
}

#[cfg(test)]
mod tests;
