//! KubeEdge's kinds as far as its cloudcore watches them, without schemas: what is in them is between the two programs.

use anyhow::Result;
use e2e::kubectl::Kubectl;
use serde_json::{Value, json};

struct Kind {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    is_namespaced: bool,
    /// A DeviceStatus is written as a whole.
    has_status: bool,
}

const fn kind(group: &'static str, version: &'static str, kind: &'static str, is_namespaced: bool) -> Kind {
    Kind { group, version, kind, is_namespaced, has_status: true }
}

const KINDS: &[Kind] = &[
    kind("devices.kubeedge.io", "v1beta1", "Device", true),
    kind("devices.kubeedge.io", "v1beta1", "DeviceModel", true),
    Kind {
        group: "devices.kubeedge.io",
        version: "v1beta1",
        kind: "DeviceStatus",
        is_namespaced: true,
        has_status: false,
    },
    kind("reliablesyncs.kubeedge.io", "v1alpha1", "ObjectSync", true),
    kind("reliablesyncs.kubeedge.io", "v1alpha1", "ClusterObjectSync", false),
    kind("rules.kubeedge.io", "v1", "Rule", true),
    kind("rules.kubeedge.io", "v1", "RuleEndpoint", true),
    kind("operations.kubeedge.io", "v1alpha2", "NodeUpgradeJob", false),
    kind("operations.kubeedge.io", "v1alpha2", "ImagePrePullJob", false),
    kind("operations.kubeedge.io", "v1alpha2", "ConfigUpdateJob", false),
    kind("policy.kubeedge.io", "v1alpha1", "ServiceAccountAccess", true),
    kind("apps.kubeedge.io", "v1alpha1", "EdgeApplication", true),
    kind("apps.kubeedge.io", "v1alpha1", "NodeGroup", false),
];

impl Kind {
    /// `older`: KubeEdge before 1.23 keeps twins in the Device's status, which is written as a whole, and before 1.21 its jobs are
    /// of an older version.
    fn definition(&self, minor: u32) -> Value {
        let singular = self.kind.to_lowercase();
        let plural = match singular.strip_suffix('s') {
            Some(stem) if !stem.ends_with('s') => format!("{stem}ses"),
            _ if singular.ends_with("ss") => format!("{singular}es"),
            _ => format!("{singular}s"),
        };
        let is_old_job = self.group == "operations.kubeedge.io" && minor < 21;
        let version = if is_old_job { "v1alpha1" } else { self.version };
        let has_status = self.has_status && !(self.kind == "Device" && minor < 23);
        let mut served = json!({
            "name": version, "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
        });
        if has_status {
            served["subresources"] = json!({"status": {}});
        }
        json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.{}", self.group)},
            "spec": {
                "group": self.group, "scope": if self.is_namespaced { "Namespaced" } else { "Cluster" },
                "names": {"plural": plural, "singular": singular, "kind": self.kind, "listKind": format!("{}List", self.kind)},
                "versions": [served],
            },
        })
    }
}

/// Makes them known, and waits until they are served.
pub fn apply(kubectl: &Kubectl, dir: &std::path::Path, minor: u32) -> Result<()> {
    let items: Vec<Value> = KINDS.iter().map(|kind| kind.definition(minor)).collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    kubectl.apply_text(dir, &list.to_string())?;
    kubectl.run(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plurals_and_versions_are_kubeedges() {
        let name = |kind: &str, minor| {
            let kind = KINDS.iter().find(|k| k.kind == kind).unwrap();
            kind.definition(minor)["metadata"]["name"].as_str().unwrap().to_owned()
        };
        assert_eq!(name("DeviceStatus", 23), "devicestatuses.devices.kubeedge.io");
        assert_eq!(name("ServiceAccountAccess", 23), "serviceaccountaccesses.policy.kubeedge.io");
        assert_eq!(name("ObjectSync", 23), "objectsyncs.reliablesyncs.kubeedge.io");
        let old = KINDS.iter().find(|k| k.kind == "ImagePrePullJob").unwrap().definition(20);
        assert_eq!(old["spec"]["versions"][0]["name"], "v1alpha1");
    }
}
