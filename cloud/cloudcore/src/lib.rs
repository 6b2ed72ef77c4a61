//! cloudcore: the cloud side of Kinglet.
//!
//! Invariants are at the head of each module. Start at `start` (wiring), then `contract`.

mod api;
mod authority;
mod cluster;
pub mod config;
mod contract;
mod hub;
mod identity;
mod limits;
mod records;
mod upstream;
