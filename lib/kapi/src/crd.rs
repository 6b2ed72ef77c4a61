//! CustomResourceDefinitions of the kinds that are not Kubernetes' own, made from the schema table: what a cluster is taught.
//!
//! Fields that the table does not know are kept and not pruned, so that a definition of ours never takes away what a KubeEdge
//! of another version wrote.

use serde_json::{Map, Value, json};

use crate::Kind;
use crate::kinds::KINDS;
use crate::schema::{Message, Shape, Type};

/// Rises with every change of what [`definition`] gives. A definition of ours with a higher number is left as it is.
pub const REVISION: u64 = 2;
/// The annotation that holds the revision, and by which a definition is known as ours.
pub const REVISION_ANNOTATION: &str = "kinglet.dev/crd-revision";

/// The kinds that need one.
pub fn kinds() -> impl Iterator<Item = &'static Kind> {
    KINDS.iter().filter(|kind| !kind.builtin)
}

pub fn definition(kind: &Kind) -> Value {
    let mut schema = message(kind.schema);
    for name in ["apiVersion", "kind"] {
        schema["properties"][name] = json!({"type": "string"});
    }
    schema["properties"]["metadata"] = json!({"type": "object"});
    let mut version = json!({
        "name": kind.version, "served": true, "storage": true,
        "schema": {"openAPIV3Schema": schema},
    });
    if kind.has_status && !kind.status_in_main {
        version["subresources"] = json!({"status": {}});
    }
    let mut names = json!({
        "kind": kind.kind, "listKind": format!("{}List", kind.kind),
        "plural": kind.plural, "singular": kind.singular,
    });
    for (name, list) in [("shortNames", kind.short), ("categories", kind.categories)] {
        if !list.is_empty() {
            names[name] = json!(list);
        }
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {
            "name": kind.resource(),
            "annotations": {REVISION_ANNOTATION: REVISION.to_string()},
            "labels": {"app.kubernetes.io/managed-by": "kinglet"},
        },
        "spec": {
            "group": kind.group, "names": names,
            "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
            "versions": [version],
        },
    })
}

fn message(message: &Message) -> Value {
    let properties: Map<String, Value> = message
        .fields
        .iter()
        .map(|field| {
            let one = one(field.what);
            let schema = match field.shape {
                Shape::One => one,
                Shape::Map => json!({"type": "object", "additionalProperties": one}),
                Shape::List => json!({"type": "array", "items": one}),
            };
            (field.name.to_owned(), schema)
        })
        .collect();
    json!({"type": "object", "properties": properties, "x-kubernetes-preserve-unknown-fields": true})
}

fn one(what: Type) -> Value {
    match what {
        Type::Message(inner) => message(inner),
        Type::Bool => json!({"type": "boolean"}),
        Type::Int => json!({"type": "integer", "format": "int64"}),
        Type::Double => json!({"type": "number"}),
        Type::Bytes => json!({"type": "string", "format": "byte"}),
        Type::Quantity | Type::IntOrString => json!({"x-kubernetes-int-or-string": true}),
        Type::String | Type::Duration | Type::Time | Type::MicroTime => json!({"type": "string"}),
        Type::Strings => json!({"type": "array", "items": {"type": "string"}}),
        Type::Any | Type::Fields => json!({"x-kubernetes-preserve-unknown-fields": true}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_kubeedge_has_one_and_no_other() {
        let names: Vec<String> = kinds().map(Kind::resource).collect();
        assert_eq!(
            names,
            [
                "devices.devices.kubeedge.io",
                "devicemodels.devices.kubeedge.io",
                "devicestatuses.devices.kubeedge.io",
                "objectsyncs.reliablesyncs.kubeedge.io",
                "clusterobjectsyncs.reliablesyncs.kubeedge.io",
            ]
        );
    }

    #[test]
    fn status_is_a_resource_of_its_own_only_where_kubeedge_has_it_so() {
        let has = |resource: &str| {
            let kind = kinds().find(|kind| kind.resource() == resource).unwrap();
            definition(kind)["spec"]["versions"][0].get("subresources").is_some()
        };
        assert!(has("objectsyncs.reliablesyncs.kubeedge.io"));
        assert!(!has("devices.devices.kubeedge.io") && !has("devicestatuses.devices.kubeedge.io"));
    }
}
