//! Upper bounds of what the link carries.

/// Largest message accepted from a peer, in bytes. KubeEdge caps its packed messages at 32 MiB; nothing that Kubernetes
/// stores is larger than 3 MiB, so a larger frame is refused before it is buffered.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
