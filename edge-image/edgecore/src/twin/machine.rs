//! The state of all devices of the node as a plain value: inputs in, actions out. No clock, no socket, no store.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    device::{self, Spec},
    merge::{self, Merged, Origin},
    types::{
        BaseMessage, DeviceState, ErrorResult, Member, MembershipList, MembershipUpdate, MsgTwin,
        StateReport, StateUpdate, TwinDelta, TwinResult, TwinUpdate, Twins, TypeMetadata,
    },
};
use crate::limits::{DEVICES_MAX, REASON_BYTES_MAX, TWIN_PERSIST_MS, TWIN_REPEAT_MS};

const STATES: [&str; 5] = ["online", "offline", "ok", "unknown", "unhealthy"];
pub const DEVICE_TOPIC: &str = "$hw/events/device/";
/// Below it are the descriptions (`<protocol>/device/<ns>/<name>`) and the inventory (`<protocol>/devices`) for mappers.
const MAPPER_TOPIC: &str = "$kinglet/mapper/";

/// A Device or DeviceModel as it is stored: `<namespace>/<name>` and its JSON.
pub type Stored = (String, Bytes);

#[derive(Debug)]
pub enum Input<'a> {
    /// All devices and models of this node, at the start and after each change.
    Objects {
        devices: Vec<Stored>,
        models: Vec<Stored>,
    },
    Mqtt {
        topic: &'a str,
        payload: &'a [u8],
    },
    /// The link to the cloud came up.
    Connected,
    Tick,
    /// The process ends: keep what is not kept yet.
    Drain,
}

#[derive(Debug, PartialEq)]
pub enum Action {
    Publish {
        topic: String,
        payload: Bytes,
        retain: bool,
    },
    /// A message of source `twin`, group `resource`, operation `update`.
    Report {
        key: String,
        resource: String,
        content: Box<RawValueEq>,
    },
    Persist {
        id: String,
        record: Bytes,
    },
    Forget {
        id: String,
    },
    /// All faults of devices, for the node's condition; empty when there is none.
    Faults(BTreeMap<String, String>),
}

/// JSON text that compares as text.
#[derive(Debug)]
pub struct RawValueEq(pub Box<RawValue>);

impl PartialEq for RawValueEq {
    fn eq(&self, other: &RawValueEq) -> bool {
        self.0.get() == other.0.get()
    }
}

/// What is kept over a restart (the local record `twin`).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Record {
    #[serde(default)]
    uid: String,
    #[serde(default)]
    twins: Twins,
    #[serde(default)]
    state: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    last_online: String,
    /// Of the description that mappers get; rises with each change of it.
    #[serde(default)]
    version: u64,
    #[serde(default)]
    topic: String,
    #[serde(default)]
    body: String,
}

/// The record of a device whose twins another agent kept until now. `uid`: of its Device, empty when that is not known.
pub fn taken_over(uid: &str, twins: Twins, state: &str, last_online: &str) -> Bytes {
    let (uid, state, last_online) = (uid.into(), state.into(), last_online.into());
    let record = Record { uid, twins, state, last_online, ..Record::default() };
    serde_json::to_vec(&record).expect("a record serialises").into()
}

/// What of a device's record matters to another agent.
#[derive(Debug)]
pub struct Kept {
    pub twins: Twins,
    pub state: String,
    pub last_online: String,
}

/// `None`: the record cannot be read.
pub fn kept(record: &[u8]) -> Option<Kept> {
    let Record { twins, state, last_online, .. } = serde_json::from_slice(record).ok()?;
    Some(Kept { twins, state, last_online })
}

#[derive(Serialize)]
struct Inventory<'a> {
    devices: Vec<&'a str>,
}

#[derive(Debug, Default)]
struct Device {
    name: String,
    description: String,
    record: Record,
    /// The description was published since the start.
    published: bool,
    /// What is wrong with the object; then the last good description stays in force.
    fault: Option<String>,
    /// When the twins are to be reported once more.
    repeat_at_ms: Option<i64>,
    /// Since when the record differs from what is kept.
    dirty_since_ms: Option<i64>,
}

