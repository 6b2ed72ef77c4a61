//! cloudcore: the cloud side of Kinglet. Nodes join it and get their pods, config maps, secrets and devices from it; what they
//! report goes to the Kubernetes API, which is embedded or a cluster's.
//!
//! Not here: the embedded API (`apiserver`), the messages and the delivery rules (`wire`), keys (`pki`).
//! Invariants stand at the head of each module. Start at [`start`]; modules meet in `contract`.

pub mod cli;
pub mod config;
mod settings;
mod start;

mod accept;
mod contract;
mod limits;

mod authority;
mod descriptors;
mod identity;
mod records;
mod refusals;
mod revoke;
mod shared;
mod yaml;

mod api;
mod backend;
mod cluster;
mod hub;
mod join;
mod leader;
mod takeover;
mod tunnel;
mod upstream;

pub mod admin;

pub use authority::{fuzz_rotation, fuzz_secret};
pub use hub::fuzz_link_frames;
pub use join::fuzz_report;
pub use settings::{Settings, settings};
pub use start::{Endpoints, Running, StartError, start};
pub use upstream::request::fuzz_request;
