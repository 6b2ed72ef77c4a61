//! End-to-end scenarios: they drive built programs from outside, as a user's hands and eyes would.
//!
//! Not here: any product crate (a check in `cargo xtask test` refuses the import). What is seen is seen through kubectl, HTTP,
//! serial lines, pins and /proc.
//!
//! Start at [`guest`] (the release image in QEMU) and [`host`] (the same agent on this machine's containerd).
//! [`rpi`] boots the other image. [`steps`] names, times and bounds every step; [`report`] is what `target/demo/report.json` holds.

pub mod alone;
pub mod bad_input;
pub mod bench;
pub mod cloud;
pub mod cloud_image;
pub mod containerd;
pub mod guest;
pub mod host;
pub mod http;
pub mod kubectl;
pub mod mutations;
pub mod pins;
pub mod pods;
pub mod process;
pub mod pushed;
pub mod registry;
pub mod relay;
pub mod report;
pub mod rpi;
pub mod sensor;
pub mod serial_line;
pub mod shared;
pub mod steps;
pub mod streams;
pub mod watch;

use std::path::PathBuf;

/// Where the programs under test are. All paths are absolute.
#[derive(Clone, Debug)]
pub struct Programs {
    pub cloudcore: PathBuf,
    pub edgecore: PathBuf,
    pub mapper: PathBuf,
    pub kubectl: PathBuf,
    /// Folder of the OCI archives for this machine's architecture (pause, hello, rule).
    pub images: PathBuf,
    /// `cloud/deploy/samples`.
    pub samples: PathBuf,
}

/// A YAML document.
pub fn yaml(text: &str) -> anyhow::Result<serde_json::Value> {
    Ok(serde_saphyr::from_str(text)?)
}
