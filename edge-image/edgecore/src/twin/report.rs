//! What the cloud is told of devices, and when: the newest of each property, when it is worth it and the node's turn has come.

use std::collections::BTreeMap;

use super::{
    machine::{Action, Device, Machine, json, raw, state_of},
    policy::Told,
    types::{MsgTwin, StateReport, TwinResult},
    wish,
};
use crate::limits::{REPORT_BURST, REPORT_BURST_FIRST, REPORT_BURST_URGENT};

impl Device {
    /// Marks the device for a report if a property's value is one that the cloud should have.
    pub(super) fn values_changed(&mut self, now_ms: i64, properties: &[String]) {
        for property in properties {
            let policy = self.policies.of(property);
            let Some(twin) = self.record.twins.get(property) else { continue };
            if !self.goes_to_cloud(property) {
                continue;
            }
            let value = twin.actual_value().unwrap_or_default();
            let told = self.told.get(property);
            self.first |= !value.is_empty() && told.is_none_or(|told| told.value.is_empty());
            let due_ms =
                told.map_or(now_ms, |told| policy.due_ms(told, value, twin.metadata.as_ref()).max(now_ms));
            self.report_at_ms = Some(self.report_at_ms.map_or(due_ms, |at| at.min(due_ms)));
        }
    }

    fn goes_to_cloud(&self, property: &str) -> bool {
        match self.policies.of(property).to_cloud {
            Some(to_cloud) => to_cloud,
            None => !self.staying.iter().any(|staying| staying == property),
        }
    }

    fn reported(&self) -> BTreeMap<&String, MsgTwin> {
        let known = self.record.twins.iter().filter(|(name, twin)| {
            (twin.actual.is_some() || twin.expected_version.is_some() || has_quality(twin))
                && self.goes_to_cloud(name)
        });
        let unit = |name: &String| self.units.get(name).map_or("", String::as_str);
        known.map(|(name, twin)| (name, wish::told(twin, self.record.wishes.get(name), unit(name)))).collect()
    }
}

/// What a person waits for may run ahead of the values.
fn burst(urgent: bool) -> u32 {
    if urgent { REPORT_BURST_URGENT } else { REPORT_BURST }
}

fn has_quality(twin: &MsgTwin) -> bool {
    twin.metadata.as_ref().is_some_and(|metadata| !metadata.quality.is_empty())
}

impl Machine {
    /// When the next report has its turn.
    pub(super) fn next_report_ms(&self) -> Option<i64> {
        if self.is_down {
            return None;
        }
        let waits = self.devices.values().filter_map(|device| {
            let urgent = device.urgent || device.state_due;
            let due_ms = if device.state_due { Some(i64::MIN) } else { device.report_at_ms };
            let turn_ms = self.pace.next_ms(burst(urgent));
            let first_ms = device.first.then(|| self.first_pace.next_ms(REPORT_BURST_FIRST));
            Some(due_ms?.max(first_ms.map_or(turn_ms, |first_ms| first_ms.min(turn_ms))))
        });
        waits.min()
    }

    /// Reports what is due, as far as it has its turn: first what a person waits for, then who waits longest.
    pub(super) fn report_due(&mut self, now_ms: i64, actions: &mut Vec<Action>) {
        if self.is_down {
            return;
        }
        let due = self
            .devices
            .iter()
            .filter(|(_, device)| device.state_due || device.report_at_ms.is_some_and(|at| at <= now_ms));
        let mut due: Vec<(bool, i64, String)> = due
            .map(|(id, device)| (!(device.urgent || device.state_due), device.reported_ms, id.clone()))
            .collect();
        if due.is_empty() {
            return;
        }
        due.sort();
        for (_, _, id) in due {
            self.report(now_ms, &id, actions);
        }
    }

    fn report(&mut self, now_ms: i64, id: &str, actions: &mut Vec<Action>) {
        let Some(device) = self.devices.get_mut(id) else { return };
        if device.state_due {
            if !self.pace.take(now_ms, burst(true)) {
                return;
            }
            device.state_due = false;
            (device.reported_ms, device.state_told_ms) = (now_ms, now_ms);
            if device.record.state.is_empty() {
                device.record.state = "unknown".into();
            }
            let event_id = (self.next_id)();
            // KubeEdge sends this content as JSON inside a string.
            let report = StateReport { event_id: &event_id, timestamp: now_ms, device: state_of(device) };
            actions.push(Action::Report {
                key: format!("devicestate/{id}"),
                resource: format!("device/{id}/state/update"),
                content: raw(&json(&report)),
            });
        }
        if device.report_at_ms.is_none_or(|at| at > now_ms) {
            return;
        }
        let twin = device.reported();
        if twin.is_empty() {
            (device.report_at_ms, device.urgent, device.first) = (None, false, false);
            return;
        }
        let has_turn = (device.first && self.first_pace.take(now_ms, REPORT_BURST_FIRST))
            || self.pace.take(now_ms, burst(device.urgent));
        if !has_turn {
            return;
        }
        let event_id = (self.next_id)();
        // All twins of the device under one key: a report that replaces an unanswered one must say all that it said.
        let content = raw(&TwinResult { event_id: &event_id, timestamp: now_ms, twin });
        actions.push(Action::Report {
            key: format!("twin/{id}"),
            resource: format!("device/{id}/twin/edge_updated"),
            content,
        });
        (device.report_at_ms, device.urgent, device.first) = (None, false, false);
        device.reported_ms = now_ms;
        let told = device.record.twins.iter().filter(|(_, twin)| !twin.is_deleted());
        device.told = told
            .map(|(name, twin)| {
                let value = twin.actual_value().unwrap_or_default().into();
                (name.clone(), Box::new(Told { value, metadata: twin.metadata.clone(), at_ms: now_ms }))
            })
            .collect();
    }
}