pub struct Machine {
    node: String,
    devices: BTreeMap<String, Device>,
    /// Records of the last run whose Device was not seen yet.
    left: BTreeMap<String, Record>,
    faults: BTreeMap<String, String>,
    /// The inventories that were published since the start, by protocol.
    inventories: BTreeMap<String, String>,
    next_id: Box<dyn FnMut() -> String + Send>,
    now_text: Box<dyn Fn(i64) -> String + Send>,
}

impl Machine {
    /// `records` are the local records of the last run. `next_id` gives event ids, `now_text` writes a time as RFC 3339.
    pub fn new(
        node: &str,
        records: Vec<Stored>,
        next_id: Box<dyn FnMut() -> String + Send>,
        now_text: Box<dyn Fn(i64) -> String + Send>,
    ) -> Machine {
        let left = records
            .into_iter()
            .filter_map(|(id, body)| Some((id, serde_json::from_slice(&body).ok()?)))
            .collect();
        Machine {
            node: node.into(),
            devices: BTreeMap::new(),
            left,
            faults: BTreeMap::new(),
            inventories: BTreeMap::new(),
            next_id,
            now_text,
        }
    }

    pub fn handle(&mut self, now_ms: i64, input: Input<'_>) -> Vec<Action> {
        let mut actions = Vec::new();
        match input {
            Input::Objects { devices, models } => self.objects(now_ms, devices, models, &mut actions),
            Input::Mqtt { topic, payload } => self.mqtt(now_ms, topic, payload, &mut actions),
            Input::Connected => {
                // The cloud may be another one, or may have missed what it answered: tell it everything again.
                let ids: Vec<String> = self.devices.keys().cloned().collect();
                for id in ids {
                    self.report_twins(now_ms, &id, &mut actions);
                    self.report_state(now_ms, &id, &mut actions);
                    if let Some(device) = self.devices.get_mut(&id) {
                        device.repeat_at_ms = Some(now_ms + TWIN_REPEAT_MS);
                    }
                }
            }
            Input::Tick => self.tick(now_ms, &mut actions),
            Input::Drain => {
                for (id, device) in &mut self.devices {
                    if device.dirty_since_ms.take().is_some() {
                        actions.push(persist(id, &device.record));
                    }
                }
            }
        }
        actions
    }

    /// When [`Input::Tick`] is due.
    pub fn deadline_ms(&self) -> Option<i64> {
        let times = self.devices.values().flat_map(|device| {
            [device.repeat_at_ms, device.dirty_since_ms.map(|since| since + TWIN_PERSIST_MS)]
        });
        times.flatten().min()
    }

