//! One file of the folder: YAML documents or JSON, each a Device, a DeviceModel or a List of them.

use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use wire::Resource;

use crate::{config, contract::Object, limits::DEVICE_FILE_OBJECTS_MAX};

const API: &str = "devices.kubeedge.io/v1beta1";

/// The file's objects for this node, or the first thing that is wrong: a file counts whole or not at all.
pub fn parse(bytes: &[u8], node: &str) -> Result<Vec<Object>, String> {
    let mut objects = Vec::new();
    for value in values(bytes)? {
        if objects.len() >= DEVICE_FILE_OBJECTS_MAX {
            return Err(format!("has more than {DEVICE_FILE_OBJECTS_MAX} objects; make two files of it"));
        }
        objects.extend(object(value, node)?);
    }
    Ok(objects)
}

/// What the file holds, those of Lists one by one.
pub fn values(bytes: &[u8]) -> Result<Vec<Value>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "is not text; write YAML or JSON".to_string())?;
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|error| config::yaml_error(&error))?;
    let mut values = Vec::new();
    for mut document in documents {
        match document.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => values.extend(items),
            _ => values.push(document),
        }
    }
    // What is left between two `---`.
    values.retain(|value| !value.is_null());
    Ok(values)
}

/// `None`: it is for another node.
fn object(mut value: Value, node: &str) -> Result<Option<Object>, String> {
    let text = |value: &Value, pointer: &str| {
        value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let kind = match text(&value, "/kind").as_str() {
        "Device" => "device",
        "DeviceModel" => "devicemodel",
        "" => return Err(format!("has an object without kind; write apiVersion: {API}, kind: Device")),
        other => return Err(format!("holds a {other}; only Device and DeviceModel belong into this folder")),
    };
    let api = text(&value, "/apiVersion");
    if api != API {
        return Err(format!("has apiVersion {api:?}; write apiVersion: {API}"));
    }
    let name = text(&value, "/metadata/name");
    let namespace = match text(&value, "/metadata/namespace") {
        namespace if namespace.is_empty() => "default".to_owned(),
        namespace => namespace,
    };
    for (field, word) in [("name", &name), ("namespace", &namespace)] {
        if !is_name(word) {
            return Err(format!(
                "has metadata.{field} {word:?}; use small letters, digits, - and ., at most 253"
            ));
        }
    }
    if !value["spec"].is_object() {
        return Err(format!("has no spec in {kind} {name}"));
    }
    let node_name = text(&value, "/spec/nodeName");
    if kind == "device" {
        if !node_name.is_empty() && node_name != node {
            return Ok(None);
        }
        value["spec"]["nodeName"] = json!(node);
    }
    // What only a cloud may say.
    value.as_object_mut().expect("it has a kind").remove("status");
    let uid = uid(node, kind, &namespace, &name);
    let metadata = value["metadata"].as_object_mut().expect("it has a name");
    metadata.retain(|key, _| matches!(key.as_str(), "name" | "labels" | "annotations"));
    metadata.insert("namespace".into(), json!(namespace));
    metadata.insert("uid".into(), json!(uid));
    Ok(Some(finished(value)))
}

/// An object that already has all that `object` adds.
fn finished(value: Value) -> Object {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let kind = if text("/kind") == "DeviceModel" { "devicemodel" } else { "device" };
    Object {
        resource: Resource::new(text("/metadata/namespace"), kind, text("/metadata/name")),
        uid: text("/metadata/uid").into(),
        resource_version: String::new(),
        body: value.to_string().into(),
    }
}

/// The same after the file was edited, so that a device keeps its values; another one on another node.
fn uid(node: &str, kind: &str, namespace: &str, name: &str) -> String {
    let mut digest = Sha256::new();
    digest.update(format!("node:{node} {kind}:{namespace}/{name}"));
    hex::encode(&digest.finalize()[..16])
}

/// As Kubernetes names objects; the name becomes part of MQTT topics.
fn is_name(word: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    word.len() <= 253 && word.bytes().all(good) && ends(word.bytes().next()) && ends(word.bytes().next_back())
}

/// What is kept of a file.
pub fn record(objects: &[Object]) -> Bytes {
    let bodies: Vec<&str> =
        objects.iter().map(|object| std::str::from_utf8(&object.body).expect("made from text")).collect();
    format!("[{}]", bodies.join(",")).into()
}

pub fn kept(record: &[u8]) -> Result<Vec<Object>, String> {
    let values: Vec<Value> =
        serde_json::from_slice(record).map_err(|error| format!("cannot be read: {error}"))?;
    Ok(values.into_iter().map(finished).collect())
}

/// Entry for a fuzzer. Total.
pub fn fuzz_device_file(data: &[u8]) {
    if let Ok(objects) = parse(data, "edge-1") {
        let again = kept(&record(&objects)).expect("what was written can be read");
        assert_eq!(record(&again), record(&objects), "a record says what the file said");
    }
}
