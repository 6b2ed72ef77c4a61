//! The line-holder: a small process of its own that owns output lines, so that they keep their level while the mapper is
//! restarted, and that applies a fail-safe value when nobody speaks for a line any more.
//!
//! The protocol is in README.md. [`Holder`] decides, [`serve`] has the sockets, [`SocketOutputs`] is the mapper's end.

mod client;
mod server;
mod state;

pub use client::SocketOutputs;
pub use server::serve;
pub use state::{Holder, fuzz_requests};

use crate::plan::gpio::LineSpec;

/// Output lines as the mapper uses them. Answers are the level that the line then has; errors are lines for the user.
pub trait Outputs {
    fn request(&mut self, name: &str, spec: &LineSpec) -> Result<bool, String>;
    fn set(&mut self, name: &str, active: bool) -> Result<bool, String>;
    fn refresh(&mut self, name: &str) -> Result<bool, String>;
    fn release(&mut self, name: &str) -> Result<(), String>;
}

#[cfg(test)]
mod tests;
