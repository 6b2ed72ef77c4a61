//! Upper bounds of the client and the broker, and what happens at each.

/// Largest packet that is read or written, header included. A larger one closes the connection (read) or is refused (write).
/// Device descriptions are the largest messages on a node's bus; a Device of 100 properties is about 30 kB.
pub const PACKET_BYTES_MAX: usize = 256 * 1024;
/// Longest topic or filter. A longer one is a malformed packet.
pub const TOPIC_BYTES_MAX: usize = 512;
/// Most levels in a topic or filter: matching walks them.
pub const TOPIC_LEVELS_MAX: usize = 32;

/// Messages of QoS 1 and 2 that wait for their acknowledgement, per direction and connection. The client refuses more
/// ([`crate::client::PublishError::Full`]).
pub const IN_FLIGHT_MAX: usize = 32;
/// The same from the broker to one client, unless the client takes less (MQTT 5). Further messages wait in the session's queue.
pub const BROKER_IN_FLIGHT_MAX: usize = 100;
/// Bytes that the client holds for the socket. When full, publishing is refused.
pub const CLIENT_OUTPUT_BYTES_MAX: usize = PACKET_BYTES_MAX + 64 * 1024;
/// Filters of one client of ours. It refuses more.
pub const SUBSCRIPTIONS_MAX: usize = 64;

