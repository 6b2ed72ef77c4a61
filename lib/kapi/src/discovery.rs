//! Discovery documents in the three forms that clients ask for.

use serde_json::{Value, json};

use crate::Kind;
use crate::apiservices::{self, API_SERVICE};
use crate::kinds::{KINDS, VERBS, groups};

/// Resources that are answered but not kept: (group, plural, kind, namespaced).
pub const REVIEWS: &[(&str, &str, &str)] = &[
    ("authorization.k8s.io", "selfsubjectaccessreviews", "SelfSubjectAccessReview"),
    ("authorization.k8s.io", "selfsubjectrulesreviews", "SelfSubjectRulesReview"),
    ("authentication.k8s.io", "selfsubjectreviews", "SelfSubjectReview"),
];

/// What is measured when it is asked for: (plural, kind, namespaced).
pub const METRICS: &[(&str, &str, bool)] = &[("nodes", "NodeMetrics", false), ("pods", "PodMetrics", true)];
/// Verbs of what is not kept.
const READ_ONLY: [&str; 2] = ["get", "list"];
const METRICS_GROUP: (&str, &str) = ("metrics.k8s.io", "v1beta1");

/// All groups and their version; with those that are measured if something measures.
pub fn groups_served(measured: bool) -> Vec<(&'static str, &'static str)> {
    let mut out = groups();
    for (group, ..) in REVIEWS {
        if !out.contains(&(group, "v1")) {
            out.push((group, "v1"));
        }
    }
    out.push((apiservices::GROUP, apiservices::VERSION));
    if measured {
        out.push(METRICS_GROUP);
    }
    out
}

/// Which aggregated form: `v2` or `v2beta1`.
pub fn aggregated(core: bool, version: &str, measured: bool) -> Value {
    let items: Vec<Value> = groups_served(measured)
        .into_iter()
        .filter(|(group, _)| group.is_empty() == core)
        .map(|(group, group_version)| {
            let kept = KINDS.iter().filter(|kind| kind.group == group).map(aggregated_kind);
            let reviews = REVIEWS.iter().filter(|review| review.0 == group).map(|(group, plural, kind)| {
                json!({
                    "resource": plural, "responseKind": {"group": group, "version": "v1", "kind": kind},
                    "scope": "Cluster", "singularResource": kind.to_lowercase(), "verbs": ["create"],
                })
            });
            let metrics = METRICS.iter().filter(|_| group == METRICS_GROUP.0).map(|(plural, kind, namespaced)| {
                json!({
                    "resource": plural, "responseKind": {"group": group, "version": group_version, "kind": kind},
                    "scope": if *namespaced { "Namespaced" } else { "Cluster" }, "singularResource": "",
                    "verbs": READ_ONLY,
                })
            });
            let listed = (group == apiservices::GROUP).then(|| {
                let mut listed = aggregated_kind(&API_SERVICE);
                listed["verbs"] = json!(READ_ONLY);
                listed["subresources"][0]["verbs"] = json!(["get"]);
                listed
            });
            let resources: Vec<Value> = kept.chain(reviews).chain(metrics).chain(listed).collect();
            let metadata = if group.is_empty() {
                json!({"creationTimestamp": null})
            } else {
                json!({"name": group, "creationTimestamp": null})
            };
            json!({"metadata": metadata, "versions": [
                {"version": group_version, "freshness": "Current", "resources": resources}]})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {}, "items": items,
    })
}

fn aggregated_kind(kind: &Kind) -> Value {
    let response = |name: &str| json!({"group": kind.group, "version": kind.version, "kind": name});
    let mut resource = json!({
        "resource": kind.plural, "responseKind": response(kind.kind),
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular, "verbs": VERBS,
    });
    if !kind.short.is_empty() {
        resource["shortNames"] = kind.short.into();
    }
    if !kind.categories.is_empty() {
        resource["categories"] = kind.categories.into();
    }
    let mut subresources = Vec::new();
    if kind.has_status {
        subresources.push(json!({
            "subresource": "status", "responseKind": response(kind.kind), "verbs": ["get", "patch", "update"],
        }));
    }
    for sub in kind.subresources() {
        subresources.push(json!({
            "subresource": sub.name, "verbs": sub.verbs,
            "responseKind": {"group": sub.group, "version": sub.version, "kind": sub.kind},
        }));
    }
    if !subresources.is_empty() {
        resource["subresources"] = subresources.into();
    }
    resource
}

/// `/api`.
pub fn versions(server_address: &str) -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [
        {"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}]})
}

fn group(name: &str, version: &str) -> Value {
    let version = json!({"groupVersion": format!("{name}/{version}"), "version": version});
    json!({"name": name, "versions": [version], "preferredVersion": version})
}

/// `/apis`.
pub fn group_list(measured: bool) -> Value {
    let groups: Vec<Value> = groups_served(measured)
        .into_iter()
        .filter(|(name, _)| !name.is_empty())
        .map(|(name, version)| group(name, version))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/<group>`.
pub fn one_group(name: &str, measured: bool) -> Option<Value> {
    let (name, version) =
        groups_served(measured).into_iter().find(|(group, _)| *group == name && !name.is_empty())?;
    let mut out = group(name, version);
    out["kind"] = "APIGroup".into();
    out["apiVersion"] = "v1".into();
    Some(out)
}

/// `/api/v1`, `/apis/<group>/<version>`.
pub fn resource_list(group: &str, version: &str, measured: bool) -> Option<Value> {
    groups_served(measured).contains(&(group, version)).then_some(())?;
    let mut resources = Vec::new();
    for kind in KINDS.iter().filter(|kind| kind.group == group && kind.version == version) {
        let mut entry = json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced,
            "kind": kind.kind, "verbs": VERBS,
        });
        if !kind.short.is_empty() {
            entry["shortNames"] = kind.short.into();
        }
        if !kind.categories.is_empty() {
            entry["categories"] = kind.categories.into();
        }
        resources.push(entry);
        if kind.has_status {
            resources.push(json!({
                "name": format!("{}/status", kind.plural), "singularName": "", "namespaced": kind.namespaced,
                "kind": kind.kind, "verbs": ["get", "patch", "update"],
            }));
        }
        for sub in kind.subresources() {
            let mut entry = json!({
                "name": format!("{}/{}", kind.plural, sub.name), "singularName": "",
                "namespaced": kind.namespaced, "kind": sub.kind, "verbs": sub.verbs,
            });
            if !sub.group.is_empty() {
                entry["group"] = sub.group.into();
                entry["version"] = sub.version.into();
            }
            resources.push(entry);
        }
    }
    for (_, plural, kind) in REVIEWS.iter().filter(|review| review.0 == group) {
        resources.push(json!({
            "name": plural, "singularName": kind.to_lowercase(), "namespaced": false, "kind": kind,
            "verbs": ["create"],
        }));
    }
    for (plural, kind, namespaced) in METRICS.iter().filter(|_| group == METRICS_GROUP.0) {
        resources.push(json!({
            "name": plural, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": READ_ONLY,
        }));
    }
    if group == apiservices::GROUP {
        let of = &API_SERVICE;
        resources.push(json!({
            "name": of.plural, "singularName": of.singular, "namespaced": false, "kind": of.kind, "verbs": READ_ONLY,
            "categories": of.categories,
        }));
        resources.push(json!({
            "name": format!("{}/status", of.plural), "singularName": "", "namespaced": false, "kind": of.kind,
            "verbs": ["get"],
        }));
    }
    let group_version = if group.is_empty() { version.to_string() } else { format!("{group}/{version}") };
    Some(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources,
    }))
}
