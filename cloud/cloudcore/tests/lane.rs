//! The compact lane as a scripted edge of ours sees it, and what the cloud does with peers that misuse it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Cloud, Device, Edge, pod, token};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::protocol::Message as Frame;
use wire::inventory::Inventory;
use wire::lane::{Lane, Received};

const PODS: &str = "/api/v1/namespaces/default/pods";

fn bare(name: &str) -> Value {
    let mut pod = pod(name, json!({"kubernetes.io/os": "linux"}));
    pod["spec"]["automountServiceAccountToken"] = json!(false);
    pod
}

async fn joined(cloud: &Cloud, dir: &std::path::Path) -> (Device, Edge) {
    let mut device = cloud.join("edge-1", &token(dir, &[])).await.unwrap();
    device.store_id = "store-of-one".into();
    let mut edge = cloud.connect(&device).await.unwrap();
    edge.register().await;
    (device, edge)
}

fn was_resumed(edge: &Edge) -> bool {
    match edge.others[0] {
        Received::Welcome { resumed } => resumed,
        ref other => panic!("the cloud's first word is {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_objects_are_on_their_way_and_the_whole_list_follows() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let (device, edge) = joined(&cloud, dir.path()).await;
    drop(edge);
    for n in 0..6 {
        cloud.create(PODS, bare(&format!("p{n}"))).await;
    }
    let mut edge = cloud.connect_compact(&device, (1, 0), "").await.unwrap();
    edge.acks = false;
    let mut pushes = Vec::new();
    for n in 0..6 {
        pushes.push(edge.pushed("insert", &format!("default/pod/p{n}")).await);
    }
    assert!(!was_resumed(&edge));
    edge.acks = true;
    for push in &pushes {
        edge.send(&push.ack(1)).await;
    }
    let list = edge.pushed("inventory", "null/inventory/edge-1").await;
    let list: Inventory = list.content_as().unwrap();
    assert_eq!(list.check("edge-1"), Ok(()));
    let pods = list.objects.iter().filter(|(resource, _)| resource.contains("/pod/"));
    assert_eq!(pods.count(), 6, "{list:?}");
    let more = edge.drain().await;
    assert!(more.is_empty(), "everything was said: {more:?}");
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_link_goes_on_without_saying_anything_again() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let (device, edge) = joined(&cloud, dir.path()).await;
    drop(edge);
    let mut edge = cloud.connect_compact(&device, (0x1a, 0), "").await.unwrap();
    edge.pushed("inventory", "null/inventory/edge-1").await;
    edge.drain().await;
    // Stored, and its acknowledgement is lost with the link.
    edge.acks = false;
    cloud.create(PODS, bare("web")).await;
    let stored = edge.pushed("insert", "default/pod/web").await;
    let (link, seq) = Lane::number_of(&stored.header.msg_id).unwrap();
    assert_eq!(link, 0x1a);
    drop(edge);

    let resume = wire::headers::render_resume(link, [seq]);
    let mut edge = cloud.connect_compact(&device, (0x1b, 0x1a), &resume).await.unwrap();
    let said = edge.drain().await;
    assert!(was_resumed(&edge));
    assert_eq!(said, Vec::<String>::new(), "neither the pod nor the list");
    drop(edge);

    // What the node did not store comes again.
    let mut edge = cloud.connect_compact(&device, (0x1c, 0x1b), "1b:").await.unwrap();
    edge.acks = false;
    cloud
        .call("PATCH", &format!("{PODS}/web"), Some(json!({"metadata": {"labels": {"a": "b"}}})))
        .await
        .unwrap();
    edge.pushed("update", "default/pod/web").await;
    drop(edge);
    let mut edge = cloud.connect_compact(&device, (0x1d, 0x1c), "1c:").await.unwrap();
    edge.pushed("update", "default/pod/web").await;
    assert!(was_resumed(&edge));
    edge.drain().await;
    drop(edge);

    // Another link's numbers mean nothing.
    let mut edge = cloud.connect_compact(&device, (0x1e, 0), "77:1,2,3").await.unwrap();
    edge.pushed("inventory", "null/inventory/edge-1").await;
    assert!(!was_resumed(&edge));
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_renewal_renews_and_a_beat_says_that_nothing_changed() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let (device, edge) = joined(&cloud, dir.path()).await;
    drop(edge);
    let mut edge = cloud.connect_compact(&device, (1, 0), "").await.unwrap();
    let lease = json!({"metadata": {"name": "edge-1"}, "spec": {"holderIdentity": "edge-1", "leaseDurationSeconds": 77}});
    let answer = edge.ask("update", "kube-node-lease/lease/edge-1", &lease).await;
    assert!(answer.content_is_ok(), "{answer:?}");
    let path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/edge-1";
    let lease = cloud.get(path).await.unwrap();
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 77, "set by the short form: {lease}");
    assert_eq!(lease["spec"]["renewTime"], "1970-01-01T00:00:00.001000Z", "the message's time");

    let patch = |time: &str| {
        let condition = json!({"type": "Ready", "status": "True", "reason": "r", "message": "m",
            "lastHeartbeatTime": time, "lastTransitionTime": "2026-01-01T00:00:00Z"});
        Value::from(json!({"status": {"conditions": [condition]}}).to_string())
    };
    for time in ["2026-01-01T00:00:01Z", "2026-01-01T00:00:02Z"] {
        let answer = edge.ask("patch", "null/nodepatch/edge-1", &patch(time)).await;
        assert!(answer.content_is_ok(), "only what the node does not know is answered: {answer:?}");
    }
    let node = cloud.get("/api/v1/nodes/edge-1").await.unwrap();
    let ready =
        node["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Ready").unwrap();
    assert_eq!(
        ready["lastHeartbeatTime"], "1970-01-01T00:00:00Z",
        "the second was a beat, with the message's time"
    );
    assert_eq!((&ready["status"], &ready["reason"]), (&json!("True"), &json!("r")));

    // Somebody says that the node is unknown: the beat is refused, and the whole status follows.
    let unknown = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
    cloud.call("PATCH", "/api/v1/nodes/edge-1/status", Some(unknown)).await.unwrap();
    let refused: Value = edge
        .ask("patch", "null/nodepatch/edge-1", &patch("2026-01-01T00:00:03Z"))
        .await
        .content_as()
        .unwrap();
    assert_eq!(refused["Err"]["ErrStatus"]["code"], 403, "{refused}");
    assert!(edge.ask("patch", "null/nodepatch/edge-1", &patch("2026-01-01T00:00:04Z")).await.content_is_ok());
    let node = cloud.get("/api/v1/nodes/edge-1").await.unwrap();
    let ready =
        node["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Ready").unwrap();
    assert_eq!(
        (&ready["status"], &ready["lastHeartbeatTime"]),
        (&json!("True"), &json!("2026-01-01T00:00:04Z"))
    );
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_with_anothers_name_is_told_so_and_does_not_take_turns() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let (device, edge) = joined(&cloud, dir.path()).await;
    drop(edge);
    let first = cloud.connect_compact(&device, (1, 0), "").await.unwrap();
    // A card that was copied after the join: same certificate, same store.
    let second = cloud.connect_compact(&device, (2, 0), "").await.unwrap();
    first.ended().await;
    let (status, text) = cloud.connect_compact(&device, (3, 1), "").await.err().unwrap();
    assert!(status == 409 && text.contains("two devices use the name edge-1"), "{status} {text}");
    drop(second);
    let retried = async {
        while cloud.connect_compact(&device, (4, 3), "").await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(common::PATIENCE, retried).await.expect("the other one has gone");
    cloud.stop().await;
}

/// Each is closed or survived, and costs the others nothing.
#[tokio::test(flavor = "multi_thread")]
async fn peers_that_misuse_the_lane() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let (device, edge) = joined(&cloud, dir.path()).await;
    drop(edge);
    let mut link = 1;
    for (what, bytes) in [
        ("a length that lies", vec![0x20, 0, 0xff, 0xff, 0xff, 0xff, 0x0f, 1]),
        ("cut short", vec![0x23, 0, 8, 5]),
        ("inflates to four gigabytes", vec![0x21, 0, 7, 0xff, 0xff, 0xff, 0xff, 0x0f, 1, 0]),
        ("no frame at all", b"{}".to_vec()),
    ] {
        let mut edge = cloud.connect_compact(&device, (link, link - 1), "").await.unwrap();
        edge.send_frame(Frame::binary(bytes)).await;
        edge.ended().await;
        println!("{what}: closed");
        link += 1;
    }
    let mut edge = cloud.connect_compact(&device, (link, link - 1), "").await.unwrap();
    // Acknowledges what it never got, twice; a kind of tomorrow; a cloud's word.
    edge.send_frame(Frame::binary(vec![0x22, 0, 3, 2, 90, 1])).await;
    edge.send_frame(Frame::binary(vec![0x22, 0, 3, 2, 90, 1])).await;
    edge.send_frame(Frame::binary(vec![0x70, 0, 1, 7, 0x26, 0, 1, 0])).await;
    cloud.create(PODS, bare("web")).await;
    edge.pushed("insert", "default/pod/web").await;
    edge.drain().await;
    assert!(
        edge.others.iter().any(|other| matches!(other, Received::PeerSkipped { kind: 0x70 })),
        "{:?}",
        edge.others
    );
    cloud.stop().await;
}
