//! The store as the server needs it. `store::Store` is one; a node's API puts its own in front, which passes some kinds through.

use std::future::Future;
use std::sync::Arc;

use store::{CommitError, Compacted, Durability, Event, Key, Op, Record, Snapshot};

/// Cheap to clone; clones are the same store.
pub trait Backend: Clone + Send + Sync + 'static {
    type Watch: WatchStream;

    fn get(&self, key: &Key) -> Option<Arc<Record>>;
    /// Sorted by namespace, then name.
    fn list(&self, kind: &str, namespace: Option<&str>) -> Snapshot;
    /// All or none. Resolves to one record per operation (for a deletion the last state), durable as asked.
    fn commit(
        &self,
        ops: Vec<Op>,
        durability: Durability,
    ) -> impl Future<Output = Result<Vec<Arc<Record>>, CommitError>> + Send + 'static;
    /// Events of a kind with revisions above `after`.
    fn watch(&self, kind: &str, after: u64) -> Result<Self::Watch, Compacted>;
    fn revision(&self) -> u64;
}

pub trait WatchStream: Send + 'static {
    /// `None` when the store closes. Safe to drop while waiting.
    fn next(&mut self) -> impl Future<Output = Result<Option<Arc<Event>>, Compacted>> + Send;
    /// Everything up to this revision has been delivered.
    fn position(&self) -> u64;
}

impl Backend for store::Store {
    type Watch = store::Watch;

    fn get(&self, key: &Key) -> Option<Arc<Record>> {
        store::Store::get(self, key)
    }

    fn list(&self, kind: &str, namespace: Option<&str>) -> Snapshot {
        store::Store::list(self, kind, namespace)
    }

    fn commit(
        &self,
        ops: Vec<Op>,
        durability: Durability,
    ) -> impl Future<Output = Result<Vec<Arc<Record>>, CommitError>> + Send + 'static {
        let commit = store::Store::commit(self, ops, durability);
        async move { commit.await.map(|committed| committed.records) }
    }

    fn watch(&self, kind: &str, after: u64) -> Result<store::Watch, Compacted> {
        store::Store::watch(self, Some(kind), after)
    }

    fn revision(&self) -> u64 {
        store::Store::revision(self)
    }
}

impl WatchStream for store::Watch {
    fn next(&mut self) -> impl Future<Output = Result<Option<Arc<Event>>, Compacted>> + Send {
        store::Watch::next(self)
    }

    fn position(&self) -> u64 {
        store::Watch::position(self)
    }
}
