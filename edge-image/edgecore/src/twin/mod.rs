//! DeviceTwin: what each device is and should be, merged from the mappers' reports and the cloud's Device objects.
//!
//! It speaks KubeEdge's MQTT topics (`$hw/events/device/<ns>/<name>/...`) and messages exactly, keeps the twins over restarts,
//! gives mappers their device descriptions as retained messages (`$kinglet/mapper/<protocol>/device/<ns>/<name>`), and passes
//! what applications send for the cloud's router upward.
//!
//! Invariants: an update is merged whole or not at all; a report to the cloud carries all twins of its device, so that the
//! newest one is enough; a Device that makes no sense changes nothing but its state, with a reason that names the field.
//! Membership is derived from the Device objects of this node, never from messages that get lost (kubeedge-wire.md, pitfall 3).
//!
//! Start at [`machine::Machine`]; [`run`] is the shell around it.

pub mod device;
mod fuzz;
pub mod history;
pub mod machine;
mod mappers;
pub mod merge;
mod objects;
pub mod policy;
pub mod push;
pub mod record;
mod report;
mod shell;
pub mod types;
mod upload;
pub mod validate;
pub mod wish;

pub use fuzz::fuzz_twin;
pub use shell::{RECORD_KIND, run};

#[cfg(test)]
mod tests;