/// Encoded bytes that the broker keeps ready for a socket. Beyond it messages stay in the queue.
pub const BROKER_OUTPUT_BYTES_MAX: usize = 32 * 1024;
/// A connection that has so much to read, answers included, is not read itself: one that only writes would fill the memory.
pub const ANSWERS_BYTES_MAX: usize = 2 * BROKER_OUTPUT_BYTES_MAX;
/// Wills above the first size are refused (quota exceeded) while all together have more than the second.
pub const WILL_BYTES_FREE: usize = 1024;
pub const WILLS_BYTES_MAX: usize = 1024 * 1024;
/// Bytes that wait in one session's queue. When full: QoS 0 is dropped for this session and counted; a publisher of QoS 1 or 2
/// to this session is not read any more until there is room (see [`STALL_MS_MAX`]).
pub const BROKER_QUEUE_BYTES_MAX: usize = 256 * 1024;
/// Bytes that wait in all queues together. When full, every session that has something waiting counts as full.
pub const BROKER_QUEUES_BYTES_MAX: usize = 8 * 1024 * 1024;
/// What a queued message costs beside its bytes, roughly; counted into the bounds.
pub const QUEUED_OVERHEAD: usize = 96;
/// A full session that does not move for so long loses its connection. Publishers that wait longer for one whose client is away are
/// named in the log and the figures, and refused if they speak MQTT 5.
pub const STALL_MS_MAX: u64 = 10_000;
/// A publisher of QoS 0 waits for a full reader that moved so lately; for one that did not its message is dropped.
pub const LIVELY_MS: u64 = 200;
/// A write of at least this size counts as movement of a reader: answers to pings do not.
pub const MOVEMENT_BYTES_MIN: usize = 1024;
/// A connection that has not sent CONNECT by then is closed.
pub const CONNECT_MS_MAX: u64 = 5_000;
/// Sockets. A further one is closed at once.
pub const CONNECTIONS_MAX: usize = 1024;
/// Sessions that outlive their connection. A client that asks for one more is refused (server unavailable, quota exceeded).
pub const SESSIONS_MAX: usize = 512;
/// A session without a connection ends after this time at the latest, whatever its client asked for: a week.
pub const SESSION_EXPIRY_S_MAX: u32 = 7 * 24 * 3600;
/// A client of MQTT 3.1.1 can only ask for "for ever": it gets a day, so that one that never comes back holds its publishers no
/// longer than that.
pub const SESSION_EXPIRY_V3_S: u32 = 24 * 3600;
/// Names in one notice, and sessions in one figure. Further ones are counted.
pub const HELD_NAMES_MAX: usize = 4;
pub const HOLDERS_MAX: usize = 8;
/// Notices that wait for the shell. Further ones are not made: the figures have them.
pub const NOTICES_MAX: usize = 64;
/// Longer client ids are refused.
pub const CLIENT_ID_BYTES_MAX: usize = 256;
/// Filters of one session at the broker; more are answered with failure (0x80), which most clients do not look at. Home Assistant
/// has one for each entity, its availability and its commands. A session that outlives its connection is written as a whole when
/// it changes, so it has fewer.
pub const SESSION_SUBSCRIPTIONS_MAX: usize = 8 * 1024;
pub const KEPT_SUBSCRIPTIONS_MAX: usize = 1024;
/// Subscriptions of all sessions. Further ones are answered with failure.
pub const SUBSCRIPTIONS_TOTAL_MAX: usize = 16 * 1024;
/// Retained messages. When one of both is full the message is delivered but not retained, and counted; in MQTT 5 its publisher
/// is told "quota exceeded".
pub const RETAINED_MAX: usize = 8 * 1024;
pub const RETAINED_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Message ids of QoS 2 publishes that wait for PUBREL. MQTT 5 clients are told so (receive maximum); more closes the connection.
pub const QOS2_IDS_MAX: usize = 64;
/// The same for MQTT 3.1.1, which has no way to tell it.
pub const QOS2_IDS_V3_MAX: usize = 1024;
/// Topic aliases that a client may set (MQTT 5). A higher one closes the connection.
pub const TOPIC_ALIASES_MAX: usize = 16;
/// Shorter topics are not worth an alias towards a client: the property alone takes three bytes.
pub const ALIASED_TOPIC_BYTES_MIN: usize = 8;
/// Bytes that are kept of a connection that waits for a subscriber: so far it is read on, for its acknowledgements.
pub const HELD_BYTES_MAX: usize = 32 * 1024;
/// Bytes of packets that have not come whole, of all connections. Beyond it a connection that needs more than
/// [`PARTIAL_BYTES_FREE`] is closed.
pub const PARTIAL_BYTES_MAX: usize = 4 * 1024 * 1024;
pub const PARTIAL_BYTES_FREE: usize = 4 * 1024;
/// Changes for the disk that wait to be taken. When full, publishers to durable topics are not read.
pub const CHANGES_BYTES_MAX: usize = 1024 * 1024;
/// Topics whose subscribers are remembered, and the subscribers of all of them. When full, all are forgotten and found again.
pub const ROUTES_MAX: usize = 512;
pub const ROUTES_TARGETS_MAX: usize = 16 * 1024;
/// Output buffers of idle connections that are kept for the next one that needs one.
pub const SPARE_BUFFERS_MAX: usize = 8;
/// A retained message on a topic that is not listed as durable is written so much later: the first one of a topic and its
/// removal soon, further values of the same topic rarely, for the flash's sake.
pub const RETAINED_FIRST_MS: u64 = 1_000;
pub const RETAINED_AGAIN_MS: u64 = 60_000;
/// How often `$SYS` figures are published.
pub const SYS_INTERVAL_MS: u64 = 10_000;

/// First and longest pause between two attempts to connect. Short: the broker is on the same machine or in the same house, and
/// what a device does should be seen soon after either side was restarted.
pub const RETRY_DELAY_MS_MIN: u64 = 100;
pub const RETRY_DELAY_MS_MAX: u64 = 3_000;

const _: () = assert!(BROKER_QUEUES_BYTES_MAX > 4 * BROKER_QUEUE_BYTES_MAX);
const _: () = assert!(PARTIAL_BYTES_MAX > PACKET_BYTES_MAX && CHANGES_BYTES_MAX > PACKET_BYTES_MAX);
const _: () = assert!(BROKER_QUEUE_BYTES_MAX >= PACKET_BYTES_MAX, "a queue holds at least one packet");
const _: () = assert!(CLIENT_OUTPUT_BYTES_MAX > PACKET_BYTES_MAX);
const _: () = assert!(PACKET_BYTES_MAX < 268_435_455, "MQTT's remaining length has 28 bits");
