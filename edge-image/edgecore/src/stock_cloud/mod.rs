//! A scripted KubeEdge cloudcore, and the agent's real hub, meta, node, twin and tasks against it.
//!
//! The double does what is written in `tests/vectors/kubeedge/stock-cloud*.jsonl` with a stock cloud's manners: JSON as Go writes it,
//! messages above 4 KiB in pieces, no resync on connect, silence where it fails. Which lines hold for which version stands in them.
//! The real program: `tests/interop/src/stock_cloud`.

mod edge;
mod model;
mod session;

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message as Frame;

use crate::{contract::LinkState, hub::tests::cloud::Cloud};
use edge::Edge;
use session::follow;

const LIFE: &str = include_str!("../../../../tests/vectors/kubeedge/stock-cloud.jsonl");
const AGAIN: &str = include_str!("../../../../tests/vectors/kubeedge/stock-cloud-again.jsonl");

async fn golden(script: &str, minor: u32) {
    let cloud = Cloud::new().await;
    let edge = Edge::start(&cloud);
    let mut session = cloud.accept().await;
    follow(&mut session, &edge, script, minor).await;
    edge.stop().await;
}

#[tokio::test]
async fn a_life_at_kubeedge_1_20() {
    golden(LIFE, 20).await;
}

#[tokio::test]
async fn a_life_at_kubeedge_1_21() {
    golden(LIFE, 21).await;
}

#[tokio::test]
async fn a_life_at_kubeedge_1_22() {
    golden(LIFE, 22).await;
}

#[tokio::test]
async fn a_life_at_kubeedge_1_23() {
    session::comparison_can_fail();
    golden(LIFE, 23).await;
}

#[tokio::test]
async fn a_new_store_under_an_old_node() {
    for minor in [22, 23] {
        golden(AGAIN, minor).await;
    }
}

/// A stock server that does not like the node starts no session and leaves the socket open.
#[tokio::test]
async fn a_cloud_that_is_connected_and_silent_is_left() {
    let cloud = Cloud::new().await;
    let edge = Edge::start_with(&cloud, Duration::from_millis(100));
    let _open = cloud.accept_silent().await.unwrap();
    edge.until(|state| matches!(state, LinkState::Disconnected(why) if why.contains("silent"))).await;
    edge.stop().await;
}

/// KubeEdge 1.20 to 1.23 offer one suite of TLS 1.2 that fits an EC certificate.
#[tokio::test]
async fn a_cloud_with_tls_1_2_and_one_suite() {
    let cloud = Cloud::with_tls_1_2().await;
    let edge = Edge::start(&cloud);
    let mut session = cloud.accept().await;
    let first = session.receive().await;
    assert_eq!(first.route.resource, "null/node/edge-1");
    edge.stop().await;
}

/// The second session of a node ends the first; the edge goes on with the one that it has.
#[tokio::test]
async fn a_cut_link_is_dialled_again_and_the_node_told_again() {
    let cloud = Cloud::new().await;
    let edge = Edge::start(&cloud);
    let session = cloud.accept().await;
    drop(session);
    let mut session = cloud.accept().await;
    assert_eq!(session.receive().await.route.resource, "null/node/edge-1");
    edge.stop().await;
}

/// What is no message of KubeEdge's, between two that are.
#[tokio::test]
async fn frames_that_are_no_messages_cost_nothing() {
    let cloud = Cloud::new().await;
    let edge = Edge::start(&cloud);
    let mut session = cloud.accept().await;
    for text in ["\n", "null\n", "{\"header\":{\"msg_id\":5}}\n", "[]\n", "{}\n"] {
        session.send_frame(Frame::Text(text.into())).await;
    }
    session.send_frame(Frame::Binary(vec![0, 159, 146, 150].into())).await;
    follow(&mut session, &edge, "{\"flow\":\"still there\",\"edge\":{\"route\":{\"operation\":\"insert\",\"resource\":\"null/node/edge-1\",\"...\":\"\"},\"...\":\"\"}}", 23)
        .await;
    edge.stop().await;
}

/// Seeds of [`model`]: a cloud with ObjectSyncs over a link that breaks. One seed again: `STOCK_SEED=7 cargo test -p edgecore seeds`.
#[tokio::test]
async fn seeds_of_changes_and_cuts_end_with_what_the_cloud_has() {
    let one = std::env::var("STOCK_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let seeds = one.map_or(0..8, |seed| seed..seed + 1);
    // Side by side: most of the time goes into waiting before a link is dialled again.
    let runs: Vec<_> = seeds.map(|seed| tokio::spawn(model::run(seed))).collect();
    for run in runs {
        run.await.unwrap();
    }
}

/// Ends a link as a process that dies does.
async fn hang_up(session: crate::hub::tests::cloud::Session) {
    let mut ws = session.0;
    let _ = ws.close(None).await;
    while ws.next().await.is_some_and(|frame| frame.is_ok()) {}
    let _ = ws.flush().await;
}
