//! The hub against a scripted cloud on a real socket.

pub(crate) mod cloud;
mod lane;
mod streams;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use rt::Drain;
use serde_json::json;
use store::{Options, Store, sim::SimDisk};
use tokio::{sync::Notify, task::JoinHandle};
use tokio_tungstenite::tungstenite::Message as Frame;
use wire::{Message, Resource};

use super::*;
use crate::{
    contract::{
        Applied, BoxFuture, LinkState, MetaError, Report, Uplink, UplinkError,
        testing::{FakeConditions, FakeTasks},
    },
    meta::MetaStore,
};
use cloud::{Cloud, Session};

/// Meta with a fault to choose.
struct Faulty {
    meta: Arc<MetaStore>,
    applied: AtomicU32,
    stored: AtomicU32,
    /// Stores, and then never says so: what a crash after the fsync looks like from outside.
    hang_after: AtomicBool,
    hung: Notify,
    refuse: AtomicBool,
}

impl Inbox for Faulty {
    fn apply<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<Applied, MetaError>> {
        Box::pin(async move {
            if self.refuse.load(Ordering::Relaxed) {
                return Err(MetaError::Store(anyhow::anyhow!("disk full")));
            }
            let applied = self.meta.apply(message).await?;
            self.applied.fetch_add(1, Ordering::Relaxed);
            self.stored.fetch_add(u32::from(applied == Applied::Stored), Ordering::Relaxed);
            if self.hang_after.load(Ordering::Relaxed) {
                self.hung.notify_one();
                return std::future::pending().await;
            }
            Ok(applied)
        })
    }
}

struct Node {
    dir: tempfile::TempDir,
    disk: SimDisk,
    meta: Arc<MetaStore>,
    inbox: Arc<Faulty>,
    handle: Arc<HubHandle>,
    conditions: Arc<FakeConditions>,
    task: Option<(JoinHandle<()>, Drain)>,
    heartbeat: Duration,
    kubelet: Arc<dyn KubeletApi>,
    tasks: Arc<FakeTasks>,
}

fn open(disk: &SimDisk) -> (Arc<MetaStore>, Arc<Faulty>) {
    let store = Store::open_with(Box::new(disk.clone()), Options::default()).unwrap();
    let meta = Arc::new(MetaStore::new(store, "cloud"));
    let inbox = Faulty {
        meta: meta.clone(),
        applied: AtomicU32::new(0),
        stored: AtomicU32::new(0),
        hang_after: AtomicBool::new(false),
        hung: Notify::new(),
        refuse: AtomicBool::new(false),
    };
    (meta, Arc::new(inbox))
}

impl Node {
    fn new() -> Node {
        let disk = SimDisk::new();
        let (meta, inbox) = open(&disk);
        Node {
            dir: tempfile::tempdir().unwrap(),
            disk,
            meta,
            inbox,
            handle: HubHandle::new(),
            conditions: Arc::default(),
            task: None,
            heartbeat: Duration::from_secs(15),
            kubelet: Arc::new(streams::Echo),
            tasks: Arc::default(),
        }
    }

    fn bundle(&self) -> PathBuf {
        self.dir.path().join("node.pem")
    }

    fn start(&mut self, cloud: &Cloud) {
        if !self.bundle().exists() {
            cloud.admit("edge-1", &self.bundle());
        }
        let path = self.bundle();
        let hub = Hub {
            handle: self.handle.clone(),
            endpoint: Endpoint {
                server: cloud.address(),
                node: "edge-1".into(),
                project_id: "p1".into(),
                credentials: Credentials { ca: path.clone(), cert: path.clone(), key: path },
                cloud_id: "cloud".into(),
                store_id: "store-1".into(),
                streams: true,
                lane: true,
                handshake_timeout: Duration::from_secs(5),
                write_timeout: Duration::from_secs(5),
            },
            heartbeat: self.heartbeat,
            meta: self.meta.clone(),
            inbox: self.inbox.clone(),
            conditions: self.conditions.clone(),
            kubelet: self.kubelet.clone(),
            tasks: self.tasks.clone(),
        };
        let drain = Drain::new();
        // A test's own task: it is killed to play a crash, which no supervised task can be.
        self.task = Some((tokio::spawn(hub.run(drain.clone())), drain));
    }

