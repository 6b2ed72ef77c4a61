//! The state of all devices of the node as a plain value: inputs in, actions out. No clock, no socket, no store.
//!
//! What the inputs do is here; Device objects are taken over in `objects`, the cloud is told in `report`.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use rt::Pace;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    mappers::Gone,
    merge::{self, Merged, Origin},
    policy::{Policies, Told},
    push::{Place, Push},
    record::Record,
    types::{
        BaseMessage, DeviceState, ErrorResult, Member, MembershipList, StateReport, StateUpdate, TwinDelta,
        TwinResult, TwinUpdate, Twins,
    },
    validate,
};
use crate::contract::device_works;
use crate::limits::{
    REFUSAL_TOLD_MS, REPORT_FIRST_EVERY, REPORT_REFRESH_MS, TWIN_PERSIST_MS, TWIN_REPEAT_MS,
};

const STATES: [&str; 5] = ["online", "offline", "ok", "unknown", "unhealthy"];
pub const DEVICE_TOPIC: &str = "$hw/events/device/";
/// Below it are the descriptions (`<protocol>/device/<ns>/<name>`) and the inventory (`<protocol>/devices`) for mappers.
pub const MAPPER_TOPIC: &str = "$kinglet/mapper/";
/// A clock that goes back further than this was set; all that waits is moved with it.
const CLOCK_STEP_MS: i64 = 1_000;

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
    /// The link to the cloud came up, and its other end does not know what it was told before.
    Connected,
    /// The link came up and goes on where the last one ended.
    Resumed,
    Disconnected,
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
    /// `durable`: before what follows is done, and so that a power cut does not lose it.
    Persist {
        id: String,
        record: Bytes,
        durable: bool,
    },
    /// A property's value as it came, whatever the cloud is told of it.
    Sample(Sample),
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

/// One value of one property.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// `<namespace>/<name>` of the device.
    pub id: String,
    pub property: String,
    /// Empty when there is none (quality `disconnected`).
    pub value: String,
    /// The twin's type.
    pub value_type: String,
    /// As the mapper says; empty when it does not.
    pub quality: String,
    pub at_ms: i64,
    /// To be kept in the history.
    pub kept: bool,
    /// Where it goes besides.
    pub push: Arc<[Push]>,
}

#[derive(Debug, Default)]
pub(super) struct Device {
    pub name: String,
    pub description: String,
    pub record: Record,
    pub policies: Policies,
    /// Properties that stay on the node, by the Device's `reportToCloud`.
    pub staying: Vec<String>,
    /// Of the model, by property.
    pub units: BTreeMap<String, String>,
    /// Where the values go besides the cloud, by property.
    pub pushes: BTreeMap<String, Arc<[Push]>>,
    /// What of the Device is not carried out although the rest is.
    pub complaint: String,
    /// Why an update of its mapper was not taken, and when the last one was not.
    pub refusal: Option<(String, i64)>,
    /// The description was published since the start.
    pub published: bool,
    /// What is wrong with the object; then the last good description stays in force.
    pub fault: Option<String>,
    /// When the twins are to be reported once more.
    pub repeat_at_ms: Option<i64>,
    /// Since when the record differs from what is kept.
    pub dirty_since_ms: Option<i64>,
    /// When the cloud is to be told the twins, and whether somebody waits for it.
    pub report_at_ms: Option<i64>,
    pub urgent: bool,
    /// The report has a value of a property that the cloud was told none of.
    pub first: bool,
    pub state_due: bool,
    pub state_told_ms: i64,
    /// When its last report had its turn.
    pub reported_ms: i64,
    /// What the cloud was told, by property.
    pub told: BTreeMap<String, Box<Told>>,
}

pub struct Machine {
    pub(super) node: String,
    pub(super) devices: BTreeMap<String, Device>,
    /// Records of the last run whose Device was not seen yet.
    pub(super) left: BTreeMap<String, Record>,
    pub(super) faults: BTreeMap<String, String>,
    /// The inventories that were published since the start, by protocol.
    pub(super) inventories: BTreeMap<String, String>,
    pub(super) pace: Pace,
    pub(super) first_pace: Pace,
    /// Mappers that are gone, by name.
    pub(super) gone: BTreeMap<String, Gone>,
    /// Reports wait for the link.
    pub(super) is_down: bool,
    /// There was a link since the start.
    was_up: bool,
    last_ms: i64,
    pub(super) next_id: Box<dyn FnMut() -> String + Send>,
    now_text: Box<dyn Fn(i64) -> String + Send>,
}

