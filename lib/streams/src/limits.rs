//! Upper bounds, and what happens when they are reached.

use std::time::Duration;

/// Bytes that the kernel may hold unsent before the socket takes no more: what a message waits for beside one data frame. At
/// 1 Mbit/s that is 130 ms. Without it the kernel takes megabytes, and a keepalive would wait behind them.
pub const UNSENT_BYTES_MAX: u32 = 16 * 1024;

/// How long the other end may take to accept a stream. Longer: the stream is refused.
pub const OPEN_TIME_MAX: Duration = Duration::from_secs(10);

/// Messages (and their bytes) that wait for the socket. Full: [`crate::Socket::has_room`] says so, and whoever makes messages
/// waits.
pub const MESSAGES_LEN_MAX: usize = 256;
pub const MESSAGES_BYTES_MAX: usize = wire::limits::MESSAGE_BYTES_MAX;

/// Frames of streams taken from the socket before the link's other work gets its turn.
pub const FRAMES_PER_TURN: usize = 8;
