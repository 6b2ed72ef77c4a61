//! Unmodified KubeEdge edges, as scripted doubles: golden sessions of v1.23 and v1.22, and what their quirks must not break.
//! The real programs: `tests/interop/src/stock_edge`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::stock::{comparison_can_fail, follow, go_json, send_in_pieces};
use common::{Cloud, Device, Edge, pod, token};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::protocol::Message as Frame;
use wire::Message;

async fn linked(cloud: &Cloud, dir: &std::path::Path, node: &str) -> (Device, Edge) {
    let device = cloud.join(node, &token(dir, &[])).await.unwrap();
    let edge = cloud.connect(&device).await.unwrap();
    (device, edge)
}

async fn golden(session: &str) {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let (_, mut edge) = linked(&cloud, dir.path(), "edge-1").await;
    let bound = follow(&cloud, &mut edge, session).await;
    assert_ne!(bound["pod"], bound["mirror"]);
    // Events are not answered: what became of them is seen at the API.
    let event = cloud.get("/api/v1/namespaces/default/events/web.1").await.expect("the event was made");
    assert_eq!((&event["count"], &event["source"]["host"]), (&json!(2), &json!("edge-1")));
    let ready = cloud.get("/api/v1/nodes/edge-1").await.unwrap();
    assert_eq!(ready["metadata"]["labels"]["added"], "x");
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn golden_session_of_kubeedge_1_23() {
    comparison_can_fail();
    golden(include_str!("../../../tests/vectors/kubeedge/stock-edge-1.23.jsonl")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn golden_session_of_kubeedge_1_22() {
    golden(include_str!("../../../tests/vectors/kubeedge/stock-edge-1.22.jsonl")).await;
}

/// The same sessions name every message of an edge that is there: none is missing from the table of requests.
#[test]
fn go_escapes_and_pieces() {
    let text = go_json(&json!({"content": "a <b> & c"}));
    assert_eq!(text, "{\"content\":\"a \\u003cb\\u003e \\u0026 c\"}\n");
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["content"], "a <b> & c");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_messages_in_pieces_with_pings_between_and_binary_frames_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let (_, mut edge) = linked(&cloud, dir.path(), "edge-1").await;
    edge.register().await;
    // 40 KiB of status: ten pieces. An image list makes it so large in earnest.
    let images: Vec<Value> = (0..400)
        .map(|n| json!({"names": [format!("registry.example/<team>&co/image-{n}:v{n}-{}", "x".repeat(60))], "sizeBytes": n}))
        .collect();
    let patch = json!({"status": {"images": images}}).to_string();
    let message = Message::new(1, "edged", "meta", "patch", "null/nodepatch/edge-1").with_content(&patch);
    let value: Value = serde_json::from_str(&message.encode()).unwrap();
    send_in_pieces(&mut edge, &go_json(&value)).await;
    let id = message.header.msg_id.clone();
    let answer = edge.receive("the answer to a large status", |m| m.header.parent_msg_id == id).await;
    let answer: Value = answer.content_as().unwrap();
    let last = &answer["Object"]["status"]["images"][399]["names"][0];
    assert!(last.as_str().unwrap().starts_with("registry.example/<team>&co/image-399"), "{last}");
    // KubeEdge's reader takes text and binary alike; so do we.
    let message = Message::new(1, "edged", "meta", "query", "kube-node-lease/lease/edge-1");
    edge.send_frame(Frame::binary(message.encode())).await;
    let id = message.header.msg_id;
    edge.receive("the answer to a binary frame", |m| m.header.parent_msg_id == id).await;
    cloud.stop().await;
}

/// Neither acknowledgements of answers, nor of what was never sent, nor repeated ones confirm a push.
#[tokio::test(flavor = "multi_thread")]
async fn acknowledgements_too_many_confirm_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let (device, mut edge) = linked(&cloud, dir.path(), "edge-1").await;
    edge.acks_answers = true;
    edge.register().await;
    edge.drain().await;
    edge.acks = false;
    let mut web = pod("web", json!({"kubernetes.io/os": "linux"}));
    web["spec"]["automountServiceAccountToken"] = json!(false);
    cloud.create("/api/v1/namespaces/default/pods", web).await;
    let push = edge.pushed("insert", "default/pod/web").await;
    let mut wrong = push.ack(1);
    for parent in ["", "never-sent", "00000000-0000-0000-0000-000000000000"] {
        wrong.header.parent_msg_id = parent.into();
        edge.send(&wrong).await;
    }
    // A refusal is no acknowledgement either.
    edge.send(&push.ack(1).with_content("disk full")).await;
    edge.drain().await;
    let mut edge = cloud.connect(&device).await.unwrap();
    edge.acks = false;
    let again = edge.pushed("insert", "default/pod/web").await;
    for _ in 0..3 {
        edge.send(&again.ack(1)).await;
    }
    edge.drain().await;
    let mut edge = cloud.connect(&device).await.unwrap();
    let more = edge.drain().await;
    assert!(!more.iter().any(|line| line.contains("pod/web")), "acknowledged, and sent again: {more:?}");
    cloud.stop().await;
}

/// A v1.23 edge whose database was emptied cannot say so; it registers over and over, since it does not find its own Node.
#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_edge_gets_everything_again() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let (device, mut edge) = linked(&cloud, dir.path(), "edge-1").await;
    edge.register().await;
    cloud.create("/api/v1/namespaces/default/pods", pod("web", json!({"kubernetes.io/os": "linux"}))).await;
    edge.pushed("insert", "default/pod/web").await;
    edge.drain().await;

    let mut edge = cloud.connect(&device).await.unwrap();
    edge.register().await;
    let more = edge.drain().await;
    assert!(!more.iter().any(|line| line.contains("pod/web")), "an edge that restarts: {more:?}");
    edge.register().await;
    edge.pushed("update", "null/node/edge-1").await;
    edge.pushed("insert", "default/pod/web").await;
    edge.register().await;
    let more = edge.drain().await;
    assert!(!more.iter().any(|line| line.contains("pod/web")), "once per link: {more:?}");
    cloud.stop().await;
}