impl Machine {
    /// `records` are the local records of the last run. `next_id` gives event ids, `now_text` writes a time as RFC 3339.
    pub fn new(
        node: &str,
        records: Vec<Stored>,
        report_every_ms: u32,
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
            pace: Pace::new(report_every_ms),
            first_pace: Pace::new(report_every_ms.saturating_mul(REPORT_FIRST_EVERY)),
            gone: BTreeMap::new(),
            is_down: false,
            was_up: false,
            last_ms: i64::MIN,
            next_id,
            now_text,
        }
    }

    pub fn handle(&mut self, now_ms: i64, input: Input<'_>) -> Vec<Action> {
        if now_ms < self.last_ms.saturating_sub(CLOCK_STEP_MS) {
            self.shift(self.last_ms - now_ms);
        }
        self.last_ms = now_ms;
        let mut actions = Vec::new();
        match input {
            Input::Objects { devices, models } => self.objects(now_ms, devices, models, &mut actions),
            Input::Mqtt { topic, payload } => self.mqtt(now_ms, topic, payload, &mut actions),
            Input::Connected => self.connected(now_ms),
            Input::Resumed => self.is_down = false,
            Input::Disconnected => self.is_down = true,
            Input::Tick => self.tick(now_ms, &mut actions),
            Input::Drain => {
                for (id, device) in &mut self.devices {
                    if device.dirty_since_ms.take().is_some() {
                        actions.push(persist(id, &device.record, false));
                    }
                }
            }
        }
        self.report_due(now_ms, &mut actions);
        actions
    }

    /// A Device has values pushed there.
    pub fn names_place(&self, place: &Place) -> bool {
        let mut pushes =
            self.devices.values().flat_map(|device| device.pushes.values()).flat_map(|ways| ways.iter());
        pushes.any(|push| push.place == *place)
    }

    /// When [`Input::Tick`] is due.
    pub fn deadline_ms(&self) -> Option<i64> {
        let times = self.devices.values().flat_map(|device| {
            [device.repeat_at_ms, device.dirty_since_ms.map(|since| since + TWIN_PERSIST_MS)]
        });
        let gone = self.gone.values().map(|gone| gone.at_ms);
        times.flatten().chain(gone).chain(self.next_report_ms()).min()
    }

    /// The clock was set back: what waits goes on waiting as long as it would have.
    fn shift(&mut self, back_ms: i64) {
        self.pace.shift(back_ms);
        self.first_pace.shift(back_ms);
        self.gone.values_mut().for_each(|gone| gone.at_ms -= back_ms);
        for device in self.devices.values_mut() {
            let times = [&mut device.repeat_at_ms, &mut device.dirty_since_ms, &mut device.report_at_ms];
            for at in times.into_iter().flatten() {
                *at -= back_ms;
            }
            device.reported_ms -= back_ms;
            device.state_told_ms -= back_ms;
            device.refusal.iter_mut().for_each(|(_, last_ms)| *last_ms -= back_ms);
            for told in device.told.values_mut() {
                told.at_ms -= back_ms;
            }
        }
    }

    /// The cloud may be another one, or may have missed what it answered: it is told everything again.
    fn connected(&mut self, now_ms: i64) {
        self.is_down = false;
        let first = !std::mem::replace(&mut self.was_up, true);
        for device in self.devices.values_mut() {
            device.report_at_ms = Some(now_ms);
            device.state_due = !device.record.state.is_empty();
            if first {
                device.repeat_at_ms = Some(now_ms + TWIN_REPEAT_MS);
            }
        }
    }

    fn tick(&mut self, now_ms: i64, actions: &mut Vec<Action>) {
        self.mappers_gone(now_ms, actions);
        for (id, device) in &mut self.devices {
            if device.repeat_at_ms.is_some_and(|at| at <= now_ms) {
                device.repeat_at_ms = None;
                // What is repeated is what may not have been heard.
                device.first = true;
                device.report_at_ms.get_or_insert(now_ms);
            }
            if device.dirty_since_ms.is_some_and(|since| since + TWIN_PERSIST_MS <= now_ms) {
                device.dirty_since_ms = None;
                actions.push(persist(id, &device.record, false));
            }
        }
    }

    fn mqtt(&mut self, now_ms: i64, topic: &str, payload: &[u8], actions: &mut Vec<Action>) {
        if topic == format!("$hw/events/node/{}/membership/get", self.node) {
            let base: BaseMessage = match serde_json::from_slice(payload) {
                Ok(base) => base,
                Err(error) => {
                    let reason = format!("the request is not JSON: {error}");
                    let result = ErrorResult { event_id: "", timestamp: now_ms, code: 400, reason: &reason };
                    return actions.push(publish(format!("{topic}/result"), &result));
                }
            };
            let devices = self.devices.iter().map(|(id, device)| member(id, device)).collect();
            let list = MembershipList { event_id: &base.event_id, timestamp: now_ms, devices };
            actions.push(publish(format!("{topic}/result"), &list));
            return;
        }
        if let Some(name) = topic.strip_prefix(MAPPER_TOPIC) {
            return self.mapper_says(now_ms, name, payload);
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

    pub(super) fn twin_update(
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
        // A wish that is wrong is its sender's business.
        let reports = twin.values().flatten().any(|twin| twin.actual.is_some());
        let record = &mut device.record;
        let merged = match merge::merge(&mut record.twins, &mut record.wishes, twin, origin, now_ms) {
            Ok(merged) => merged,
            Err(reason) => {
                if origin == Origin::Edge && reports {
                    device.refused(now_ms, &reason);
                }
                return refuse(&update.event_id, 400, &reason);
            }
        };
        let Merged { result, document, first_values, conflict, values, lasting } = merged;
        if lasting {
            // A wish that was answered outlives a power cut; the mapper learns it from the description.
            device.dirty_since_ms = None;
            self.describe(id, None, true, actions);
        }
        let changed: Vec<String> = document.keys().cloned().collect();
        if origin == Origin::Edge {
            let result = TwinResult { event_id: &update.event_id, timestamp: now_ms, twin: result };
            actions.push(publish(result_topic, &result));
        }
        if !document.is_empty() {
            let document = TwinResult { event_id: &update.event_id, timestamp: now_ms, twin: document };
            actions.push(publish(format!("{DEVICE_TOPIC}{id}/twin/update/document"), &document));
        }
        self.publish_delta(now_ms, id, actions);
        let Some(device) = self.devices.get_mut(id) else { return };
        if !changed.is_empty() && !lasting {
            device.dirty_since_ms.get_or_insert(now_ms);
        }
        if first_values {
            // KubeEdge's v1.23 cloud can lose the first report of a new property (kubeedge-wire.md, pitfall 4).
            device.repeat_at_ms = Some(now_ms + TWIN_REPEAT_MS);
        }
        if !values.is_empty() {
            device.accepted(now_ms);
        }
        for property in values {
            actions.extend(sample(id, device, property, now_ms).map(Action::Sample));
        }
        if lasting || conflict {
            device.report_at_ms = Some(now_ms);
            device.urgent = true;
        } else if origin == Origin::Edge {
            device.values_changed(now_ms, &changed);
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
        let twin: Twins = live.map(|(key, twin)| (key.clone(), Box::new(twin.without_versions()))).collect();
        actions.push(publish(topic, &TwinResult { event_id, timestamp: now_ms, twin }));
    }

    pub(super) fn state_update(&mut self, now_ms: i64, id: &str, payload: &[u8], actions: &mut Vec<Action>) {
        let Ok(update) = serde_json::from_slice::<StateUpdate>(payload) else { return };
        let Some(device) = self.devices.get_mut(id) else { return };
        let state = update.state.to_ascii_lowercase();
        if !STATES.contains(&state.as_str()) {
            return;
        }
        let event_id = if update.event_id.is_empty() { (self.next_id)() } else { update.event_id };
        let before = (device.record.state.clone(), device.record.reason.clone());
        // A Device that makes no sense stays unhealthy, whatever works of its last good description.
        if device.fault.is_none() {
            device.record.set_state(&update.state, &update.reason);
        }
        if device_works(&state) {
            device.record.last_online = (self.now_text)(now_ms);
        }
        let record = &device.record;
        let result = StateReport { event_id: &event_id, timestamp: now_ms, device: state_of(device) };
        actions.push(publish(format!("{DEVICE_TOPIC}{id}/state/update/result"), &result));
        if before != (record.state.clone(), record.reason.clone()) {
            device.dirty_since_ms.get_or_insert(now_ms);
            device.state_due = true;
        } else if device.state_told_ms + REPORT_REFRESH_MS <= now_ms {
            // That it is online still is news, now and then.
            device.state_due = true;
        }
    }

    pub(super) fn publish_delta(&mut self, now_ms: i64, id: &str, actions: &mut Vec<Action>) {
        let Some(device) = self.devices.get(id) else { return };
        let wanted = merge::wanted(&device.record.twins);
        let differing = wanted.filter(|(_, twin, value)| twin.actual_value() != Some(value));
        let delta: BTreeMap<&str, &str> = differing.map(|(key, _, value)| (key.as_str(), value)).collect();
        if delta.is_empty() {
            return;
        }
        let event_id = (self.next_id)();
        let wanted = merge::wanted(&device.record.twins);
        let twin = wanted.map(|(key, twin, _)| (key.clone(), Box::new(twin.without_versions()))).collect();
        let payload = TwinDelta { event_id: &event_id, timestamp: now_ms, twin, delta };
        actions.push(publish(format!("{DEVICE_TOPIC}{id}/twin/update/delta"), &payload));
    }
}

impl Device {
    /// A person sees in the state that what the mapper says is not taken; the first reason stands while there are more.
    fn refused(&mut self, now_ms: i64, reason: &str) {
        if let Some((_, last_ms)) = &mut self.refusal {
            *last_ms = now_ms;
            return;
        }
        self.refusal = Some((validate::reason(&format!("an update was refused: {reason}")).into(), now_ms));
        self.state_due = true;
    }

    fn accepted(&mut self, now_ms: i64) {
        if self.refusal.take_if(|(_, last_ms)| *last_ms + REFUSAL_TOLD_MS <= now_ms).is_some() {
            self.state_due = true;
        }
    }
}

pub(super) fn state_of(device: &Device) -> DeviceState<'_> {
    let record = &device.record;
    DeviceState {
        name: &device.name,
        state: &record.state,
        last_online_time: &record.last_online,
        reason: {
            let refusal = device.refusal.as_ref().map_or("", |(reason, _)| reason);
            let reasons = [record.reason.as_str(), &device.complaint, refusal];
            let reasons: Vec<&str> = reasons.into_iter().filter(|reason| !reason.is_empty()).collect();
            match reasons[..] {
                [reason] => reason.into(),
                _ => Cow::Owned(reasons.join("; ")),
            }
        },
    }
}

fn sample(id: &str, device: &Device, property: String, now_ms: i64) -> Option<Sample> {
    let twin = device.record.twins.get(&property)?;
    let quality = twin.metadata.as_ref().map_or(String::new(), |metadata| metadata.quality.clone());
    // What is not there has no value, whatever the last one was.
    let is_there = !matches!(quality.as_str(), "disconnected" | "bad");
    let actual = twin.actual.as_ref().filter(|_| is_there);
    let at_ms =
        actual.and_then(|actual| actual.metadata.as_ref()).map_or(now_ms, |metadata| metadata.timestamp);
    Some(Sample {
        id: id.into(),
        value: actual.and_then(|actual| actual.value.clone()).unwrap_or_default(),
        value_type: twin.value_type().into(),
        quality,
        at_ms,
        kept: device.policies.of(&property).has_history(),
        push: device.pushes.get(&property).cloned().unwrap_or_default(),
        property,
    })
}

pub(super) fn member<'a>(id: &'a str, device: &'a Device) -> Member<'a> {
    let record = &device.record;
    Member {
        id,
        name: &device.name,
        description: &device.description,
        state: &record.state,
        last_online: &record.last_online,
    }
}

pub(super) fn forget(id: &str, record: &Record, actions: &mut Vec<Action>) {
    if !record.topic.is_empty() {
        actions.push(Action::Publish { topic: record.topic.clone(), payload: Bytes::new(), retain: true });
    }
    actions.push(Action::Forget { id: id.into() });
}

pub(super) fn persist(id: &str, record: &Record, durable: bool) -> Action {
    Action::Persist { id: id.into(), record: json(record).into(), durable }
}

pub(super) fn publish<T: Serialize>(topic: String, payload: &T) -> Action {
    Action::Publish { topic, payload: json(payload).into(), retain: false }
}

pub(super) fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("payload types serialise without error")
}

pub(super) fn raw<T: Serialize>(value: &T) -> Box<RawValueEq> {
    Box::new(RawValueEq(
        serde_json::value::to_raw_value(value).expect("payload types serialise without error"),
    ))
}
