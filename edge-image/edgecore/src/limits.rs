//! Upper bounds of edgecore, and what happens when one is reached.

use std::time::Duration;

/// Messages that wait for one subscriber of the bus; then the bus waits for the reader.
pub const BUS_QUEUE_LEN: usize = 64;
/// Keys in the outbox; then a report with a new key is refused and logged (reports of known keys still merge).
pub const OUTBOX_KEYS_MAX: usize = 1024;
/// Commands (reports, sends, requests) that wait for the hub's task; then the caller of `report` drops the oldest news by
/// merging later, `send` drops, and `request` is refused.
pub const HUB_QUEUE_LEN: usize = 256;
/// Requests to the cloud that wait for an answer; then a new one is refused.
pub const REQUESTS_MAX: usize = 128;
/// Object messages from the cloud that wait for the store; then the hub stops reading the link, and TCP holds the cloud back.
pub const INBOX_QUEUE_LEN: usize = 16;
/// Bytes of recent changes that the store keeps in memory. The node's own API will resume watches from them.
pub const STORE_HISTORY_LEN_MAX: usize = 64 * 1024;
/// Answer of the join endpoint; a longer one is refused.
pub const JOIN_ANSWER_BYTES_MAX: usize = 64 * 1024;
/// The whole of one exchange with the join endpoint, connecting included.
pub const JOIN_TIMEOUT: Duration = Duration::from_secs(20);
/// How long `fetch` waits for an object from the cloud.
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(20);
/// Configuration file; a longer one is refused.
pub const CONFIG_BYTES_MAX: u64 = 256 * 1024;
/// Conditions that modules may raise; a further type is refused and logged.
pub const CONDITIONS_MAX: usize = 32;
/// Modules get this long to stop after SIGTERM, then the process ends without them (containers keep running).
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(8);
/// How long saying goodbye to the cloud may take; then the connection is dropped.
pub const LINK_CLOSE_TIME_MAX: Duration = Duration::from_secs(2);
/// Wait between two attempts to open KubeEdge's tunnel, as a stock node waits.
pub const TUNNEL_REDIAL_TIME: Duration = Duration::from_secs(2);

/// How long a new tunnel may stay without a sign of life; afterwards `edgeStream.readDeadline` counts.
pub const TUNNEL_FIRST_SIGN_TIME: Duration = Duration::from_secs(150);

/// The longest wait before a tunnel is dialled again: a cloud without CloudStream refuses for ever.
pub const TUNNEL_REDIAL_TIME_MAX: Duration = Duration::from_secs(60);
/// First delay before a lost link is dialled again; doubles up to [`RECONNECT_DELAY_MAX`], and the wait is drawn evenly
/// between zero and the delay, so that a thousand nodes do not return in the same second.
pub const RECONNECT_DELAY_FIRST: Duration = Duration::from_secs(1);
pub const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(30);

const _: () = assert!(RECONNECT_DELAY_FIRST.as_millis() < RECONNECT_DELAY_MAX.as_millis());
const _: () = assert!(REQUESTS_MAX <= HUB_QUEUE_LEN);

