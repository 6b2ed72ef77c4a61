//! What bounds the store, and what happens when a bound is reached.

/// Bytes of one object. A larger one is refused with `CommitError::TooLarge`.
pub const VALUE_LEN_MAX: usize = 8 << 20;

/// Bytes of one kind, namespace, name, uid or upstream field. A longer one is refused with `CommitError::TooLarge`.
pub const TEXT_LEN_MAX: usize = 4096;

/// Operations of one commit. More are refused with `CommitError::TooLarge`.
pub const COMMIT_OPS_MAX: usize = 4096;

/// Bytes of one frame in the log; a commit that needs more is refused with `CommitError::TooLarge`, and a length above it
/// found on the disk is damage (checked before allocating).
pub const FRAME_LEN_MAX: usize = 32 << 20;

/// Commits that wait for the writer. Further ones wait in their caller.
pub const QUEUE_LEN_MAX: usize = 1024;

/// Bytes of values that one group commit takes from the queue; the rest goes with the next one.
pub const BATCH_LEN_MAX: usize = 1 << 20;

/// Revisions reserved by one durable mark. After an unclean stop at most so many numbers are skipped.
pub const REVISION_BLOCK: u64 = 1024;

/// Size of the pieces in which checkpoints are written and the log is read.
pub const CHUNK_LEN: usize = 64 << 10;

/// Damaged tails kept beside the log. The oldest is removed when there are more.
pub const DAMAGED_FILES_MAX: usize = 4;

/// Default of `Options::history_len_max`. Older events are forgotten: a watch from there gets `Compacted`.
pub const HISTORY_LEN: usize = 1 << 20;

/// Default of `Options::rewrite_len_min`: a log below this size is never rewritten.
pub const REWRITE_LEN_MIN: u64 = 1 << 20;

/// What one event or record costs in memory beside its value, roughly; counted into the history's bound.
pub const RECORD_OVERHEAD: usize = 256;

const _: () = assert!(VALUE_LEN_MAX + 16 * TEXT_LEN_MAX < FRAME_LEN_MAX);
const _: () = assert!(CHUNK_LEN < BATCH_LEN_MAX && BATCH_LEN_MAX < FRAME_LEN_MAX);
