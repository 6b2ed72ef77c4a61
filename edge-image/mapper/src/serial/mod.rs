//! Serial devices: text lines or binary frames on a port that several devices may share.
//!
//! Invariants: a port has one owner (a lock says so to other programs); what a port brings is bounded and may be noise; a port that
//! is unplugged fails its devices, and the engine opens it again when it is back ([`crate::hotplug`]).
//! Start at [`SerialDriver`].

pub mod byid;
mod driver;
pub mod lines;
pub mod port;
mod shared;

pub use driver::SerialDriver;
pub use shared::Ports;

#[cfg(test)]
mod tests;
