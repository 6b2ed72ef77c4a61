//! Our broker beside others: one conformance suite for ours, mosquitto and rumqttd, independent clients against ours, and the
//! benchmark. Brokers are processes that are spoken to over sockets; nothing of the product is linked here.
//!
//! Start at [`conformance::run`], [`clients::run`] or [`bench::run`].

pub mod bench;
pub mod brokers;
pub mod clients;
pub mod conformance;
pub mod load;
mod notes;
pub mod peer;
pub mod rough;
pub mod rows;
pub mod wire;