    /// The process dies: nothing is said to anybody, and what was not synced may be there or not.
    async fn crash(&mut self) {
        let (task, _) = self.task.take().unwrap();
        task.abort();
        let _ = task.await;
        self.disk = self.disk.after_kill();
        (self.meta, self.inbox) = open(&self.disk);
        self.handle = HubHandle::new();
    }

    async fn until(&self, wanted: impl Fn(&LinkState) -> bool) {
        let mut state = self.handle.state();
        let state = state.wait_for(|state| wanted(state));
        tokio::time::timeout(Duration::from_secs(10), state).await.expect("the state in time").unwrap();
    }
}

fn pod(version: &str, padding: usize) -> Message {
    Message::new(1, "edgecontroller", "resource", "insert", "default/pod/web")
        .with_content(&json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": {"name": "web", "namespace": "default", "uid": "u1", "resourceVersion": version,
                "annotations": {"padding": "<&>".repeat(padding)}},
        }))
        .with_resource_version(version)
}

async fn expect_ack(session: &mut Session, push: &Message) {
    let ack = session.receive().await;
    assert_eq!(ack.header.parent_msg_id, push.header.msg_id, "{ack:?}");
    assert_eq!(
        (ack.route.source.as_str(), ack.route.group.as_str(), ack.route.operation.as_str()),
        ("edgecontroller", "resource", "response")
    );
    assert_eq!(ack.route.resource, push.route.resource);
    assert!(ack.content_is_ok());
}

#[tokio::test]
async fn objects_arrive_in_pieces_are_stored_and_acknowledged() {
    let (cloud, mut node) = (Cloud::new().await, Node::new());
    node.start(&cloud);
    let mut session = cloud.accept().await;
    let headers = cloud.headers.lock().unwrap().clone();
    for wanted in [
        ("node_id", "edge-1"),
        ("project_id", "p1"),
        ("connectionuse", "msg"),
        ("kinglet-store-id", "store-1"),
    ] {
        assert!(headers.contains(&(wanted.0.into(), wanted.1.into())), "{wanted:?} in {headers:?}");
    }
    let push = pod("10", 4000);
    session.send_in_pieces(&push, 4096).await;
    expect_ack(&mut session, &push).await;
    let stored = node.meta.get(&Resource::new("default", "pod", "web")).unwrap();
    assert_eq!(stored.body, push.content.get(), "the object's text is kept as it came");

    session.send(&push).await;
    expect_ack(&mut session, &push).await;
    assert_eq!(node.inbox.applied.load(Ordering::Relaxed), 2);
    assert_eq!(node.inbox.stored.load(Ordering::Relaxed), 1, "sent twice, stored once, acknowledged twice");

    session.send_frame(Frame::Binary(pod("11", 0).encode().into_bytes().into())).await;
    assert_eq!(session.receive().await.route.operation, "response", "binary frames are read as well");
}

#[tokio::test]
async fn a_crash_between_disk_and_acknowledgement_costs_nothing() {
    let (cloud, mut node) = (Cloud::new().await, Node::new());
    node.start(&cloud);
    let mut session = cloud.accept().await;
    node.inbox.hang_after.store(true, Ordering::Relaxed);
    let push = pod("10", 0);
    session.send(&push).await;
    node.inbox.hung.notified().await;
    node.crash().await;
    assert!(session.ends().await, "no acknowledgement left the node");
    assert_eq!(node.meta.list("pod").len(), 1, "the restarted node has its pod without any cloud");

    node.start(&cloud);
    let mut session = cloud.accept().await;
    session.send(&push).await;
    expect_ack(&mut session, &push).await;
    assert_eq!(node.inbox.stored.load(Ordering::Relaxed), 0, "delivered again, applied once");
}

