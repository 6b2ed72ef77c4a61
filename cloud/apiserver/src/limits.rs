//! Bounds of the listener and the controllers.

use std::time::Duration;

/// Connections at one time; more are closed at once, and logged.
pub const CONNECTIONS_MAX: usize = 512;
/// A TLS handshake that takes longer is dropped.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// A connection without a request for so long is closed. Longer than clients keep idle ones (90 s), so that they close first and
/// never write into a connection that is just going away.
pub const HEADER_READ_MAX: Duration = Duration::from_secs(100);
/// HTTP/2: a silent peer is asked, and dropped when it does not answer.
pub const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(30);
/// What waits for a slow client, per connection (HTTP/2: per request).
pub const SEND_BUFFER_BYTES: usize = 128 * 1024;
/// How long open requests may go on after the drain began.
pub const DRAIN_MAX: Duration = Duration::from_secs(1);
/// Days that the administrator's certificate is good for; a new one is made at each start when a third is left.
pub const ADMIN_CERT_DAYS: u64 = 365;
/// Events live this long after they were last seen.
pub const EVENT_AGE_MAX: Duration = Duration::from_secs(60 * 60);
/// How often old events are looked for.
pub const EVENT_SWEEP_EVERY: Duration = Duration::from_secs(60);
/// How often the emptying of a namespace is looked at while it waits for pods to end.
pub const NAMESPACE_RETRY_EVERY: Duration = Duration::from_millis(500);
/// Streams to nodes at one time (exec, attach, port-forward): 429 beyond.
pub const STREAMS_MAX: usize = 256;
/// A node that does not begin to answer for so long is given up: 500.
pub const NODE_ANSWER_MAX: Duration = Duration::from_secs(30);
/// What is read ahead of a node's answer; the link holds back the rest.
pub const NODE_BUFFER_BYTES: usize = 32 * 1024;
/// Words of a node's refusal that are passed on; upstream's limit.
pub const NODE_ERROR_BYTES_MAX: usize = 64 * 1024;
/// Each direction of a stream has one such buffer.
pub const PIPE_BYTES: usize = 16 * 1024;
/// How long the rest of a stream may take when its other side is gone.
pub const LINGER_MAX: Duration = Duration::from_secs(5);
/// One message of a WebSocket client; a longer one ends the stream. Clients send what they read at a time, 32 kB mostly.
pub const WEBSOCKET_MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// What a node says is held for so long after a WebSocket began: kubectl (seen with 1.32) drops what comes before it has made its
/// channels. A command takes longer to start.
pub const CLIENT_READY_WAIT: Duration = Duration::from_millis(50);
/// Control frames of a node's streaming server; its headers are a few bytes.
pub const SPDY_CONTROL_BYTES_MAX: usize = 64 * 1024;
/// Data that a node sends before all streams are open; more ends the stream.
pub const EARLY_EVENTS_MAX: usize = 64;
/// How a command ended, in JSON; the rest is dropped.
pub const EXIT_STATUS_BYTES_MAX: usize = 64 * 1024;
/// A node's usage is asked for at most this often, however many ask: the link may be slow.
pub const USAGE_AGE_MAX: Duration = Duration::from_secs(15);
/// Answers that are kept; further nodes are asked each time.
pub const USAGE_NODES_MAX: usize = 4096;
/// Nodes that are asked at one time by one request.
pub const USAGE_ASKED_AT_ONCE_MAX: usize = 16;
/// A node that takes longer is left out.
pub const USAGE_ANSWER_MAX: Duration = Duration::from_secs(10);
/// What a node says about itself and its pods; more is not read, and the node left out.
pub const SUMMARY_BYTES_MAX: usize = 1024 * 1024;
