//! Upper bounds of the interface, and what happens at each.

/// Longest message that is taken: a longer one is refused with RESOURCE_EXHAUSTED before it is read. gRPC's own default.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest report of a mapper.
pub const REPORT_BYTES_MAX: usize = 256 * 1024;
/// Answers to a registration are kept below what a gRPC client takes; what does not fit is sent device by device afterwards.
pub const REGISTER_ANSWER_BYTES_MAX: usize = 3 * 1024 * 1024;
/// Calls on one connection at a time; HTTP/2 makes the peer wait.
pub const STREAMS_MAX: u32 = 8;
/// Longest text of a refusal; the rest is cut.
pub const REFUSAL_BYTES_MAX: usize = 1024;
/// Headers of a call.
pub const HEADER_BYTES_MAX: u32 = 16 * 1024;

const _: () = assert!(REGISTER_ANSWER_BYTES_MAX < MESSAGE_BYTES_MAX);