/// The mutation "an ack is dropped" (and "acknowledged without being stored") would show here: the control message is answered
/// after the push, so that an acknowledgement would have come before.
#[tokio::test]
async fn what_cannot_be_stored_is_not_acknowledged_and_shows() {
    let (cloud, mut node) = (Cloud::new().await, Node::new());
    node.start(&cloud);
    let mut session = cloud.accept().await;
    node.inbox.refuse.store(true, Ordering::Relaxed);
    let push = pod("10", 0);
    session.send(&push).await;
    let raised = async {
        while !node
            .conditions
            .0
            .lock()
            .unwrap()
            .iter()
            .any(|c| c.condition_type == "StoreUnwritable" && c.status)
        {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), raised).await.expect("the condition is raised");
    session.send(&Message::new(1, "cloudhub", "resource", "ping", "x")).await;
    assert_eq!(
        session.receive().await.content.get(),
        "\"ack\"",
        "the control message's answer, and no acknowledgement"
    );

    node.inbox.refuse.store(false, Ordering::Relaxed);
    session.send(&push).await;
    expect_ack(&mut session, &push).await;
    let last = node.conditions.0.lock().unwrap().last().cloned().unwrap();
    assert!(last.condition_type == "StoreUnwritable" && !last.status, "{last:?}");
}

#[tokio::test]
async fn requests_are_answered_and_durable_reports_outlive_the_process() {
    let (cloud, mut node) = (Cloud::new().await, Node::new());
    let report = |n: u32| Report {
        key: "podstatus/default/web".into(),
        message: Message::new(1, "edged", "meta", "patch", "default/podpatch/web")
            .with_content(&n.to_string()),
        durable: true,
    };
    node.start(&cloud);
    node.handle.report(report(1));
    let mut session = cloud.accept().await;
    assert_eq!(session.receive().await.content.get(), "\"1\"");
    node.crash().await;

    node.start(&cloud);
    let mut session = cloud.accept().await;
    let again = session.receive().await;
    assert_eq!(again.content.get(), "\"1\"", "not answered, so sent again by the next process");
    session.send(&again.response(2, "edgecontroller", "resource")).await;

    let query = Message::new(1, "edged", "meta", "query", "default/serviceaccounttoken/default");
    let handle = node.handle.clone();
    let request = tokio::spawn(async move { handle.request(query, Duration::from_secs(10)).await });
    let asked = session.receive().await;
    session.send(&asked.response(2, "edgecontroller", "resource").with_content("token")).await;
    assert_eq!(request.await.unwrap().unwrap().content.get(), "\"token\"");

    let forgotten = async {
        while !node.meta.list_local("outbox").is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), forgotten)
        .await
        .expect("what was answered leaves the disk");
}

#[tokio::test]
async fn a_lost_link_is_dialled_again_and_requests_fail_meanwhile() {
    let (cloud, mut node) = (Cloud::new().await, Node::new());
    let query = || Message::new(1, "edged", "meta", "query", "null/node/edge-1");
    let refused = node.handle.request(query(), Duration::from_secs(10)).await;
    assert!(matches!(refused, Err(UplinkError::Disconnected(_))));
    node.start(&cloud);
    let mut session = cloud.accept().await;
    node.until(|state| *state == LinkState::Connected).await;
    let handle = node.handle.clone();
    let request = tokio::spawn(async move { handle.request(query(), Duration::from_secs(60)).await });
    session.receive().await;
    drop(session);
    assert!(matches!(request.await.unwrap(), Err(UplinkError::Disconnected(_))));
    cloud.accept().await;
    node.until(|state| *state == LinkState::Connected).await;

    node.handle.reconnect("the certificate was renewed");
    cloud.accept().await;
}

