//! Serial devices: text lines or binary frames on a port.

mod driver;
pub mod frames;
pub mod lines;
pub mod port;

pub use driver::SerialDriver;

#[cfg(test)]
mod tests;
