//! The compact lane with a scripted cloud of ours.

use futures_util::StreamExt;
use wire::{
    inventory::{INVENTORY, Inventory},
    lane::{End, Frames, Lane, Out, Received},
};

use super::*;

/// A session on the compact lane.
struct Compact {
    session: Session,
    lane: Lane,
    link: u64,
}

impl Compact {
    async fn accept(cloud: &Cloud, resumed: bool) -> Compact {
        let session = cloud.accept_silent().await.expect("a link that is accepted");
        let (link, _) = wire::headers::parse_link(&cloud.header("kinglet-link")).expect("two numbers");
        let lane = Lane::compact(link, End::Cloud { node: "edge-1".into(), compress: None });
        let mut compact = Compact { session, lane, link };
        compact.lane.push_welcome(resumed);
        compact.flush().await;
        compact
    }

    async fn flush(&mut self) {
        while let Some(Out::Binary(bytes)) = self.lane.take() {
            self.session.send_frame(Frame::Binary(bytes.into())).await;
        }
    }

    async fn send(&mut self, message: &Message) {
        self.lane.push(message);
        self.flush().await;
    }

    /// What the next WebSocket message holds.
    async fn receive(&mut self) -> Vec<Received> {
        loop {
            let next = tokio::time::timeout(Duration::from_secs(10), self.session.0.next()).await;
            match next.expect("a message in time").expect("an open link").unwrap() {
                Frame::Binary(bytes) => return self.lane.receive(Frames::Binary(&bytes)).unwrap(),
                Frame::Text(text) => panic!("text on the compact lane: {text}"),
                _ => {}
            }
        }
    }

    async fn acked(&mut self) -> Vec<String> {
        let received = self.receive().await;
        let ids = received.into_iter().map(|received| match received {
            Received::Message(ack) if ack.content_is_ok() => ack.header.parent_msg_id,
            other => panic!("{other:?}"),
        });
        ids.collect()
    }
}

fn pod_named(name: &str) -> Message {
    Message::new(1, "edgecontroller", "resource", "insert", &format!("default/pod/{name}"))
        .with_content(
            &json!({"metadata": {"name": name, "uid": format!("uid-{name}"), "resourceVersion": "5"}}),
        )
        .with_resource_version("5")
}

fn inventory(names: &[&str]) -> Message {
    let target = |resource: String, uid: String| wire::delivery::Target {
        uid,
        resource,
        version: "5".into(),
        rank: 0,
    };
    let node = target("null/node/edge-1".into(), "n".into());
    let pods = names.iter().map(|name| target(format!("default/pod/{name}"), format!("uid-{name}")));
    let targets: Vec<_> = pods.chain([node]).collect();
    Message::new(1, "edgecontroller", "resource", INVENTORY, "null/inventory/edge-1")
        .with_content(&Inventory::new(&targets))
}

#[tokio::test]
async fn what_was_stored_together_is_acknowledged_together_and_told_again_on_the_next_link() {
    let (mut cloud, mut node) = (Cloud::new().await, Node::new());
    cloud.lane = true;
    node.start(&cloud);
    let mut session = Compact::accept(&cloud, false).await;
    node.until(|state| *state == LinkState::Connected).await;
    assert!(!node.handle.is_resumed());
    let pushes: Vec<Message> = (0..8).map(|n| pod_named(&format!("p{n}"))).collect();
    for push in &pushes {
        session.lane.push(push);
    }
    session.flush().await;
    let (mut acked, mut frames) = (Vec::new(), 0);
    while acked.len() < pushes.len() {
        acked.extend(session.acked().await);
        frames += 1;
    }
    assert_eq!(acked, pushes.iter().map(|push| push.header.msg_id.clone()).collect::<Vec<_>>());
    assert!(frames < 4, "{frames} frames for 8 acknowledgements");
    assert_eq!(node.meta.list("pod").len(), 8);

    let link = session.link;
    drop(session);
    let mut session = Compact::accept(&cloud, true).await;
    let (last, stored) =
        wire::headers::parse_resume(&cloud.header("kinglet-resume")).expect("what it stored");
    assert_eq!((last, stored.len()), (link, 8));
    let (_, before) = wire::headers::parse_link(&cloud.header("kinglet-link")).unwrap();
    assert_eq!(before, link, "the link that it dialled before");
    node.until(|state| *state == LinkState::Connected).await;
    assert!(node.handle.is_resumed());
    session.send(&pod_named("more")).await;
    assert_eq!(session.acked().await.len(), 1);
}

