//! The messages between cloudcore and edgecore, their two lanes, and the state machines of the link.
//!
//! Not here: sockets, TLS, clocks, storage. Everything is a plain value; the shells live in edgecore's and cloudcore's hub.
//!
//! Invariants: a message that a KubeEdge v1.23 peer sends decodes; what we encode is what such a peer sends, byte for byte
//! but for the order of keys. Every length is bounded before it is allocated ([`limits`]).
//!
//! Start at [`message::Message`]; how it travels is [`lane::Lane`]; resources (`default/pod/web`) are [`resource::Resource`]; what the
//! cloud owes a node is [`delivery::Delivery`], the node's end is [`link::Link`]. Byte streams beside them are [`streams::Mux`].

pub mod delivery;
pub mod frames;
pub mod headers;
pub mod inventory;
pub mod lane;
pub mod limits;
pub mod link;
pub mod message;
pub mod resource;
pub mod streams;
pub mod tunnel;

pub use message::{Header, Message, Operation, Route, source};
pub use resource::Resource;