#[tokio::test]
async fn messages_that_this_node_does_not_know_do_no_harm() {
    let (cloud, mut node) = (Cloud::new().await, Node::new());
    node.start(&cloud);
    let mut session = cloud.accept().await;
    for frame in ["not json\n", "{}", "[1]", "{\"header\":{},\"route\":{}}"] {
        session.send_frame(Frame::Text(frame.into())).await;
    }
    session.send_frame(Frame::Binary(vec![0xff; 100].into())).await;
    session.send_frame(Frame::Ping(vec![1].into())).await;
    for (source, group, operation, resource) in [
        ("devicecontroller", "twin", "update", "membership"),
        ("router_eventbus", "user", "subscribe", "default/topic"),
        ("edgecontroller", "resource", "insert", "default/pod/no-uid"),
    ] {
        let message =
            Message::new(1, source, group, operation, resource).with_content(&json!({"metadata": {}}));
        session.send(&message).await;
        if source == "edgecontroller" {
            // Else the cloud would send it for ever and nothing behind it.
            expect_ack(&mut session, &message).await;
        }
    }
    let job = "operations.kubeedge.io/v1alpha2/nodeupgradejob/up/node/edge-1";
    session.send(&Message::new(1, "taskmanager", "taskmanager", "Upgrade", job)).await;
    // An answer to what came behind it shows that it was seen.
    session.send(&Message::new(1, "cloudhub", "resource", "ping", "node")).await;
    assert_eq!(session.receive().await.content_as::<String>().unwrap(), "ack");
    let begun: Vec<String> = node.tasks.0.lock().unwrap().iter().map(|m| m.route.resource.clone()).collect();
    assert_eq!(begun, [job]);
    assert!(node.meta.list("pod").is_empty());
}

#[tokio::test]
async fn another_cloud_is_refused_and_named() {
    let (mut cloud, mut node) = (Cloud::new().await, Node::new());
    cloud.cloud_id = "other".into();
    node.start(&cloud);
    cloud.accept_silent().await;
    node.until(|state| matches!(state, LinkState::Disconnected(why) if why.contains("is other, this node joined cloud")))
        .await;
    let condition = node.conditions.0.lock().unwrap().first().cloned().unwrap();
    assert!(condition.status && condition.condition_type == "CloudIdentityChanged");
    assert!(condition.message.contains("edgecore join --adopt"), "{}", condition.message);

    cloud.cloud_id = "cloud".into();
    cloud.accept().await;
    node.until(|state| *state == LinkState::Connected).await;
}

#[tokio::test]
async fn why_there_is_no_link_is_one_line_with_a_remedy() {
    let (cloud, stranger) = (Cloud::new().await, Cloud::new().await);
    let mut node = Node::new();
    // Admitted by a cloud with another CA: our side refuses the server.
    stranger.admit("edge-1", &node.bundle());
    node.start(&cloud);
    assert!(cloud.accept_silent().await.is_none());
    node.until(|state| matches!(state, LinkState::Disconnected(why) if why.contains("join --adopt"))).await;
    node.crash().await;

    std::fs::write(node.bundle(), "garbage").unwrap();
    node.start(&cloud);
    node.until(
        |state| matches!(state, LinkState::Disconnected(why) if why.contains("run `edgecore join` again")),
    )
    .await;
    node.crash().await;

    std::fs::remove_file(node.bundle()).unwrap();
    let gone = Cloud::new().await;
    node.start(&gone);
    drop(gone);
    let told = |state: &LinkState| match state {
        LinkState::Disconnected(why) => why.contains("check that cloudcore runs") && !why.contains('\n'),
        LinkState::Connected => false,
    };
    node.until(told).await;
}

#[tokio::test]
async fn the_drain_closes_the_link() {
    let (cloud, mut node) = (Cloud::new().await, Node::new());
    node.start(&cloud);
    let session = cloud.accept().await;
    let (task, drain) = node.task.take().unwrap();
    drain.start();
    assert!(session.ends().await);
    task.await.unwrap();
    assert!(
        matches!(&*node.handle.state().borrow(), LinkState::Disconnected(why) if why == "edgecore is stopping")
    );
}