    fn tick(&mut self, now_ms: i64, actions: &mut Vec<Action>) {
        let due: Vec<String> = self
            .devices
            .iter()
            .filter(|(_, device)| device.repeat_at_ms.is_some_and(|at| at <= now_ms))
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            if let Some(device) = self.devices.get_mut(&id) {
                device.repeat_at_ms = None;
            }
            self.report_twins(now_ms, &id, actions);
        }
        for (id, device) in &mut self.devices {
            if device.dirty_since_ms.is_some_and(|since| since + TWIN_PERSIST_MS <= now_ms) {
                device.dirty_since_ms = None;
                actions.push(persist(id, &device.record));
            }
        }
    }

    fn objects(&mut self, now_ms: i64, devices: Vec<Stored>, models: Vec<Stored>, actions: &mut Vec<Action>) {
        let models: BTreeMap<String, Bytes> = models.into_iter().collect();
        let (mut added, mut faults) = (Vec::new(), BTreeMap::new());
        let wanted: BTreeMap<String, Bytes> = devices.into_iter().collect();
        for (id, body) in &wanted {
            let Some((namespace, name)) = id.split_once('/') else { continue };
            let known = self.devices.contains_key(id);
            if !known && self.devices.len() >= DEVICES_MAX {
                faults.insert(
                    id.clone(),
                    format!("the node has {DEVICES_MAX} devices already: move some to another node"),
                );
                continue;
            }
            if !known {
                let record = self.left.remove(id).unwrap_or_default();
                self.devices.insert(id.clone(), Device { name: name.into(), record, ..Device::default() });
                added.push(id.clone());
            }
            let model =
                device::model_name(body).and_then(|model| models.get(&format!("{namespace}/{model}")));
            match device::read(body, model.map(|model| model.as_ref())) {
                Ok(spec) => self.apply(now_ms, id, &spec, actions),
                Err(reason) => {
                    faults.insert(id.clone(), reason.clone());
                    self.fault(now_ms, id, reason, actions);
                }
            }
        }
        let gone: Vec<String> = self.devices.keys().filter(|id| !wanted.contains_key(*id)).cloned().collect();
        let mut removed = Vec::new();
        for id in gone {
            if let Some(device) = self.devices.remove(&id) {
                forget(&id, &device.record, actions);
                removed.push((id, device));
            }
        }
        for (id, record) in std::mem::take(&mut self.left) {
            if let Some(protocol) = protocol_of(&record) {
                self.inventories.entry(protocol.to_owned()).or_default();
            }
            forget(&id, &record, actions);
        }
        if !added.is_empty() || !removed.is_empty() {
            let event_id = (self.next_id)();
            let update = MembershipUpdate {
                event_id: &event_id,
                timestamp: now_ms,
                added_devices: added
                    .iter()
                    .filter_map(|id| self.devices.get(id).map(|device| member(id, device)))
                    .collect(),
                removed_devices: removed.iter().map(|(id, device)| member(id, device)).collect(),
            };
            actions.push(publish(format!("$hw/events/node/{}/membership/updated", self.node), &update));
        }
        self.inventory(actions);
        if faults != self.faults {
            self.faults = faults.clone();
            actions.push(Action::Faults(faults));
        }
    }

    /// Tells each protocol's mapper which devices there are, after their descriptions: one that was not connected when a
    /// device was deleted learns it here. It is a whole list, so that what is missing in it is really gone.
    fn inventory(&mut self, actions: &mut Vec<Action>) {
        let mut lists: BTreeMap<String, Vec<&str>> =
            self.inventories.keys().map(|protocol| (protocol.clone(), Vec::new())).collect();
        for (id, device) in &self.devices {
            if let Some(protocol) = protocol_of(&device.record) {
                lists.entry(protocol.to_owned()).or_default().push(id);
            }
        }
        for (protocol, ids) in lists {
            let payload = json(&Inventory { devices: ids });
            if self.inventories.get(&protocol) == Some(&payload) {
                continue;
            }
            let topic = format!("{MAPPER_TOPIC}{protocol}/devices");
            actions.push(Action::Publish { topic, payload: payload.clone().into(), retain: true });
            self.inventories.insert(protocol, payload);
        }
    }

    /// Takes over a Device that makes sense: description for mappers, twins, desired values.
    fn apply(&mut self, now_ms: i64, id: &str, spec: &Spec, actions: &mut Vec<Action>) {
        let Some(device) = self.devices.get_mut(id) else { return };
        if device.record.uid.is_empty() && !device.record.twins.is_empty() {
            // Taken over from an agent that did not keep the Device itself.
            device.record.uid.clone_from(&spec.uid);
        }
        if device.record.uid != spec.uid {
            // Deleted and made anew under the same name: the old values are not this device's. The version goes on, because
            // a mapper may still hold the old description.
            let old = std::mem::take(&mut device.record);
            device.record =
                Record { uid: spec.uid.clone(), version: old.version, topic: old.topic, ..Record::default() };
        }
        device.description.clone_from(&spec.description);
        let mut news = false;
        for wanted in &spec.properties {
            news |= want(&mut device.record.twins, wanted, now_ms);
        }
        for (name, twin) in &mut device.record.twins {
            // A desired value that was withdrawn, or a property that left the Device, is no wish any more.
            let wished =
                spec.properties.iter().any(|wanted| wanted.name == *name && wanted.desired.is_some());
            if !wished && twin.optional == Some(false) && twin.expected.take().is_some() {
                twin.expected_version.get_or_insert_default().cloud += 1;
                news = true;
            }
        }
        let topic = format!("{MAPPER_TOPIC}{}/device/{id}", spec.protocol);
        let record = &mut device.record;
        if record.topic != topic && !record.topic.is_empty() {
            actions.push(Action::Publish {
                topic: record.topic.clone(),
                payload: Bytes::new(),
                retain: true,
            });
            device.published = false;
        }
        let changed = record.body != spec.body || record.topic != topic;
        if changed {
            record.version += 1;
            record.body.clone_from(&spec.body);
            record.topic = topic;
        }
        let first = !device.published;
        if changed || first {
            let payload = format!("{{\"version\":{},{}}}", record.version, record.body);
            actions.push(Action::Publish {
                topic: record.topic.clone(),
                payload: payload.into(),
                retain: true,
            });
            device.published = true;
        }
        if changed || news {
            device.dirty_since_ms = None;
            actions.push(persist(id, &device.record));
        }
        let has_wish = device.record.twins.values().any(|twin| twin.expected.is_some());
        if first && has_wish {
            // The first report of a property is lost by KubeEdge's v1.23 cloud, one that says only what is desired too.
            device.repeat_at_ms = Some(now_ms + TWIN_REPEAT_MS);
        }
        let healed = device.fault.take().is_some();
        if healed {
            // What the device really is, its mapper says next.
            set_state(&mut device.record, "unknown", "");
            self.report_state(now_ms, id, actions);
        }
        if news {
            self.publish_delta(now_ms, id, actions);
        }
        // After a start the cloud is told what was kept: it may have missed the last reports of the process before.
        if news || first {
            self.report_twins(now_ms, id, actions);
        }
    }

    fn fault(&mut self, now_ms: i64, id: &str, reason: String, actions: &mut Vec<Action>) {
        let Some(device) = self.devices.get_mut(id) else { return };
        if device.fault.as_deref() == Some(&reason) {
            return;
        }
        set_state(&mut device.record, "unhealthy", &reason);
        device.fault = Some(reason);
        self.report_state(now_ms, id, actions);
    }

    fn mqtt(&mut self, now_ms: i64, topic: &str, payload: &[u8], actions: &mut Vec<Action>) {
        if topic == format!("$hw/events/node/{}/membership/get", self.node) {
            let base: BaseMessage = serde_json::from_slice(payload).unwrap_or_default();
            let devices = self.devices.iter().map(|(id, device)| member(id, device)).collect();
            let list = MembershipList { event_id: &base.event_id, timestamp: now_ms, devices };
            actions.push(publish(format!("{topic}/result"), &list));
            return;
        }
        let Some(rest) = topic.strip_prefix(DEVICE_TOPIC) else { return };
        let mut parts = rest.splitn(3, '/');
        let (Some(namespace), Some(name), Some(what)) = (parts.next(), parts.next(), parts.next()) else {
            return;
        };
        let id = format!("{namespace}/{name}");
        match what {
            "twin/update" => self.twin_update(now_ms, &id, payload, Origin::Edge, actions),
            "twin/cloud_updated" => self.twin_update(now_ms, &id, payload, Origin::Cloud, actions),
            "twin/get" => self.twin_get(now_ms, &id, payload, actions),
            "state/update" => self.state_update(now_ms, &id, payload, actions),
            _ => {}
        }
    }

    fn twin_update(
        &mut self,
        now_ms: i64,
        id: &str,
        payload: &[u8],
        origin: Origin,
        actions: &mut Vec<Action>,
    ) {
        let result_topic = format!("{DEVICE_TOPIC}{id}/twin/update/result");
        let mut refuse = |event_id: &str, code: u16, reason: &str| {
            let result = ErrorResult { event_id, timestamp: now_ms, code, reason };
            actions.push(publish(result_topic.clone(), &result));
        };
        let update: TwinUpdate = match serde_json::from_slice(payload) {
            Ok(update) => update,
            Err(error) => return refuse("", 400, &format!("the request is not a twin update: {error}")),
        };
        let Some(twin) = update.twin else {
            return refuse(&update.event_id, 400, "the request has no key twin");
        };
        let Some(device) = self.devices.get_mut(id) else {
            return refuse(&update.event_id, 404, "the device does not exist on this node");
        };
        let merged = match merge::merge(&mut device.record.twins, twin, origin, now_ms) {
            Ok(merged) => merged,
            Err(reason) => return refuse(&update.event_id, 400, &reason),
        };
        let Merged { result, document, first_values, conflict } = merged;
        let changed = !document.is_empty();
        if origin == Origin::Edge {
            let result = TwinResult { event_id: &update.event_id, timestamp: now_ms, twin: result };
            actions.push(publish(result_topic, &result));
        }
        if changed {
            let document = TwinResult { event_id: &update.event_id, timestamp: now_ms, twin: document };
            actions.push(publish(format!("{DEVICE_TOPIC}{id}/twin/update/document"), &document));
            device.dirty_since_ms.get_or_insert(now_ms);
        }
        if first_values {
            // KubeEdge's v1.23 cloud can lose the first report of a new property (kubeedge-wire.md, pitfall 4).
            device.repeat_at_ms = Some(now_ms + TWIN_REPEAT_MS);
        }
        self.publish_delta(now_ms, id, actions);
        if (changed && origin == Origin::Edge) || conflict {
            self.report_twins(now_ms, id, actions);
        }
    }

    fn twin_get(&mut self, now_ms: i64, id: &str, payload: &[u8], actions: &mut Vec<Action>) {
        let topic = format!("{DEVICE_TOPIC}{id}/twin/get/result");
        let base: Result<BaseMessage, _> = serde_json::from_slice(payload);
        let (event_id, error) = match (&base, self.devices.contains_key(id)) {
            (Err(error), _) => ("", Some((400, format!("the request is not JSON: {error}")))),
            (Ok(base), false) => {
                (base.event_id.as_str(), Some((404, "the device does not exist on this node".to_owned())))
            }
            (Ok(base), true) => (base.event_id.as_str(), None),
        };
        if let Some((code, reason)) = error {
            actions.push(publish(topic, &ErrorResult { event_id, timestamp: now_ms, code, reason: &reason }));
            return;
        }
        let Some(device) = self.devices.get(id) else { return };
        let live = device.record.twins.iter().filter(|(_, twin)| !twin.is_deleted());
        let twin: Twins = live.map(|(key, twin)| (key.clone(), twin.without_versions())).collect();
        actions.push(publish(topic, &TwinResult { event_id, timestamp: now_ms, twin }));
    }

    fn state_update(&mut self, now_ms: i64, id: &str, payload: &[u8], actions: &mut Vec<Action>) {
        let Ok(update) = serde_json::from_slice::<StateUpdate>(payload) else { return };
        let Some(device) = self.devices.get_mut(id) else { return };
        if !STATES.contains(&update.state.as_str()) {
            return;
        }
        let before = (device.record.state.clone(), device.record.reason.clone());
        // A Device that makes no sense stays unhealthy, whatever works of its last good description.
        if device.fault.is_none() {
            set_state(&mut device.record, &update.state, &update.reason);
        }
        if update.state == "online" {
            device.record.last_online = (self.now_text)(now_ms);
        }
        let record = &device.record;
        let state = DeviceState {
            name: &device.name,
            state: &record.state,
            last_online_time: &record.last_online,
            reason: &record.reason,
        };
        let result = StateReport { event_id: &update.event_id, timestamp: now_ms, device: state };
        actions.push(publish(format!("{DEVICE_TOPIC}{id}/state/update/result"), &result));
        if before != (record.state.clone(), record.reason.clone()) {
            device.dirty_since_ms.get_or_insert(now_ms);
            self.report_state(now_ms, id, actions);
        }
    }

    fn publish_delta(&mut self, now_ms: i64, id: &str, actions: &mut Vec<Action>) {
        let Some(device) = self.devices.get(id) else { return };
        let delta = merge::delta(&device.record.twins);
        if delta.is_empty() {
            return;
        }
        let event_id = (self.next_id)();
        let live = device.record.twins.iter().filter(|(_, twin)| !twin.is_deleted());
        let twin = live.map(|(key, twin)| (key.clone(), twin.without_versions())).collect();
        let payload = TwinDelta { event_id: &event_id, timestamp: now_ms, twin, delta };
        actions.push(publish(format!("{DEVICE_TOPIC}{id}/twin/update/delta"), &payload));
    }

    /// Reports all twins of a device under one key: a report that replaces an unanswered one must say all that it said.
    fn report_twins(&mut self, now_ms: i64, id: &str, actions: &mut Vec<Action>) {
        let Some(device) = self.devices.get(id) else { return };
        let known = device
            .record
            .twins
            .iter()
            .filter(|(_, twin)| twin.actual.is_some() || twin.expected_version.is_some());
        let twin: BTreeMap<&String, &MsgTwin> = known.collect();
        if twin.is_empty() {
            return;
        }
        let event_id = (self.next_id)();
        let content = raw(&TwinResult { event_id: &event_id, timestamp: now_ms, twin });
        actions.push(Action::Report {
            key: format!("twin/{id}"),
            resource: format!("device/{id}/twin/edge_updated"),
            content,
        });
    }

    fn report_state(&mut self, now_ms: i64, id: &str, actions: &mut Vec<Action>) {
        let Some(device) = self.devices.get(id) else { return };
        let record = &device.record;
        if record.state.is_empty() {
            return;
        }
        let event_id = (self.next_id)();
        let state = DeviceState {
            name: &device.name,
            state: &record.state,
            last_online_time: &record.last_online,
            reason: &record.reason,
        };
        // KubeEdge sends this content as JSON inside a string.
        let text = json(&StateReport { event_id: &event_id, timestamp: now_ms, device: state });
        let content = raw(&text);
        actions.push(Action::Report {
            key: format!("devicestate/{id}"),
            resource: format!("device/{id}/state/update"),
            content,
        });
    }
}

