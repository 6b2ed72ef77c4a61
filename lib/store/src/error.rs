//! What can go wrong, each with the remedy.

use std::{io, path::PathBuf, sync::Arc};

use crate::{Key, Record};

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the store {dir} is in use by another process; stop that one first")]
    Locked { dir: PathBuf },
    #[error(
        "{file} is damaged at byte {offset} ({what}), in a part that had been written safely before; nothing was changed. \
         Restore a copy of it, or move it away to start empty: what came from the cloud is then fetched again"
    )]
    Damaged { file: PathBuf, offset: u64, what: &'static str },
    #[error("{file} is not a store's log (its first bytes are others); move it away or name another folder")]
    NotALog { file: PathBuf },
    #[error(
        "{file} has format version {found}, this program reads version {supported}; use the program that wrote it, or a newer one"
    )]
    Version { file: PathBuf, found: u32, supported: u32 },
    #[error("cannot {action} {file}")]
    Io {
        action: &'static str,
        file: PathBuf,
        #[source]
        source: io::Error,
    },
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    #[error("{key} was changed in between: expected revision {expected}, it has {}", .current.revision)]
    Conflict { key: Key, expected: u64, current: Arc<Record> },
    #[error("{key} does not exist")]
    Absent { key: Key },
    #[error("{} exists already", .current.key)]
    Exists { current: Arc<Record> },
    #[error("{key} is too large to be stored: {len} exceeds {max}")]
    TooLarge { key: Key, len: usize, max: usize },
    #[error("no space left for the store {dir}; nothing was changed, free some space and try again")]
    Full { dir: PathBuf },
    /// Nothing was changed as far as readers see; after a restart the change may turn out to have been kept.
    #[error(
        "cannot {action} the store's log in {dir}; it stays readable and is tried again with the next change"
    )]
    Io {
        action: &'static str,
        dir: PathBuf,
        #[source]
        source: Arc<io::Error>,
    },
    #[error("the store is closed")]
    Closed,
}

/// The watch cannot go on from there: events are forgotten or were never durable. List again, then watch from the list's revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("events before revision {oldest} are forgotten; list again")]
pub struct Compacted {
    /// A watch after this revision is possible.
    pub oldest: u64,
}
