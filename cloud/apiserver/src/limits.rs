//! Bounds of the listener and the controllers.

use std::time::Duration;

/// Connections at one time; more are closed at once, and logged.
pub const CONNECTIONS_MAX: usize = 512;
/// A TLS handshake that takes longer is dropped.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// A connection without a request for so long is closed. Longer than clients keep idle ones (90 s), so that they close first and
/// never write into a connection that is just going away.
pub const HEADER_READ_MAX: Duration = Duration::from_secs(100);
/// HTTP/2: a silent peer is asked, and dropped when it does not answer.
pub const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(30);
/// How long open requests may go on after the drain began.
pub const DRAIN_MAX: Duration = Duration::from_secs(1);
/// Days that the administrator's certificate is good for; a new one is made at each start when a third is left.
pub const ADMIN_CERT_DAYS: u64 = 365;
/// Events live this long after they were last seen.
pub const EVENT_AGE_MAX: Duration = Duration::from_secs(60 * 60);
/// How often old events are looked for.
pub const EVENT_SWEEP_EVERY: Duration = Duration::from_secs(60);
/// How often the emptying of a namespace is looked at while it waits for pods to end.
pub const NAMESPACE_RETRY_EVERY: Duration = Duration::from_millis(500);
