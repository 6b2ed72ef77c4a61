//! Fakes of the contract's traits, and the conformance suite that the fake and the real meta both pass.
//!
//! They live in memory and never wait. `FakeUplink` and `FakeBus` keep what they were given, so that a test can look at it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
};

use super::*;

/// Meta in memory. `apply` is the same door that the hub uses; `put_object` is the short cut for tests.
#[derive(Default)]
pub struct FakeMeta {
    objects: Mutex<BTreeMap<Resource, Object>>,
    local: Mutex<BTreeMap<(String, String), Bytes>>,
    /// What `fetch` finds in the cloud.
    remote: Mutex<BTreeMap<Resource, Object>>,
    changes: watch::Sender<u64>,
}

impl FakeMeta {
    pub fn new() -> Arc<FakeMeta> {
        Arc::new(FakeMeta::default())
    }

    /// As if the cloud had delivered this object; uid and resourceVersion are taken from its metadata.
    pub fn put_object(&self, resource: &str, json: serde_json::Value) {
        let object = object(resource, json);
        self.objects.lock().unwrap().insert(object.resource.clone(), object);
        self.changed();
    }

    pub fn delete_object(&self, resource: &str) {
        self.objects.lock().unwrap().remove(&Resource::parse(resource).unwrap());
        self.changed();
    }

    /// Makes the cloud know an object that is not stored yet.
    pub fn put_remote(&self, resource: &str, json: serde_json::Value) {
        let object = object(resource, json);
        self.remote.lock().unwrap().insert(object.resource.clone(), object);
    }

    fn changed(&self) {
        self.changes.send_modify(|n| *n += 1);
    }
}

fn object(resource: &str, json: serde_json::Value) -> Object {
    let text = |pointer: &str| json.pointer(pointer).and_then(|v| v.as_str()).unwrap_or_default().to_string();
    Object {
        resource: Resource::parse(resource).expect("tests give whole resources"),
        uid: text("/metadata/uid"),
        resource_version: text("/metadata/resourceVersion"),
        body: Bytes::from(json.to_string()),
    }
}

impl Inbox for FakeMeta {
    fn apply<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<Applied, MetaError>> {
        Box::pin(async move {
            let Some(resource) = Resource::parse(&message.route.resource) else {
                return Ok(Applied::Ignored("not an object"));
            };
            let json: serde_json::Value = message.content_as().unwrap_or_default();
            let new = object(&resource.to_string(), json);
            let stored = self.objects.lock().unwrap().get(&resource).cloned();
            if message.route.operation == wire::Operation::DELETE {
                if stored.is_none_or(|old| old.uid != new.uid) {
                    return Ok(Applied::Unchanged);
                }
                self.objects.lock().unwrap().remove(&resource);
                self.changed();
                return Ok(Applied::Deleted);
            }
            if new.uid.is_empty() {
                return Ok(Applied::Ignored("no uid"));
            }
            let version = |object: &Object| object.resource_version.parse::<u64>().unwrap_or(0);
            if stored.is_some_and(|old| old.uid == new.uid && version(&old) >= version(&new)) {
                return Ok(Applied::Unchanged);
            }
            self.objects.lock().unwrap().insert(resource, new);
            self.changed();
            Ok(Applied::Stored)
        })
    }
}

impl Meta for FakeMeta {
    fn list(&self, kind: &str) -> Vec<Object> {
        self.objects.lock().unwrap().values().filter(|o| o.resource.kind == kind).cloned().collect()
    }

    fn get(&self, resource: &Resource) -> Option<Object> {
        self.objects.lock().unwrap().get(resource).cloned()
    }