/// Connections to the internal broker; a further client is refused and the log says so.
pub const BUS_CONNECTIONS_MAX: usize = 1024;
/// Tasks of the bus: two per broker, at most two brokers, and the bridge's two readers, two writers and one copier for each rule.
pub const BUS_TASKS_MAX: usize = 8 + BUS_BRIDGE_RULES_MAX;
/// Rules of `modules.eventBus.bridge`. More are refused by `config check` and at the start.
pub const BUS_BRIDGE_RULES_MAX: usize = 16;
/// Messages that are not retained, and their bytes, kept for one broker that is away. Beyond it the oldest is dropped and counted.
pub const BUS_KEPT_MAX: usize = 1000;
pub const BUS_KEPT_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of retained messages kept for one broker. Beyond it the publisher is refused.
pub const BUS_RETAINED_BYTES_MAX: usize = 2 * 1024 * 1024;
/// A retained value that the broker refused is offered again after this.
pub const BUS_REFUSED_PAUSE: Duration = Duration::from_secs(5);
/// Pause before the internal broker tries again to listen or to accept.
pub const BUS_RETRY_DELAY_MIN: Duration = Duration::from_millis(200);
pub const BUS_RETRY_DELAY_MAX: Duration = Duration::from_secs(10);
/// Time for the broker's connections to take what they are told at a stop.
pub const BUS_STOP_TIMEOUT: Duration = Duration::from_millis(500);
/// Clients and reasons that the log names within an hour. Further ones are counted as one, at powers of two.
pub const MQTT_SAID_MAX: usize = 64;
/// Users in the broker's password file; more are refused.
pub const MQTT_USERS_MAX: usize = 1024;
/// Most rounds of a password's hash: what takes longer would be a way to keep the broker busy.
pub const MQTT_ITERATIONS_MAX: u32 = 1_000_000;
/// Devices of one node; further ones are named in the node's condition `DeviceConfigInvalid`.
pub const DEVICES_MAX: usize = 256;
/// The folder of devices: files, bytes and objects of one. More files make a look fail, and all devices go on as they were; a larger
/// file, or one with more objects, is told as unusable.
pub const DEVICE_FILES_MAX: usize = 128;
pub const DEVICE_FILE_BYTES_MAX: u64 = 256 * 1024;
pub const DEVICE_FILE_OBJECTS_MAX: usize = 64;
/// Pause between two looks at it.
pub const DEVICE_FOLDER_POLL: Duration = Duration::from_secs(2);
/// Entities that discovery publishes; the devices beyond are left out, and the log says so.
pub const DISCOVERY_ENTITIES_MAX: usize = 2048;
/// How often, and with which pause, discovery asks for the twins of a device that is new to it.
pub const DISCOVERY_ASKS: u8 = 5;
pub const DISCOVERY_ASK_PAUSE: Duration = Duration::from_secs(2);
/// Properties of one device's twin; an update that would add more is refused with code 400.
pub const TWINS_PER_DEVICE_MAX: usize = 128;
/// Reported values are kept this long in memory before they are written; a power cut loses no more (flash wears).
pub const TWIN_PERSIST_MS: i64 = 60_000;
/// A first value, and everything after the link came up, is reported once more after this time.
pub const TWIN_REPEAT_MS: i64 = 3_000;
/// Longest reason of a device's state; the rest is cut.
pub const REASON_BYTES_MAX: usize = 512;
/// The node reports devices to the cloud no more often than this on average: each report is a write at the Kubernetes API there.
/// Configured with `kinglet.devices.reportEveryMs`.
pub const REPORT_EVERY_MS: u32 = 2_000;
/// Reports that may go at once after a quiet time; the next ones wait for their turn, newer values taking the place of older ones.
pub const REPORT_BURST: u32 = 32;
/// States and wishes may run ahead of the turns that far; then they wait too, the newest of each device counts.
pub const REPORT_BURST_URGENT: u32 = 64;
const _: () = assert!(REPORT_BURST <= REPORT_BURST_URGENT);
/// How long after it an update that was refused stays in the device's state, when good ones follow.
pub const REFUSAL_TOLD_MS: i64 = 60_000;
/// A mapper that is gone for so long leaves its devices unknown; one that init starts again is back before.
pub const MAPPER_GONE_MS: i64 = 5_000;
/// Mappers that are gone and whose devices are not told so yet. More: theirs keep their state.
pub const MAPPERS_GONE_MAX: usize = 16;
/// First values have turns of their own, so that a person who adds devices sees them at once: that many reports, each of a whole device.
/// Then they wait with the others.
pub const REPORT_BURST_FIRST: u32 = 256;
/// Turns of first values come back once in so many ordinary ones: on average they cost a tenth more.
pub const REPORT_FIRST_EVERY: u32 = 10;
/// A value that does not change is told again after this time, so that the cloud's is never older.
pub const REPORT_REFRESH_MS: i64 = 600_000;
/// Longest time between two reports that a Device may ask for.
pub const REPORT_EVERY_MS_MAX: i64 = 86_400_000;
/// Properties named in one annotation `kinglet.dev/values`; one with more makes the Device invalid.
pub const POLICIES_MAX: usize = TWINS_PER_DEVICE_MAX + 1;
/// A value may be read this long after our own clock's now; with a later time it counts as read now.
pub const SOURCE_AHEAD_MS_MAX: i64 = 60_000;

