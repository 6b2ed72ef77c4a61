//! edgecore: the agent of a Kinglet node, as a library so that tests build what ships.

pub mod config;
pub mod contract;
pub mod limits;

pub mod bus;
pub mod edged;
pub mod hub;
pub mod meta;
pub mod node;
pub mod twin;
