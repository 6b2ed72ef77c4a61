//! Upper bounds of the client and the broker, and what happens at each.

/// Largest packet that is read or written, header included. A larger one closes the connection (read) or is refused (write).
/// Device descriptions are the largest messages on a node's bus; a Device of 100 properties is about 30 kB.
pub const PACKET_BYTES_MAX: usize = 256 * 1024;
/// Longest topic or filter. A longer one is a malformed packet.
pub const TOPIC_BYTES_MAX: usize = 512;
/// Most levels in a topic or filter: matching walks them.
pub const TOPIC_LEVELS_MAX: usize = 32;

/// Messages of QoS 1 that wait for their acknowledgement, per direction and connection. The client refuses more
/// ([`crate::client::PublishError::Full`]); the broker keeps further ones in the connection's queue.
pub const IN_FLIGHT_MAX: usize = 32;
/// Bytes that the client holds for the socket. When full, publishing is refused.
pub const CLIENT_OUTPUT_BYTES_MAX: usize = PACKET_BYTES_MAX + 64 * 1024;
/// Filters of one client. The client refuses more; the broker answers failure (0x80) for more.
pub const SUBSCRIPTIONS_MAX: usize = 64;

/// Encoded bytes that the broker keeps ready for a socket. Beyond it messages stay in the queue.
pub const BROKER_OUTPUT_BYTES_MAX: usize = 32 * 1024;
/// Bytes that wait in one connection's queue. When full: QoS 0 is dropped for this connection and counted; a publisher of QoS 1
/// to this connection is not read any more until there is room (see [`STALL_MS_MAX`]).
pub const BROKER_QUEUE_BYTES_MAX: usize = 256 * 1024;
/// A connection whose full queue does not move for so long is closed: one stuck reader must not stop the node's bus.
pub const STALL_MS_MAX: u64 = 10_000;
/// A connection that has not sent CONNECT by then is closed.
pub const CONNECT_MS_MAX: u64 = 5_000;
/// Retained messages. When one of both is full the message is delivered but not retained, and counted.
pub const RETAINED_MAX: usize = 1024;
pub const RETAINED_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Message ids of QoS 2 publishes that wait for PUBREL. More closes the connection.
pub const QOS2_IDS_MAX: usize = 64;

/// First and longest pause between two attempts to connect. Short: the broker is on the same machine or in the same house, and
/// what a device does should be seen soon after either side was restarted.
pub const RETRY_DELAY_MS_MIN: u64 = 100;
pub const RETRY_DELAY_MS_MAX: u64 = 3_000;

const _: () = assert!(BROKER_QUEUE_BYTES_MAX >= PACKET_BYTES_MAX, "a queue holds at least one packet");
const _: () = assert!(CLIENT_OUTPUT_BYTES_MAX > PACKET_BYTES_MAX);
const _: () = assert!(PACKET_BYTES_MAX < 268_435_455, "MQTT's remaining length has 28 bits");
