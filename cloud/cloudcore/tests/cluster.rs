//! Replicas of cloudcore on one cluster. Its API is the embedded one of another cloudcore here, which also schedules, as a cluster's
//! own control plane does; `cargo xtask test --suite interop` has the same against a real API server.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};

use common::{Cloud, Device, Edge, command, pod, token};
use serde_json::{Value, json};

const SYNCS: &str = "/apis/reliablesyncs.kubeedge.io/v1alpha1/namespaces/default/objectsyncs";

/// A cluster, and room for replicas on it.
struct Site {
    dir: tempfile::TempDir,
    cluster: Cloud,
}

impl Site {
    async fn start() -> Site {
        let dir = tempfile::tempdir().unwrap();
        let cluster = Cloud::start(&dir.path().join("cluster")).await;
        Site { dir, cluster }
    }

    fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("cluster/kubeconfig")
    }

    fn data(&self, replica: &str) -> PathBuf {
        self.dir.path().join(replica)
    }

    async fn replica(&self, name: &str) -> Cloud {
        Cloud::start_on(&self.data(name), &self.kubeconfig()).await
    }

    /// A command as an operator gives it, at the place of one replica.
    fn run(&self, replica: &str, arguments: &[&str]) -> std::process::Output {
        let kubeconfig = self.kubeconfig();
        command(&self.data(replica), &[arguments, &["--kubeconfig", kubeconfig.to_str().unwrap()]].concat())
    }

    fn token(&self, replica: &str, more: &[&str]) -> String {
        let kubeconfig = self.kubeconfig();
        token(&self.data(replica), &[more, &["--kubeconfig", kubeconfig.to_str().unwrap()]].concat())
    }

    async fn joined(&self, at: &Cloud, replica: &str, node: &str) -> (Device, Edge) {
        let device = at.join(node, &self.token(replica, &[])).await.unwrap();
        let mut edge = at.connect(&device).await.unwrap();
        edge.register().await;
        (device, edge)
    }

    /// The ObjectSync of a pod, once it says that the node has some version of it.
    async fn acknowledged(&self, node: &str, pod: &str) -> Value {
        let find = |list: &Value| {
            list["items"]
                .as_array()?
                .iter()
                .find(|sync| {
                    let version = sync["status"]["objectResourceVersion"].as_str().unwrap_or("0");
                    let of_node =
                        sync["metadata"]["name"].as_str().is_some_and(|name| name.starts_with(node));
                    sync["spec"]["objectName"] == pod && of_node && version != "0"
                })
                .cloned()
        };
        self.cluster.until(SYNCS, find).await
    }
}

fn linux() -> Value {
    json!({"kubernetes.io/os": "linux"})
}

