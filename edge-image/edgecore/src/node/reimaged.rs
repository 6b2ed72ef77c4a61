//! A device that lost its store under a Node that lived before, at a stock KubeEdge cloud.
//!
//! Such a cloud keeps what it delivered in ObjectSync objects, sends it once, and never asks the node: a new store stays empty
//! (reference kubeedge-wire.md section 10.4, pitfall 1). Nothing a node may do changes that, so it says what a person can do.
//! Our own cloud sees the new store's id and starts anew by itself.
//!
//! Invariants: said only when the Node shows that a device ran under it; taken back when the cloud sends something older.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::contract::{Condition, Handles, Meta};

/// Kind and name of the local record: this store has seen its Node.
const KIND: &str = "node";
const NAME: &str = "registered";
/// The same, for a store that was filled from the one of the agent before (`adopt`).
pub const REGISTERED: (&str, &str) = (KIND, NAME);
pub const CONDITION: &str = "DeliveryRecordsStale";
/// What a stock cloud sends unasked and keeps records of.
const PUSHED: [&str; 3] = ["pod", "device", "devicemodel"];

#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    /// The Node's version when it was found; `None`: nothing is wrong.
    #[serde(default)]
    found_at: Option<u64>,
}

#[derive(Debug)]
pub struct Watch {
    /// Absent before the first registration from this store.
    record: Option<Record>,
    shown: bool,
}

impl Watch {
    pub fn load(meta: &dyn Meta) -> Watch {
        let record = meta.get_local(KIND, NAME).map(|body| serde_json::from_slice(&body).unwrap_or_default());
        Watch { record, shown: false }
    }

    /// The Node has to be looked at, since this store does not know it or its condition is not shown yet.
    pub fn must_ask(&self) -> bool {
        self.record.is_none() || (self.is_on() && !self.shown)
    }

    pub fn is_on(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.found_at.is_some())
    }

    /// The cloud made the Node anew: no record of a delivery is left.
    pub async fn registered(&mut self, handles: &Handles) {
        self.set(handles, None).await;
    }

    /// The Node was there already.
    pub async fn found(&mut self, handles: &Handles, node: &Value) {
        let found_at = match &self.record {
            Some(record) => record.found_at,
            None => lived_at(node),
        };
        self.set(handles, found_at).await;
    }

    /// Something that is older than what was found has come: the records are gone.
    pub async fn look(&mut self, handles: &Handles) {
        let Some(found_at) = self.record.as_ref().and_then(|record| record.found_at) else { return };
        let older = |version: &str| version.parse::<u64>().is_ok_and(|version| version < found_at);
        let objects = PUSHED.iter().flat_map(|kind| handles.meta.list(kind));
        if objects.into_iter().any(|object| older(&object.resource_version)) {
            self.set(handles, None).await;
        }
    }

    async fn set(&mut self, handles: &Handles, found_at: Option<u64>) {
        let known = self.record.as_ref().is_some_and(|record| record.found_at == found_at);
        self.record = Some(Record { found_at });
        if !known {
            let body = serde_json::to_vec(&self.record).expect("numbers serialise");
            if let Err(error) = handles.meta.put_local(KIND, NAME, Bytes::from(body), true).await {
                tracing::warn!(target: "node", "{KIND}/{NAME} is not kept: {}", rt::error_chain(&error));
            }
        }
        if found_at.is_some() != self.shown {
            self.shown = found_at.is_some();
            handles.conditions.set(condition(&handles.node_name, self.shown));
        }
    }
}

/// The version of a Node that a device ran under; `None` for one that was made beforehand with kubectl.
fn lived_at(node: &Value) -> Option<u64> {
    let lived = node
        .pointer("/status/nodeInfo/kubeletVersion")
        .and_then(Value::as_str)
        .is_some_and(|v| !v.is_empty());
    let version = node.pointer("/metadata/resourceVersion").and_then(Value::as_str);
    lived.then(|| version.and_then(|version| version.parse().ok()).unwrap_or(u64::MAX))
}

fn condition(node: &str, is_stale: bool) -> Condition {
    let (reason, message) = match is_stale {
        true => ("NodeWasThereBefore", remedy(node)),
        false => ("Delivered", "the cloud delivers to this device".into()),
    };
    Condition { condition_type: CONDITION.into(), status: is_stale, reason: reason.into(), message }
}

/// Setting a record's version back makes the cloud's SyncController send the object again within 5 s; nothing restarts.
fn remedy(node: &str) -> String {
    format!(
        "this device has an empty store and its Node {node} was there before: a KubeEdge cloudcore sends it none of the pods and devices \
         that it delivered to the device's last life; run: kubectl get objectsyncs -A --no-headers -o \
         custom-columns=NS:.metadata.namespace,N:.metadata.name | grep ' {node}\\.' | while read ns n; do kubectl patch objectsync -n $ns \
         $n --subresource=status --type=merge -p '{{\"status\":{{\"objectResourceVersion\":\"0\"}}}}'; done (or, to begin anew: kubectl \
         delete node {node})"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::contract::testing::Bench;

    fn node(kubelet: &str) -> Value {
        json!({"metadata": {"name": "edge-1", "resourceVersion": "500"}, "status": {"nodeInfo": {"kubeletVersion": kubelet}}})
    }

    #[tokio::test]
    async fn a_new_store_under_an_old_node_is_told_until_something_old_comes() {
        let bench = Bench::new();
        let mut watch = Watch::load(&*bench.handles.meta);
        assert!(watch.must_ask());
        watch.found(&bench.handles, &node("v1.32.10-kubeedge-v1.23.1")).await;
        assert!(watch.is_on() && !watch.must_ask());
        bench.meta.put_object("default/pod/new", json!({"metadata": {"uid": "a", "resourceVersion": "501"}}));
        watch.look(&bench.handles).await;
        assert!(watch.is_on(), "what was made since proves nothing");

        let mut watch = Watch::load(&*bench.handles.meta);
        assert!(watch.must_ask(), "after a restart it is said again");
        watch.found(&bench.handles, &node("v1.32.10-kubeedge-v1.23.1")).await;
        bench.meta.put_object("default/pod/old", json!({"metadata": {"uid": "b", "resourceVersion": "499"}}));
        watch.look(&bench.handles).await;
        assert!(!watch.is_on());
        assert!(!Watch::load(&*bench.handles.meta).must_ask(), "and that is kept");
    }

    #[tokio::test]
    async fn nodes_made_beforehand_and_nodes_made_anew_are_no_news() {
        let bench = Bench::new();
        let mut watch = Watch::load(&*bench.handles.meta);
        watch.found(&bench.handles, &node("")).await;
        assert!(!watch.is_on());
        let mut watch = Watch::load(&*bench.handles.meta);
        watch.registered(&bench.handles).await;
        watch.found(&bench.handles, &node("v1.32.10")).await;
        assert!(!watch.is_on(), "this store has lived under it");
    }

    #[test]
    fn the_remedy_names_commands_and_the_node() {
        let text = remedy("edge-1");
        assert!(text.contains("grep ' edge-1\\.'") && text.contains("--subresource=status"), "{text}");
        assert!(text.contains(r#"{"status":{"objectResourceVersion":"0"}}"#), "{text}");
        assert!(text.contains("kubectl delete node edge-1") && text.len() < 1024, "{} {text}", text.len());
    }
}
