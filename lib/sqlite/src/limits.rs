//! Upper bounds, and what happens at them.

/// A database or its log; a larger one is refused with the way to make it smaller. It is held in memory.
pub const FILE_BYTES_MAX: u64 = 128 * 1024 * 1024;
/// One row; a longer one counts as damage. KubeEdge's objects come from etcd, which takes 1.5 MB.
pub const ROW_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Of all rows of a table together, so that pages which lie about their rows cannot fill the memory.
pub const TABLE_BYTES_MAX: usize = 2 * FILE_BYTES_MAX as usize;
/// Columns of a row; more count as damage (SQLite's own default is 2000).
pub const COLUMNS_MAX: usize = 2000;