    fn fetch<'a>(&'a self, resource: &'a Resource) -> BoxFuture<'a, Result<Object, MetaError>> {
        Box::pin(async move {
            if let Some(object) = self.get(resource) {
                return Ok(object);
            }
            let found = self.remote.lock().unwrap().get(resource).cloned();
            let object = found.ok_or_else(|| MetaError::NotFound(resource.clone()))?;
            self.objects.lock().unwrap().insert(resource.clone(), object.clone());
            self.changed();
            Ok(object)
        })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn put_local<'a>(
        &'a self,
        kind: &'a str,
        name: &'a str,
        body: Bytes,
        _durable: bool,
    ) -> BoxFuture<'a, Result<(), MetaError>> {
        self.local.lock().unwrap().insert((kind.into(), name.into()), body);
        Box::pin(async { Ok(()) })
    }

    fn get_local(&self, kind: &str, name: &str) -> Option<Bytes> {
        self.local.lock().unwrap().get(&(kind.to_string(), name.to_string())).cloned()
    }

    fn list_local(&self, kind: &str) -> Vec<(String, Bytes)> {
        let local = self.local.lock().unwrap();
        local.iter().filter(|((k, _), _)| k == kind).map(|((_, n), b)| (n.clone(), b.clone())).collect()
    }

    fn delete_local<'a>(&'a self, kind: &'a str, name: &'a str) -> BoxFuture<'a, Result<(), MetaError>> {
        self.local.lock().unwrap().remove(&(kind.to_string(), name.to_string()));
        Box::pin(async { Ok(()) })
    }
}

/// An uplink that keeps what it was told. `request` pops the next scripted answer; without one there is no link.
pub struct FakeUplink {
    pub reports: Mutex<Vec<Report>>,
    pub sent: Mutex<Vec<Message>>,
    pub requests: Mutex<Vec<Message>>,
    pub answers: Mutex<VecDeque<Message>>,
    pub state: watch::Sender<LinkState>,
}

impl FakeUplink {
    pub fn new() -> Arc<FakeUplink> {
        Arc::new(FakeUplink {
            reports: Mutex::default(),
            sent: Mutex::default(),
            requests: Mutex::default(),
            answers: Mutex::default(),
            state: watch::Sender::new(LinkState::Connected),
        })
    }

    pub fn answer(&self, message: Message) {
        self.answers.lock().unwrap().push_back(message);
    }

    /// The reports of one key, oldest first.
    pub fn reports_of(&self, key: &str) -> Vec<Message> {
        let reports = self.reports.lock().unwrap();
        reports.iter().filter(|r| r.key == key).map(|r| r.message.clone()).collect()
    }
}

impl Uplink for FakeUplink {
    fn report(&self, report: Report) {
        self.reports.lock().unwrap().push(report);
    }

    fn send(&self, message: Message) {
        self.sent.lock().unwrap().push(message);
    }

    fn request<'a>(
        &'a self,
        message: Message,
        _timeout: Duration,
    ) -> BoxFuture<'a, Result<Message, UplinkError>> {
        self.requests.lock().unwrap().push(message);
        let answer = self.answers.lock().unwrap().pop_front();
        Box::pin(async { answer.ok_or_else(|| UplinkError::Disconnected("no answer scripted".into())) })
    }

    fn state(&self) -> watch::Receiver<LinkState> {
        self.state.subscribe()
    }
}

/// Room for this many messages per subscriber; a test that needs more reads in between.
const FAKE_BUS_QUEUE_LEN: usize = 256;

/// A bus in memory with MQTT's topic filters and retained messages. Subscribers get what the code under test publishes, and
/// what the test publishes through the same trait.
#[derive(Default)]
pub struct FakeBus {
    pub published: Mutex<Vec<Publish>>,
    retained: Mutex<BTreeMap<String, Bytes>>,
    subscribers: Mutex<Vec<(String, mpsc::Sender<Publish>)>>,
}

impl FakeBus {
    pub fn new() -> Arc<FakeBus> {
        Arc::new(FakeBus::default())
    }

    /// What was published on a topic so far, oldest first.
    pub fn on(&self, topic: &str) -> Vec<Bytes> {
        let published = self.published.lock().unwrap();
        published.iter().filter(|p| p.topic == topic).map(|p| p.payload.clone()).collect()
    }

