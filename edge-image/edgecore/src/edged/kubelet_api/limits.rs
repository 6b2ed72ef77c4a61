//! Upper bounds of the kubelet API, and what happens at them.

use std::time::Duration;

/// Head of a request, and what waits to be written to a peer. A longer head is refused with 431; an answer waits.
pub const HTTP_BUFFER_BYTES_MAX: usize = 64 * 1024;
/// A peer that sends no whole head for so long is cut off.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Connections to the read-only port at once; a further one is closed without an answer.
pub const CONNECTIONS_MAX: usize = 16;
/// Before a port that is taken is tried again.
pub const LISTEN_RETRY: Duration = Duration::from_secs(30);

/// Connecting to the runtime's streaming server, and its answer to the upgrade.
pub const STREAM_CONNECT: Duration = Duration::from_secs(10);
pub const STREAM_ANSWER: Duration = Duration::from_secs(30);
/// Head and refusal of the streaming server; a longer one is cut.
pub const STREAM_ANSWER_BYTES_MAX: usize = 16 * 1024;
/// One side has ended: the other has this long to say the rest.
pub const STREAM_HALF_CLOSED: Duration = Duration::from_secs(30);

/// How long processor time is watched when nobody asked for it lately.
pub const RATE_SAMPLE: Duration = Duration::from_secs(1);
/// Folders of pods are walked no more often than this.
pub const DISK_AGE_MAX: Duration = Duration::from_secs(60);
/// Files of one pod that are counted; what a pod takes beyond them is not seen.
pub const DISK_ENTRIES_MAX: usize = 50_000;

/// Read from a log at once; also about the size of one piece of an answer.
pub const LOG_BLOCK_BYTES: usize = 32 * 1024;
/// Blocks looked at before the runtime's thread is given back, when a filter leaves nothing of them.
pub const LOG_BLOCKS_PER_STEP: usize = 16;
/// Time, stream and tag of a log entry; an entry with a longer head is damaged and left out.
pub const LOG_HEAD_BYTES_MAX: usize = 96;
/// Log files of one container; older ones are not looked at.
pub const LOG_FILES_MAX: usize = 64;
/// Between looks at a log that is followed: right after news, and when it is quiet.
pub const LOG_POLL_MIN: Duration = Duration::from_millis(50);
pub const LOG_POLL_MAX: Duration = Duration::from_millis(400);
/// How often the runtime is asked whether a container whose log is followed still runs.
pub const LOG_STATE_CHECK: Duration = Duration::from_secs(1);

const _: () = assert!(LOG_HEAD_BYTES_MAX < LOG_BLOCK_BYTES);
