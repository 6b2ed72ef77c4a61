//! Objects on their way between the link and the API: completed, trimmed, bounded to what a node may write. Values only.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use wire::Message;

use crate::cluster::views::Kind;

/// Labels that only an administrator may set (Kubernetes' NodeRestriction).
const RESTRICTED: &str = "node-restriction.kubernetes.io";

/// An object as it is sent to a node: with apiVersion and kind, without managedFields.
pub fn for_push(kind: Kind, body: &[u8]) -> Result<Box<RawValue>, serde_json::Error> {
    complete(kind.api_version(), kind.name(), body)
}

/// As [`for_push`], for a kind that is not watched.
pub fn complete(api_version: &str, kind: &str, body: &[u8]) -> Result<Box<RawValue>, serde_json::Error> {
    let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(body)?;
    if let Some(metadata) = fields.remove("metadata") {
        let mut metadata: BTreeMap<String, Box<RawValue>> = serde_json::from_str(metadata.get())?;
        metadata.remove("managedFields");
        fields.insert("metadata".into(), serde_json::value::to_raw_value(&metadata)?);
    }
    fields.insert("apiVersion".into(), serde_json::value::to_raw_value(api_version)?);
    fields.insert("kind".into(), serde_json::value::to_raw_value(kind)?);
    serde_json::value::to_raw_value(&fields)
}

/// What a delete carries: enough to find the object and to see that it is the same one.
pub fn tombstone(kind: Kind, namespace: &str, name: &str, uid: &str) -> Value {
    let mut metadata = json!({"name": name, "uid": uid});
    if namespace != "null" {
        metadata["namespace"] = namespace.into();
    }
    json!({"apiVersion": kind.api_version(), "kind": kind.name(), "metadata": metadata})
}

#[derive(Deserialize)]
struct Versioned {
    metadata: VersionedMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VersionedMeta {
    resource_version: String,
    #[serde(default)]
    uid: String,
}

pub fn resource_version_of(object: &RawValue) -> Option<String> {
    serde_json::from_str::<Versioned>(object.get()).ok().map(|object| object.metadata.resource_version)
}

pub fn uid_of(object: &RawValue) -> Option<String> {
    serde_json::from_str::<Versioned>(object.get()).ok().map(|object| object.metadata.uid)
}

/// The answer to a request for a token, with the audiences of the request: KubeEdge's edge keeps tokens under the audiences in
/// the answer and looks them up under those it asks for, which are none. The API fills in its own, and the edge then never finds
/// what it has, so that a pod of a node that restarts offline has no token.
pub fn token_answer(request: &Value, answer: &[u8]) -> Result<Box<RawValue>, serde_json::Error> {
    let mut answer: Map<String, Value> = serde_json::from_slice(answer)?;
    if let Some(spec) = answer.get_mut("spec").and_then(Value::as_object_mut) {
        let asked = request.pointer("/spec/audiences").cloned().unwrap_or_default();
        spec.insert("audiences".into(), asked);
    }
    serde_json::value::to_raw_value(&answer)
}

/// A node's content as a body for the API: edges leave apiVersion and kind out.
pub fn for_node(kind: Kind, message: &Message) -> Result<String, serde_json::Error> {
    let mut object: Map<String, Value> = message.content_as()?;
    object.insert("apiVersion".into(), kind.api_version().into());
    object.insert("kind".into(), kind.name().into());
    serde_json::to_string(&object)
}

/// A Node object that an edge registers: under its own name, without labels and taints that it has no right to.
pub fn registered(node: &str, message: &Message) -> Result<Value, serde_json::Error> {
    let mut object: Map<String, Value> = message.content_as()?;
    object.insert("apiVersion".into(), "v1".into());
    object.insert("kind".into(), "Node".into());
    let metadata = object.entry("metadata").or_insert_with(|| json!({}));
    if !metadata.is_object() {
        *metadata = json!({});
    }
    metadata["name"] = node.into();
    if let Some(fields) = metadata.as_object_mut() {
        for field in
            ["resourceVersion", "uid", "creationTimestamp", "ownerReferences", "finalizers", "managedFields"]
        {
            fields.remove(field);
        }
    }
    for part in ["labels", "annotations"] {
        if let Some(entries) = metadata.get_mut(part).and_then(Value::as_object_mut) {
            entries.retain(|key, _| !key.split('/').next().unwrap_or_default().ends_with(RESTRICTED));
        }
    }
    Ok(Value::Object(object))
}

/// A merge patch with the labels and annotations that `current` lacks. What an administrator set stays.
pub fn missing_metadata(current: &Value, wanted: &Value) -> Option<Value> {
    let mut patch = Map::new();
    for part in ["labels", "annotations"] {
        let has = current["metadata"][part].as_object();
        let wanted = wanted["metadata"][part].as_object();
        let missing: Map<String, Value> = wanted
            .into_iter()
            .flatten()
            .filter(|(key, _)| !has.is_some_and(|has| has.contains_key(*key)))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        if !missing.is_empty() {
            patch.insert(part.into(), Value::Object(missing));
        }
    }
    (!patch.is_empty()).then(|| json!({"metadata": patch}))
}

/// The body of a patch to a status: only `status`, and `metadata.uid` as a precondition.
pub fn status_patch(message: &Message) -> Result<Value, serde_json::Error> {
    let mut patch: Map<String, Value> = message.content_as()?;
    patch.retain(|key, _| matches!(key.as_str(), "status" | "metadata"));
    let uid = patch.get("metadata").and_then(|metadata| metadata.get("uid")).cloned();
    patch.remove("metadata");
    if let Some(uid) = uid {
        patch.insert("metadata".into(), json!({"uid": uid}));
    }
    Ok(Value::Object(patch))
}

/// What a renewal on the compact lane says, as a patch of the lease.
pub fn renewal_patch(node: &str, message: &Message) -> Result<String, serde_json::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Renewal {
        lease_duration_seconds: u32,
        unix_ms: i64,
    }
    let renewal: Renewal = message.content_as()?;
    let time = time_of(renewal.unix_ms).strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
    let spec = json!({"holderIdentity": node, "leaseDurationSeconds": renewal.lease_duration_seconds, "renewTime": time});
    Ok(json!({ "spec": spec }).to_string())
}

