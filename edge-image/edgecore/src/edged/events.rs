//! Events as `kubectl describe` shows them: what happened to a pod, in the words a kubelet uses.
//!
//! The same event again raises `count` of the first (client-go's correlator does so), and one object may cause only so many in
//! a time: a crash loop must not fill an uplink. While there is no link the newest wait in memory; events are news, not state,
//! and are not kept over a restart. Wire form: kubeedge-wire.md section 4 (`<ns>/event/<name>`, no answer).

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::{Value, json};
use wire::{Message, Operation};

use super::{limits, record::Record, status::rfc3339, unix_ms};
use crate::contract::{LinkState, Uplink};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    Normal,
    Warning,
}

/// One thing that happened. `reason` is one of kubelet's words (`Pulled`, `BackOff`, `Unhealthy`, ...).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    pub event_type: EventType,
    pub reason: Cow<'static, str>,
    pub message: String,
    /// `spec.containers{web}`, `spec.initContainers{setup}`, or empty for the whole pod.
    pub field_path: String,
}

impl Event {
    pub fn normal(reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Event {
        Event {
            event_type: EventType::Normal,
            reason: reason.into(),
            message: message.into(),
            field_path: String::new(),
        }
    }

    pub fn warning(reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Event {
        Event { event_type: EventType::Warning, ..Event::normal(reason, message) }
    }

    /// `path` from [`Pod::field_path`](super::pod::Pod::field_path).
    pub fn at(self, path: String) -> Event {
        Event { field_path: path, ..self }
    }
}

/// What an event is about.
#[derive(Clone, Debug, Hash)]
struct About {
    kind: &'static str,
    namespace: String,
    name: String,
    uid: String,
}

#[derive(Debug)]
struct Told {
    /// In the name of the Event object.
    number: u64,
    count: u32,
    first: i64,
    last: i64,
}

/// Tokens of one object: a burst, then one in a while (client-go's spam filter).
#[derive(Debug)]
struct Bucket {
    tokens: u32,
    since: i64,
}

/// By digests: a tenth of the memory of the texts. Two that are taken for one, once in 2^64, share a count.
#[derive(Default, Debug)]
struct State {
    /// By object and event.
    told: BTreeMap<u64, Told>,
    /// By object.
    buckets: BTreeMap<u64, Bucket>,
    waiting: VecDeque<Message>,
}

/// Clones share their memory.
#[derive(Clone)]
pub struct Recorder {
    uplink: Arc<dyn Uplink>,
    node: Arc<str>,
    /// `modules.edged.reportEvent`.
    enabled: bool,
    state: Arc<Mutex<State>>,
}

impl Recorder {
    pub fn new(uplink: Arc<dyn Uplink>, node: Arc<str>, enabled: bool) -> Recorder {
        Recorder { uplink, node, enabled, state: Arc::default() }
    }

    /// Tells of a pod.
    pub fn pod(&self, record: &Record, event: Event) {
        let about = About {
            kind: "Pod",
            namespace: record.namespace.clone(),
            name: record.name.clone(),
            uid: record.uid.clone(),
        };
        tracing::debug!(pod = record.full_name(), "{}: {}", event.reason, event.message);
        self.tell(about, event, unix_ms());
    }

    /// Tells of the node itself (`EvictionThresholdMet`, `FreeDiskSpaceFailed`, ...).
    pub fn node(&self, event: Event) {
        // A kubelet's events of its node stand in the default namespace, with the node's name as uid.
        let (namespace, name, uid) = ("default".into(), self.node.to_string(), self.node.to_string());
        tracing::info!("{}: {}", event.reason, event.message);
        self.tell(About { kind: "Node", namespace, name, uid }, event, unix_ms());
    }

    /// Sends what waited for a link.
    pub fn flush(&self) {
        if !self.connected() {
            return;
        }
        for message in std::mem::take(&mut self.state().waiting) {
            self.uplink.send(message);
        }
    }

    fn connected(&self) -> bool {
        *self.uplink.state().borrow() == LinkState::Connected
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, about: About, mut event: Event, now_ms: i64) {
        if !self.enabled {
            return;
        }
        cut(&mut event.message);
        let Some(message) = self.state().compose(&self.node, about, event, now_ms) else { return };
        self.flush();
        if self.connected() {
            return self.uplink.send(message);
        }
        let mut state = self.state();
        if state.waiting.len() >= limits::EVENTS_WAITING_MAX {
            state.waiting.pop_front();
        }
        state.waiting.push_back(message);
    }
}

impl State {
    fn compose(&mut self, node: &str, about: About, event: Event, now_ms: i64) -> Option<Message> {
        let now = now_ms / 1000;
        self.tidy(now);
        let bucket =
            self.buckets.entry(digest(&about)).or_insert(Bucket { tokens: limits::EVENTS_BURST, since: now });
        let refill = u32::try_from((now - bucket.since).max(0) / limits::EVENT_REFILL_S).unwrap_or(u32::MAX);
        if refill > 0 {
            bucket.tokens = bucket.tokens.saturating_add(refill).min(limits::EVENTS_BURST);
            bucket.since += i64::from(refill) * limits::EVENT_REFILL_S;
        }
        bucket.tokens = bucket.tokens.checked_sub(1)?;
        let key = digest(&(&about, &event));
        let again = self.told.contains_key(&key);
        let told = self.told.entry(key).or_insert_with(|| Told {
            // As client-go: the time in nanoseconds. The random part keeps two of one millisecond apart.
            number: now_ms as u64 * 1_000_000 + rt::random_u64() % 1_000_000,
            count: 0,
            first: now,
            last: now,
        });
        told.count += 1;
        told.last = now;
        let name = format!("{}.{:x}", about.name, told.number);
        let resource = format!("{}/event/{name}", about.namespace);
        let object = render(node, &about, &event, name, told);
        let (operation, content) = match again {
            false => (Operation::INSERT, object),
            true => {
                let patch = json!({ "count": told.count, "lastTimestamp": rfc3339(now) }).to_string();
                (Operation::PATCH, json!({ "event": object, "patchData": patch }))
            }
        };
        Some(Message::new(now_ms, wire::source::EDGED, "meta", operation, &resource).with_content(&content))
    }

    fn tidy(&mut self, now: i64) {
        self.told.retain(|_, told| now - told.last < limits::EVENT_FORGET_S);
        while self.told.len() >= limits::EVENTS_KNOWN_MAX {
            let Some(oldest) = self.told.iter().min_by_key(|(_, told)| told.last).map(|(key, _)| *key) else {
                break;
            };
            self.told.remove(&oldest);
        }
        let full = limits::EVENT_REFILL_S * i64::from(limits::EVENTS_BURST);
        self.buckets.retain(|_, bucket| now - bucket.since < full);
    }
}

fn digest(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

fn render(node: &str, about: &About, event: &Event, name: String, told: &Told) -> Value {
    let mut involved = json!({
        "kind": about.kind, "namespace": about.namespace, "name": about.name, "uid": about.uid, "apiVersion": "v1",
    });
    if !event.field_path.is_empty() {
        involved["fieldPath"] = json!(event.field_path);
    }
    if about.kind == "Node" {
        involved["namespace"] = json!("");
    }
    let source = json!({ "component": "kubelet", "host": node });
    json!({
        "metadata": { "name": name, "namespace": about.namespace },
        "involvedObject": involved, "reason": event.reason, "message": event.message, "source": source,
        "type": match event.event_type { EventType::Normal => "Normal", EventType::Warning => "Warning" },
        "firstTimestamp": rfc3339(told.first), "lastTimestamp": rfc3339(told.last), "count": told.count,
        "eventTime": null, "reportingComponent": "kubelet", "reportingInstance": node,
    })
}

/// Kubernetes takes messages of at most 1024 bytes.
fn cut(message: &mut String) {
    if message.len() > 1024 {
        let end = (0..=1024 - 3).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
        message.truncate(end);
        message.push_str("...");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(name: &str) -> About {
        About { kind: "Pod", namespace: "default".into(), name: name.into(), uid: "u1".into() }
    }

    #[test]
    fn the_same_event_again_raises_the_count_of_the_first() {
        let mut state = State::default();
        let event = || Event::warning("BackOff", "Back-off restarting").at("spec.containers{web}".into());
        let first = state.compose("n", about("web"), event(), 1_000_000).expect("an event");
        let second = state.compose("n", about("web"), event(), 1_100_000).expect("an event");
        assert_eq!(first.route.resource, second.route.resource);
        let content: Value = second.content_as().expect("content");
        let patch: Value = serde_json::from_str(content["patchData"].as_str().expect("text")).expect("JSON");
        assert_eq!(patch["count"], 2);
        assert_eq!(content["event"]["involvedObject"]["fieldPath"], "spec.containers{web}");
        assert_eq!(content["event"]["firstTimestamp"], "1970-01-01T00:16:40Z");
    }

    #[test]
    fn one_object_cannot_flood_the_link_and_others_are_heard() {
        let mut state = State::default();
        let sent = (0..100)
            .filter(|n| {
                state.compose("n", about("web"), Event::warning("Failed", n.to_string()), 1000).is_some()
            })
            .count();
        assert_eq!(sent, limits::EVENTS_BURST as usize);
        assert!(state.compose("n", about("db"), Event::normal("Pulled", ""), 1000).is_some());
        let later = 1000 + limits::EVENT_REFILL_S * 1000;
        assert!(state.compose("n", about("web"), Event::normal("Pulled", ""), later).is_some());
        assert!(state.compose("n", about("web"), Event::normal("Created", ""), later).is_none());
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let mut message = "é".repeat(900);
        cut(&mut message);
        assert!(message.len() <= 1024 && message.ends_with("..."));
    }
}
