//! Nodes that do not read, and links whose other end is gone without a word. One test after the other: the first looks at the
//! memory of this process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{Cloud, PATIENCE, token};
use serde_json::Value;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::protocol::Message as Frame;
use wire::Message;

const TIMEOUTS: &str = "modules:\n  cloudHub: {writeTimeout: 2, keepaliveInterval: 60}\n";
/// What the kernel may hold of both directions (tcp_rmem and tcp_wmem go up to 6 and 4 MB), twice over.
const BYTES_MAX: usize = 24 << 20;

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// It asks for its own Node over and over, which is answered with more than it asked with, and takes no answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_never_reads_is_not_read_from_either_and_then_closed() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start_with(dir.path(), TIMEOUTS).await;
    let device = cloud.join("deaf", &token(dir.path(), &[])).await.unwrap();
    let mut edge = cloud.connect(&device).await.unwrap();
    edge.register().await;
    let before = resident_bytes();
    let question =
        Message::new(1, "edged", "meta", "query", "null/node/deaf").with_content(&Value::Null).encode();
    let mut sent = 0;
    let closed = loop {
        match timeout(PATIENCE, edge.try_send(Frame::text(question.clone()))).await {
            Ok(true) => sent += question.len(),
            Ok(false) => break true,
            Err(_) => break false,
        }
        assert!(sent < BYTES_MAX, "{sent} bytes were taken from a node that reads nothing");
    };
    assert!(closed, "the link stays although nothing moves; {sent} bytes were taken");
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < BYTES_MAX, "{grown} bytes are held for it");
    // Its place is free, and it may do better.
    let mut edge = cloud.connect(&device).await.unwrap();
    edge.register().await;
    cloud.stop().await;
}

/// The device lost its power, or its network: nothing comes, no answer and no end.
async fn half_open(cloud: &Cloud, dir: &std::path::Path) {
    let device = cloud.join("gone", &token(dir, &[])).await.unwrap();
    let mut edge = cloud.connect(&device).await.unwrap();
    edge.register().await;
    edge.keepalive().await;
    let from = Instant::now();
    // Held, so that the kernel goes on acknowledging.
    let silent = edge;
    let ended = silent.ended_without_an_answer();
    timeout(PATIENCE, ended).await.expect("a silent link is not ended");
    assert!(from.elapsed() > Duration::from_millis(1_500), "it was ended after {:?}", from.elapsed());
    let refused = cloud.nodes.dial("gone").await.err().unwrap().to_string();
    assert!(refused.contains("not connected"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_link_ends_with_its_keepalive() {
    let dir = tempfile::tempdir().unwrap();
    let config = "modules:\n  cloudHub: {writeTimeout: 30, keepaliveInterval: 2}\n";
    let cloud = Cloud::start_with(dir.path(), config).await;
    half_open(&cloud, dir.path()).await;
    cloud.stop().await;
}

/// It comes back while the cloud still waits for its dead connection to take something.
#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_link_gives_way_to_the_nodes_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let config = "modules:\n  cloudHub: {writeTimeout: 600, keepaliveInterval: 600}\n";
    let cloud = Cloud::start_with(dir.path(), config).await;
    let device = cloud.join("back", &token(dir.path(), &[])).await.unwrap();
    let mut stuck = cloud.connect(&device).await.unwrap();
    stuck.register().await;
    let question =
        Message::new(1, "edged", "meta", "query", "null/node/back").with_content(&Value::Null).encode();
    // Until the cloud takes no more.
    while timeout(Duration::from_secs(1), stuck.try_send(Frame::text(question.clone()))).await == Ok(true) {}
    let mut edge = timeout(PATIENCE, cloud.connect(&device)).await.expect("it is not let in").unwrap();
    edge.register().await;
    drop(stuck);
    cloud.stop().await;
}