/// Mappers that are registered by DMI; when full, one that is long gone makes room, else a further one is refused.
pub const DMI_MAPPERS_MAX: usize = 16;
/// Connections of mappers; one more is closed at once, and the mapper dials again.
pub const DMI_CONNECTIONS_MAX: usize = 32;
/// Registrations, and outcomes of calls, that wait for their turn; then their senders wait.
pub const DMI_QUEUE_LEN: usize = 16;
/// Calls of all mappers together; more are refused with RESOURCE_EXHAUSTED. KubeEdge takes 1 a second after the first 100.
pub const DMI_CALLS_PER_S: f64 = 100.0;
pub const DMI_CALLS_BURST: f64 = 400.0;
/// A mapper that does not answer a call for so long is taken for gone. KubeEdge's value.
pub const DMI_CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Pauses between attempts to reach a mapper.
pub const DMI_RETRY_DELAY_MS_MIN: i64 = 500;
pub const DMI_RETRY_DELAY_MS_MAX: i64 = 30_000;
/// A mapper that is away for less (its restart) is no news.
pub const DMI_DOWN_TOLD_MS: i64 = 5_000;
/// Values of one property that the node keeps in memory; then the oldest goes. Configured with `kinglet.devices.historyLen`.
pub const HISTORY_LEN: usize = 1024;
/// Memory for the values of all devices; then the property that has most gives up its older half. `kinglet.devices.historyBytes`.
pub const HISTORY_BYTES: usize = 96 * 1024;
/// Properties of which a history is kept; a further one has none.
pub const HISTORY_PROPERTIES_MAX: usize = 4096;
/// An answer about the history; what has no room is to be asked for alone.
pub const HISTORY_ANSWER_BYTES_MAX: usize = 48 * 1024;
/// The durable tail is written after this time; a power cut loses no more.
pub const HISTORY_TAIL_MS: i64 = 60_000;
/// Records that the durable tail is made of; the oldest is written over.
pub const HISTORY_SLOTS: u64 = 16;
/// The tail is text, and may be longer than what the memory holds by this factor.
pub const HISTORY_TAIL_FACTOR: usize = 3;
/// Places that values are pushed to; those of a further one are dropped, and the Device's state says so.
pub const PUSH_TARGETS_MAX: usize = 16;
/// Values that wait for one place, in bytes; then the oldest is dropped and counted. `kinglet.devices.pushQueueBytes`.
pub const PUSH_QUEUE_BYTES: usize = 128 * 1024;
/// Values in one request.
pub const PUSH_BATCH_LEN: usize = 500;
/// How long values wait for others, to go with them in one request.
pub const PUSH_GATHER: Duration = Duration::from_millis(500);
/// The whole of one request, connecting included, where the Device does not say.
pub const PUSH_TIMEOUT: Duration = Duration::from_secs(10);
/// Wait after a request that failed; doubles.
pub const PUSH_RETRY_MS_FIRST: u64 = 1_000;
pub const PUSH_RETRY_MS_MAX: u64 = 60_000;
/// Answer of a place that values are pushed to; a longer one counts as failed.
pub const PUSH_ANSWER_BYTES_MAX: usize = 64 * 1024;
/// How long `edgecore device` waits for the running agent, connecting to its broker included.
pub const DEVICE_CALL_TIMEOUT: Duration = Duration::from_secs(10);
