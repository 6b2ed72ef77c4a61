//! Hardware PWM: channels of the kernel's PWM chips, found by the name of the device that has the chip and never by number
//! (the Pi 5's moved between kernels). The line-holder owns them, as it owns output lines.

pub mod sysfs;
#[cfg(test)]
mod tests;

use crate::plan::pwm::PwmSpec;

#[derive(Debug, thiserror::Error)]
pub enum PwmError {
    #[error("there is no PWM chip {wanted}; there are: {there}")]
    NoChip { wanted: String, there: String },
    #[error("this board has no known PWM chip for the header; write configData.chip; there are: {there}")]
    NoHeader { there: String },
    #[error("PWM chip {chip} has the channels 0 to {last}, not {channel}")]
    NoChannel { chip: String, channel: u32, last: u32 },
    #[error("channel {channel} of PWM chip {chip} is in use by a driver of the kernel; choose another one")]
    Busy { chip: String, channel: u32 },
    #[error("cannot {action} channel {channel} of PWM chip {chip}: {error}")]
    Channel { action: &'static str, chip: String, channel: u32, error: std::io::Error },
}

/// A channel that runs on by itself, also when this process ends.
pub trait PwmOutput {
    /// Millionths of the period that the output is active.
    fn get(&mut self) -> Result<u32, PwmError>;
    fn set(&mut self, millionths: u32) -> Result<(), PwmError>;
}

pub trait PwmChips {
    fn request(&mut self, spec: &PwmSpec) -> Result<Box<dyn PwmOutput>, PwmError>;
}
