//! What cloudcore remembers of every node: its valid certificates and what was delivered to it.
//!
//! Two keepers, one meaning: [`files`] in the data directory with the embedded API; in a cluster, API objects that all replicas and
//! a KubeEdge cloudcore read: [`objects`] for the nodes, [`syncs`] for what was delivered (KubeEdge's ObjectSync).
//!
//! Invariants
//! - Delivery records belong to one generation of the node. A reset makes the next generation, and with it they are void.
//! - A certificate is valid for a node that has a record only while the record lists it.

mod files;
mod objects;
mod syncs;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rt::{BoxFuture, Drain};
use serde::{Deserialize, Serialize};
use wire::delivery::{Delivered, Known};

use crate::api::{Api, ApiError};
use crate::contract::NodeDesired;
use crate::shared::SharedError;

pub use objects::Objects;

/// Certificates of one node that are valid at one time; rotation overlaps. The oldest goes first.
const CERTIFICATES_MAX: usize = 4;
/// Keys that are remembered of one node. The oldest goes first.
const KEYS_MAX: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("cannot {action} {path}")]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("node records cannot be kept")]
    Write(#[source] rt::FileError),
    #[error("{path} is damaged; remove it and run `cloudcore node reset` for this node")]
    Damaged { path: PathBuf, source: serde_json::Error },
    #[error("{0:?} is not a node name (lower case letters, digits, '-' and '.', at most 253)")]
    Name(String),
    #[error("the node's record cannot be used")]
    Shared(#[source] SharedError),
    #[error("what was delivered to the node (ObjectSync, ClusterObjectSync) cannot be read")]
    Syncs(#[source] ApiError),
    #[error("cloudcore stops")]
    Stopped,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeRecord {
    /// 0: this cloudcore never admitted the node (it may have joined another one with the same CA).
    pub generation: u64,
    /// SHA-256 of the valid certificates, oldest first.
    pub certificates: Vec<String>,
    /// The store that the edge said it has; empty when it said nothing.
    pub store_id: String,
    /// Id of the join token that the newest certificate was given for.
    pub token_id: String,
    /// The node has used a certificate of this generation.
    pub connected: bool,
    /// Which link of which replica is the node's; empty where one process has all links.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub session: String,
    /// The generation that the ObjectSyncs are of.
    #[serde(skip_serializing_if = "is_zero")]
    pub synced_generation: u64,
    /// SHA-256 of the public keys that the node had, oldest first: what a revocation refuses.
    pub keys: Vec<String>,
    /// SHA-256 of the CA that signed the newest certificate.
    pub signed_by: String,
    /// SHA-256 of the CA at the time of the join: what a stock edge trusts, whatever comes later.
    pub joined_under: String,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl NodeRecord {
    pub fn accepts(&self, fingerprint: &str) -> bool {
        self.generation == 0 || self.certificates.iter().any(|valid| valid == fingerprint)
    }

    pub fn has_certificate(&self) -> bool {
        !self.certificates.is_empty()
    }

    /// A stock edge, which reads the CA when it joins and never again; it joined under another one than this.
    pub fn trusts_another(&self, ca: &str) -> bool {
        self.has_certificate() && self.store_id.is_empty() && self.joined_under != ca
    }

    /// The name belongs to a node. Not so for the token that it just got its certificate with: an answer may have been lost,
    /// and the same device asks again.
    pub fn is_taken_for(&self, token_id: &str) -> bool {
        self.has_certificate() && (self.connected || self.token_id != token_id)
    }

    /// A first join, or one that replaces the node: nothing from before counts.
    pub fn admit(&mut self, fingerprint: String, token_id: &str) {
        self.reset();
        self.certificates.push(fingerprint);
        self.token_id = token_id.to_owned();
    }

    /// Notes a key of the node.
    pub fn has_key(&mut self, key: &str) {
        if !self.keys.iter().any(|known| known == key) {
            self.keys.push(key.to_owned());
            if self.keys.len() > KEYS_MAX {
                self.keys.remove(0);
            }
        }
    }

    /// One more certificate for the same node, beside the one that it showed.
    pub fn rotate(&mut self, shown: &str, fingerprint: String) {
        if self.generation == 0 {
            // Known from now on; what it has from before, it keeps.
            (self.generation, self.synced_generation) = (1, 1);
        }
        // The one shown stays, however often the answer is lost on its way.
        self.certificates.retain(|known| known != shown);
        self.certificates.push(shown.to_owned());
        self.certificates.push(fingerprint);
        if self.certificates.len() > CERTIFICATES_MAX {
            self.certificates.remove(0);
        }
    }

    pub fn reset(&mut self) {
        let kept = (self.generation + 1, self.synced_generation);
        *self = NodeRecord { generation: kept.0, synced_generation: kept.1, ..NodeRecord::default() };
    }

    /// The node is here. Notes which store the edge has. `true`: it is another one than before, so the node has lost what it had.
    pub fn connect_store(&mut self, store_id: &str) -> bool {
        self.connected = self.has_certificate();
        if store_id.is_empty() || self.store_id == store_id {
            return false;
        }
        let lost = !std::mem::replace(&mut self.store_id, store_id.to_owned()).is_empty();
        self.generation += u64::from(lost);
        lost
    }
}

pub fn is_node_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let edges = name.bytes().next().is_some_and(inner) && name.bytes().last().is_some_and(inner);
    edges && name.len() <= 253 && name.bytes().all(|byte| inner(byte) || matches!(byte, b'-' | b'.'))
}

/// The delivery records of one node, while a link of it is up.
pub trait DeliveryRecords: Send {
    /// What the records said when they were opened; asked once. `desired` is what belongs on the node now.
    fn loaded(&mut self, desired: &NodeDesired) -> Known;
    /// This version of the object goes to the node.
    fn sending(&mut self, uid: &str, resource_version: &str);
    /// `durable`: kept when the next [`DeliveryRecords::kept`] is over; else soon.
    fn record(&mut self, uid: &str, delivered: &Delivered, durable: bool) -> Result<(), RecordError>;
    fn forget(&mut self, uid: &str) -> Result<(), RecordError>;
    /// Over when what was recorded as durable is. `None`: it is.
    fn kept(&mut self) -> Option<BoxFuture<'static, ()>>;
    /// Makes room where most of what is kept is out of date.
    fn tidy(&mut self, records: &Known) -> Result<(), RecordError>;
}

#[derive(Clone)]
pub enum Records {
    Files(files::Files),
    Objects(Box<Objects>),
}

impl Records {
    pub fn open(data_dir: &Path) -> Result<Records, RecordError> {
        files::Files::open(data_dir).map(Records::Files)
    }

    /// [`Records::run`] must run as long as they are used.
    pub fn in_cluster(api: Api) -> Records {
        Records::Objects(Box::new(Objects::new(api)))
    }

    /// Carries out what the records need done in the background; ends after the drain.
    pub async fn run(self, drain: Drain) {
        match self {
            Records::Files(_) => drain.wait().await,
            Records::Objects(objects) => objects.run(drain).await,
        }
    }

    pub async fn node(&self, name: &str) -> Result<NodeRecord, RecordError> {
        match self {
            Records::Files(files) => files.node(name),
            Records::Objects(objects) => objects.node(name).await,
        }
    }

    /// All nodes that have a record.
    pub async fn nodes(&self) -> Result<BTreeMap<String, NodeRecord>, RecordError> {
        match self {
            Records::Files(files) => files.nodes(),
            Records::Objects(objects) => objects.nodes().await,
        }
    }

    /// Reads, changes and writes a node's record; durable when it returns. Others wait, or `change` is asked again.
    pub async fn update<T>(
        &self,
        name: &str,
        change: impl FnMut(&mut NodeRecord) -> T,
    ) -> Result<T, RecordError> {
        match self {
            Records::Files(files) => files.update(name, change),
            Records::Objects(objects) => objects.update(name, change).await,
        }
    }

    /// A name for a new link, for [`NodeRecord::session`].
    pub fn new_session(&self) -> String {
        match self {
            Records::Files(_) => String::new(),
            Records::Objects(_) => uuid::Uuid::new_v4().to_string(),
        }
    }

    /// Over when the node has another link, at another replica, or was reset there.
    pub fn superseded<'a>(&'a self, name: &'a str, record: &'a NodeRecord) -> BoxFuture<'a, ()> {
        match self {
            Records::Files(_) => Box::pin(std::future::pending()),
            Records::Objects(objects) => Box::pin(objects.superseded(name, record)),
        }
    }

    /// Whether the record is still of this generation, as far as this process can tell at once.
    pub fn is_current(&self, name: &str, generation: u64) -> Result<bool, RecordError> {
        match self {
            Records::Files(files) => Ok(files.node(name)?.generation == generation),
            // `superseded` tells.
            Records::Objects(_) => Ok(true),
        }
    }

    /// The delivery records of this generation of the node.
    pub async fn delivery(
        &self,
        name: &str,
        generation: u64,
    ) -> Result<Box<dyn DeliveryRecords>, RecordError> {
        Ok(match self {
            Records::Files(files) => Box::new(files.delivery(name, generation)?),
            Records::Objects(objects) => Box::new(objects.delivery(name, generation).await?),
        })
    }

    /// Nodes that are gone need no records of what was delivered to them. For one replica at a time.
    pub async fn sweep(&self) -> Result<usize, RecordError> {
        match self {
            Records::Files(_) => Ok(0),
            Records::Objects(objects) => objects.sweep().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_is_in_use_is_not_pushed_out_by_answers_that_were_lost() {
        let mut node = NodeRecord::default();
        node.admit("shown".into(), "t");
        (0..20).for_each(|n| node.rotate("shown", format!("lost {n}")));
        assert!(node.accepts("shown") && node.accepts("lost 19") && !node.accepts("lost 1"));
    }

    #[test]
    fn another_store_on_the_node_is_a_new_generation() {
        let mut node = NodeRecord::default();
        node.admit("c".into(), "t");
        assert!(
            node.is_taken_for("other") && !node.is_taken_for("t"),
            "a lost answer may be asked for again"
        );
        assert!(!node.connect_store("s1"), "the first store is no loss");
        assert!(!node.connect_store("s1") && !node.connect_store(""));
        let before = node.generation;
        assert!(node.connect_store("s2"));
        assert_eq!(node.generation, before + 1);
        assert!(node.accepts("c"), "the certificate stays valid");
        assert!(node.is_taken_for("t"), "a connected node keeps its name");
    }

    #[test]
    fn a_node_of_another_cloudcore_that_renews_keeps_what_it_has() {
        let mut node = NodeRecord::default();
        assert!(node.accepts("of the other cloudcore"));
        node.rotate("of the other cloudcore", "new".into());
        assert!(node.accepts("of the other cloudcore") && node.accepts("new") && !node.accepts("third"));
        assert_eq!(node.generation, node.synced_generation, "its ObjectSyncs stay valid");
    }
}
