//! Table: what `kubectl get` prints. Columns and cells per kind, as upstream names them.

mod node;
mod pod;
mod storage;

use serde_json::{Value, json};

use crate::time::age;
use crate::{Kind, meta};

/// A column; wide ones have priority 1.
#[derive(Debug)]
pub struct Column {
    pub name: &'static str,
    pub what: &'static str,
    pub format: &'static str,
    pub priority: u8,
}

const fn column(name: &'static str, what: &'static str) -> Column {
    Column { name, what, format: "", priority: 0 }
}

const fn wide(name: &'static str) -> Column {
    Column { name, what: "string", format: "", priority: 1 }
}

const NAME: Column = Column { name: "Name", what: "string", format: "name", priority: 0 };
const AGE: Column = column("Age", "string");

/// How much of each object a row carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    None,
    Metadata,
    Object,
}

impl Include {
    /// The `includeObject` parameter.
    pub fn parse(text: &str) -> Option<Include> {
        match text {
            "" | "Metadata" => Some(Include::Metadata),
            "None" => Some(Include::None),
            "Object" => Some(Include::Object),
            _ => None,
        }
    }
}

pub fn columns(kind: &Kind) -> &'static [Column] {
    match kind.kind {
        "Pod" => pod::COLUMNS,
        "Node" => node::COLUMNS,
        "PersistentVolume" => storage::VOLUME_COLUMNS,
        "PersistentVolumeClaim" => storage::CLAIM_COLUMNS,
        "StorageClass" => storage::CLASS_COLUMNS,
        "Namespace" => const { &[NAME, column("Status", "string"), AGE] },
        "ConfigMap" => const { &[NAME, column("Data", "integer"), AGE] },
        "Secret" => const { &[NAME, column("Type", "string"), column("Data", "integer"), AGE] },
        "ServiceAccount" => const { &[NAME, column("Secrets", "integer"), AGE] },
        "Event" => {
            const {
                &[
                    column("Last Seen", "string"),
                    column("Type", "string"),
                    column("Reason", "string"),
                    column("Object", "string"),
                    wide("Subobject"),
                    wide("Source"),
                    column("Message", "string"),
                    wide("First Seen"),
                    wide("Count"),
                    Column { name: "Name", what: "string", format: "name", priority: 1 },
                ]
            }
        }
        "Lease" => const { &[NAME, column("Holder", "string"), AGE] },
        "APIService" => const { &[NAME, column("Service", "string"), column("Available", "string"), AGE] },
        "Device" => {
            const {
                &[
                    NAME,
                    column("Model", "string"),
                    column("Node", "string"),
                    AGE,
                    wide("Protocol"),
                    wide("Properties"),
                ]
            }
        }
        "DeviceModel" => {
            const { &[NAME, column("Protocol", "string"), column("Properties", "integer"), AGE] }
        }
        "DeviceStatus" => {
            const {
                &[
                    NAME,
                    column("State", "string"),
                    column("Twins", "string"),
                    column("Last Online", "string"),
                    AGE,
                ]
            }
        }
        _ => const { &[NAME, AGE] },
    }
}

fn cells(kind: &Kind, object: &Value, now: i64) -> Vec<Value> {
    let name = || Value::from(meta::text(object, "metadata.name"));
    let created =
        || Value::from(age(meta::at(object, "metadata.creationTimestamp").and_then(Value::as_str), now));
    let text = |path: &str| Value::from(meta::text(object, path));
    let count = |key: &str| match meta::at(object, key) {
        Some(Value::Object(map)) => map.len(),
        Some(Value::Array(list)) => list.len(),
        _ => 0,
    };
    match kind.kind {
        "Pod" => pod::cells(object, now),
        "Node" => node::cells(object, now),
        "PersistentVolume" => storage::volume(object, now),
        "PersistentVolumeClaim" => storage::claim(object, now),
        "APIService" => vec![name(), "Local".into(), "True".into(), created()],
        "StorageClass" => storage::class(object, now),
        "Namespace" => vec![name(), text("status.phase"), created()],
        "ConfigMap" => vec![name(), (count("data") + count("binaryData")).into(), created()],
        "Secret" => vec![name(), text("type"), count("data").into(), created()],
        "ServiceAccount" => vec![name(), count("secrets").into(), created()],
        "Event" => event(object, now),
        "Lease" => vec![name(), text("spec.holderIdentity"), created()],
        "Device" => vec![
            name(),
            text("spec.deviceModelRef.name"),
            text("spec.nodeName"),
            created(),
            text("spec.protocol.protocolName"),
            count("spec.properties").to_string().into(),
        ],
        "DeviceModel" => vec![name(), text("spec.protocol"), count("spec.properties").into(), created()],
        "DeviceStatus" => {
            vec![
                name(),
                text("status.state"),
                twins(object).into(),
                last_online(object, now).into(),
                created(),
            ]
        }
        _ => vec![name(), created()],
    }
}