    pub fn retained(&self, topic: &str) -> Option<Bytes> {
        self.retained.lock().unwrap().get(topic).cloned()
    }
}

impl Bus for FakeBus {
    fn publish<'a>(
        &'a self,
        topic: &'a str,
        payload: Bytes,
        retain: bool,
    ) -> BoxFuture<'a, anyhow::Result<()>> {
        let publish = Publish { topic: topic.into(), payload: payload.clone(), retained: false };
        self.published.lock().unwrap().push(publish.clone());
        if retain && payload.is_empty() {
            self.retained.lock().unwrap().remove(topic);
        } else if retain {
            self.retained.lock().unwrap().insert(topic.into(), payload);
        }
        for (filter, tx) in self.subscribers.lock().unwrap().iter() {
            if topic_matches(filter, topic) {
                tx.try_send(publish.clone()).expect("the test reads its subscriptions");
            }
        }
        Box::pin(async { Ok(()) })
    }

    fn subscribe(&self, filter: &str) -> mpsc::Receiver<Publish> {
        let (tx, rx) = mpsc::channel(FAKE_BUS_QUEUE_LEN);
        for (topic, payload) in self.retained.lock().unwrap().iter() {
            if topic_matches(filter, topic) {
                let publish = Publish { topic: topic.clone(), payload: payload.clone(), retained: true };
                tx.try_send(publish).expect("room for the retained messages");
            }
        }
        self.subscribers.lock().unwrap().push((filter.into(), tx));
        rx
    }
}

fn topic_matches(filter: &str, topic: &str) -> bool {
    let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
    loop {
        match (filter.next(), topic.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(a), Some(b)) if a == b => {}
            _ => return false,
        }
    }
}

#[derive(Default)]
pub struct FakeConditions(pub Mutex<Vec<Condition>>);

impl FakeConditions {
    /// What a condition says now, if it is raised.
    pub fn message(&self, condition_type: &str) -> String {
        let all = self.0.lock().unwrap();
        let last = all.iter().rev().find(|condition| condition.condition_type == condition_type);
        last.filter(|condition| condition.status).map_or(String::new(), |condition| condition.message.clone())
    }
}

impl Conditions for FakeConditions {
    fn set(&self, condition: Condition) {
        self.0.lock().unwrap().push(condition);
    }
}

/// Node tasks that were begun.
#[derive(Default)]
pub struct FakeTasks(pub Mutex<Vec<Message>>);

impl NodeTasks for FakeTasks {
    fn run(&self, message: &Message) {
        self.0.lock().unwrap().push(message.clone());
    }
}

/// Everything a module needs, in memory, with the fakes at hand.
pub struct Bench {
    pub meta: Arc<FakeMeta>,
    pub uplink: Arc<FakeUplink>,
    pub bus: Arc<FakeBus>,
    pub conditions: Arc<FakeConditions>,
    pub handles: Handles,
}

impl Default for Bench {
    fn default() -> Self {
        Bench::new()
    }
}

impl Bench {
    pub fn new() -> Bench {
        let (meta, uplink, bus) = (FakeMeta::new(), FakeUplink::new(), FakeBus::new());
        let conditions = Arc::new(FakeConditions::default());
        let handles = Handles {
            statuses: PodStatuses::default(),
            registered: watch::Sender::default(),
            history: watch::Sender::default(),
            node_name: "edge-1".into(),
            runtime: watch::Sender::default(),
            devices: watch::Sender::default(),
            images: watch::Sender::default(),
            meta: meta.clone(),
            uplink: uplink.clone(),
            bus: bus.clone(),
            conditions: conditions.clone(),
        };
        Bench { meta, uplink, bus, conditions, handles }
    }
}

