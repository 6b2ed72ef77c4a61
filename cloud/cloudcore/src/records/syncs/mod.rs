//! What was delivered to nodes, as KubeEdge writes it: one ObjectSync (or ClusterObjectSync) for each object and node, so that a
//! KubeEdge cloudcore can be replaced by this one and this one by it, and neither sends everything again.
//!
//! Named `<node>.<uid of the object>`; `status.objectResourceVersion` is the version that the node acknowledged, `0` before that.
//! A pod's version is ours (status reports do not count in it); it stands in an annotation, which counts only together with the
//! resourceVersion that it was written with: KubeEdge goes on with that alone.
//!
//! Writes are done in the background, per record in order and the newest only. A record that must be there before its object is
//! sent is waited for ([`DeliveryRecords::kept`]).

mod writer;

use std::collections::BTreeMap;

use rt::{BoxFuture, Drain};
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};
use wire::Resource;
use wire::delivery::{Delivered, Known, Target, UNCONFIRMED};

use super::{DeliveryRecords, RecordError};
use crate::api::{Api, ApiError};
use crate::cluster::informer::escape;
use crate::cluster::views::Kind;
use crate::contract::NodeDesired;
use crate::limits::{LIST_PAGE_LEN, SYNC_OPENS_MAX};
use writer::Writer;

const GROUP: &str = "/apis/reliablesyncs.kubeedge.io/v1alpha1";
const ANNOTATION: &str = "kinglet.dev/version";

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sync {
    pub uid: String,
    /// `<namespace>/<type>/<name>`, as on the wire.
    pub resource: String,
    resource_version: u64,
    /// Our version of the object at that resourceVersion, where it is another one.
    version: Option<String>,
}