fn pushes_of_pods(lines: &[String]) -> Vec<&String> {
    lines.iter().filter(|line| line.contains("default/pod/")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_has_is_in_object_syncs_and_another_replica_sends_only_the_rest() {
    let site = Site::start().await;
    let first = site.replica("a").await;
    let second = site.replica("b").await;
    let (device, mut edge) = site.joined(&first, "a", "edge-1").await;
    for name in ["web", "stays", "goes"] {
        site.cluster.create("/api/v1/namespaces/default/pods", pod(name, linux())).await;
        edge.pushed("insert", &format!("default/pod/{name}")).await;
    }
    let stays = site.cluster.get("/api/v1/namespaces/default/pods/stays").await.unwrap();
    let uid = stays["metadata"]["uid"].as_str().unwrap();
    for name in ["web", "stays", "goes"] {
        let sync = site.acknowledged("edge-1", name).await;
        assert_eq!(sync["spec"], json!({"objectAPIVersion": "v1", "objectKind": "Pod", "objectName": name}));
        if name == "stays" {
            assert_eq!(sync["metadata"]["name"], format!("edge-1.{uid}"), "KubeEdge's name");
        }
    }

    // The node goes over to the other replica: the first one's link ends by itself, and nothing is sent again.
    let mut moved = second.connect(&device).await.unwrap();
    assert_eq!(moved.cloud_id, edge.cloud_id, "the same cloud");
    edge.ended().await;
    let more = moved.drain().await;
    assert_eq!(pushes_of_pods(&more), Vec::<&String>::new(), "{more:?}");

    // What happens while nobody has a link of the node is made good later, by a replica that was not there before.
    drop(moved);
    second.stop().await;
    first.stop().await;
    site.cluster
        .call("DELETE", "/api/v1/namespaces/default/pods/goes?gracePeriodSeconds=0", None)
        .await
        .unwrap();
    site.cluster.until_gone("/api/v1/namespaces/default/pods/goes").await;
    let patch = json!({"metadata": {"labels": {"a": "b"}}});
    site.cluster.call("PATCH", "/api/v1/namespaces/default/pods/web", Some(patch)).await.unwrap();
    let third = site.replica("a").await;
    let mut edge = third.connect(&device).await.unwrap();
    edge.pushed("delete", "default/pod/goes").await;
    edge.pushed("update", "default/pod/web").await;
    let more = edge.drain().await;
    assert_eq!(pushes_of_pods(&more), Vec::<&String>::new(), "{more:?}");
    third.stop().await;
    site.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_a_kubeedge_cloudcore_are_taken_over_and_its_versions_understood() {
    let site = Site::start().await;
    let cloud = site.replica("a").await;
    let (device, mut edge) = site.joined(&cloud, "a", "edge-1").await;
    for name in ["has", "old"] {
        site.cluster.create("/api/v1/namespaces/default/pods", pod(name, linux())).await;
        edge.pushed("insert", &format!("default/pod/{name}")).await;
        site.acknowledged("edge-1", name).await;
    }
    drop(edge);
    cloud.stop().await;
    // What KubeEdge would have written: a version and no note of ours; of an object that is gone; of one of its own kinds.
    for name in ["has", "old"] {
        let object = site.cluster.get(&format!("/api/v1/namespaces/default/pods/{name}")).await.unwrap();
        let sync = format!("{SYNCS}/edge-1.{}", object["metadata"]["uid"].as_str().unwrap());
        let plain = json!({"metadata": {"annotations": null}});
        merge(&site.cluster, &sync, &plain).await;
        let at = if name == "has" { object["metadata"]["resourceVersion"].as_str().unwrap() } else { "1" };
        merge(&site.cluster, &format!("{sync}/status"), &json!({"status": {"objectResourceVersion": at}}))
            .await;
    }
    let gone = "11111111-2222-4333-8444-555555555555";
    for (kind, name) in [("Pod", "long-gone"), ("ServiceAccountAccess", "theirs")] {
        let uid = if kind == "Pod" { gone } else { "99999999-2222-4333-8444-555555555555" };
        let sync = json!({"apiVersion": "reliablesyncs.kubeedge.io/v1alpha1", "kind": "ObjectSync",
            "metadata": {"name": format!("edge-1.{uid}"), "namespace": "default"},
            "spec": {"objectAPIVersion": "v1", "objectKind": kind, "objectName": name}});
        site.cluster.create(SYNCS, sync).await;
        let status = json!({"status": {"objectResourceVersion": "7"}});
        merge(&site.cluster, &format!("{SYNCS}/edge-1.{uid}/status"), &status).await;
    }

    let cloud = site.replica("a").await;
    let mut edge = cloud.connect(&device).await.unwrap();
    let dead: Value = edge.pushed("delete", "default/pod/long-gone").await.content_as().unwrap();
    assert_eq!(dead["metadata"]["uid"], gone);
    edge.pushed("update", "default/pod/old").await;
    let more = edge.drain().await;
    assert_eq!(pushes_of_pods(&more), Vec::<&String>::new(), "what it has is not sent again: {more:?}");
    site.cluster.until_gone(&format!("{SYNCS}/edge-1.{gone}")).await;
    let theirs = format!("{SYNCS}/edge-1.99999999-2222-4333-8444-555555555555");
    assert!(site.cluster.get(&theirs).await.is_some(), "what is not ours to deliver is left alone");
    cloud.stop().await;
    site.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_resets_count_for_all_replicas() {
    let site = Site::start().await;
    let (first, second) = (site.replica("a").await, site.replica("b").await);
    let token = site.token("a", &["--uses", "1"]);
    let device = first.join("edge-1", &token).await.unwrap();
    let (status, text) = second.join("edge-2", &token).await.err().expect("the token is used up");
    assert_eq!((status, text.contains("already used by 1 node")), (401, true), "{text}");

    let mut edge = first.connect(&device).await.unwrap();
    edge.register().await;
    site.cluster.create("/api/v1/namespaces/default/pods", pod("web", linux())).await;
    edge.pushed("insert", "default/pod/web").await;
    site.acknowledged("edge-1", "web").await;
    let output = site.run("b", &["node", "reset", "edge-1"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // The link ends at once, at a replica that nobody told; its certificate is good nowhere.
    edge.ended().await;
    let (status, _) = second.connect(&device).await.err().expect("its certificate was revoked");
    assert_eq!(status, 403);
    let device = second.join("edge-1", &site.token("b", &["--node", "edge-1"])).await.unwrap();
    let mut edge = second.connect(&device).await.unwrap();
    edge.pushed("insert", "default/pod/web").await;
    first.stop().await;
    second.stop().await;
    site.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_gone_leaves_no_records() {
    let site = Site::start().await;
    let dead = "edge-9.11111111-2222-4333-8444-555555555555";
    let sync = json!({"apiVersion": "reliablesyncs.kubeedge.io/v1alpha1", "kind": "ObjectSync",
        "metadata": {"name": dead, "namespace": "default"}, "spec": {"objectKind": "Pod", "objectName": "web"}});
    site.cluster.create(SYNCS, sync).await;
    let cloud = site.replica("a").await;
    site.cluster.until_gone(&format!("{SYNCS}/{dead}")).await;
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kubeedge/leases/kinglet-cloudcore";
    let holder = |lease: &Value| lease["spec"]["holderIdentity"].as_str().map(str::to_owned);
    assert!(!site.cluster.until(lease, holder).await.is_empty());
    cloud.stop().await;
    let free = |lease: &Value| (lease["spec"]["holderIdentity"] == "").then_some(());
    site.cluster.until(lease, free).await;
    site.cluster.stop().await;
}

/// A merge patch.
async fn merge(cloud: &Cloud, path: &str, patch: &Value) {
    let request = http::Request::builder().method("PATCH").uri(path);
    let request = request.header("content-type", "application/merge-patch+json");
    let response =
        cloud.api.send(request.body(patch.to_string().into_bytes().into()).unwrap()).await.unwrap();
    assert!(response.status().is_success(), "PATCH {path}: {}", response.status());
}

#[test]
fn preflight_names_the_cluster_that_it_cannot_find() {
    let dir = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_cloudcore"))
        .args(["preflight", "--kubeconfig"])
        .arg(Path::new(dir.path()).join("none"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("/none cannot be used as kubeconfig"), "{said}");
}
