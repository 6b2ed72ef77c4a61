//! APIServices (apiregistration.k8s.io/v1): which groups are served, as objects. Made when they are asked for; nothing is aggregated
//! here, so all of them are `Local` and none can be written. Their shape is kube-aggregator's for built-in groups.

use serde_json::{Value, json};

use crate::discovery::groups_served;
use crate::kinds::{Durability, Kind};
use crate::schema;

pub const GROUP: &str = "apiregistration.k8s.io";
pub const VERSION: &str = "v1";

/// Listed and read only: it is not in the table of kinds that are kept.
pub static API_SERVICE: Kind = Kind {
    group: GROUP,
    version: VERSION,
    plural: "apiservices",
    singular: "apiservice",
    kind: "APIService",
    short: &[],
    categories: &["api-extensions"],
    namespaced: false,
    has_status: true,
    status_in_main: false,
    has_generation: false,
    builtin: true,
    durability: Durability::Sync,
    schema: &schema::META_V1_OBJECT_META,
    field_labels: &[],
};

/// Groups with their place in kube-apiserver's order of preference (`apiVersionPriorities`); others are as those of CRDs.
const PRIORITIES: &[(&str, u32)] = &[
    ("", 18_000),
    ("authentication.k8s.io", 17_700),
    ("authorization.k8s.io", 17_600),
    ("storage.k8s.io", 16_800),
    ("coordination.k8s.io", 16_500),
];

/// All of them, by name. `created`: since when the API is there, as in `creationTimestamp`.
pub fn objects(measured: bool, created: &str) -> Vec<(String, Value)> {
    let served = groups_served(measured).into_iter().filter(|(group, _)| *group != GROUP);
    let mut objects: Vec<_> = served
        .map(|(group, version)| (format!("{version}.{group}"), object(group, version, created)))
        .collect();
    objects.sort_by(|a, b| a.0.cmp(&b.0));
    objects
}

fn object(group: &str, version: &str, created: &str) -> Value {
    let builtin = PRIORITIES.iter().find(|(name, _)| *name == group);
    let (priority, version_priority, managed) = match builtin {
        Some((_, priority)) => (*priority, if group.is_empty() { 1 } else { 15 }, "onstart"),
        None => (1_000, 100, "true"),
    };
    let mut spec = json!({
        "groupPriorityMinimum": priority, "version": version, "versionPriority": version_priority,
    });
    if !group.is_empty() {
        spec["group"] = group.into();
    }
    json!({
        "kind": API_SERVICE.kind, "apiVersion": API_SERVICE.api_version(),
        "metadata": {
            "name": format!("{version}.{group}"), "creationTimestamp": created, "resourceVersion": "1",
            "labels": {"kube-aggregator.kubernetes.io/automanaged": managed},
        },
        "spec": spec,
        "status": {"conditions": [{
            "type": "Available", "status": "True", "reason": "Local",
            "message": "Local APIServices are always available", "lastTransitionTime": created,
        }]},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_each_group() {
        let names = |measured| objects(measured, "").into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        let all = names(true);
        assert!(
            all.contains(&"v1.".to_owned()) && all.contains(&"v1beta1.devices.kubeedge.io".to_owned()),
            "{all:?}"
        );
        assert!(!all.iter().any(|name| name.contains(GROUP)), "the group that lists does not list itself");
        assert!(all.is_sorted());
        assert!(!names(false).contains(&"v1beta1.metrics.k8s.io".to_owned()));
    }
}
