//! `cloudcore preflight` against a cluster with DaemonSets and webhooks: it names those that reach an edge node, and the commands that
//! it prints keep them away, as the cluster's own controller then shows.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use e2e::{
    kubectl::Kubectl,
    steps::{Steps, wait_for},
};
use serde_json::Value;

use super::SOON;
use crate::{Bench, ControlPlane};

/// `everywhere` is what cloud providers install on every machine; `chosen` keeps to labels that no edge node has.
const OBJECTS: &str = r#"
apiVersion: v1
kind: Node
metadata:
  name: edge-9
  labels: { kubernetes.io/os: linux, kubernetes.io/arch: arm64, node-role.kubernetes.io/edge: "", node-role.kubernetes.io/agent: "" }
---
apiVersion: apps/v1
kind: DaemonSet
metadata: { name: everywhere, namespace: kube-system }
spec:
  selector: { matchLabels: { app: everywhere } }
  template:
    metadata: { labels: { app: everywhere } }
    spec:
      tolerations: [{ operator: Exists }]
      containers: [{ name: c, image: "example.invalid/everywhere:1" }]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: { name: chosen, namespace: kube-system }
spec:
  selector: { matchLabels: { app: chosen } }
  template:
    metadata: { labels: { app: chosen } }
    spec:
      nodeSelector: { rack: a }
      containers: [{ name: c, image: "example.invalid/chosen:1" }]
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: { name: sidecars }
webhooks:
  - name: inject.example.invalid
    admissionReviewVersions: [v1]
    sideEffects: None
    failurePolicy: Ignore
    clientConfig: { url: "https://127.0.0.1:1/inject" }
    namespaceSelector: { matchLabels: { inject: "yes" } }
    rules: [{ apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods] }]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: { name: harmless }
webhooks:
  - name: deployments.example.invalid
    admissionReviewVersions: [v1]
    sideEffects: None
    failurePolicy: Ignore
    clientConfig: { url: "https://127.0.0.1:1/look" }
    rules: [{ apiGroups: [apps], apiVersions: [v1], operations: [CREATE], resources: [deployments] }]
"#;

pub fn run(bench: &Bench, steps: &mut Steps) -> Result<()> {
    let peers = bench.peers()?;
    let (plane, _) = steps.step("a control plane starts", || ControlPlane::start(peers, &bench.dir, &[]))?;
    let kubectl = plane.kubectl();
    steps.step("a DaemonSet puts a pod on an edge node", || {
        kubectl.apply_text(&bench.dir, OBJECTS)?;
        wait_for(SOON, "the pod", || Ok((pods_of(&kubectl)? == ["everywhere"]).then_some(())))
    })?;
    let (told, _) = steps.step("preflight names it and the webhook, and nothing else", || {
        let told = preflight(bench, &plane)?;
        let found: Vec<&str> =
            told.lines().filter(|line| line.starts_with("  ") && !line.starts_with("    ")).collect();
        ensure!(told.starts_with("Edge nodes in this cluster: 1\n"), "{told}");
        ensure!(
            found.len() == 2
                && found[0].starts_with("  daemonset kube-system/everywhere: ")
                && found[1].starts_with("  mutatingwebhookconfiguration sidecars (inject.example.invalid): "),
            "{told}"
        );
        Ok(told)
    })?;
    steps.step("its commands keep them away", || {
        let commands: Vec<&str> = told.lines().filter_map(|line| line.strip_prefix("    kubectl ")).collect();
        ensure!(commands.len() == 2, "{told}");
        for command in commands {
            // The namespace is the reader's to name.
            shell(&kubectl, &bench.dir, &command.replace("NAMESPACE", "default"))?;
        }
        wait_for(SOON, "the end of the pod", || Ok(pods_of(&kubectl)?.is_empty().then_some(())))?;
        let told = preflight(bench, &plane)?;
        ensure!(told.contains("No DaemonSet and no webhook reaches edge nodes."), "{told}");
        let labels = kubectl.json(&["get", "namespace", "default"])?["metadata"]["labels"].clone();
        ensure!(labels["kinglet.dev/edge"] == "true", "{labels}");
        Ok(())
    })?;
    Ok(())
}

/// The DaemonSets that have a pod which is not being deleted. Nobody runs them, so that they end at once.
fn pods_of(kubectl: &Kubectl) -> Result<Vec<String>> {
    let pods = kubectl.json(&["get", "pods", "-n", "kube-system"])?;
    let alive = pods["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let app = |pod: &Value| pod["metadata"]["labels"]["app"].as_str().unwrap_or_default().to_owned();
    Ok(alive.map(app).collect())
}

fn preflight(bench: &Bench, plane: &ControlPlane) -> Result<String> {
    let mut command = Command::new(&bench.programs.cloudcore);
    let output = command.arg("preflight").arg("--kubeconfig").arg(plane.kubeconfig()).output()?;
    let text = String::from_utf8(output.stdout).context("what preflight prints is UTF-8")?;
    ensure!(!text.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

/// A line as a person pastes it, kubectl's quotes and `&&` included.
fn shell(kubectl: &Kubectl, dir: &Path, line: &str) -> Result<()> {
    let found = kubectl.command(&[]);
    let environment = found.get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
    let flags: Vec<String> = found.get_args().map(|arg| format!("'{}'", arg.to_string_lossy())).collect();
    let program = format!("kubectl() {{ '{}' {} \"$@\"; }}\n", kubectl.program().display(), flags.join(" "));
    let output = Command::new("sh")
        .arg("-c")
        .arg(format!("{program}kubectl {line}"))
        .envs(environment)
        .current_dir(dir)
        .output()?;
    ensure!(output.status.success(), "kubectl {line}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