/// Brings one property of the Device into the twins. True when something changed that others must know.
fn want(twins: &mut Twins, wanted: &device::Wanted, now_ms: i64) -> bool {
    let twin = twins.entry(wanted.name.clone()).or_default();
    twin.optional = Some(false);
    if twin.value_type() != wanted.value_type {
        twin.metadata = Some(TypeMetadata { value_type: wanted.value_type.into() });
    }
    match &wanted.desired {
        Some(value) if twin.expected_value() != Some(value) => {
            twin.expected = Some(merge::stamped(value.clone(), now_ms));
            twin.expected_version.get_or_insert_default().cloud += 1;
            true
        }
        _ => false,
    }
}

fn set_state(record: &mut Record, state: &str, reason: &str) {
    record.state = state.into();
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    record.reason = reason[..end].into();
}

fn member<'a>(id: &'a str, device: &'a Device) -> Member<'a> {
    let record = &device.record;
    Member {
        id,
        name: &device.name,
        description: &device.description,
        state: &record.state,
        last_online: &record.last_online,
    }
}

/// The protocol whose mapper has the description.
fn protocol_of(record: &Record) -> Option<&str> {
    record.topic.strip_prefix(MAPPER_TOPIC)?.split('/').next()
}

fn forget(id: &str, record: &Record, actions: &mut Vec<Action>) {
    if !record.topic.is_empty() {
        actions.push(Action::Publish { topic: record.topic.clone(), payload: Bytes::new(), retain: true });
    }
    actions.push(Action::Forget { id: id.into() });
}

fn persist(id: &str, record: &Record) -> Action {
    Action::Persist { id: id.into(), record: json(record).into() }
}

fn publish<T: Serialize>(topic: String, payload: &T) -> Action {
    Action::Publish { topic, payload: json(payload).into(), retain: false }
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("payload types serialise without error")
}

fn raw<T: Serialize>(value: &T) -> Box<RawValueEq> {
    Box::new(RawValueEq(
        serde_json::value::to_raw_value(value).expect("payload types serialise without error"),
    ))
}
