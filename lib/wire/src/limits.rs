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
