//! cloudcore on a real kube-apiserver: with the rights that its manifests give it and no others, as two replicas, from inside a pod's
//! environment, and in the place of KubeEdge's cloudcore.
//!
//! The same on the embedded API, where it takes seconds: `cloud/cloudcore/tests/cluster.rs`.

mod preflight;
mod replicas;
mod rights;
mod streams;
mod takeover;

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use e2e::{
    cloud::Cloud,
    host::{NODE, Node},
    kubectl::Kubectl,
    process::tail,
    steps::{Steps, wait_for},
};

use crate::{Bench, ControlPlane, Flow, Peer, Running};

pub const FLOWS: &[Flow] = &[
    Flow {
        name: "cloudcore on Kubernetes, with the rights of its manifests",
        needs: NEEDS,
        run: on_kubernetes,
    },
    Flow { name: "preflight of a cluster with DaemonSets and webhooks", needs: NEEDS, run: preflight::run },
    Flow { name: "cloudcore in the place of KubeEdge's and back", needs: STOCK, run: takeover::run },
];

const NEEDS: &[Peer] = &[Peer::Etcd, Peer::Apiserver, Peer::ControllerManager];
const STOCK: &[Peer] = &[Peer::Etcd, Peer::Apiserver, Peer::ControllerManager, Peer::Cloudcore];

const READY: Duration = Duration::from_secs(90);
const SOON: Duration = Duration::from_secs(60);

/// A pod that names all that a node may ask the cloud for.
const OBJECTS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: { name: settings }
data: { mode: first }
---
apiVersion: v1
kind: Secret
metadata: { name: password }
stringData: { word: secret }
---
apiVersion: v1
kind: Pod
metadata: { name: web }
spec:
  nodeName: NODE
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: docker.io/kinglet/busybox:1
      command: [sh, -c, "echo mode $(cat /settings/mode) word $(cat /password/word); sleep 100000"]
      volumeMounts:
        - { name: settings, mountPath: /settings }
        - { name: password, mountPath: /password }
        - { name: data, mountPath: /data }
  volumes:
    - { name: settings, configMap: { name: settings } }
    - { name: password, secret: { secretName: password } }
    - { name: data, persistentVolumeClaim: { claimName: data } }
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: { name: data }
spec: { accessModes: [ReadWriteOnce], storageClassName: "", volumeName: data, resources: { requests: { storage: 1Mi } } }
---
apiVersion: v1
kind: PersistentVolume
metadata: { name: data }
spec:
  accessModes: [ReadWriteOnce]
  capacity: { storage: 1Mi }
  persistentVolumeReclaimPolicy: Retain
  storageClassName: ""
  hostPath: { path: DATA, type: DirectoryOrCreate }
"#;

const PREPARED: &str = r#"
apiVersion: v1
kind: Node
metadata: { name: NODE, labels: { site: hall-3 } }
"#;

const LATE: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: late }
spec:
  nodeName: NODE
  terminationGracePeriodSeconds: 1
  containers: [{ name: main, image: "docker.io/kinglet/busybox:1", command: [sleep, "100000"] }]
"#;

/// Makes the pod and waits until it runs.
fn pod_runs(kubectl: &Kubectl, dir: &Path) -> Result<Running> {
    let data = dir.join("data");
    kubectl.apply_text(dir, &OBJECTS.replace("NODE", NODE).replace("DATA", &data.display().to_string()))?;
    kubectl.run(&["wait", "--for=condition=Ready", "pod/web", "--timeout=90s"])?;
    Running::seen(kubectl)
}

/// ObjectSyncs say that the node has each of these.
fn recorded(kubectl: &Kubectl, objects: &[(&str, &str)]) -> Result<()> {
    wait_for(SOON, "the records of what the node has", || {
        let syncs = kubectl.json(&["get", "objectsyncs", "-n", "default"])?;
        let all = syncs["items"].as_array().context("no list")?;
        let has = |(kind, name): &(&str, &str)| {
            all.iter().any(|sync| {
                sync["spec"]["objectKind"] == *kind
                    && sync["spec"]["objectName"] == *name
                    && !matches!(sync["status"]["objectResourceVersion"].as_str(), None | Some("0"))
            })
        };
        Ok(objects.iter().all(has).then_some(()))
    })
}

