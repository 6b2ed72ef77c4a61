//! MQTT 3.1.1 and 5 without I/O: the packets, topic matching, a client and a broker as plain values.
//!
//! Not here: sockets, clocks, threads. edgecore's `bus` drives the client and the broker on tokio, the mapper drives the client
//! from a `poll` loop.
//!
//! Invariants: every length is bounded before anything is allocated ([`limits`]); bad input is an error value, never a panic;
//! a topic that begins with `$` (`$hw/events/...`) is matched by filters that name it, and not by a leading wildcard.
//!
//! Start at [`client::Client`] or [`broker::Broker`]; both take time in milliseconds of any monotonic clock.

pub mod broker;
pub mod client;
pub mod encode;
pub mod limits;
pub mod packet;
pub mod property;
pub mod topic;

pub use packet::{DecodeError, Packet, Qos, Version};
