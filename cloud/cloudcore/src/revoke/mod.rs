//! Nodes whose certificates are refused, whatever they say: kept as API objects, so that every replica of cloudcore knows them, and
//! they outlive restarts.
//!
//! One [`Shared`] value per node ([`Entry`]); a watch keeps the table. Hub, tunnel and join port ask
//! [`Revocations::check`]; a session that is open ends by [`Revocations::refused`].
//!
//! Invariants
//! - Nobody is let in before the table was read once (it fails closed); when the API is away later, the last table counts.
//! - While a node has an entry, only keys that were admitted after it pass under its name; the keys that it had pass under none.
//! - What is admitted is written before it is answered.

mod entry;
mod watch;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch as channel;

use crate::api::Api;
use crate::authority::Peer;
use crate::limits::WATCH_RETRY;
use crate::shared::{Shared, SharedError, ensure_namespace};

pub use entry::Entry;

/// How long a start waits for the first reading.
const FIRST_READ_MAX: Duration = Duration::from_secs(10);
const NOT_READ: &str = "cannot read which nodes are revoked; nobody is let in until it works";

/// Why a node is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "node {node} was revoked{reason}; on the cloud: `cloudcore unrevoke {node}` takes it back, `cloudcore token --node {node}` admits another device under its name"
    )]
    Node { node: String, reason: String },
    #[error(
        "the key of this certificate was revoked with node {node}; make a new key: remove the node's certificate and join again"
    )]
    Key { node: String },
    #[error(
        "cloudcore has not read yet which nodes are revoked, since its Kubernetes API does not answer; it lets nobody in until it has"
    )]
    Unknown,
}

impl Refusal {
    pub fn status(&self) -> u16 {
        if *self == Refusal::Unknown { 503 } else { 403 }
    }
}

/// What a join may do under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joining {
    Free,
    /// The key must be admitted with [`Revocations::admit`] first.
    Readmit,
}

#[derive(Debug, Default)]
pub(crate) struct Table {
    nodes: HashMap<String, Entry>,
    /// Of all entries; a key is refused under every name.
    keys: HashSet<String>,
}

impl Table {
    fn new(entries: impl IntoIterator<Item = Entry>) -> Table {
        let nodes: HashMap<String, Entry> =
            entries.into_iter().map(|entry| (entry.node.clone(), entry)).collect();
        let keys = nodes.values().flat_map(|entry| entry.keys.iter().cloned()).collect();
        Table { nodes, keys }
    }

    fn check(&self, node: &str, key: &str) -> Result<(), Refusal> {
        match self.nodes.get(node) {
            // Says more than that the key is refused.
            Some(entry) if !entry.admitted.iter().any(|admitted| admitted == key) => Err(entry.refusal()),
            _ => self.check_key(key),
        }
    }

    fn check_key(&self, key: &str) -> Result<(), Refusal> {
        if !self.keys.contains(key) {
            return Ok(());
        }
        let owner = self.nodes.values().find(|entry| entry.keys.contains(key));
        Err(Refusal::Key { node: owner.map(|entry| entry.node.clone()).unwrap_or_default() })
    }

    fn joining(&self, node: &str, key: &str, made_for_node: bool) -> Result<Joining, Refusal> {
        self.check_key(key)?;
        match self.nodes.get(node) {
            None => Ok(Joining::Free),
            Some(entry) if entry.open || made_for_node => Ok(Joining::Readmit),
            Some(entry) => Err(entry.refusal()),
        }
    }
}

/// The table as it is now. Cheap to clone.
#[derive(Clone)]
pub struct Revocations {
    api: Api,
    shared: Shared,
    table: Arc<channel::Sender<Option<Arc<Table>>>>,
}

impl Revocations {
    pub fn new(api: Api) -> Revocations {
        let shared = Shared::new(api.clone(), "revoked");
        Revocations { api, shared, table: Arc::new(channel::Sender::new(None)) }
    }

    /// Reads the entries, so that nodes may be let in. When the API does not answer the start goes on: [`Revocations::run`] reads them
    /// later, and until then nobody is let in.
    pub async fn read_first(&self) {
        let read = tokio::time::timeout(FIRST_READ_MAX, self.list()).await;
        match read.map_err(|_| "the Kubernetes API does not answer".to_owned()) {
            Ok(Ok(entries)) => self.replace(entries.into_values()),
            Ok(Err(error)) => tracing::error!("{NOT_READ}: {}", rt::error_chain(&error)),
            Err(why) => tracing::error!("{NOT_READ}: {why}"),
        }
    }

    /// Keeps the table until it is dropped.
    pub async fn run(self) {
        let mut told = String::new();
        loop {
            let line = match watch::follow(&self).await {
                Ok(()) => String::new(),
                Err(error) => rt::error_chain(&error),
            };
            if !line.is_empty() && line != told {
                tracing::warn!("cannot watch revoked nodes, the last list counts: {line}");
            }
            told = line;
            tokio::time::sleep(WATCH_RETRY).await;
        }
    }