#[derive(Deserialize)]
struct List {
    metadata: ListMeta,
    items: Option<Vec<Item>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ListMeta {
    #[serde(rename = "continue")]
    next: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Item {
    metadata: Metadata,
    spec: Spec,
    status: Option<Status>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: String,
    namespace: String,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    object_kind: String,
    object_name: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    object_resource_version: String,
}

impl Item {
    /// The node and the record; `None`: of a kind that we do not deliver, or not readable.
    fn sync(self) -> Option<(String, Sync)> {
        let (node, uid) = self.metadata.name.rsplit_once('.')?;
        let kind = Kind::ALL.into_iter().find(|kind| {
            kind.name() == self.spec.object_kind || kind.word() == self.spec.object_kind.to_lowercase()
        })?;
        let namespace = if self.metadata.namespace.is_empty() { "null" } else { &self.metadata.namespace };
        let at = self.status.unwrap_or_default().object_resource_version;
        let noted = self.metadata.annotations.unwrap_or_default().remove(ANNOTATION);
        let version = noted.and_then(|noted| {
            noted
                .strip_prefix(&at)?
                .strip_prefix(':')
                .filter(|version| !version.is_empty())
                .map(str::to_owned)
        });
        let sync = Sync {
            uid: uid.to_owned(),
            resource: Resource::new(namespace, kind.word(), &self.spec.object_name).to_string(),
            resource_version: at.parse().unwrap_or_default(),
            version,
        };
        Some((node.to_owned(), sync))
    }
}

impl Sync {
    /// What the record means beside the object as it is now. `since`: from which resourceVersion on the object has its version.
    fn delivered(&self, target: Option<&Target>, since: Option<u64>) -> Delivered {
        let version = match (target, &self.version) {
            _ if self.resource_version == 0 => UNCONFIRMED.to_owned(),
            (_, Some(version)) => version.clone(),
            (Some(target), None) => {
                let since = since.or_else(|| target.version.parse().ok()).unwrap_or(u64::MAX);
                match self.resource_version >= since {
                    true => target.version.clone(),
                    false => self.resource_version.to_string(),
                }
            }
            (None, None) => self.resource_version.to_string(),
        };
        Delivered { resource: self.resource.clone(), version }
    }
}

/// The path of the folder of such records, and of one of them.
fn folder(resource: &Resource) -> String {
    match resource.namespace.as_str() {
        "" | "null" => format!("{GROUP}/clusterobjectsyncs"),
        namespace => format!("{GROUP}/namespaces/{namespace}/objectsyncs"),
    }
}

#[derive(Clone)]
pub struct Syncs {
    api: Api,
    writer: Writer,
    opens: mpsc::Sender<Open>,
    opened: std::sync::Arc<tokio::sync::Mutex<mpsc::Receiver<Open>>>,
}

struct Open {
    node: String,
    reply: oneshot::Sender<Vec<Sync>>,
}

impl Syncs {
    pub fn new(api: Api) -> Syncs {
        let (opens, opened) = mpsc::channel(SYNC_OPENS_MAX);
        let opened = std::sync::Arc::new(tokio::sync::Mutex::new(opened));
        Syncs { writer: Writer::new(api.clone()), api, opens, opened }
    }

    /// The records of one node, after all writes that were begun for it here.
    pub async fn open(&self, node: &str) -> Result<(SyncRecords, Vec<(String, Sync)>), RecordError> {
        self.writer.settled(node).await;
        let (reply, answer) = oneshot::channel();
        let open = Open { node: node.to_owned(), reply };
        self.opens.send(open).await.map_err(|_| RecordError::Stopped)?;
        let syncs = answer.await.map_err(|_| RecordError::Stopped)?;
        let of_node = syncs.iter().map(|sync| (node.to_owned(), sync.clone())).collect();
        let records = SyncRecords {
            node: node.to_owned(),
            writer: self.writer.clone(),
            loaded: syncs,
            resources: BTreeMap::new(),
            sent: BTreeMap::new(),
            waits: Vec::new(),
        };
        Ok((records, of_node))
    }

    /// All records of all nodes.
    pub async fn all(&self) -> Result<Vec<(String, Sync)>, RecordError> {
        let mut syncs = Vec::new();
        for plural in ["objectsyncs", "clusterobjectsyncs"] {
            let mut next = String::new();
            loop {
                let path = format!("{GROUP}/{plural}?limit={LIST_PAGE_LEN}{next}");
                let body = self.api.get(&path).await.map_err(RecordError::Syncs)?;
                let page: List =
                    serde_json::from_slice(&body).map_err(|e| RecordError::Syncs(ApiError::Json(e)))?;
                syncs.extend(page.items.unwrap_or_default().into_iter().filter_map(Item::sync));
                match page.metadata.next.filter(|token| !token.is_empty()) {
                    Some(token) => next = format!("&continue={}", escape(&token)),
                    None => break,
                }
            }
        }
        Ok(syncs)
    }

    pub async fn remove(&self, syncs: &[(String, Sync)]) -> Result<(), ApiError> {
        for (node, sync) in syncs {
            let Some(resource) = Resource::parse(&sync.resource) else { continue };
            let path = format!("{}/{node}.{}", folder(&resource), sync.uid);
            match self.api.delete(&path, "{}").await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Reads and writes until the drain, and then what is still to be written, for a moment.
    pub async fn run(&self, drain: &Drain) {
        tokio::join!(drain.or(self.answer_opens()), self.writer.run(drain));
    }

    /// There is no way to ask for one node's records. Of all links that come up at the same moment, one reading serves all.
    async fn answer_opens(&self) {
        let mut opened = self.opened.lock().await;
        while let Some(first) = opened.recv().await {
            let mut waiting = vec![first];
            while let Ok(more) = opened.try_recv() {
                waiting.push(more);
            }
            let all = match self.all().await {
                Ok(all) => all,
                Err(error) => {
                    // The links end, and the nodes try again.
                    tracing::error!("{}", rt::error_chain(&error));
                    continue;
                }
            };
            let mut by_node: BTreeMap<String, Vec<Sync>> = BTreeMap::new();
            for (node, sync) in all {
                by_node.entry(node).or_default().push(sync);
            }
            for open in waiting {
                drop(open.reply.send(by_node.get(&open.node).cloned().unwrap_or_default()));
            }
        }
    }
}

/// One node's records while a link of it is up.
pub struct SyncRecords {
    node: String,
    writer: Writer,
    loaded: Vec<Sync>,
    /// Of the objects that have a record, by uid.
    resources: BTreeMap<String, Resource>,
    /// What was sent last, by uid.
    sent: BTreeMap<String, String>,
    waits: Vec<oneshot::Receiver<()>>,
}

impl SyncRecords {
    pub fn emptied(mut self) -> SyncRecords {
        self.loaded.clear();
        self
    }
}

impl DeliveryRecords for SyncRecords {
    fn loaded(&mut self, desired: &NodeDesired) -> Known {
        let targets: BTreeMap<&str, &Target> =
            desired.targets.iter().map(|target| (target.uid.as_str(), target)).collect();
        let loaded = std::mem::take(&mut self.loaded);
        self.resources = loaded
            .iter()
            .filter_map(|sync| Some((sync.uid.clone(), Resource::parse(&sync.resource)?)))
            .collect();
        let delivered = |sync: &Sync| {
            sync.delivered(targets.get(sync.uid.as_str()).copied(), desired.since.of(&sync.uid))
        };
        loaded.iter().map(|sync| (sync.uid.clone(), delivered(sync))).collect()
    }

    fn sending(&mut self, uid: &str, resource_version: &str) {
        self.sent.insert(uid.to_owned(), resource_version.to_owned());
    }

    fn record(&mut self, uid: &str, delivered: &Delivered, durable: bool) -> Result<(), RecordError> {
        let Some(resource) = Resource::parse(&delivered.resource) else { return Ok(()) };
        let is_new = self.resources.insert(uid.to_owned(), resource.clone()).is_none();
        let sent = match delivered.version.as_str() {
            UNCONFIRMED => None,
            _ => self.sent.get(uid).map(String::as_str),
        };
        // KubeEdge reads it as a number, always.
        let at = sent.filter(|at| at.parse::<u64>().is_ok()).unwrap_or(UNCONFIRMED).to_owned();
        let version = (at != UNCONFIRMED && at != delivered.version).then(|| delivered.version.clone());
        let done = self.writer.set(&self.node, uid, resource, is_new, at, version);
        if durable {
            self.waits.push(done);
        }
        Ok(())
    }

    fn forget(&mut self, uid: &str) -> Result<(), RecordError> {
        if let Some(resource) = self.resources.remove(uid) {
            self.writer.forget(&self.node, uid, resource);
        }
        self.sent.remove(uid);
        Ok(())
    }

    fn kept(&mut self) -> Option<BoxFuture<'static, ()>> {
        if self.waits.is_empty() {
            return None;
        }
        let waits = std::mem::take(&mut self.waits);
        Some(Box::pin(async move {
            for wait in waits {
                // Dropped only when cloudcore stops.
                drop(wait.await);
            }
        }))
    }

    fn tidy(&mut self, _: &Known) -> Result<(), RecordError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(text: &str) -> Option<(String, Sync)> {
        serde_json::from_str::<Item>(text).unwrap().sync()
    }

    fn target(version: &str) -> Target {
        Target { uid: "u".into(), resource: "d/pod/web".into(), version: version.into(), rank: 0 }
    }

    #[test]
    fn a_record_of_kubeedge_is_read_and_an_unknown_kind_is_left_alone() {
        let text = r#"{"metadata":{"name":"line.3.u-1","namespace":"d"},"spec":{"objectAPIVersion":"v1","objectKind":"Pod",
            "objectName":"web"},"status":{"objectResourceVersion":"812"}}"#;
        let (node, sync) = item(text).unwrap();
        assert_eq!((node.as_str(), sync.uid.as_str()), ("line.3", "u-1"));
        assert_eq!((sync.resource.as_str(), sync.resource_version), ("d/pod/web", 812));
        let rule =
            r#"{"metadata":{"name":"n.u"},"spec":{"objectKind":"ServiceAccountAccess","objectName":"x"}}"#;
        assert_eq!(item(rule), None);
    }

    #[test]
    fn what_a_record_means_beside_the_object() {
        let sync = |at: u64, version: Option<&str>| Sync {
            uid: "u".into(),
            resource: "d/pod/web".into(),
            resource_version: at,
            version: version.map(str::to_owned),
        };
        let version = |sync: Sync, target: &Target, since| sync.delivered(Some(target), since).version;
        let pod = target("00ff");
        assert_eq!(version(sync(812, None), &pod, Some(800)), "00ff", "newer than the object's last change");
        assert_eq!(version(sync(812, None), &pod, Some(812)), "00ff");
        assert_ne!(version(sync(812, None), &pod, Some(900)), "00ff", "the object changed since");
        assert_eq!(
            version(sync(812, Some("00ff")), &pod, Some(900)),
            "00ff",
            "our own note says what it was"
        );
        assert_ne!(version(sync(812, Some("00ee")), &pod, Some(800)), "00ff");
        assert_eq!(version(sync(0, None), &pod, Some(1)), UNCONFIRMED);
        let config_map = target("900");
        assert_eq!(version(sync(900, None), &config_map, None), "900");
        assert_ne!(version(sync(812, None), &config_map, None), "900");
        assert_eq!(sync(812, None).delivered(None, None).version, "812", "confirmed, so it is deleted there");
    }

    #[test]
    fn a_note_counts_only_with_the_version_that_it_was_written_with() {
        let text = |at: &str| {
            format!(
                r#"{{"metadata":{{"name":"n.u","namespace":"d","annotations":{{"{ANNOTATION}":"812:00ff"}}}},
                "spec":{{"objectKind":"Pod","objectName":"web"}},"status":{{"objectResourceVersion":"{at}"}}}}"#
            )
        };
        assert_eq!(item(&text("812")).unwrap().1.version.as_deref(), Some("00ff"));
        assert_eq!(item(&text("813")).unwrap().1.version, None, "a KubeEdge cloudcore went on from there");
        assert_eq!(item(&text("8")).unwrap().1.version, None);
    }
}
