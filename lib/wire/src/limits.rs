//! Upper bounds of what the link carries.

/// Largest message accepted from a peer, in bytes. KubeEdge caps its packed messages at 32 MiB; nothing that Kubernetes
/// stores is larger than 3 MiB, so a larger frame is refused before it is buffered.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How long an acknowledgement of a pushed object may take before the object is sent again, in milliseconds (KubeEdge: 5 s).
pub const PUSH_RESEND_MS: u64 = 5_000;

/// How often one push is sent before the other waiting objects get their turn (KubeEdge: first send and 4 more).
pub const PUSH_SENDS_MAX: u32 = 5;
