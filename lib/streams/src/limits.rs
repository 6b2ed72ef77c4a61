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

/// Connections of one tunnel at one time. More: refused.
pub const TUNNEL_CONNECTIONS_MAX: usize = 64;

/// Data in one message of the tunnel as we send it. Stock peers send 256 bytes and read up to a mebibyte.
pub const TUNNEL_CHUNK_LEN: usize = 4 * 1024;

/// Bytes that a tunnel's connection holds each way between its owner and the tunnel.
pub const TUNNEL_PIPE_LEN: usize = 16 * 1024;

/// Head of an HTTP request or answer on a tunnel. Longer: the connection is ended.
pub const HEAD_LEN_MAX: usize = 16 * 1024;

/// How long a tunnel's connection may take nothing while data for it holds up the others. Longer: it is ended.
pub const BLOCKED_TIME_MAX: Duration = Duration::from_secs(30);

/// How often the node pings on the tunnel, as a stock one does.
pub const TUNNEL_PING_TIME: Duration = Duration::from_secs(5);
