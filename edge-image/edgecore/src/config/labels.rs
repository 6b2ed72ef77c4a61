//! The labels that a node has from the start.

use std::collections::BTreeMap;

/// Go's word for this machine.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "arm64",
        "x86_64" => "amd64",
        other => other,
    }
}

/// The labels of a node; the configuration's come last and may replace ours, but not the role that the cloud looks for.
pub fn node_labels(
    node: &str,
    architecture: &str,
    configured: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for key in ["kubernetes.io/arch", "beta.kubernetes.io/arch"] {
        labels.insert(key.to_string(), architecture.to_string());
    }
    for key in ["kubernetes.io/os", "beta.kubernetes.io/os"] {
        labels.insert(key.to_string(), "linux".to_string());
    }
    labels.insert("kubernetes.io/hostname".into(), node.into());
    labels.extend(configured.clone());
    for role in ["edge", "agent"] {
        labels.insert(format!("node-role.kubernetes.io/{role}"), String::new());
    }
    labels
}