/// What every meta does, seen through the two traits only.
pub async fn meta_conformance<M: Meta + Inbox>(meta: &M) {
    let push = |operation: &str, uid: &str, version: &str| {
        Message::new(1, "edgecontroller", "resource", operation, "default/pod/web")
            .with_content(&serde_json::json!({"metadata": {"name": "web", "namespace": "default", "uid": uid, "resourceVersion": version}}))
            .with_resource_version(version)
    };
    let web = Resource::parse("default/pod/web").unwrap();
    let mut changes = meta.changes();
    changes.borrow_and_update();

    assert!(meta.list("pod").is_empty());
    assert_eq!(meta.apply(&push("insert", "u1", "10")).await.unwrap(), Applied::Stored);
    assert!(changes.has_changed().unwrap(), "a new object is news");
    changes.borrow_and_update();
    let stored = meta.get(&web).unwrap();
    assert_eq!((stored.uid.as_str(), stored.resource_version.as_str()), ("u1", "10"));
    assert_eq!(meta.list("pod").len(), 1);
    assert!(meta.list("configmap").is_empty(), "kinds are apart");

    assert_eq!(meta.apply(&push("insert", "u1", "10")).await.unwrap(), Applied::Unchanged, "delivered twice");
    assert_eq!(meta.apply(&push("update", "u1", "9")).await.unwrap(), Applied::Unchanged, "older");
    assert!(!changes.has_changed().unwrap(), "what changes nothing is no news");
    assert_eq!(meta.apply(&push("update", "u1", "11")).await.unwrap(), Applied::Stored);
    assert_eq!(meta.get(&web).unwrap().resource_version, "11");

    assert_eq!(
        meta.apply(&push("delete", "u0", "12")).await.unwrap(),
        Applied::Unchanged,
        "another uid's delete"
    );
    assert!(meta.get(&web).is_some(), "a delete for another uid deletes nothing");
    assert_eq!(
        meta.apply(&push("update", "u2", "3")).await.unwrap(),
        Applied::Stored,
        "made anew: versions do not compare"
    );
    assert_eq!(meta.apply(&push("delete", "u2", "13")).await.unwrap(), Applied::Deleted);
    assert!(meta.get(&web).is_none());
    assert_eq!(meta.apply(&push("delete", "u2", "13")).await.unwrap(), Applied::Unchanged);
    assert_eq!(
        meta.apply(&push("update", "u3", "14")).await.unwrap(),
        Applied::Stored,
        "update of an unknown object"
    );
    assert_eq!(meta.apply(&push("delete", "u3", "15")).await.unwrap(), Applied::Deleted);

    let missing = Resource::parse("default/configmap/absent").unwrap();
    assert!(meta.fetch(&missing).await.is_err());

    meta.put_local("twin", "default/dev-1", Bytes::from_static(b"1"), true).await.unwrap();
    meta.put_local("twin", "default/dev-1", Bytes::from_static(b"2"), false).await.unwrap();
    meta.put_local("podstate", "u1", Bytes::from_static(b"3"), true).await.unwrap();
    assert_eq!(meta.get_local("twin", "default/dev-1").unwrap(), "2");
    assert_eq!(meta.list_local("twin"), vec![("default/dev-1".to_string(), Bytes::from_static(b"2"))]);
    meta.delete_local("twin", "default/dev-1").await.unwrap();
    meta.delete_local("twin", "default/dev-1").await.unwrap();
    assert!(meta.get_local("twin", "default/dev-1").is_none());
    assert!(meta.list("twin").is_empty(), "local records are not cloud objects");
}

#[tokio::test]
async fn the_fake_conforms() {
    meta_conformance(&FakeMeta::default()).await;
}

#[test]
fn topic_filters() {
    assert!(topic_matches("$hw/events/device/+/+/twin/+", "$hw/events/device/default/d/twin/update"));
    assert!(topic_matches("a/#", "a/b/c"));
    assert!(!topic_matches("a/+", "a/b/c"));
    assert!(!topic_matches("a/b", "a"));
}