/// The heartbeat of every condition that the Node has. `None`: somebody else has said that the node is unknown, so it must
/// say all of its status.
pub fn beat_patch(node: &Value, message: &Message) -> Result<Option<String>, serde_json::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Beat {
        unix_ms: i64,
    }
    let beat: Beat = message.content_as()?;
    let time = time_of(beat.unix_ms).strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let mut conditions = Vec::new();
    for condition in node.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten() {
        if condition["status"] == "Unknown" {
            return Ok(None);
        }
        conditions.push(json!({"type": condition["type"], "lastHeartbeatTime": time}));
    }
    let has_ready = conditions.iter().any(|condition| condition["type"] == "Ready");
    Ok(has_ready.then(|| json!({"status": {"conditions": conditions}}).to_string()))
}

/// The node's clock; one that no clock can show is the epoch.
fn time_of(unix_ms: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_millisecond(unix_ms).unwrap_or_default()
}

pub struct DeleteOptions {
    pub uid: String,
    pub body: String,
}

/// KubeEdge's edge sends DeleteOptions with the uid as precondition, or the bare uid.
pub fn delete_options(message: &Message) -> Result<DeleteOptions, serde_json::Error> {
    #[derive(Deserialize)]
    struct Options {
        preconditions: Preconditions,
    }
    #[derive(Deserialize)]
    struct Preconditions {
        uid: String,
    }
    let uid = match message.content_as::<Options>() {
        Ok(options) => options.preconditions.uid,
        Err(error) => message.content_as::<String>().map_err(|_| error)?,
    };
    let body = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "preconditions": {"uid": uid}});
    Ok(DeleteOptions { uid, body: body.to_string() })
}

/// An event, with the node as its source host.
pub fn event(node: &str, message: &Message) -> Result<String, serde_json::Error> {
    let mut event: Map<String, Value> = message.content_as()?;
    event.insert("apiVersion".into(), "v1".into());
    event.insert("kind".into(), "Event".into());
    let source = event.entry("source").or_insert_with(|| json!({}));
    if source.is_object() {
        source["host"] = node.into();
    }
    serde_json::to_string(&event)
}

/// `{event, patchData}`: the patch, as text.
pub fn event_patch(message: &Message) -> Result<String, serde_json::Error> {
    #[derive(Deserialize)]
    struct Content {
        #[serde(alias = "patchData")]
        patch_data: Value,
    }
    match message.content_as::<Content>()?.patch_data {
        Value::String(text) => Ok(text),
        other => serde_json::to_string(&other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(content: &Value) -> Message {
        Message::new(1, "edged", "meta", "insert", "null/node/n").with_content(content)
    }

    #[test]
    fn a_node_registers_under_its_own_name_without_restricted_labels() {
        let content = json!({"metadata": {"name": "other", "uid": "x", "labels": {"a": "b",
            "node-restriction.kubernetes.io/rack": "1", "x.node-restriction.kubernetes.io/y": "1"}}, "spec": {}});
        let node = registered("n", &message(&content)).unwrap();
        assert_eq!(node["metadata"], json!({"name": "n", "labels": {"a": "b"}}));
        assert_eq!((node["kind"].as_str(), node["apiVersion"].as_str()), (Some("Node"), Some("v1")));
    }

    #[test]
    fn taking_over_a_node_keeps_what_the_administrator_set() {
        let current = json!({"metadata": {"labels": {"zone": "hall-1"}}});
        let wanted = json!({"metadata": {"labels": {"zone": "default", "node-role.kubernetes.io/edge": ""}}});
        let patch = missing_metadata(&current, &wanted).unwrap();
        assert_eq!(patch, json!({"metadata": {"labels": {"node-role.kubernetes.io/edge": ""}}}));
        assert_eq!(missing_metadata(&wanted, &wanted), None);
    }

    #[test]
    fn a_status_patch_cannot_change_more_than_the_status() {
        let patch =
            r#"{"metadata":{"uid":"u","labels":{"a":"b"}},"spec":{"x":1},"status":{"phase":"Running"}}"#;
        let text = status_patch(&message(&json!(patch))).unwrap().to_string();
        assert_eq!(
            serde_json::from_str::<Value>(&text).unwrap(),
            json!({"metadata": {"uid": "u"}, "status": {"phase": "Running"}})
        );
    }

    #[test]
    fn a_push_names_its_kind_and_carries_no_managed_fields() {
        let pushed = for_push(
            Kind::Pod,
            br#"{"metadata":{"name":"p","resourceVersion":"7","managedFields":[1]},"spec":{}}"#,
        )
        .unwrap();
        let value: Value = serde_json::from_str(pushed.get()).unwrap();
        let metadata = json!({"name": "p", "resourceVersion": "7"});
        assert_eq!(value, json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {}}));
        assert_eq!(resource_version_of(&pushed).as_deref(), Some("7"));
    }

    #[test]
    fn both_forms_of_a_final_delete() {
        let options =
            delete_options(&message(&json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "u"}})))
                .unwrap();
        assert_eq!(options.uid, "u");
        assert_eq!(delete_options(&message(&json!("u"))).unwrap().uid, "u");
        assert!(
            delete_options(&message(&json!({"gracePeriodSeconds": 0}))).is_err(),
            "without a uid nothing is deleted"
        );
    }
}
