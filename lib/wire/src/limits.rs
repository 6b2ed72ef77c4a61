//! Upper bounds of what the link carries.

/// Largest message accepted from a peer, in bytes. KubeEdge caps its packed messages at 32 MiB; nothing that Kubernetes
/// stores is larger than 3 MiB, so a larger frame is refused before it is buffered.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How long an acknowledgement of a pushed object may take before the object is sent again, in milliseconds (KubeEdge: 5 s).
pub const PUSH_RESEND_MS: u64 = 5_000;

/// How often one push is sent before the other waiting objects get their turn (KubeEdge: first send and 4 more).
pub const PUSH_SENDS_MAX: u32 = 5;

/// A link on which nothing was heard for this many heartbeats is closed. Every heartbeat carries a ping, so a live peer is
/// heard once per heartbeat.
pub const SILENCE_BEATS_MAX: u64 = 3;

/// A link must live this long before the next loss starts again with the shortest wait.
pub const LINK_STABLE_MS: u64 = 10_000;

/// Requests of a node that wait for an answer; a further one fails at once.
pub const REQUESTS_MAX: usize = 128;

/// Keys in a node's outbox; a report with a new key is then refused, reports of known keys still merge.
pub const OUTBOX_KEYS_MAX: usize = 1024;

/// Reports sent and not answered at one time; the others wait their turn.
pub const REPORTS_IN_FLIGHT_MAX: usize = 16;

/// How long a report waits for the answer to an older one of its key, in milliseconds; a cloud that drops a message never answers it.
pub const REPORT_BEHIND_MS: u64 = 5_000;

/// How long a report waits for its answer before it is sent again, in milliseconds (KubeEdge: about 60 s of idle).
pub const REPORT_RESEND_MS: u64 = 30_000;

/// Streams of one link at one time. More: the opener is refused at once, and a peer's `Open` is answered with a reset.
pub const STREAMS_MAX: usize = 64;

/// Largest window of one stream: what may be on its way or wait unread at one end, in bytes.
pub const STREAM_WINDOW_MAX: u32 = 64 * 1024;

/// Smallest window worth having; when the link's bytes leave less, a stream is refused.
pub const STREAM_WINDOW_MIN: u32 = 4 * 1024;

/// Windows of one link together, in bytes, at one end. Streams beside many others get smaller windows.
pub const STREAMS_BYTES_MAX: usize = 1024 * 1024;

/// A peer that grants more than this at one time is wrong in its accounts.
pub const STREAM_CREDIT_MAX: u32 = 16 * 1024 * 1024;

/// Data in one frame as we send it: what a message of the link waits for at most.
pub const STREAM_CHUNK_LEN: usize = 8 * 1024;

/// Data in one frame that is accepted.
pub const STREAM_CHUNK_LEN_MAX: usize = 16 * 1024;

/// Bytes of one stream that wait for the link. Full: the writer waits.
pub const SEND_BUFFER_LEN: usize = 16 * 1024;

/// Why a stream was reset; the rest of the text is cut.
pub const STREAM_REASON_LEN_MAX: usize = 256;

/// Answers to a peer's frames (accepts, resets) that wait for the link. Full: the peer opens streams faster than it takes
/// refusals, and the link is closed.
pub const STREAM_ANSWERS_MAX: usize = 4 * STREAMS_MAX;

const _: () = assert!(STREAM_CHUNK_LEN <= STREAM_CHUNK_LEN_MAX && STREAM_CHUNK_LEN <= SEND_BUFFER_LEN);
const _: () = assert!(STREAM_WINDOW_MIN <= STREAM_WINDOW_MAX && STREAM_WINDOW_MAX <= STREAM_CREDIT_MAX);

/// Data in one message of KubeEdge's tunnel: what a stock peer reads of it (`MaxRespBodyLength`). Larger: the tunnel is closed.
pub const TUNNEL_DATA_LEN_MAX: usize = 1024 * 1024;

/// Messages sent on a compact lane whose answers are still expected; the oldest is forgotten, and its answer then unknown.
pub const LANE_SENT_MAX: usize = 1024;

/// Acknowledgements in one frame.
pub const LANE_ACKS_MAX: usize = 1024;

/// Acknowledgements that wait to be sent together; with so many the frame leaves.
pub const LANE_ACKS_WAITING_MAX: usize = 16;

/// How long acknowledgements may wait for more of their kind, in milliseconds.
pub const ACKS_WAIT_MS: u64 = 200;

/// Names and reasons in a frame, in bytes. Longer: the frame is refused.
pub const LANE_TEXT_LEN_MAX: usize = 1024;

/// Frames in one WebSocket message: with so many bytes it leaves.
pub const LANE_BATCH_LEN: usize = 64 * 1024;

/// Less is sent as it is: a zstd frame and its wrapping cost some 20 bytes, and short JSON gives little (docs/decisions/compact-lane.md).
pub const PACK_LEN_MIN: usize = 256;

/// Window of a zstd frame. Larger: refused before anything is allocated.
pub const PACK_WINDOW_MAX: u64 = 64 * 1024;

/// Kinds of a peer that are reported as unknown on one link; further ones are skipped silently.
pub const LANE_UNKNOWN_MAX: usize = 64;

/// Pushes on their way to a node at one time on the compact lane; the JSON lane has one, as stock peers do.
pub const PUSH_WINDOW: usize = 16;

/// Pushes that a node remembers having stored, to tell them to the cloud on the next link.
pub const RESUME_LEN_MAX: usize = 2 * PUSH_WINDOW;

/// How long a node lets its reports wait for others on the compact lane, in milliseconds: they then leave in one frame.
pub const REPORT_GATHER_MS: u64 = 100;

/// A cloud that is busy may keep a node away for so long at most, in milliseconds, whatever it asks for.
pub const BUSY_MS_MAX: u64 = 300_000;
