//! metrics.k8s.io/v1beta1: what nodes and pods use now, as `kubectl top` reads it. Asked of the nodes, not kept.
//!
//! A node that does not answer is left out, and so are its pods, as metrics-server does.

use http::{Method, StatusCode};
use kapi::{ApiError, kinds, meta, table, time};
use serde_json::{Value, json};
use std::sync::Arc;

use crate::auth::{Attributes, Identity};
use crate::backend::Backend;
use crate::body::json as json_response;
use crate::nodes::{ContainerUsage, NodeUsage, Used};
use crate::object::parse;
use crate::query::Query;
use crate::read::Selection;
use crate::route::Target;
use crate::server::{Answer, Call, Format, Server};

pub(crate) const GROUP: &str = "metrics.k8s.io";
const API_VERSION: &str = "metrics.k8s.io/v1beta1";

/// The path after the version: `nodes[/<name>]`, `pods`, `namespaces/<namespace>/pods[/<name>]`.
pub(crate) fn target(rest: &[&str]) -> Option<Target> {
    let of = |plural: &str, namespace: Option<&str>, name: Option<&str>| {
        Some(Target {
            kind: kinds::by_path("", "v1", plural)?,
            namespace: namespace.map(str::to_string),
            name: name.map(str::to_string),
            subresource: None,
            tail: String::new(),
        })
    };
    match rest {
        ["nodes"] => of("nodes", None, None),
        ["nodes", name] => of("nodes", None, Some(name)),
        ["pods"] => of("pods", None, None),
        ["namespaces", namespace, "pods"] => of("pods", Some(namespace), None),
        ["namespaces", namespace, "pods", name] => of("pods", Some(namespace), Some(name)),
        _ => None,
    }
}

/// One line of the answer.
struct Item {
    object: Value,
    cpu: u64,
    memory: u64,
}

impl<B: Backend> Server<B> {
    pub(crate) async fn metrics(&self, call: &Call<'_>, identity: &Identity) -> Answer {
        let target = call.target;
        if call.parts.method != Method::GET {
            return Err(ApiError::method_not_allowed());
        }
        let verb = if target.name.is_some() { "get" } else { "list" };
        self.allow(&Attributes {
            identity,
            verb,
            group: GROUP,
            resource: target.kind.plural,
            subresource: "",
            namespace: target.namespace(),
            name: target.name(),
            path: call.parts.uri.path(),
        })?;
        let nodes = self.inner.options.nodes.clone().ok_or_else(ApiError::no_such_path)?;
        let selection = Selection::of(call)?;
        let records = match &target.name {
            Some(name) => {
                let record = self.inner.backend.get(&self.key(target));
                vec![record.ok_or_else(|| ApiError::not_found(target.kind, name))?]
            }
            None => {
                let all = self.inner.backend.list(&target.kind.resource(), target.namespace.as_deref());
                all.records.into_iter().filter(|record| selection.matches(record)).collect()
            }
        };
        let mut objects = Vec::with_capacity(records.len());
        for record in records {
            let object = parse(&record)?;
            // Only what `item` reads, so that ten thousand pods are not ten thousand trees.
            objects.push(json!({"metadata": {
                "name": meta::text(&object, "metadata.name"), "namespace": meta::text(&object, "metadata.namespace"),
                "labels": meta::at(&object, "metadata.labels").cloned().unwrap_or_default()},
                "node": host(target, &object)}));
        }
        let mut names: Vec<String> =
            objects.iter().map(|object| meta::text(object, "node").to_string()).collect();
        names.retain(|name| !name.is_empty());
        names.sort();
        names.dedup();
        let usages = nodes.usage(names).await;
        let now = self.now();
        let items: Vec<Item> =
            objects.iter().filter_map(|object| item(target, object, &usages, now)).collect();
        self.show_metrics(call, items)
    }

