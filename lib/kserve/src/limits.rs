//! Bounds of the server. Beyond each a client gets a Status that says so.

use std::time::Duration;

/// Body of one request: 413.
pub const REQUEST_BYTES_MAX: usize = 3 * 1024 * 1024;
/// Attempts of a patch without resourceVersion against concurrent writers: 409 afterwards.
pub const PATCH_ATTEMPTS_MAX: usize = 5;
/// Tries to find a free name for `generateName`: 409 afterwards.
pub const GENERATE_NAME_ATTEMPTS_MAX: usize = 8;
/// Lists that are being paged through; the oldest is dropped, and its `continue` token answers 410.
pub const PAGED_LISTS_MAX: usize = 32;
/// How long a paged list is kept.
pub const PAGED_LIST_AGE_MAX: Duration = Duration::from_secs(300);
/// Watches at one time: 429 with Retry-After.
pub const WATCHES_MAX: usize = 1024;
/// A watch without `timeoutSeconds` ends after this; clients reconnect.
pub const WATCH_DEFAULT: Duration = Duration::from_secs(45 * 60);
/// The longest `timeoutSeconds` that is honoured.
pub const WATCH_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// How often a watch that wants bookmarks gets one.
pub const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// List bodies and watch backlogs are sent in frames of about this size.
pub const FRAME_BYTES: usize = 32 * 1024;
/// Ports of one port-forward over WebSocket: 400.
pub const PORTS_MAX: usize = 32;
/// Seconds that a service-account token is good for when the request does not say.
pub const TOKEN_LIFE_S_DEFAULT: i64 = 3600;
/// Less is refused with 422, as upstream.
pub const TOKEN_LIFE_S_MIN: i64 = 600;
/// More is cut to this; the answer says what it is. More than 2^32 is refused with 422, as upstream.
pub const TOKEN_LIFE_S_MAX: i64 = 365 * 24 * 3600;
/// What the token of a pod's automatic volume is good for, though its renewal is due within the hour: a node may be offline for
/// long, and upstream does the same (`service-account-extend-token-expiration`).
pub const TOKEN_LIFE_S_EXTENDED: i64 = 365 * 24 * 3600;
/// Audiences of one token: 422.
pub const TOKEN_AUDIENCES_MAX: usize = 32;
