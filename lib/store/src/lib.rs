//! The database of a node and of the embedded API: a crash-safe, revisioned log of objects with watch.
//!
//! Not here: what the objects mean, JSON, encryption. `key_id` names the key a value is sealed with; sealing is the caller's.
//!
//! Invariants
//! - No revision is ever seen twice with different content, also across power cuts.
//! - What was acknowledged under [`Durability::Sync`] is there after a power cut at any point.
//! - A damaged tail costs at most what was not acknowledged; damage elsewhere is reported, never read as "no objects".
//! - A commit of several operations is there whole or not at all.
//!
//! Start at [`Store`]; what is on the disk is described in docs/disk.md and written by `format`. The decisions are in
//! `engine` (a plain value driven by one writer thread), everything that touches a disk goes through [`Backend`], and
//! [`sim::SimDisk`] is the backend that cuts the power.

mod backend;
mod checkpoint;
mod engine;
mod error;
mod format;
pub mod limits;
mod memory;
mod plan;
mod replay;
pub mod sim;
mod store;
mod watch;

pub use backend::{Backend, FileBackend};
pub use error::{CommitError, Compacted, OpenError};
pub use format::fuzz_log;
pub use replay::{Damage, Recovery};
pub use store::{Committed, Options, Stats, Store};
pub use watch::Watch;

use std::sync::Arc;

use bytes::Bytes;

/// What identifies an object: the kind's plural resource name (`pods`, `devices.devices.kubeedge.io`), namespace (empty for
/// cluster scope) and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub kind: Arc<str>,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl Key {
    pub fn new(kind: &str, namespace: &str, name: &str) -> Key {
        Key { kind: kind.into(), namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace.is_empty() {
            true => write!(f, "{}/{}", self.kind, self.name),
            false => write!(f, "{}/{}/{}", self.kind, self.namespace, self.name),
        }
    }
}

/// Where a copy came from: identity of the cloud, the object's uid and resourceVersion there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub id: Arc<str>,
    pub uid: Arc<str>,
    pub resource_version: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub key: Key,
    pub uid: Arc<str>,
    pub revision: u64,
    pub upstream: Option<Upstream>,
    /// 0: not sealed.
    pub key_id: u8,
    pub value: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The commit's future resolves after fsync.
    Sync,
    /// The commit's future resolves at once; synced within 60 s or with the next sync commit.
    Lazy,
}

/// What must hold for an operation to be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Any,
    Absent,
    /// The object exists (any revision).
    Present,
    Revision(u64),
}

/// The stored bytes of an object. `Render` is called once with the revision that the commit got, so that an object can carry
/// its own resourceVersion. It runs on the writer thread and must not panic or wait: every other commit waits for it.
pub enum Value {
    Bytes(Bytes),
    Render(Box<dyn FnOnce(u64) -> Bytes + Send>),
}

pub struct Put {
    pub key: Key,
    pub uid: Arc<str>,
    pub upstream: Option<Upstream>,
    pub key_id: u8,
    pub value: Value,
}

pub enum Op {
    Put(Put, Expect),
    /// Deleting what does not exist with `Expect::Any` is no change: it gets no revision and no event.
    Delete(Key, Expect),
}

impl Op {
    /// The common case: bytes as they are, no upstream, not sealed.
    pub fn put(key: Key, value: impl Into<Bytes>, expect: Expect) -> Op {
        let put =
            Put { key, uid: Arc::default(), upstream: None, key_id: 0, value: Value::Bytes(value.into()) };
        Op::Put(put, expect)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Put,
    Delete,
}

/// One change. A commit of several operations gives as many events, with consecutive revisions. For `Delete`, `record` is the last state with `revision` set to the deletion's.
#[derive(Clone, Debug)]
pub struct Event {
    pub kind: EventKind,
    pub revision: u64,
    pub record: Arc<Record>,
    pub previous: Option<Arc<Record>>,
}

#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The store's revision that the list is of.
    pub revision: u64,
    /// Sorted by namespace, then name.
    pub records: Vec<Arc<Record>>,
}
