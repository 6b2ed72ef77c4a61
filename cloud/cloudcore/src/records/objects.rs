//! Node records in a cluster: one config map per node, and a watch by which a replica learns that a node went to another one.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use rt::Drain;
use serde::Deserialize;
use tokio::sync::watch;

use super::syncs::{SyncRecords, Syncs};
use super::{NodeRecord, RecordError, is_node_name};
use crate::api::Api;
use crate::cluster::views::Kind;
use crate::limits::WATCH_RETRY;
use crate::shared::{ConfigMap, News, Shared};

/// What a link must know of the node's record while it is up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    generation: u64,
    session: String,
}

#[derive(Clone)]
pub struct Objects {
    api: Api,
    shared: Shared,
    syncs: Syncs,
    /// Of the nodes that have a link here.
    links: Arc<Mutex<HashMap<String, watch::Sender<Seen>>>>,
}

/// A node's record with its name, which a config map's name may not hold.
#[derive(serde::Serialize, Deserialize)]
struct Kept {
    node: String,
    #[serde(flatten)]
    record: NodeRecord,
}

impl Objects {
    pub fn new(api: Api) -> Objects {
        let shared = Shared::new(api.clone(), "node");
        Objects { syncs: Syncs::new(api.clone()), shared, api, links: Arc::default() }
    }

    pub async fn node(&self, name: &str) -> Result<NodeRecord, RecordError> {
        let kept: Option<Kept> = self.shared.get(checked(name)?).await.map_err(RecordError::Shared)?;
        Ok(kept.map(|kept| kept.record).unwrap_or_default())
    }

    pub async fn nodes(&self) -> Result<BTreeMap<String, NodeRecord>, RecordError> {
        let (maps, _) = self.shared.list().await.map_err(RecordError::Shared)?;
        let kept = maps.iter().map(|map| map.value::<Kept>().map(|kept| (kept.node, kept.record)));
        kept.collect::<Result<_, _>>().map_err(RecordError::Shared)
    }

    pub async fn update<T>(
        &self,
        name: &str,
        mut change: impl FnMut(&mut NodeRecord) -> T,
    ) -> Result<T, RecordError> {
        let change = |kept: Option<Kept>| {
            let before = kept.map(|kept| kept.record).unwrap_or_default();
            let mut record = before.clone();
            let answer = change(&mut record);
            let changed = record != before;
            (changed.then(|| Kept { node: name.to_owned(), record }), answer)
        };
        self.shared.update(checked(name)?, change).await.map_err(RecordError::Shared)
    }

    pub async fn superseded(&self, name: &str, record: &NodeRecord) {
        let seen = Seen { generation: record.generation, session: record.session.clone() };
        let mut changes = {
            let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            links.entry(name.to_owned()).or_insert_with(|| watch::Sender::new(seen.clone())).subscribe()
        };
        loop {
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
            let now = changes.borrow_and_update().clone();
            // What the watch tells may be older than what this link wrote when it came up: the record itself decides.
            if now != seen {
                match self.node(name).await {
                    Ok(now) if now.session == seen.session && now.generation == seen.generation => {}
                    Ok(_) => return,
                    Err(error) => tracing::warn!("node {name}: {}", rt::error_chain(&error)),
                }
            }
        }
    }

    pub async fn delivery(&self, name: &str, generation: u64) -> Result<SyncRecords, RecordError> {
        let (records, syncs) = self.syncs.open(checked(name)?).await?;
        if self.node(name).await?.synced_generation == generation {
            return Ok(records);
        }
        // Of a generation that is over: the node has none of it any more.
        self.syncs.remove(&syncs).await.map_err(RecordError::Syncs)?;
        self.update(name, |record| {
            if record.generation == generation {
                record.synced_generation = generation;
            }
        })
        .await?;
        Ok(records.emptied())
    }

    pub async fn sweep(&self) -> Result<usize, RecordError> {
        let syncs = self.syncs.all().await?;
        let mut there: HashMap<&str, bool> = HashMap::new();
        let mut orphans = Vec::new();
        for (node, sync) in &syncs {
            let exists = match there.get(node.as_str()) {
                Some(exists) => *exists,
                None => match self.api.get(&Kind::Node.path("", node)).await {
                    Ok(_) => true,
                    Err(error) if error.is_not_found() => false,
                    Err(error) => return Err(RecordError::Syncs(error)),
                },
            };
            there.insert(node, exists);
            if !exists {
                orphans.push((node.clone(), sync.clone()));
            }
        }
        self.syncs.remove(&orphans).await.map_err(RecordError::Syncs)?;
        Ok(orphans.len())
    }

    pub async fn run(self, drain: Drain) {
        let watching = drain.or(self.watch());
        tokio::join!(watching, self.syncs.run(&drain));
    }

    async fn watch(&self) {
        let mut told = false;
        loop {
            let followed = self.shared.follow(|news| match news {
                News::All(maps) => maps.iter().for_each(|map| self.note(map)),
                News::Set(map) => self.note(&map),
                News::Gone(_) => {}
            });
            match followed.await {
                Ok(()) => told = false,
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!("cannot watch the records of nodes: {}", rt::error_chain(&error));
                    }
                    tokio::time::sleep(WATCH_RETRY).await;
                }
            }
        }
    }

    fn note(&self, map: &ConfigMap) {
        let Ok(kept) = map.value::<Kept>() else { return };
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        // Links that ended are forgotten here.
        if links.get(&kept.node).is_some_and(|sender| sender.receiver_count() == 0) {
            links.remove(&kept.node);
        }
        if let Some(sender) = links.get(&kept.node) {
            let seen = Seen { generation: kept.record.generation, session: kept.record.session };
            sender.send_if_modified(|current| std::mem::replace(current, seen.clone()) != seen);
        }
    }
}

fn checked(name: &str) -> Result<&str, RecordError> {
    if is_node_name(name) { Ok(name) } else { Err(RecordError::Name(name.into())) }
}