#[tokio::test]
async fn a_whole_inventory_deletes_and_anything_less_does_not() {
    let (mut cloud, mut node) = (Cloud::new().await, Node::new());
    cloud.lane = true;
    node.start(&cloud);
    let mut session = Compact::accept(&cloud, false).await;
    for name in ["stays", "goes"] {
        session.send(&pod_named(name)).await;
        session.acked().await;
    }
    let names = || {
        let mut names: Vec<String> = node.meta.list("pod").into_iter().map(|pod| pod.resource.name).collect();
        names.sort();
        names
    };
    let whole = inventory(&["stays"]);
    let value: serde_json::Value = whole.content_as().unwrap();
    let mut short = value.clone();
    short["objects"].as_array_mut().unwrap().pop();
    let mut nobody: serde_json::Value = inventory(&[]).content_as().unwrap();
    nobody["objects"] = json!([]);
    nobody["count"] = json!(0);
    for partial in [short, nobody, json!({}), json!([]), json!(null)] {
        session.send(&inventory(&[]).with_content(&partial)).await;
        assert_eq!(session.acked().await.len(), 1, "it is of no use to send it again");
        assert_eq!(names(), ["goes", "stays"], "{partial}");
    }
    session.send(&whole).await;
    session.acked().await;
    assert_eq!(names(), ["stays"]);
    // The node itself and nothing else: that is an order.
    session.send(&inventory(&[])).await;
    session.acked().await;
    assert_eq!(names(), Vec::<String>::new());
}

#[tokio::test]
async fn a_cloud_that_does_not_speak_what_it_accepted_is_spoken_to_in_json() {
    let (mut cloud, mut node) = (Cloud::new().await, Node::new());
    cloud.lane = true;
    node.start(&cloud);
    let mut session = Compact::accept(&cloud, false).await;
    session.session.send_frame(Frame::Binary(vec![0x20, 0, 0xff, 0xff, 0x0f].into())).await;
    node.until(|state| matches!(state, LinkState::Disconnected(why) if why.contains("it uses JSON"))).await;
    cloud.lane = false;
    let mut session = cloud.accept().await;
    assert_eq!(cloud.header("kinglet-lane"), "");
    let push = pod("10", 0);
    session.send(&push).await;
    expect_ack(&mut session, &push).await;
}

#[tokio::test]
async fn reports_of_one_moment_leave_together() {
    let (mut cloud, mut node) = (Cloud::new().await, Node::new());
    cloud.lane = true;
    node.start(&cloud);
    let mut session = Compact::accept(&cloud, false).await;
    node.until(|state| *state == LinkState::Connected).await;
    for n in 0..10 {
        // Two of each key: the last one counts.
        let key = format!("podstatus/default/p{}", n % 5);
        let message = Message::new(1, "edged", "meta", "patch", &format!("default/podpatch/p{}", n % 5))
            .with_content(&n);
        node.handle.report(Report { key, message, durable: false });
    }
    let received = session.receive().await;
    let values: Vec<u32> = received
        .iter()
        .map(|received| match received {
            Received::Message(message) => message.content_as().unwrap(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(values, [5, 6, 7, 8, 9]);
}

#[tokio::test]
async fn a_busy_cloud_is_left_alone_and_a_name_in_use_is_a_condition() {
    let (mut cloud, mut node) = (Cloud::new().await, Node::new());
    let in_use = |node: &Node| {
        let conditions = node.conditions.0.lock().unwrap();
        conditions.iter().rev().find(|c| c.condition_type == "NodeNameInUse").is_some_and(|c| c.status)
    };
    cloud.refuses = Some(503);
    node.start(&cloud);
    assert!(cloud.accept_silent().await.is_none());
    let refused = tokio::time::Instant::now();
    node.until(
        |state| matches!(state, LinkState::Disconnected(why) if why.contains("away for 1 s: not now")),
    )
    .await;
    assert!(!in_use(&node));
    cloud.refuses = Some(409);
    assert!(cloud.accept_silent().await.is_none());
    assert!(refused.elapsed() >= Duration::from_millis(900), "asked again after {:?}", refused.elapsed());
    node.until(|state| matches!(state, LinkState::Disconnected(why) if why.contains("another device"))).await;
    assert!(in_use(&node));
    cloud.refuses = None;
    cloud.accept().await;
    node.until(|state| *state == LinkState::Connected).await;
    assert!(!in_use(&node));
}

#[tokio::test]
async fn missing_data_and_a_rebuilt_cloud_delete_nothing() {
    let (mut cloud, mut node) = (Cloud::new().await, Node::new());
    cloud.cloud_id = "cloud".into();
    node.start(&cloud);
    let mut session = cloud.accept().await;
    session.send(&pod_named("web")).await;
    session.receive().await;
    for content in [json!(null), json!([]), json!({}), json!(""), json!({"items": []})] {
        for (operation, resource) in
            [("update", "default/pod/web"), ("delete", "default/pod/web"), ("update", "default/podlist/all")]
        {
            let push =
                Message::new(1, "edgecontroller", "resource", operation, resource).with_content(&content);
            session.send(&push).await;
            // Acknowledged, since it would come for ever.
            session.receive().await;
            assert_eq!(node.meta.list("pod").len(), 1, "{operation} {resource} {content}");
        }
    }
    drop(session);
    // Its versions begin anew, and it knows of no pod.
    cloud.cloud_id = "rebuilt".into();
    cloud.accept_silent().await;
    node.until(|state| matches!(state, LinkState::Disconnected(why) if why.contains("join --adopt"))).await;
    assert_eq!(node.meta.list("pod").len(), 1);
}
