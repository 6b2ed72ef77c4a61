//! Upper bounds of cloudcore, and what happens when they are reached.

use std::time::Duration;

/// Body of a certificate request. Larger: 413.
pub const CSR_BYTES_MAX: usize = 16 * 1024;
/// Body of a node's report on a task. Larger: 413. KubeEdge takes up to 3 MiB, and sends a few hundred bytes.
pub const REPORT_BYTES_MAX: usize = 256 * 1024;
/// Connections of the join port at one time. More: the new one waits to be accepted.
pub const JOIN_CONNECTIONS_MAX: usize = 64;
/// How long one join connection may take from the TLS handshake to its last answer.
pub const JOIN_CONNECTION_TIME_MAX: Duration = Duration::from_secs(30);

/// TLS and WebSocket handshakes of the hub under way at one time. More: the new one waits to be accepted.
pub const HUB_HANDSHAKES_MAX: usize = 64;
/// How long a TLS and WebSocket handshake may take.
pub const HUB_HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(15);
/// Sessions that start at one time (records read, first objects sent). More: refused with 503 and `Retry-After`.
pub const HUB_STARTS_MAX: usize = 256;
/// What a node is told then, in seconds; it adds up to a quarter of its own.
pub const HUB_RETRY_AFTER_S: u64 = 10;
/// What a node is told when no node more may connect, or another device has its name, in seconds.
pub const HUB_FULL_RETRY_AFTER_S: u64 = 60;
/// Over how long a cloudcore that stops spreads the return of its nodes: so long for each thousand of them, in milliseconds.
pub const DRAIN_SPREAD_MS: u32 = 5_000;
/// How long a device that was replaced by another one under its name is refused while that one is connected.
pub const RIVAL_TIME: Duration = Duration::from_secs(600);
/// Nodes of which replaced devices are remembered. More: the newest connection wins again.
pub const RIVALS_MAX: usize = 256;
/// What a link reads into and writes from while a message passes; larger messages get more. An idle link has none.
pub const HUB_BUFFER_LEN: usize = 4096;
/// How often a link at most looks whether its node was reset or joined again.
pub const RECORD_LOOK_EVERY: Duration = Duration::from_secs(1);
/// Wait before it is said again where a node's kubelet is found, when that failed.
pub const PLACE_RETRY: Duration = Duration::from_secs(5);
/// Requests of one node that wait for the API. Full: the session stops reading until one is answered.
pub const SESSION_REQUESTS_MAX: usize = 64;

/// Largest answer taken from the API. Larger: the request fails. Kubernetes stores objects of up to 3 MiB.
pub const API_ANSWER_BYTES_MAX: usize = wire::limits::MESSAGE_BYTES_MAX;
/// Objects asked for with one list request.
pub const LIST_PAGE_LEN: u32 = 250;
/// A list page may be this large, since it holds up to [`LIST_PAGE_LEN`] objects. Larger: the list fails and is tried again.
pub const LIST_PAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Wait before a watch that failed is opened again.
pub const WATCH_RETRY: Duration = Duration::from_secs(1);
/// How long one watch request is kept open.
pub const WATCH_SECONDS: u32 = 290;
/// How long any other request to the API may take.
pub const API_TIME_MAX: Duration = Duration::from_secs(30);

/// Events of the watches that wait for the cluster task. Full: the watches wait.
pub const CLUSTER_QUEUE_LEN: usize = 256;
/// Writes of the scheduler and of the node lifecycle that wait. Full: dropped; they are found again a second later.
pub const WRITE_QUEUE_LEN: usize = 64;

/// The same FailedScheduling event is repeated after this long.
pub const FAILED_SCHEDULING_REPEAT: Duration = Duration::from_secs(300);

/// Lines in a node's delivery file beyond its records before it is written anew.
pub const DELIVERY_LINES_SLACK: usize = 1024;

/// Twin properties kept in one DeviceStatus. More: the report is refused with a log line.
pub const TWINS_PER_DEVICE_MAX: usize = 256;

/// DeviceStatus objects of one node are written no more often than this on average, in milliseconds, however often the node reports:
/// newer values take the place of older ones. Configured with `kinglet.deviceWriteEveryMs`.
pub const DEVICE_WRITE_EVERY_MS: u32 = 1_250;
/// Writes that may be made at once after a quiet time; then the pace counts.
pub const DEVICE_WRITE_BURST: u32 = 32;
/// States may run ahead of the pace that far.
pub const DEVICE_WRITE_BURST_STATE: u32 = 64;
/// First values since the link began have turns of their own, that many; then they wait with the others.
pub const DEVICE_WRITE_BURST_FIRST: u32 = 256;
/// Turns of first values come back once in so many ordinary ones.
pub const DEVICE_WRITE_FIRST_EVERY: u32 = 10;
/// Properties of one node that are remembered as told. More: their first values wait with the others.
pub const DEVICE_PROPERTIES_TOLD_MAX: usize = 4096;
/// Where nothing but times is new, a DeviceStatus is written after this time.
pub const DEVICE_TIMES_EVERY_MS: i64 = 60_000;
/// Wait before a write that failed is tried again, in milliseconds.
pub const DEVICE_WRITE_RETRY_MS: i64 = 5_000;
/// Devices of one node whose reports wait to be written. More: the report is dropped unanswered, and the node sends it again.
pub const DEVICES_WAITING_MAX: usize = 1024;
/// Reports of one device that are answered when its values are written. More: the oldest is answered before.
pub const DEVICE_ANSWERS_MAX: usize = 64;
/// How long a link that ended may go on writing what was reported on it. Longer: the node reports it again.
pub const DEVICE_DRAIN_TIME_MAX: Duration = Duration::from_secs(2);

/// Dials of one node that wait for its tunnel's task. Full: refused.
pub const TUNNEL_DIALS_MAX: usize = 16;
/// A tunnel on which nothing came for so long is closed; a stock node pings every 5 s.
pub const TUNNEL_SILENCE_MAX: Duration = Duration::from_secs(30);
/// Connections of the stream port at one time. More: refused.
pub const STREAM_SERVER_CONNECTIONS_MAX: usize = 512;

/// Links that wait for their node's ObjectSyncs to be read. More: the new one waits.
pub const SYNC_OPENS_MAX: usize = 256;
/// ObjectSyncs that are written at one time.
pub const SYNC_WRITES_MAX: usize = 16;
/// How long a stopping cloudcore goes on writing what nodes acknowledged. Longer: it is sent to them again.
pub const SYNC_DRAIN_TIME_MAX: Duration = Duration::from_secs(5);
/// How often nodes that are gone are looked for, to remove what is recorded of them.
pub const SWEEP_EVERY: Duration = Duration::from_secs(300);
/// How long the one cloudcore that does a cluster's own duties may be silent before another one takes them.
pub const LEADER_LEASE: Duration = Duration::from_secs(15);