/// `led=ON,temperature=21.5`, cut so that a line stays a line.
fn twins(object: &Value) -> String {
    const SHOWN_CHARS_MAX: usize = 60;
    let empty = Vec::new();
    let list = meta::at(object, "status.twins").and_then(Value::as_array).unwrap_or(&empty);
    let all: Vec<String> = list
        .iter()
        .map(|twin| format!("{}={}", meta::text(twin, "propertyName"), meta::text(twin, "reported.value")))
        .collect();
    let all = all.join(",");
    if all.chars().count() <= SHOWN_CHARS_MAX {
        return all;
    }
    all.chars().take(SHOWN_CHARS_MAX - 3).chain("...".chars()).collect()
}

fn last_online(object: &Value, now: i64) -> String {
    match meta::text(object, "status.lastOnlineTime") {
        "" => "<never>".into(),
        text => age(Some(text), now),
    }
}

fn event(object: &Value, now: i64) -> Vec<Value> {
    let text = |path: &str| meta::text(object, path);
    let first_of = |paths: &[&str]| paths.iter().map(|path| text(path)).find(|text| !text.is_empty());
    let seen = |paths: &[&str]| age(first_of(paths), now);
    let count =
        meta::at(object, "count").or_else(|| meta::at(object, "series.count")).and_then(Value::as_i64);
    let source = match (
        first_of(&["source.component", "reportingComponent"]).unwrap_or_default(),
        text("source.host"),
    ) {
        (component, "") => component.to_string(),
        (component, host) => format!("{component}, {host}"),
    };
    let involved = format!("{}/{}", text("involvedObject.kind").to_lowercase(), text("involvedObject.name"));
    let last = seen(&["series.lastObservedTime", "lastTimestamp", "eventTime", "firstTimestamp"]);
    let first = seen(&["firstTimestamp", "eventTime"]);
    vec![
        last.into(),
        text("type").into(),
        text("reason").into(),
        involved.into(),
        text("involvedObject.fieldPath").into(),
        source.into(),
        text("message").trim().into(),
        first.into(),
        count.unwrap_or(1).to_string().into(),
        text("metadata.name").into(),
    ]
}

/// Everything of a Table up to its rows: `{..., "rows":[`. The rows and `]}` follow.
pub fn head(kind: &Kind, list_metadata: &Value, with_columns: bool) -> String {
    let columns: Vec<Value> = columns(kind)
        .iter()
        .map(|column| {
            json!({
                "name": column.name, "type": column.what, "format": column.format,
                "description": column.name, "priority": column.priority,
            })
        })
        .collect();
    let columns = if with_columns { Value::from(columns) } else { Value::Null };
    format!(
        "{{\"kind\":\"Table\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":{list_metadata},\
         \"columnDefinitions\":{columns},\"rows\":["
    )
}

/// One row.
pub fn row(kind: &Kind, object: &Value, include: Include, now: i64) -> Value {
    let mut row = json!({"cells": cells(kind, object, now)});
    match include {
        Include::None => {}
        Include::Metadata => row["object"] = partial(object),
        Include::Object => row["object"] = object.clone(),
    }
    row
}

/// `PartialObjectMetadata` of an object.
pub fn partial(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_default(),
    })
}