/// The table of docs/interop.md names no message that a session lacks, and the sessions hold no message that it does not name.
#[test]
fn every_message_of_the_protocol_stands_in_a_session() {
    let sessions = [
        ("1.23", include_str!("../../../tests/vectors/kubeedge/stock-edge-1.23.jsonl")),
        ("1.22", include_str!("../../../tests/vectors/kubeedge/stock-edge-1.22.jsonl")),
        ("yes", include_str!("../../../tests/vectors/kubeedge/stock-cloud.jsonl")),
        ("yes", include_str!("../../../tests/vectors/kubeedge/stock-cloud-again.jsonl")),
    ];
    let mut held = Vec::new();
    for (session, text) in sessions {
        for step in text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
            for (direction, end) in [("up", "edge"), ("down", "cloud")] {
                let route = &step[end]["route"];
                if let (Some(operation), Some(resource)) =
                    (route["operation"].as_str(), route["resource"].as_str())
                {
                    held.push((session, direction, operation.to_owned(), resource.to_owned()));
                }
            }
        }
    }
    let fits = |pattern: &str, resource: &str| {
        let (pattern, resource): (Vec<&str>, Vec<&str>) =
            (pattern.split('/').collect(), resource.split('/').collect());
        pattern.len() == resource.len() && pattern.iter().zip(&resource).all(|(p, r)| *p == "*" || p == r)
    };
    let text = include_str!("../../../docs/interop.md");
    let table = text.split("## Messages and their vectors").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.starts_with("| up") || line.starts_with("| down"))
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    assert!(rows.len() > 70, "{} rows", rows.len());
    let mut named = Vec::new();
    for row in rows {
        let (operation, resource) = row[2].trim_matches('`').split_once(' ').unwrap();
        let cloud = if row[3] == "both" { vec!["1.23", "1.22"] } else { vec![row[3]] };
        for session in cloud.into_iter().chain([row[4]]).filter(|session| *session != "-") {
            let found = held
                .iter()
                .any(|(s, d, o, r)| *s == session && *d == row[1] && o == operation && fits(resource, r));
            assert!(found, "{} is not in session {session}", row[2]);
        }
        named.push((row[1], operation, resource));
    }
    for (_, direction, operation, resource) in held.iter().filter(|message| message.2 != "response") {
        let is_named = named.iter().any(|(d, o, r)| d == direction && o == operation && fits(r, resource));
        assert!(is_named, "the table does not name {direction} {operation} {resource}");
    }
}
