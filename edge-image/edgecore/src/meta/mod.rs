//! The node's durable memory, on the store: the cloud's objects and the modules' own records.
//!
//! Not here: the link. [`MetaStore`] calls nobody; [`Front`] adds the question to the cloud for what is missing.
//!
//! Invariants
//! - What `apply` returned for is durable, so it may be acknowledged.
//! - Objects are deleted by an explicit delete for their uid, or by a whole inventory of the same cloud that lacks them, and in no
//!   other way: missing data is never an empty desired state, and a store that cannot be read is not empty.
//! - Every object carries the identity of the cloud that it came from.

mod broken;
mod front;
mod inventory;
#[cfg(test)]
mod tests;

use std::{path::Path, sync::Arc, time::Instant};

use bytes::Bytes;
use serde::Deserialize;
use store::{CommitError, Durability, Expect, Key, OpenError, Options, Put, Record, Store, Upstream, Value};
use tokio::sync::watch;
use wire::{Message, Operation, Resource};

pub use broken::BrokenMeta;
pub use front::Front;

use crate::{
    contract::{Applied, BoxFuture, Inbox, Meta, MetaError, Object},
    limits::STORE_HISTORY_LEN_MAX,
};

/// Modules' own records are apart from the cloud's types by this prefix, which no wire type has.
const LOCAL: &str = "local.";

pub struct MetaStore {
    store: Store,
    /// Identity of the cloud that this node joined.
    cloud_id: Arc<str>,
    changes: watch::Sender<u64>,
}

/// What is read of an object; everything else passes through as text.
#[derive(Default, Deserialize)]
struct View {
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    uid: String,
    resource_version: String,
}

static RECORDS: rt::Gauge =
    rt::Gauge::new("kinglet_store_records", "Objects and records in the node's store.");
static LOG_BYTES: rt::Gauge = rt::Gauge::new("kinglet_store_log_bytes", "Size of the store's log.");
static PODS_TAKEN: rt::Gauge = rt::Gauge::new(
    "kinglet_store_pods_taken_total",
    "Pod objects that were made durable before edged saw them.",
);
static PODS_TAKEN_US: rt::Gauge =
    rt::Gauge::new("kinglet_store_pods_taken_microseconds_total", "Time that making them durable took.");
static WRITTEN_BYTES: rt::Gauge =
    rt::Gauge::new("kinglet_store_written_bytes_total", "Written to flash by the store since the start.");

impl MetaStore {
    /// Opens the store below `dir`. Blocks while it is read.
    pub fn open(dir: &Path, cloud_id: &str) -> Result<MetaStore, OpenError> {
        let options = Options { history_len_max: STORE_HISTORY_LEN_MAX, ..Options::default() };
        let store = Store::open(dir, options)?;
        let recovery = store.recovery();
        if recovery.damage.is_some() {
            tracing::warn!(target: "meta", "{recovery}");
        } else if !recovery.clean {
            tracing::info!(target: "meta", "{recovery}");
        }
        Ok(MetaStore::new(store, cloud_id))
    }

    pub fn new(store: Store, cloud_id: &str) -> MetaStore {
        MetaStore { store, cloud_id: cloud_id.into(), changes: watch::Sender::new(0) }
    }

    /// A random id made with the store: another one tells the cloud that this node has lost its data.
    pub fn store_id(&self) -> &str {
        self.store.epoch()
    }

    /// Syncs and ends the store's writer. Blocks for one sync.
    pub fn close(&self) {
        self.store.close();
    }

    async fn store_object(&self, resource: &Resource, message: &Message) -> Result<Applied, MetaError> {
        let Some((view, body)) = read_object(message) else {
            return Ok(Applied::Ignored("its content is not an object with a uid"));
        };
        let header_version = message.header.resourceversion.clone();
        let version = Some(view.resource_version).filter(|v| !v.is_empty()).unwrap_or(header_version);
        let key = object_key(resource);
        if let Some(stored) = self.store.get(&key)
            && *stored.uid == *view.uid
            && !is_newer(&version, stored_version(&stored))
        {
            return Ok(Applied::Unchanged);
        }
        let uid: Arc<str> = view.uid.into();
        let upstream =
            Upstream { id: self.cloud_id.clone(), uid: uid.clone(), resource_version: version.into() };
        let put = Put { key, uid, upstream: Some(upstream), key_id: 0, value: Value::Bytes(body) };
        let begun = Instant::now();
        self.commit(vec![store::Op::Put(put, Expect::Any)], Durability::Sync).await?;
        if resource.kind == "pod" {
            PODS_TAKEN.add(1);
            PODS_TAKEN_US.add(u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX));
        }
        self.changes.send_modify(|n| *n += 1);
        Ok(Applied::Stored)
    }

    async fn delete_object(&self, resource: &Resource, message: &Message) -> Result<Applied, MetaError> {
        let Some((view, _)) = read_object(message) else {
            return Ok(Applied::Ignored("a delete without a uid deletes nothing"));
        };
        let key = object_key(resource);
        let Some(stored) = self.store.get(&key).filter(|stored| *stored.uid == *view.uid) else {
            return Ok(Applied::Unchanged);
        };
        // The revision holds the uid to what was compared; only the hub writes, so it does not change in between.
        let op = store::Op::Delete(key, Expect::Revision(stored.revision));
        self.commit(vec![op], Durability::Sync).await?;
        self.changes.send_modify(|n| *n += 1);
        Ok(Applied::Deleted)
    }

    fn show(&self) {
        let stats = self.store.stats();
        RECORDS.set(stats.records as u64);
        LOG_BYTES.set(stats.log_len);
        WRITTEN_BYTES.set(stats.bytes_written);
    }

    async fn commit(&self, ops: Vec<store::Op>, durability: Durability) -> Result<(), MetaError> {
        let committed = self.store.commit(ops, durability).await;
        self.show();
        match committed {
            Ok(_) | Err(CommitError::Absent { .. }) => Ok(()),
            Err(error) => Err(MetaError::Store(error.into())),
        }
    }
}

