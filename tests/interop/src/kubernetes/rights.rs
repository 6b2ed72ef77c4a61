//! The rights of cloudcore's service account, held against what it did: the API server's audit log.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

pub const ACCOUNT: &str = "kinglet-cloudcore";

/// Rights that this flow does not come to use, each with who does.
const NOT_HERE: &[(&str, &str)] = &[
    ("create pods", "mirrors of static pods"),
    ("delete kubeedge/configmaps", "tokens that expired"),
    ("delete kubeedge/secrets", "the end of a change of the CA"),
    ("update kubeedge/secrets", "the token of keadm gettoken, every few hours"),
    ("get volumeattachments.storage.k8s.io", "KubeEdge edges with CSI drivers"),
    ("update events", "KubeEdge edges with reportEvent"),
    ("patch events", "events that come again, when they do"),
    ("delete clusterobjectsyncs.reliablesyncs.kubeedge.io", "cluster-wide objects that leave a node"),
    ("update kube-node-lease/leases.coordination.k8s.io", "edges without the compact lane, and KubeEdge's"),
];

pub struct Audit {
    log: PathBuf,
    policy: PathBuf,
}

impl Audit {
    pub fn new(dir: &Path) -> Result<Audit> {
        let policy = dir.join("audit-policy.yaml");
        std::fs::write(
            &policy,
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: Metadata}]\n",
        )?;
        Ok(Audit { log: dir.join("audit.log"), policy })
    }

    pub fn flags(&self) -> [String; 2] {
        [
            format!("--audit-log-path={}", self.log.display()),
            format!("--audit-policy-file={}", self.policy.display()),
        ]
    }

    /// Every refusal is one that cloudcore can do without, and every right of the manifests was used or has its reason.
    pub fn check(&self, manifests: &Path) -> Result<()> {
        let user = format!("system:serviceaccount:kubeedge:{ACCOUNT}");
        let log = std::fs::read_to_string(&self.log).context("read the audit log")?;
        let (mut used, mut refused) = (BTreeSet::new(), BTreeSet::new());
        for line in log.lines() {
            let event: Value = serde_json::from_str(line).context("a line of the audit log")?;
            let what = &event["objectRef"];
            if event["user"]["username"] != user.as_str() || what.is_null() {
                continue;
            }
            let (group, resource) =
                (what["apiGroup"].as_str().unwrap_or(""), what["resource"].as_str().unwrap_or(""));
            let resource = match what["subresource"].as_str() {
                Some(sub) => format!("{resource}/{sub}"),
                None => resource.to_owned(),
            };
            let verb = event["verb"].as_str().unwrap_or_default();
            let namespace = what["namespace"].as_str().unwrap_or_default();
            let set = if event["responseStatus"]["code"] == 403 { &mut refused } else { &mut used };
            set.insert((verb.to_owned(), named(group, &resource), namespace.to_owned()));
        }
        ensure!(!used.is_empty(), "the audit log has nothing of {user}");
        // The kinds are there; who installed them may know more of them than cloudcore.
        refused.retain(|(verb, resource, _)| {
            !(verb == "get" && resource == "customresourcedefinitions.apiextensions.k8s.io")
        });
        ensure!(refused.is_empty(), "refused for want of a right: {refused:?}");
        let unused: Vec<String> = granted(manifests)?
            .into_iter()
            .filter(|(verb, resource, namespace)| {
                !used
                    .iter()
                    .any(|(v, r, n)| v == verb && r == resource && (namespace.is_empty() || n == namespace))
            })
            .map(|(verb, resource, namespace)| {
                let at = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
                format!("{verb} {at}{resource}")
            })
            .filter(|right| !NOT_HERE.iter().any(|(known, _)| right == known))
            .collect();
        ensure!(unused.is_empty(), "rights that nobody used: {unused:?}");
        Ok(())
    }
}

fn named(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

/// Verb, resource and namespace (empty: everywhere) of all rules.
fn granted(manifests: &Path) -> Result<Vec<(String, String, String)>> {
    let text = std::fs::read_to_string(manifests)?;
    let mut all = Vec::new();
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    for part in text.split("\n---\n") {
        let object: Value = e2e::yaml(part)?;
        if !matches!(object["kind"].as_str(), Some("Role" | "ClusterRole")) {
            continue;
        }
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
        for rule in object["rules"].as_array().context("a role has rules")? {
            for group in strings(&rule["apiGroups"]) {
                for resource in strings(&rule["resources"]) {
                    for verb in strings(&rule["verbs"]) {
                        all.push((verb, named(&group, &resource), namespace.to_owned()));
                    }
                }
            }
        }
    }
    Ok(all)
}
