//! Pods through CRI: brings what the runtime does in line with what the cloud wants.
pub mod backoff;
pub mod cri;
pub mod limits;
pub mod manager;
pub mod observed;
pub mod pod;
pub mod quantity;
pub mod record;
pub mod status;
pub mod worker;
