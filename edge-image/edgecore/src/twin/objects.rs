//! Device and DeviceModel objects, taken over into the machine: twins, wishes, descriptions for mappers, membership.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;

use super::{
    device::{self, Spec, with_wishes},
    machine::{Action, Device, MAPPER_TOPIC, Machine, Stored, forget, json, member, persist, publish},
    record::Record,
    types::{Member, MembershipUpdate, TypeMetadata},
    validate,
    wish::{self, Wish},
};
use crate::limits::{DEVICES_MAX, TWIN_REPEAT_MS};

#[derive(Serialize)]
struct Inventory<'a> {
    devices: Vec<&'a str>,
}

impl Machine {
    pub(super) fn objects(
        &mut self,
        now_ms: i64,
        devices: Vec<Stored>,
        models: Vec<Stored>,
        actions: &mut Vec<Action>,
    ) {
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
                let record = self.left.remove(id);
                if record.is_none() {
                    added.push(id.clone());
                }
                let record = record.unwrap_or_default();
                self.devices.insert(id.clone(), Device { name: name.into(), record, ..Device::default() });
            }
            let model =
                device::model_name(body).and_then(|model| models.get(&format!("{namespace}/{model}")));
            match device::read(body, model.map(|model| model.as_ref())) {
                Ok(spec) => self.apply(now_ms, id, &spec, actions),
                Err(reason) => {
                    faults.insert(id.clone(), reason.clone());
                    self.fault(id, reason);
                }
            }
        }
        let gone: Vec<String> = self.devices.keys().filter(|id| !wanted.contains_key(*id)).cloned().collect();
        for id in gone {
            if let Some(device) = self.devices.remove(&id) {
                forget(&id, &device.record, actions);
                let event_id = (self.next_id)();
                // Who it was; what it was nobody asks any more.
                let removed =
                    Member { id: &id, name: &device.name, description: "", state: "", last_online: "" };
                actions.push(membership(&self.node, &event_id, now_ms, None, Some(removed)));
            }
        }
        for (id, record) in std::mem::take(&mut self.left) {
            if let Some(protocol) = record.protocol() {
                self.inventories.entry(protocol.to_owned()).or_default();
            }
            forget(&id, &record, actions);
        }
        for id in &added {
            let event_id = (self.next_id)();
            if let Some(device) = self.devices.get(id) {
                let added = Some(member(id, device));
                actions.push(membership(&self.node, &event_id, now_ms, added, None));
            }
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
            if let Some(protocol) = device.record.protocol() {
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
            device.told.clear();
        }
        device.description.clone_from(&spec.description);
        device.policies.clone_from(&spec.policies);
        let staying = spec.properties.iter().filter(|wanted| wanted.stays);
        device.staying = staying.map(|wanted| wanted.name.clone()).collect();
        let units = spec.properties.iter().map(|wanted| (wanted.name.clone(), wanted.unit.clone()));
        device.units = units.filter(|(_, unit)| !unit.is_empty()).collect();
        let pushes = spec.properties.iter().filter(|wanted| !wanted.push.is_empty());
        device.pushes = pushes.map(|wanted| (wanted.name.clone(), wanted.push.clone())).collect();
        let complaint = spec.complaints.join("; ");
        if device.complaint != complaint {
            device.complaint = validate::reason(&complaint).into();
            device.state_due = true;
        }
        let mut news = false;
        for wanted in &spec.properties {
            news |= want(&mut device.record, wanted, now_ms);
        }
        let declared = |name: &String| spec.properties.iter().any(|wanted| wanted.name == *name);
        for (name, twin) in &mut device.record.twins {
            // A property that left the Device wishes nothing any more.
            if twin.optional == Some(false) && !declared(name) {
                device.record.wishes.remove(name);
                if twin.expected.take().is_some() {
                    twin.expected_version.get_or_insert_default().cloud += 1;
                    news = true;
                }
            }
        }
        let first = !device.published;
        let has_wish = device.record.twins.values().any(|twin| twin.expected.is_some());
        if first && has_wish {
            // The first report of a property is lost by KubeEdge's v1.23 cloud, one that says only what is desired too.
            device.repeat_at_ms = Some(now_ms + TWIN_REPEAT_MS);
        }
        if device.fault.take().is_some() {
            // What the device really is, its mapper says next.
            device.record.set_state("unknown", "");
            device.state_due = true;
        }
        // After a start the cloud is told what was kept: it may have missed the last reports of the process before.
        if news || first {
            device.report_at_ms = Some(now_ms);
            device.urgent |= news;
        }
        self.describe(id, Some(spec), news, actions);
        if news {
            self.publish_delta(now_ms, id, actions);
        }
    }

    /// Keeps the record and publishes the description for mappers, as far as either is not what it was: in that order, so that a
    /// mapper never saw a version that a power cut takes back. Without `spec` only a wish has changed.
    pub(super) fn describe(&mut self, id: &str, spec: Option<&Spec>, news: bool, actions: &mut Vec<Action>) {
        let Some(device) = self.devices.get_mut(id) else { return };
        let record = &mut device.record;
        let topic =
            spec.map_or(record.topic.clone(), |spec| format!("{MAPPER_TOPIC}{}/device/{id}", spec.protocol));
        let body = with_wishes(spec.map_or(&record.body, |spec| &spec.body), &record.twins);
        let moved = record.topic != topic && !record.topic.is_empty();
        let old = moved.then(|| record.topic.clone());
        let changed = record.body != body || record.topic != topic;
        if changed {
            record.version += 1;
            record.body = body;
            record.topic = topic;
        }
        if changed || news {
            device.dirty_since_ms = None;
            actions.push(persist(id, record, true));
        }
        if let Some(topic) = old {
            actions.push(Action::Publish { topic, payload: Bytes::new(), retain: true });
        }
        if (changed || !device.published) && !record.topic.is_empty() {
            let payload = format!("{{\"version\":{},{}}}", record.version, record.body).into();
            actions.push(Action::Publish { topic: record.topic.clone(), payload, retain: true });
            device.published = true;
        }
    }

    fn fault(&mut self, id: &str, reason: String) {
        let Some(device) = self.devices.get_mut(id) else { return };
        if device.fault.as_deref() == Some(&reason) {
            return;
        }
        device.record.set_state("unhealthy", &reason);
        device.fault = Some(reason);
        device.state_due = true;
    }
}

/// As KubeEdge: one message for each device.
fn membership(
    node: &str,
    event_id: &str,
    now_ms: i64,
    added: Option<Member<'_>>,
    removed: Option<Member<'_>>,
) -> Action {
    let (added_devices, removed_devices) = (added.map(|member| [member]), removed.map(|member| [member]));
    let update = MembershipUpdate { event_id, timestamp: now_ms, added_devices, removed_devices };
    publish(format!("$hw/events/node/{node}/membership/updated"), &update)
}

/// Brings one property of the Device into the twins. True when something changed that others must know.
fn want(record: &mut Record, wanted: &device::Wanted, now_ms: i64) -> bool {
    let twin = record.twins.entry(wanted.name.clone()).or_default();
    twin.optional = Some(false);
    if twin.value_type() != wanted.value_type {
        twin.metadata = Some(TypeMetadata::of(wanted.value_type));
    }
    let mut wish = record.wishes.remove(&wanted.name).unwrap_or_default();
    let before = wish.clone();
    let changed = wish::from_cloud(twin, &mut wish, wanted.desired.as_ref(), now_ms);
    let seen = wish != before;
    if wish != Wish::default() {
        record.wishes.insert(wanted.name.clone(), wish);
    }
    changed || seen
}