    /// All entries by node.
    pub async fn list(&self) -> Result<BTreeMap<String, Entry>, SharedError> {
        let (maps, _) = self.shared.list().await?;
        let entries = maps.iter().map(|map| map.value::<Entry>().map(|entry| (entry.node.clone(), entry)));
        entries.collect()
    }

    /// Makes the entry of a node, or adds to the one that is there; what it is then.
    pub async fn set(&self, entry: &Entry) -> Result<Entry, SharedError> {
        let namespace = ensure_namespace(&self.api).await;
        namespace.map_err(|error| SharedError::Write("the namespace kubeedge".into(), error))?;
        let merge = |there: Option<Entry>| {
            let mut merged = there.unwrap_or_else(|| entry.clone());
            merged.renew(entry);
            (Some(merged.clone()), merged)
        };
        self.shared.update(&entry.node, merge).await
    }

    /// `false`: there was none.
    pub async fn remove(&self, node: &str) -> Result<bool, SharedError> {
        self.shared.delete(node).await
    }

    /// Whether a node may be here with this certificate's key.
    pub fn check(&self, peer: &Peer) -> Result<(), Refusal> {
        self.with(|table| table.check(&peer.node, &peer.key))
    }

    /// Returns when the node may not be here any more.
    pub async fn refused(&self, peer: &Peer) -> Refusal {
        let mut table = self.table.subscribe();
        loop {
            if let Some(refusal) =
                table.borrow_and_update().as_ref().and_then(|table| table.check(&peer.node, &peer.key).err())
            {
                return refusal;
            }
            table.changed().await.expect("self holds the sender");
        }
    }

    /// Whether a key may get a certificate under a name.
    pub fn joining(&self, node: &str, key: &str, made_for_node: bool) -> Result<Joining, Refusal> {
        self.with(|table| table.joining(node, key, made_for_node))
    }

    /// The node has an entry, so that its next key needs [`Revocations::admit`] too.
    pub fn has_entry(&self, node: &str) -> bool {
        self.table.borrow().as_ref().is_some_and(|table| table.nodes.contains_key(node))
    }

    /// Lets a key pass under a node's name beside its entry; durable when it returns.
    pub async fn admit(&self, node: &str, key: &str) -> Result<(), SharedError> {
        let admit = |there: Option<Entry>| {
            let admitted = there.map(|mut entry| {
                entry.admit(key);
                entry
            });
            (admitted.clone(), admitted)
        };
        let admitted = self.shared.update(node, admit).await?;
        // The watch brings it too, a moment later than the node may dial.
        self.table.send_modify(|table| {
            if let (Some(now), Some(entry)) = (table.as_ref(), admitted) {
                let mut entries = now.nodes.clone();
                entries.insert(entry.node.clone(), entry);
                *table = Some(Arc::new(Table::new(entries.into_values())));
            }
        });
        Ok(())
    }

    fn with<T>(&self, ask: impl FnOnce(&Table) -> Result<T, Refusal>) -> Result<T, Refusal> {
        match &*self.table.borrow() {
            Some(table) => ask(table),
            None => Err(Refusal::Unknown),
        }
    }

    fn replace(&self, entries: impl IntoIterator<Item = Entry>) {
        self.table.send_replace(Some(Arc::new(Table::new(entries))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_bars_the_name_but_for_keys_admitted_after_it_and_its_keys_under_every_name() {
        let mut entry = Entry::new("pi", "stolen", ["old".to_owned()]);
        let table = |entry: &Entry| Table::new([entry.clone()]);
        let now = table(&entry);
        assert!(now.check("pi", "old").is_err() && now.check("pi", "never seen").is_err());
        assert_eq!(now.check("other", "old"), Err(Refusal::Key { node: "pi".into() }));
        assert_eq!(now.check("other", "new"), Ok(()));
        assert!(now.joining("pi", "new", false).is_err(), "a fleet token does not give the name away");
        assert_eq!(now.joining("pi", "new", true), Ok(Joining::Readmit));
        assert!(now.joining("pi", "old", true).is_err(), "not even with a token of its own");
        assert!(now.joining("other", "old", false).is_err());
        assert_eq!(now.joining("other", "new", false), Ok(Joining::Free));
        entry.admit("new");
        assert_eq!(table(&entry).check("pi", "new"), Ok(()));
        entry.open = true;
        assert_eq!(table(&entry).joining("pi", "newer", false), Ok(Joining::Readmit), "after a reset");
        let text = now.check("pi", "x").unwrap_err().to_string();
        assert!(text.contains("(stolen)") && text.contains("cloudcore unrevoke pi"), "{text}");
    }

    #[tokio::test]
    async fn nobody_is_let_in_before_the_table_was_read() {
        let nobody = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let revocations = Revocations::new(Api::new(kube::Client::try_from(nobody).unwrap()));
        revocations.read_first().await;
        let refusal = revocations.joining("pi", "key", true).unwrap_err();
        assert_eq!((refusal.status(), refusal.clone()), (503, Refusal::Unknown));
        assert!(revocations.with(|table| table.check("pi", "key")).is_err());
        revocations.replace([]);
        assert_eq!(revocations.joining("pi", "key", false), Ok(Joining::Free));
    }
}
