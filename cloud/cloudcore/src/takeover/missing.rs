//! Objects of KubeEdge that have no effect here: who uses them must know before KubeEdge's cloudcore is gone.

use serde::Deserialize;

use crate::api::{Api, ApiError};

/// Group, versions from new to old, plural, kind, and what to use instead.
const KINDS: &[(&str, &[&str], &str, &str, &str)] = &[
    ("rules.kubeedge.io", &["v1"], "rules", "Rule", "route messages with an MQTT bridge on the node"),
    (
        "rules.kubeedge.io",
        &["v1"],
        "ruleendpoints",
        "RuleEndpoint",
        "route messages with an MQTT bridge on the node",
    ),
    ("apps.kubeedge.io", &["v1alpha1"], "nodegroups", "NodeGroup", "label the nodes and use node selectors"),
    (
        "apps.kubeedge.io",
        &["v1alpha1"],
        "edgeapplications",
        "EdgeApplication",
        "one Deployment for each group of nodes",
    ),
    (
        "operations.kubeedge.io",
        &["v1alpha2", "v1alpha1"],
        "nodeupgradejobs",
        "NodeUpgradeJob",
        "update edgecore as its package or image is updated",
    ),
    (
        "operations.kubeedge.io",
        &["v1alpha2", "v1alpha1"],
        "imageprepulljobs",
        "ImagePrePullJob",
        "preload images (docs/pods.md) or run a DaemonSet with them",
    ),
    (
        "operations.kubeedge.io",
        &["v1alpha2"],
        "configupdatejobs",
        "ConfigUpdateJob",
        "change edgecore.yaml on the node",
    ),
    (
        "policy.kubeedge.io",
        &["v1alpha1"],
        "serviceaccountaccesses",
        "ServiceAccountAccess",
        "pods reach the cluster's API directly",
    ),
];

/// A kind that is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InUse {
    pub kind: &'static str,
    /// `<plural>.<group>`, as kubectl takes it.
    pub resource: String,
    /// Some of them; all when there are few.
    pub names: Vec<String>,
    pub more: bool,
    pub instead: &'static str,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot look for objects of {0}; give cloudcore the right to list them")]
pub struct MissingError(String, #[source] ApiError);

#[derive(Debug, thiserror::Error)]
#[error(
    "KubeEdge objects are in use that this cloudcore does not serve: {0}. They would have no effect any more. Remove them (`cloudcore preflight` says what to use instead), or start with --accept-missing (kinglet.acceptMissing: true)"
)]
pub struct NotServed(pub String);

const NAMES_MAX: usize = 5;

/// Kinds of KubeEdge that are in use in this cluster and not served by us.
pub async fn in_use(api: &Api) -> Result<Vec<InUse>, MissingError> {
    #[derive(Deserialize)]
    struct List {
        items: Option<Vec<Item>>,
    }
    #[derive(Deserialize)]
    struct Item {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    struct Metadata {
        name: String,
        namespace: Option<String>,
    }
    let mut found = Vec::new();
    for (group, versions, plural, kind, instead) in KINDS {
        let resource = format!("{plural}.{group}");
        for version in *versions {
            let path = format!("/apis/{group}/{version}/{plural}?limit={}", NAMES_MAX + 1);
            let body = match api.get(&path).await {
                Ok(body) => body,
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(MissingError(resource, error)),
            };
            let failed = |error| MissingError(resource.clone(), ApiError::Json(error));
            let items = serde_json::from_slice::<List>(&body).map_err(failed)?.items.unwrap_or_default();
            let mut names: Vec<String> = items
                .into_iter()
                .map(|Item { metadata: Metadata { name, namespace } }| match namespace {
                    Some(namespace) => format!("{namespace}/{name}"),
                    None => name,
                })
                .collect();
            let more = names.len() > NAMES_MAX;
            names.truncate(NAMES_MAX);
            if !names.is_empty() {
                found.push(InUse { kind, resource: resource.clone(), names, more, instead });
            }
            break;
        }
    }
    Ok(found)
}

/// The kinds in one line, for the error of a start that stops here.
pub fn line(found: &[InUse]) -> String {
    let one = |used: &InUse| {
        let more = if used.more { ", ..." } else { "" };
        format!("{} ({}{more})", used.kind, used.names.join(", "))
    };
    found.iter().map(one).collect::<Vec<_>>().join("; ")
}