    fn show_metrics(&self, call: &Call<'_>, items: Vec<Item>) -> Answer {
        let (node, named) = (call.target.kind.kind == "Node", call.target.name.is_some());
        let kind = if node { "NodeMetrics" } else { "PodMetrics" };
        if call.format != Format::Json {
            let rows: Vec<Value> = items.iter().map(|item| row(call, item)).collect();
            let table = json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {},
                "columnDefinitions": columns(), "rows": rows});
            return Ok(json_response(StatusCode::OK, &table));
        }
        if !named {
            let list: Vec<Value> = items.into_iter().map(|item| item.object).collect();
            let list = json!({"kind": format!("{kind}List"), "apiVersion": API_VERSION, "metadata": {}, "items": list});
            return Ok(json_response(StatusCode::OK, &list));
        }
        let missing = || {
            let name = match call.target.namespace() {
                "" => call.target.name().to_string(),
                namespace => format!("{namespace}/{}", call.target.name()),
            };
            ApiError::not_measured(if node { "nodemetrics" } else { "podmetrics" }, &name)
        };
        let mut object = items.into_iter().next().ok_or_else(missing)?.object;
        object["kind"] = kind.into();
        object["apiVersion"] = API_VERSION.into();
        Ok(json_response(StatusCode::OK, &object))
    }
}

/// The node that measures an object.
fn host<'a>(target: &Target, object: &'a Value) -> &'a str {
    meta::text(object, if target.kind.kind == "Node" { "metadata.name" } else { "spec.nodeName" })
}

fn item(target: &Target, object: &Value, usages: &[(String, Arc<NodeUsage>)], now: i64) -> Option<Item> {
    let node = meta::text(object, "node");
    let (_, usage) = usages.iter().find(|(name, _)| name == node)?;
    let mut metadata =
        json!({"name": meta::text(object, "metadata.name"), "creationTimestamp": time::rfc3339(now)});
    if let Some(Value::Object(labels)) = meta::at(object, "metadata.labels") {
        metadata["labels"] = labels.clone().into();
    }
    let mut item = json!({"timestamp": time::rfc3339(usage.time_s), "window": window(usage.window_s)});
    if target.kind.kind == "Node" {
        item["metadata"] = metadata;
        item["usage"] = quantities(usage.used);
        return Some(Item { object: item, cpu: usage.used.cpu_nanocores, memory: usage.used.memory_bytes });
    }
    let (namespace, name) = (meta::text(object, "metadata.namespace"), meta::text(object, "metadata.name"));
    metadata["namespace"] = namespace.into();
    item["metadata"] = metadata;
    let pod = usage.pods.iter().find(|pod| pod.name == name && pod.namespace == namespace)?;
    if pod.containers.is_empty() {
        return None;
    }
    let container =
        |container: &ContainerUsage| json!({"name": container.name, "usage": quantities(container.used)});
    item["containers"] = pod.containers.iter().map(container).collect();
    let sum = |of: fn(&Used) -> u64| pod.containers.iter().map(|container| of(&container.used)).sum();
    Some(Item { object: item, cpu: sum(|used| used.cpu_nanocores), memory: sum(|used| used.memory_bytes) })
}

fn quantities(used: Used) -> Value {
    json!({"cpu": format!("{}n", used.cpu_nanocores), "memory": format!("{}Ki", used.memory_bytes / 1024)})
}

/// As Go writes durations of less than a minute, and close enough above.
fn window(seconds: u64) -> String {
    format!("{seconds}s")
}

fn columns() -> Value {
    let column = |name: &str| {
        let format = if name == "Name" { "name" } else { "" };
        json!({"name": name, "type": "string", "format": format, "description": name, "priority": 0})
    };
    ["Name", "Cpu", "Memory", "Window"].iter().map(|name| column(name)).collect()
}

fn row(call: &Call<'_>, item: &Item) -> Value {
    let cells = json!([
        meta::text(&item.object, "metadata.name"),
        format!("{}n", item.cpu),
        format!("{}Ki", item.memory / 1024),
        meta::text(&item.object, "window"),
    ]);
    let mut row = json!({"cells": cells});
    if call.query.text("includeObject") != "None" {
        row["object"] = table::partial(&item.object);
    }
    row
}

/// Whether a query can be answered at all: there is nothing to watch.
pub(crate) fn check(query: &Query) -> Result<(), ApiError> {
    if query.flag("watch") { Err(ApiError::method_not_allowed()) } else { Ok(()) }
}
