//! Reading and writing the common metadata of an object held as a JSON value.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::Kind;

/// The part of an object that lists, watches and deletions need, read from its bytes without building a tree.
#[derive(Debug, Default, Deserialize)]
pub struct View {
    #[serde(default)]
    pub metadata: MetaView,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MetaView {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub resource_version: String,
    pub generation: Option<i64>,
    pub creation_timestamp: Option<String>,
    pub deletion_timestamp: Option<String>,
    pub deletion_grace_period_seconds: Option<i64>,
    pub labels: Option<std::collections::BTreeMap<String, String>>,
    pub finalizers: Option<Vec<String>>,
    pub owner_references: Option<Vec<OwnerView>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerView {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub uid: String,
}

/// The metadata in an object's bytes; empty if they are not an object.
pub fn view(bytes: &[u8]) -> MetaView {
    serde_json::from_slice::<View>(bytes).unwrap_or_default().metadata
}

/// The value at a dotted path.
pub fn at<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(object, |value, key| value.get(key))
}

/// The text at a dotted path; empty when absent or not text.
pub fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    at(object, path).and_then(Value::as_str).unwrap_or_default()
}

/// The metadata map, made if missing. A `metadata` that is not a map is replaced: validation has refused it before.
pub fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    child(object, "metadata")
}

/// The map under `key`, made if missing.
pub fn child<'a>(object: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let map = object.as_object_mut().expect("made an object above");
    let slot = map.entry(key).or_insert_with(|| Value::Object(Map::new()));
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    slot.as_object_mut().expect("made an object above")
}

/// Sets `apiVersion` and `kind`.
pub fn set_type(object: &mut Value, kind: &Kind) {
    if let Some(map) = object.as_object_mut() {
        map.insert("apiVersion".into(), kind.api_version().into());
        map.insert("kind".into(), kind.kind.into());
    }
}