fn on_kubernetes(bench: &Bench, steps: &mut Steps) -> Result<()> {
    let peers = bench.peers()?;
    let audit = rights::Audit::new(&bench.dir)?;
    let flags = audit.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (plane, _) =
        steps.step("a control plane starts", || ControlPlane::start(peers, &bench.dir, &flags))?;
    let kubectl = plane.kubectl();
    let deploy = bench.programs.samples.parent().context("samples are in cloud/deploy")?;
    let manifests = deploy.join("kubernetes/kinglet.yaml");
    steps.step("the kinds and the manifests are taken by the API server", || {
        kubectl.apply(&deploy.join("crds/kinglet.yaml"))?;
        kubectl.run(&["create", "namespace", "kubeedge"])?;
        let file = manifests.to_str().context("path is not UTF-8")?;
        // Strictly: an unknown field in them is an error.
        kubectl.run(&["apply", "--dry-run=server", "--validate=strict", "-f", file])?;
        kubectl.apply(&manifests)?;
        kubectl.run(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]).map(drop)
    })?;
    let kubeconfig = plane.kubeconfig_of("kubeedge", rights::ACCOUNT)?;
    let new = |name: &str| Cloud::new(&bench.programs.cloudcore, &bench.dir.join(name), &["127.0.0.1"]);
    let (certificate, key) = plane.certificate("stream", "/CN=cloudcore")?;
    let mut cloud = new("a")?
        .on_cluster(&kubeconfig)
        .with_tunnel()
        .with_stream([plane.ca(), certificate, key])
        .with_flags(&["--kubelet-address", "127.0.0.1"]);
    steps.step("cloudcore starts with the service account's rights", || cloud.start())?;
    let mut node = Node::new(&bench.programs, &bench.dir)?;
    let told: Result<()> = (|| {
        steps.step("edgecore joins by token", || node.join(&cloud, &cloud.token(&["--uses", "1"])?, NODE))?;
        steps.step("the node takes over a Node object that was made for it, and is Ready", || {
            kubectl.apply_text(&bench.dir, &PREPARED.replace("NODE", NODE))?;
            node.start()?;
            wait_for(READY, "node Ready", || Ok(kubectl.node_is_ready(NODE)?.then_some(())))?;
            let labels = kubectl.json(&["get", "node", NODE])?["metadata"]["labels"].clone();
            ensure!(labels["site"] == "hall-3" && labels["kubernetes.io/os"] == "linux", "{labels}");
            Ok(())
        })?;
        let (before, _) = steps
            .step("a pod with config map, secret, claim and token runs", || pod_runs(&kubectl, &bench.dir))?;
        steps.step("the API server reaches the kubelet: logs, exec, port-forward", || {
            streams::through_the_api_server(&kubectl, &cloud)
        })?;
        steps.step("what the node has is in ObjectSyncs", || {
            recorded(&kubectl, &[("Pod", "web"), ("ConfigMap", "settings"), ("Secret", "password")])
        })?;
        e2e::host::device(&mut node, &kubectl, steps)?;
        steps.step("a pod is deleted, on the node and in the cluster", || {
            kubectl.apply_text(&bench.dir, &LATE.replace("NODE", NODE))?;
            kubectl.run(&["wait", "--for=condition=Ready", "pod/late", "--timeout=60s"])?;
            kubectl.run(&["delete", "pod", "late", "--timeout=60s"]).map(drop)
        })?;
        replicas::tell(bench, &plane, &mut cloud, &before, steps)?;
        steps.step("no right was lacking, and none is there that is not used", || audit.check(&manifests))?;
        Ok(())
    })();
    told.with_context(|| {
        format!("edgecore's log:\n{}\ncloudcore's log:\n{}", tail(&node.log(), 20), tail(&cloud.log(), 20))
    })
}
