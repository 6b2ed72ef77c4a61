//! What edgecore is to be told: the newest value of each property, and the newest state of each device. A plain value.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dmi::messages::{
    Device, DeviceStatus, ReportDeviceStatesRequest, ReportDeviceStatusRequest, Twin, TwinProperty,
};
use serde::Deserialize;
use serde_json::Value;

const DEVICE_TOPIC: &str = "$hw/events/device/";

#[derive(Clone, Debug, PartialEq)]
pub enum Report {
    Values(ReportDeviceStatusRequest),
    State(ReportDeviceStatesRequest),
}

#[derive(Default)]
struct Slot {
    desired: BTreeMap<String, String>,
    last: BTreeMap<String, TwinProperty>,
    waiting: BTreeSet<String>,
    state: String,
    reason: String,
    state_waits: bool,
}

#[derive(Default)]
pub struct Outbox {
    slots: BTreeMap<String, Slot>,
    /// Devices with something to tell, in turn.
    turns: VecDeque<String>,
    /// The other side is our own edgecore, which knows of quality and reasons.
    kinglet: bool,
}

#[derive(Deserialize)]
struct State {
    state: String,
    #[serde(default)]
    reason: String,
}

impl Outbox {
    /// Takes what the engine says. False: there is nothing to report in it.
    pub fn tell(&mut self, topic: &str, payload: &str) -> bool {
        let Some(rest) = topic.strip_prefix(DEVICE_TOPIC) else { return false };
        if let Some(id) = rest.strip_suffix("/state/update") {
            let Ok(State { state, reason }) = serde_json::from_str(payload) else { return false };
            let slot = self.slots.entry(id.into()).or_default();
            (slot.state, slot.reason, slot.state_waits) = (state, reason, true);
            self.turn(id);
            return true;
        }
        let Some(id) = rest.strip_suffix("/twin/update") else { return false };
        let Ok(mut update) = serde_json::from_str::<Value>(payload) else { return false };
        let Some(twins) = update["twin"].as_object_mut() else { return false };
        let slot = self.slots.entry(id.into()).or_default();
        for (name, twin) in twins.iter() {
            slot.last.insert(name.clone(), property(twin));
            slot.waiting.insert(name.clone());
        }
        self.turn(id);
        true
    }

    fn turn(&mut self, id: &str) {
        if !self.turns.iter().any(|waiting| waiting == id) {
            self.turns.push_back(id.to_owned());
        }
    }

    /// What a device's properties are to be; KubeEdge wants it repeated with each value.
    pub fn desire(&mut self, device: &Device) {
        let id = format!("{}/{}", device.namespace, device.name);
        let properties = device.spec.iter().flat_map(|spec| &spec.properties);
        let desired = properties.filter_map(|property| {
            let desired = property.desired.as_ref().filter(|desired| !desired.value.is_empty())?;
            Some((property.name.clone(), desired.value.clone()))
        });
        self.slots.entry(id).or_default().desired = desired.collect();
    }

    pub fn forget(&mut self, id: &str) {
        self.slots.remove(id);
        self.turns.retain(|waiting| waiting != id);
    }

    /// After a registration: only what is still there, and who hears it. The engine tells everything anew.
    pub fn begin(&mut self, kinglet: bool, is_there: impl Fn(&str) -> bool) {
        self.kinglet = kinglet;
        self.slots.retain(|id, _| is_there(id));
        self.turns.retain(|id| is_there(id));
    }

    /// The next report, devices in turn. One that failed comes back by [`Outbox::again`].
    pub fn take(&mut self) -> Option<Report> {
        while let Some(id) = self.turns.pop_front() {
            let Some(slot) = self.slots.get_mut(&id) else { continue };
            let (namespace, name) = id.split_once('/').unwrap_or(("", &id));
            let (device_name, device_namespace) = (name.to_owned(), namespace.to_owned());
            if std::mem::take(&mut slot.state_waits) {
                let reason = if self.kinglet { slot.reason.clone() } else { String::new() };
                let state = slot.state.clone();
                if !slot.waiting.is_empty() {
                    self.turns.push_back(id.clone());
                }
                return Some(Report::State(ReportDeviceStatesRequest {
                    device_name,
                    device_namespace,
                    state,
                    reason,
                }));
            }
            let waiting = std::mem::take(&mut slot.waiting);
            let twins: Vec<Twin> =
                waiting.into_iter().filter_map(|name| slot.twin(name, self.kinglet)).collect();
            if twins.is_empty() {
                continue;
            }
            let reported_device = Some(DeviceStatus { twins, ..DeviceStatus::default() });
            return Some(Report::Values(ReportDeviceStatusRequest {
                device_name,
                device_namespace,
                reported_device,
            }));
        }
        None
    }

    /// It was not taken: what is newest by then is told later.
    pub fn again(&mut self, report: &Report) {
        let (namespace, name) = match report {
            Report::Values(values) => (&values.device_namespace, &values.device_name),
            Report::State(state) => (&state.device_namespace, &state.device_name),
        };
        let id = format!("{namespace}/{name}");
        let Some(slot) = self.slots.get_mut(&id) else { return };
        match report {
            Report::Values(values) => {
                let twins = values.reported_device.iter().flat_map(|device| &device.twins);
                slot.waiting.extend(twins.map(|twin| twin.property_name.clone()));
            }
            Report::State(_) => slot.state_waits = true,
        }
        self.turn(&id);
    }

    /// The answer to GetDevice.
    pub fn device(&self, id: &str) -> Option<Device> {
        let slot = self.slots.get(id)?;
        let (namespace, name) = id.split_once('/')?;
        let twins = slot.last.keys().filter_map(|name| slot.twin(name.clone(), true)).collect();
        let status = Some(DeviceStatus { twins, ..DeviceStatus::default() });
        Some(Device { name: name.into(), namespace: namespace.into(), status, ..Device::default() })
    }
}

impl Slot {
    /// `None`: there is no value, and the other side knows no other way to say so.
    fn twin(&self, name: String, kinglet: bool) -> Option<Twin> {
        let last = self.last.get(&name)?;
        if !kinglet && last.metadata.get("quality").is_some_and(|quality| quality == "disconnected") {
            return None;
        }
        let value = self.desired.get(&name).cloned().unwrap_or_default();
        let observed_desired = Some(TwinProperty { value, ..TwinProperty::default() });
        Some(Twin { property_name: name, observed_desired, reported: Some(last.clone()) })
    }
}

/// One property of a twin update, as DMI has it.
fn property(twin: &Value) -> TwinProperty {
    let value = twin["actual"]["value"].as_str().unwrap_or_default().to_owned();
    let mut metadata = BTreeMap::new();
    if let Some(at_ms) = twin["actual"]["metadata"]["timestamp"].as_i64() {
        metadata.insert("timestamp".to_owned(), at_ms.to_string());
    }
    for key in ["quality", "refused"] {
        if let Some(text) = twin["metadata"][key].as_str() {
            metadata.insert(key.to_owned(), text.to_owned());
        }
    }
    TwinProperty { value, metadata }
}
