//! What a link costs while nothing passes: TLS ([`Tls`]) and WebSocket ([`Frames`]) that hold no buffers between two messages.
//!
//! The usual ones keep what they read into and wrote from last, 8 kB per connection, as long as it lives. Most links of a hub are idle
//! nearly always, so a hub of ten thousand nodes would hold 80 MB of empty buffers.
//!
//! Not here: the rules of either protocol, which are rustls' and tungstenite's.

mod frames;
#[cfg(test)]
mod tests;
mod tls;

pub use frames::{Frames, fuzz_link_frames};
pub use tls::Tls;
