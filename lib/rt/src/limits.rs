//! What bounds this crate's parts, and what happens when a bound is reached.

/// Errors kept per supervised task; the oldest is forgotten.
pub const LAST_ERRORS_LEN: usize = 5;

/// Bytes of one log line; the rest is cut and the line ends with `...`.
pub const LOG_LINE_LEN: usize = 8 << 10;

/// Causes printed of one error; a longer chain is a loop.
pub const ERROR_CHAIN_LEN: usize = 16;

/// Bytes of one text in an error chain; the rest is cut.
pub const ERROR_TEXT_LEN: usize = 4 << 10;

/// Threads of [`crate::runtime`] for blocking work (files, name resolution); further work waits for one.
pub const BLOCKING_THREADS_MAX: usize = 8;

/// Figures that modules show; further ones are counted and not shown.
pub const GAUGES_LEN_MAX: usize = 128;
