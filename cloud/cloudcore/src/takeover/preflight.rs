//! `cloudcore preflight`: looks at a cluster and changes nothing.

use std::collections::BTreeMap;

use serde_json::Value;

use super::missing::{self, InUse};
use super::workloads::{self, EDGE_LABEL, Finding};
use crate::api::{Api, ApiError};

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    pub findings: Vec<Finding>,
    pub in_use: Vec<InUse>,
    pub edges: usize,
}

pub async fn look(api: &Api) -> anyhow::Result<Report> {
    let nodes = list(api, &format!("/api/v1/nodes?labelSelector={}", EDGE_LABEL.replace('/', "%2F"))).await?;
    let labels: Vec<BTreeMap<String, String>> = nodes
        .iter()
        .map(|node| serde_json::from_value(node["metadata"]["labels"].clone()).unwrap_or_default())
        .collect();
    let mut report = Report { edges: nodes.len(), ..Report::default() };
    let daemon_sets = list(api, "/apis/apps/v1/daemonsets").await?;
    report.findings.extend(daemon_sets.iter().filter_map(|object| workloads::daemon_set(object, &labels)));
    for kind in ["mutatingwebhookconfiguration", "validatingwebhookconfiguration"] {
        let all = list(api, &format!("/apis/admissionregistration.k8s.io/v1/{kind}s")).await?;
        report.findings.extend(all.iter().flat_map(|object| workloads::webhooks(object, kind)));
    }
    report.in_use = missing::in_use(api).await?;
    Ok(report)
}

async fn list(api: &Api, path: &str) -> Result<Vec<Value>, ApiError> {
    match api.get(path).await {
        Ok(body) => {
            let mut list: Value = serde_json::from_slice(&body).map_err(ApiError::Json)?;
            Ok(list["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
        }
        // The embedded API has no such kinds.
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

impl Report {
    /// For a person, with the commands.
    pub fn render(&self) -> String {
        let mut text = format!("Edge nodes in this cluster: {}\n", self.edges);
        if self.findings.is_empty() {
            text += "\nNo DaemonSet and no webhook reaches edge nodes.\n";
        } else {
            text += "\nThese reach edge nodes. What is not meant for them, keep away:\n";
        }
        for finding in &self.findings {
            text += &format!("\n  {}: {}\n    {}\n", finding.object, finding.why, finding.patch);
        }
        if self.in_use.is_empty() {
            text += "\nNo objects of KubeEdge are in use that this cloudcore does not serve.\n";
            return text;
        }
        text += "\nObjects of KubeEdge that would have no effect here:\n";
        for used in &self.in_use {
            let more = if used.more { ", ..." } else { "" };
            text += &format!(
                "\n  {} ({}{more})\n    kubectl get {} -A\n    instead: {}\n",
                used.kind,
                used.names.join(", "),
                used.resource,
                used.instead
            );
        }
        text += "\ncloudcore does not start on this cluster until they are gone, or with --accept-missing.\n";
        text
    }
}
