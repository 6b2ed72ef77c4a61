//! What an idle node repeats, in a short form: its lease and its unchanged status.
//!
//! On the JSON lane both are whole objects. Which of a node's messages may take the short form is decided here, by what the message
//! says, so that the modules that make them know nothing of lanes.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Message, Operation, Resource, source};

/// Operation on `kube-node-lease/lease/<node>` in the cloud: set the time of the lease that is there.
pub const RENEW: &str = "renew";
/// Operation on `null/nodepatch/<node>` in the cloud: the status is as it was, and was looked at now.
pub const BEAT: &str = "beat";

/// What a renewal says: seconds, and Unix time in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    pub lease_seconds: u32,
    pub unix_ms: i64,
}

/// The renewal that an update of a lease amounts to.
pub fn renewal(message: &Message) -> Option<Renewal> {
    #[derive(Deserialize)]
    struct Lease {
        spec: Spec,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Spec {
        lease_duration_seconds: u32,
    }
    let resource = Resource::parse(&message.route.resource)?;
    if message.route.operation != Operation::UPDATE || resource.kind != "lease" {
        return None;
    }
    let lease: Lease = message.content_as().ok()?;
    // The node wrote the same moment into the object and onto the message.
    Some(Renewal { lease_seconds: lease.spec.lease_duration_seconds, unix_ms: message.header.timestamp })
}

/// A hash of a status patch without its heartbeat times; `None`: it is none.
pub fn status_hash(message: &Message) -> Option<u64> {
    let resource = Resource::parse(&message.route.resource)?;
    if message.route.operation != Operation::PATCH || resource.kind != "nodepatch" {
        return None;
    }
    // KubeEdge's edge sends it as JSON in a JSON string; both decode as a value.
    let mut patch: Value = match message.content_as().ok()? {
        Value::String(text) => serde_json::from_str(&text).ok()?,
        value => value,
    };
    for condition in patch.pointer_mut("/status/conditions")?.as_array_mut()? {
        condition.as_object_mut()?.remove("lastHeartbeatTime");
    }
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in patch.to_string().bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    Some(hash)
}

/// What the cloud makes of the short forms; the node is the one whose link it is.
pub fn renew_message(node: &str, renewal: Renewal) -> Message {
    let content = json!({"leaseDurationSeconds": renewal.lease_seconds, "unixMs": renewal.unix_ms});
    let resource = format!("kube-node-lease/lease/{node}");
    Message::new(renewal.unix_ms, source::EDGED, "meta", RENEW, &resource).with_content(&content)
}

pub fn beat_message(node: &str, unix_ms: i64) -> Message {
    let resource = format!("null/nodepatch/{node}");
    let content = json!({"unixMs": unix_ms});
    Message::new(unix_ms, source::EDGED, "meta", BEAT, &resource).with_content(&content)
}
