//! OpenAPI v3 documents, made from the schema table when they are asked for.
//!
//! They say what kubectl needs: the kinds, their fields, that the server validates fields itself, and the merge keys.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::Kind;
use crate::kinds::{KINDS, groups};
use crate::schema::{Field, Merge, Message, Shape, Type};

/// A short fingerprint (FNV-1a), for ETags and the `hash` parameter.
pub fn hash(bytes: &[u8]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{hash:016X}")
}

fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// `/openapi/v3`.
pub fn index() -> Value {
    let mut paths = Map::new();
    for (group, version) in groups() {
        let path = path_of(group, version);
        let document = document(&path).expect("every group of the table has a document");
        let hash = hash(document.to_string().as_bytes());
        paths.insert(path.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")}));
    }
    json!({"paths": paths})
}

/// `/openapi/v3/<path>`.
pub fn document(path: &str) -> Option<Value> {
    let (group, version) = groups().into_iter().find(|(group, version)| path_of(group, version) == path)?;
    let mut schemas = BTreeMap::new();
    let mut paths = Map::new();
    for kind in KINDS.iter().filter(|kind| kind.group == group && kind.version == version) {
        add_message(kind.schema, &mut schemas);
        if let Some(schema) = schemas.get_mut(kind.schema.name) {
            schema["x-kubernetes-group-version-kind"] =
                json!([{"group": group, "version": version, "kind": kind.kind}]);
            let properties = schema["properties"].as_object_mut().expect("made as an object");
            properties.insert("apiVersion".into(), json!({"type": "string"}));
            properties.insert("kind".into(), json!({"type": "string"}));
        }
        add_paths(kind, &mut paths);
    }
    Some(json!({
        "openapi": "3.0.0", "info": {"title": "Kinglet", "version": "v1"},
        "paths": paths, "components": {"schemas": schemas},
    }))
}

fn add_message(message: &'static Message, schemas: &mut BTreeMap<&'static str, Value>) {
    if schemas.contains_key(message.name) {
        return;
    }
    // The place is taken before the fields are followed: messages refer to each other.
    schemas.insert(message.name, Value::Null);
    let mut properties = Map::new();
    let mut required = Vec::new();
    add_fields(message, &mut properties, &mut required, schemas);
    let mut schema = json!({"type": "object", "properties": properties});
    if !required.is_empty() {
        schema["required"] = required.into();
    }
    schemas.insert(message.name, schema);
}

fn add_fields(
    message: &'static Message,
    properties: &mut Map<String, Value>,
    required: &mut Vec<Value>,
    schemas: &mut BTreeMap<&'static str, Value>,
) {
    for field in message.fields {
        match field.what {
            Type::Message(inner) if field.inline => add_fields(inner, properties, required, schemas),
            _ => {
                properties.insert(field.name.into(), field_schema(field, schemas));
                let scalar = field.shape == Shape::One && matches!(field.what, Type::String);
                if field.required && scalar {
                    required.push(field.name.into());
                }
            }
        }
    }
}

fn field_schema(field: &'static Field, schemas: &mut BTreeMap<&'static str, Value>) -> Value {
    let one = type_schema(field.what, schemas);
    let mut schema = match field.shape {
        Shape::One => one,
        Shape::Map => json!({"type": "object", "additionalProperties": one}),
        Shape::List => json!({"type": "array", "items": one}),
    };
    match field.merge {
        Merge::Atomic => {}
        Merge::Set => schema["x-kubernetes-patch-strategy"] = "merge".into(),
        Merge::Key(key) => {
            schema["x-kubernetes-patch-merge-key"] = key.into();
            let strategy = if field.retain_keys { "merge,retainKeys" } else { "merge" };
            schema["x-kubernetes-patch-strategy"] = strategy.into();
            schema["x-kubernetes-list-type"] = "map".into();
            schema["x-kubernetes-list-map-keys"] = json!([key]);
        }
    }
    schema
}

fn type_schema(what: Type, schemas: &mut BTreeMap<&'static str, Value>) -> Value {
    match what {
        Type::Message(message) => {
            add_message(message, schemas);
            json!({"allOf": [{"$ref": format!("#/components/schemas/{}", message.name)}]})
        }
        Type::String | Type::Duration => json!({"type": "string"}),
        Type::Bytes => json!({"type": "string", "format": "byte"}),
        Type::Bool => json!({"type": "boolean"}),
        Type::Int => json!({"type": "integer", "format": "int64"}),
        Type::Double => json!({"type": "number", "format": "double"}),
        Type::Quantity => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        Type::IntOrString => {
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        Type::Time | Type::MicroTime => json!({"type": "string", "format": "date-time"}),
        Type::Any => json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
        Type::Fields => json!({"type": "object"}),
        Type::Strings => json!({"type": "array", "items": {"type": "string"}}),
    }
}

fn add_paths(kind: &Kind, paths: &mut Map<String, Value>) {
    let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
    let base = format!("/{}{scope}/{}", kind.api_path(), kind.plural);
    let gvk = json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
    let parameter =
        |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}});
    let write = |action: &str, media: &[&str]| {
        let content: Map<String, Value> = media
            .iter()
            .map(|media| {
                let reference = format!("#/components/schemas/{}", kind.schema.name);
                (media.to_string(), json!({"schema": {"$ref": reference}}))
            })
            .collect();
        json!({
            "x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvk,
            "parameters": [parameter("dryRun"), parameter("fieldManager"), parameter("fieldValidation")],
            "requestBody": {"content": content},
            "responses": {"200": {"description": "OK"}},
        })
    };
    let read = |action: &str| {
        json!({
            "x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvk,
            "responses": {"200": {"description": "OK"}},
        })
    };
    let mut patches = vec!["application/json-patch+json", "application/merge-patch+json"];
    if kind.builtin {
        patches.push("application/strategic-merge-patch+json");
    }
    paths.insert(base.clone(), json!({"get": read("list"), "post": write("post", &["application/json"])}));
    paths.insert(
        format!("{base}/{{name}}"),
        json!({
            "get": read("get"), "delete": read("delete"),
            "put": write("put", &["application/json"]), "patch": write("patch", &patches),
        }),
    );
}