impl Inbox for MetaStore {
    fn apply<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<Applied, MetaError>> {
        Box::pin(async move {
            let Some(resource) = Resource::parse(&message.route.resource) else {
                return Ok(Applied::Ignored("its resource has not the form namespace/type/name"));
            };
            match message.route.operation.as_str() {
                Operation::INSERT | Operation::UPDATE | Operation::RESPONSE => {
                    self.store_object(&resource, message).await
                }
                Operation::DELETE => self.delete_object(&resource, message).await,
                wire::inventory::INVENTORY => self.apply_inventory(&resource, message).await,
                _ => Ok(Applied::Ignored("its operation does not change an object")),
            }
        })
    }
}

impl Meta for MetaStore {
    fn list(&self, kind: &str) -> Vec<Object> {
        let records = self.store.list(kind, None).records;
        records.iter().map(|record| object(record)).collect()
    }

    fn get(&self, resource: &Resource) -> Option<Object> {
        self.store.get(&object_key(resource)).map(|record| object(&record))
    }

    fn fetch<'a>(&'a self, resource: &'a Resource) -> BoxFuture<'a, Result<Object, MetaError>> {
        Box::pin(async move { self.get(resource).ok_or_else(|| MetaError::Offline(resource.clone())) })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn put_local<'a>(
        &'a self,
        kind: &'a str,
        name: &'a str,
        body: Bytes,
        durable: bool,
    ) -> BoxFuture<'a, Result<(), MetaError>> {
        let key = local_key(kind, name);
        let put = Put { key, uid: Arc::default(), upstream: None, key_id: 0, value: Value::Bytes(body) };
        let durability = if durable { Durability::Sync } else { Durability::Lazy };
        Box::pin(self.commit(vec![store::Op::Put(put, Expect::Any)], durability))
    }

    fn get_local(&self, kind: &str, name: &str) -> Option<Bytes> {
        self.store.get(&local_key(kind, name)).map(|record| record.value.clone())
    }

    fn list_local(&self, kind: &str) -> Vec<(String, Bytes)> {
        let records = self.store.list(&format!("{LOCAL}{kind}"), None).records;
        records.iter().map(|record| (record.key.name.to_string(), record.value.clone())).collect()
    }

    fn delete_local<'a>(&'a self, kind: &'a str, name: &'a str) -> BoxFuture<'a, Result<(), MetaError>> {
        let op = store::Op::Delete(local_key(kind, name), Expect::Any);
        Box::pin(self.commit(vec![op], Durability::Sync))
    }
}

fn local_key(kind: &str, name: &str) -> Key {
    Key::new(&format!("{LOCAL}{kind}"), "", name)
}

/// The store's empty namespace is the wire's `null`.
fn object_key(resource: &Resource) -> Key {
    let namespace = if resource.namespace == "null" { "" } else { &resource.namespace };
    Key::new(&resource.kind, namespace, &resource.name)
}

fn object(record: &Record) -> Object {
    let key = &record.key;
    let namespace = if key.namespace.is_empty() { "null" } else { &key.namespace };
    Object {
        resource: Resource::new(namespace, &key.kind, &key.name),
        uid: record.uid.as_ref().into(),
        resource_version: stored_version(record).into(),
        body: record.value.clone(),
    }
}

fn stored_version(record: &Record) -> &str {
    record.upstream.as_ref().map_or("", |upstream| &upstream.resource_version)
}

/// Versions of one cloud are numbers that rise. Where they are not numbers, any other one counts as newer.
fn is_newer(new: &str, stored: &str) -> bool {
    match (new.parse::<u64>(), stored.parse::<u64>()) {
        (Ok(new), Ok(stored)) => new > stored,
        _ => new != stored,
    }
}

/// The object and its JSON text, whether it stands in the message as itself or inside a string.
fn read_object(message: &Message) -> Option<(Metadata, Bytes)> {
    let text = message.content.get();
    let text =
        if text.starts_with('"') { serde_json::from_str::<String>(text).ok()? } else { text.to_owned() };
    let view: View = serde_json::from_str(&text).ok()?;
    (!view.metadata.uid.is_empty()).then(|| (view.metadata, Bytes::from(text)))
}

/// Any message is stored, deletes, or is ignored; never a panic. For random bytes.
pub fn fuzz_object(data: &[u8]) {
    if let Ok(message) = Message::decode(data) {
        let _ = read_object(&message);
        let _ = Resource::parse(&message.route.resource).map(|resource| object_key(&resource));
    }
}
