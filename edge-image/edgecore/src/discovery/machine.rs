//! What is published for which device, as a plain value: inputs in, actions out.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::entity::{self, Entity, Kind, ModelProperty, Place};
use crate::{
    contract,
    limits::{DISCOVERY_ASKS, DISCOVERY_ENTITIES_MAX},
};

/// `<namespace>/<name>` and the object's JSON.
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
    /// Some [`crate::limits::DISCOVERY_ASK_PAUSE`] later, while [`Machine::is_asking`].
    Tick,
}

#[derive(Debug, PartialEq)]
pub enum Action {
    Publish {
        topic: String,
        payload: String,
        retain: bool,
    },
    /// The retained topics of a device, to be kept before what follows.
    Remember {
        id: String,
        topics: BTreeSet<String>,
    },
    Forget {
        id: String,
    },
}

#[derive(Debug, Default)]
struct Device {
    entities: BTreeMap<String, Entity>,
    /// As last published.
    values: BTreeMap<String, String>,
    available: Option<bool>,
    topics: BTreeSet<String>,
    /// How often it will still be asked what twins it has: they may know the device a moment later than we.
    asks_left: u8,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DeviceView {
    metadata: Meta,
    spec: DeviceSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Meta {
    annotations: Map<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DeviceSpec {
    device_model_ref: Named,
    properties: Vec<Named>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ModelView {
    spec: ModelSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ModelSpec {
    properties: Vec<ModelProperty>,
}

pub struct Machine {
    node: String,
    /// Empty: off.
    prefix: String,
    devices: BTreeMap<String, Device>,
    /// What was published in earlier lives, by device.
    remembered: BTreeMap<String, BTreeSet<String>>,
    full_said: bool,
}

impl Machine {
    pub fn new(node: &str, prefix: &str, remembered: BTreeMap<String, BTreeSet<String>>) -> Machine {
        Machine {
            node: node.into(),
            prefix: prefix.into(),
            devices: BTreeMap::new(),
            remembered,
            full_said: false,
        }
    }

    pub fn handle(&mut self, input: Input<'_>) -> Vec<Action> {
        let mut actions = Vec::new();
        match input {
            Input::Objects { devices, models } => self.objects(devices, &models, &mut actions),
            Input::Mqtt { topic, payload } => self.mqtt(topic, payload, &mut actions),
            Input::Tick => {
                for (id, device) in self.devices.iter_mut().filter(|(_, device)| device.asks_left > 0) {
                    device.asks_left -= 1;
                    actions.push(ask(id));
                }
            }
        }
        actions
    }

    /// A device's values are not known yet.
    pub fn is_asking(&self) -> bool {
        self.devices.values().any(|device| device.asks_left > 0)
    }

    fn objects(&mut self, devices: Vec<Stored>, models: &[Stored], actions: &mut Vec<Action>) {
        let devices = if self.prefix.is_empty() { Vec::new() } else { devices };
        let mut room = DISCOVERY_ENTITIES_MAX;
        let mut gone: BTreeSet<String> = self.devices.keys().chain(self.remembered.keys()).cloned().collect();
        for (id, body) in devices {
            let entities = self.entities(&id, &body, models);
            if entities.len() > room {
                if !std::mem::replace(&mut self.full_said, true) {
                    tracing::warn!(
                        "{id} and what follows are not in discovery: {DISCOVERY_ENTITIES_MAX} entities are"
                    );
                }
                continue;
            }
            room -= entities.len();
            gone.remove(&id);
            self.describe(&id, entities, actions);
        }
        for id in gone {
            let mut topics = self.remembered.remove(&id).unwrap_or_default();
            topics.extend(self.devices.remove(&id).map(|device| device.topics).unwrap_or_default());
            actions.extend(topics.into_iter().map(cleared));
            actions.push(Action::Forget { id });
        }
    }

    fn entities(&self, id: &str, body: &[u8], models: &[Stored]) -> BTreeMap<String, Entity> {
        let (Some((namespace, device)), Ok(view)) =
            (id.split_once('/'), serde_json::from_slice::<DeviceView>(body))
        else {
            return BTreeMap::new();
        };
        let model = &view.spec.device_model_ref.name;
        let model_id = format!("{namespace}/{model}");
        let text = models.iter().find(|(id, _)| *id == model_id).map(|(_, body)| body);
        let Some(Ok(known)) = text.map(|body| serde_json::from_slice::<ModelView>(body)) else {
            return BTreeMap::new();
        };
        let place = Place { node: &self.node, namespace, device, model };
        let properties = view.spec.properties.iter().filter_map(|property| {
            known.spec.properties.iter().find(|declared| declared.name == property.name)
        });
        properties
            // A name becomes one level of a topic.
            .filter(|property| !property.name.contains(['/', '#', '+']) && property.name != "available")
            .map(|property| {
                let entity = entity::entity(&place, property, &view.metadata.annotations);
                (property.name.clone(), entity)
            })
            .collect()
    }

    fn describe(&mut self, id: &str, entities: BTreeMap<String, Entity>, actions: &mut Vec<Action>) {
        let base = format!("kinglet/{}/{id}", self.node);
        let mut topics = BTreeSet::from([format!("{base}/available")]);
        for (name, entity) in &entities {
            topics.insert(format!("{}/{}", self.prefix, entity.topic));
            topics.insert(format!("{base}/{name}"));
        }
        let is_new = !self.devices.contains_key(id);
        let device = self.devices.entry(id.to_owned()).or_default();
        let before = self.remembered.remove(id);
        if before.as_ref().unwrap_or(&device.topics) != &topics {
            actions.push(Action::Remember { id: id.into(), topics: topics.clone() });
        }
        let old: BTreeSet<String> =
            before.into_iter().flatten().chain(std::mem::take(&mut device.topics)).collect();
        actions.extend(old.difference(&topics).cloned().map(cleared));
        for (name, entity) in &entities {
            if device.entities.get(name) != Some(entity) {
                actions.push(Action::Publish {
                    topic: format!("{}/{}", self.prefix, entity.topic),
                    payload: entity.config.clone(),
                    retain: true,
                });
            }
        }
        device.values.retain(|name, _| entities.contains_key(name));
        (device.entities, device.topics) = (entities, topics);
        if is_new {
            // What is known of it already; the answer is taken like news.
            device.asks_left = DISCOVERY_ASKS;
            actions.push(ask(id));
        }
    }

    fn mqtt(&mut self, topic: &str, payload: &[u8], actions: &mut Vec<Action>) {
        if let Some(rest) = topic.strip_prefix(&format!("kinglet/{}/", self.node)) {
            return self.wish(rest, payload, actions);
        }
        let Some(rest) = topic.strip_prefix("$hw/events/device/") else { return };
        let Some((at, _)) = rest.match_indices('/').nth(1) else { return };
        let (id, what) = (&rest[..at], &rest[at + 1..]);
        let Some(device) = self.devices.get_mut(id) else { return };
        let Ok(message) = serde_json::from_slice::<Value>(payload) else { return };
        let base = format!("kinglet/{}/{id}", self.node);
        match what {
            "state/update/result" => {
                let state = message.pointer("/device/state").and_then(Value::as_str).unwrap_or_default();
                let available = contract::device_works(state);
                if device.available.replace(available) != Some(available) {
                    let payload = if available { "online" } else { "offline" };
                    actions.push(retained(format!("{base}/available"), payload));
                }
            }
            "twin/update/document" | "twin/get/result" => {
                let pointer =
                    if what == "twin/get/result" { "/actual/value" } else { "/current/actual/value" };
                if what == "twin/get/result" && message["twin"].is_object() {
                    device.asks_left = 0;
                }
                for (name, twin) in message["twin"].as_object().into_iter().flatten() {
                    let Some(value) = twin.pointer(pointer).and_then(Value::as_str) else { continue };
                    let known = device.values.get(name).map(String::as_str);
                    if device.entities.contains_key(name) && known != Some(value) {
                        device.values.insert(name.clone(), value.to_owned());
                        actions.push(retained(format!("{base}/{name}"), value));
                    }
                }
            }
            _ => {}
        }
    }

    /// `rest` is `<ns>/<name>/<property>/set`.
    fn wish(&mut self, rest: &str, payload: &[u8], actions: &mut Vec<Action>) {
        let Some((id, property)) = rest.strip_suffix("/set").and_then(|rest| rest.rsplit_once('/')) else {
            return;
        };
        let entity = self.devices.get(id).and_then(|device| device.entities.get(property));
        let Some(Entity { kind, writable: true, .. }) = entity else { return };
        let value = std::str::from_utf8(payload).ok().and_then(|text| entity::wish(*kind, text));
        let Some(value) = value else {
            tracing::warn!(
                "{property} of {id}: {:?} is no {}",
                String::from_utf8_lossy(payload),
                noun(*kind)
            );
            return;
        };
        actions.push(Action::Publish {
            topic: format!("$hw/events/device/{id}/twin/update"),
            payload: json!({"event_id": "discovery", "twin": {property: {"expected": {"value": value}}}})
                .to_string(),
            retain: false,
        });
    }
}

/// KubeEdge's question for all twins of a device.
fn ask(id: &str) -> Action {
    Action::Publish {
        topic: format!("$hw/events/device/{id}/twin/get"),
        payload: "{\"event_id\":\"discovery\"}".into(),
        retain: false,
    }
}

fn noun(kind: Kind) -> &'static str {
    match kind {
        Kind::Boolean => "true or false",
        Kind::Int => "whole number",
        Kind::Number => "number",
        Kind::Text => "text",
    }
}

fn retained(topic: String, payload: &str) -> Action {
    Action::Publish { topic, payload: payload.into(), retain: true }
}

/// An empty retained message removes the one before.
fn cleared(topic: String) -> Action {
    Action::Publish { topic, payload: String::new(), retain: true }
}
