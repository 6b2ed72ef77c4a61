//! Byte streams beside the messages of a link, on tokio: what both ends' hubs drive and what both ends' modules read and write.
//!
//! The rules (windows, turns, limits) are `wire::streams`, a value; here are the wakers, the WebSocket and the order in which
//! things are written. A crate of its own, since `wire` has no I/O and edge and cloud meet only in `lib/`.
//!
//! Invariants
//! - Messages go before stream data: what a message waits for is at most one data frame, and what the kernel holds unsent
//!   ([`tune`]).
//! - Nothing is buffered because the socket is slow: data is taken from the streams when the socket has taken all before it.
//! - A link on which bytes move is not stuck, whatever they are; one on which none moved for the write timeout is.
//! - All streams end with the link, at once.
//!
//! Start at [`Socket::next`]; a module holds a [`Stream`]. The second carrier, for stock peers, is [`Tunnel`].

mod counted;
pub mod limits;
mod socket;
mod stream;
#[cfg(test)]
mod tests;
mod tunnel;

pub use counted::{Counted, Progress, tune};
pub use socket::{Ended, Event, Socket, WebSocket};
pub use stream::{OpenError, Stats, Stream, Streams};
pub use tunnel::{Outgoing, Relabelled, Tunnel, TunnelEnded, TunnelEvent};
