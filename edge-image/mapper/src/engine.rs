//! What happens to devices: descriptions come, drivers are opened, read and tried again, values and states go out.
//!
//! It owns no socket and no clock; [`crate::run`] moves its messages. What the broker has not taken yet is kept here, bounded:
//! the last value of each property and the last state are never lost.

use std::collections::{BTreeMap, VecDeque};

use serde::Deserialize;

use crate::{
    driver::{Driver, Reading, Wait},
    limits::{DEVICES_MAX, READINGS_MAX, RETRY_DELAY_MS_MAX, RETRY_DELAY_MS_MIN},
    plan::{self, Plan},
};

/// Opens the driver of a plan; the kernel's, or a test's.
pub trait Opener {
    fn open(
        &mut self,
        now_ms: u64,
        device: &str,
        plan: &Plan,
        readings: &mut Vec<Reading>,
    ) -> Result<Box<dyn Driver>, String>;
    /// Gives up what a device holds outside of its driver and will not have any more.
    fn release(&mut self, device: &str, properties: &[&str]);
}

pub struct Engine {
    devices: BTreeMap<String, Device>,
    opener: Box<dyn Opener>,
    up: bool,
}

#[derive(Deserialize)]
struct Inventory {
    devices: Vec<String>,
}

struct Device {
    /// Of the topic that described it.
    protocol: String,
    payload: Vec<u8>,
    plan: Result<Plan, String>,
    driver: Option<Box<dyn Driver>>,
    /// When the driver is to be opened (again).
    open_at_ms: Option<u64>,
    retry_delay_ms: u64,
    readings: VecDeque<Reading>,
    last: Vec<Option<String>>,
    report_at_ms: Vec<Option<u64>>,
    state: &'static str,
    reason: String,
    state_told: bool,
}

impl Device {
    fn become_state(&mut self, id: &str, state: &'static str, reason: String) {
        if self.state == state && self.reason == reason {
            return;
        }
        let colon = if reason.is_empty() { "" } else { ": " };
        eprintln!("mapper: device {id} is {state}{colon}{reason}");
        (self.state, self.reason, self.state_told) = (state, reason, false);
    }

    fn take(&mut self, now_ms: u64, up: bool, readings: Vec<Reading>) {
        let Ok(plan) = &self.plan else { return };
        for reading in readings {
            let property = &plan.properties[reading.property];
            self.last[reading.property] = Some(reading.value.clone());
            if !property.reported {
                continue;
            }
            if property.report_cycle_ms > 0 {
                self.report_at_ms[reading.property] = Some(now_ms + property.report_cycle_ms);
            }
            if !up || self.readings.len() >= READINGS_MAX {
                self.readings.retain(|waiting| waiting.property != reading.property);
            }
            self.readings.push_back(reading);
        }
    }
}

impl Engine {
    pub fn new(opener: Box<dyn Opener>) -> Engine {
        Engine { devices: BTreeMap::new(), opener, up: false }
    }

    /// A message on a description topic. An empty one removes the device.
    pub fn description(&mut self, now_ms: u64, protocol: &str, id: &str, payload: &[u8]) {
        if payload.is_empty() {
            // A device that changed its protocol is already described under the other one's topic.
            let ours = self.devices.get(id).is_some_and(|device| device.protocol == protocol);
            if ours && let Some(device) = self.devices.remove(id) {
                drop(device.driver);
                if let Ok(plan) = &device.plan {
                    self.opener.release(id, &names(plan));
                }
                eprintln!("mapper: device {id} was removed");
            }
            return;
        }
        if self.devices.get(id).is_some_and(|device| device.payload == payload) {
            return;
        }
        let full = self.devices.len() >= DEVICES_MAX && !self.devices.contains_key(id);
        if full {
            eprintln!("mapper: device {id} is not driven: {DEVICES_MAX} devices are driven already");
            return;
        }
        let plan = plan::read(payload).and_then(|(_, plan)| plan);
        let before = self.devices.get_mut(id);
        if let (Some(device), Ok(plan)) = (before, &plan)
            && let Some(changes) = only_desired_differs(device.plan.as_ref().ok(), plan)
            && device.driver.is_some()
        {
            device.payload = payload.to_vec();
            device.plan = Ok(plan.clone());
            self.set(now_ms, id, &changes);
            return;
        }
        let last = self.devices.remove(id);
        if let (Some(Device { plan: Ok(old), .. }), Ok(plan)) = (&last, &plan) {
            // The others are adopted as they are: an output does not blink because its neighbour left.
            let gone: Vec<&str> = names(old).into_iter().filter(|name| !names(plan).contains(name)).collect();
            if !gone.is_empty() {
                self.opener.release(id, &gone);
            }
        }
        drop(last);
        let properties = plan.as_ref().map_or(0, |plan| plan.properties.len());
        let mut device = Device {
            protocol: protocol.to_owned(),
            payload: payload.to_vec(),
            open_at_ms: plan.is_ok().then_some(now_ms),
            driver: None,
            retry_delay_ms: RETRY_DELAY_MS_MIN,
            readings: VecDeque::new(),
            last: vec![None; properties],
            report_at_ms: vec![None; properties],
            state: "",
            reason: String::new(),
            state_told: true,
            plan,
        };
        if let Err(reason) = &device.plan {
            let reason = reason.clone();
            device.become_state(id, "unhealthy", reason);
        }
        self.devices.insert(id.to_owned(), device);
        self.tick(now_ms);
    }

    /// The whole list of a protocol's devices: others of that protocol were deleted while we were not listening.
    pub fn inventory(&mut self, now_ms: u64, protocol: &str, payload: &[u8]) {
        let Ok(inventory) = serde_json::from_slice::<Inventory>(payload) else { return };
        let gone: Vec<String> = self
            .devices
            .iter()
            .filter(|(id, device)| device.protocol == protocol && !inventory.devices.contains(*id))
            .map(|(id, _)| id.clone())
            .collect();
        for id in gone {
            self.description(now_ms, protocol, &id, b"");
        }
    }

    fn set(&mut self, now_ms: u64, id: &str, changes: &[(usize, String)]) {
        let Some(device) = self.devices.get_mut(id) else { return };
        let Some(driver) = &mut device.driver else { return };
        let mut readings = Vec::new();
        let result = changes
            .iter()
            .try_for_each(|(property, value)| driver.set(now_ms, *property, value, &mut readings));
        device.take(now_ms, self.up, readings);
        if let Err(reason) = result {
            self.failed(now_ms, id, reason);
        }
    }

    /// The connection to the broker came up: everything is told again, because edgecore may have forgotten it.
    pub fn connected(&mut self) {
        self.up = true;
        for device in self.devices.values_mut() {
            let Ok(plan) = &device.plan else {
                device.state_told = false;
                continue;
            };
            device.state_told = device.state.is_empty();
            device.readings.clear();
            for (property, value) in device.last.iter().enumerate() {
                if let (Some(value), true) = (value, plan.properties[property].reported) {
                    device.readings.push_back(Reading { property, value: value.clone() });
                }
            }
        }
    }

    pub fn disconnected(&mut self) {
        self.up = false;
    }

    /// Descriptors to wait for, each with the device it belongs to.
    pub fn waits(&self, waits: &mut Vec<(String, Wait)>) {
        let mut own = Vec::new();
        for (id, device) in &self.devices {
            if let Some(driver) = &device.driver {
                driver.waits(&mut own);
                waits.extend(own.drain(..).map(|wait| (id.clone(), wait)));
            }
        }
    }

    pub fn ready(&mut self, now_ms: u64, id: &str) {
        self.drive(now_ms, id, |driver, readings| driver.ready(now_ms, readings));
    }

    fn drive(
        &mut self,
        now_ms: u64,
        id: &str,
        act: impl FnOnce(&mut dyn Driver, &mut Vec<Reading>) -> Result<(), String>,
    ) {
        let Some(device) = self.devices.get_mut(id) else { return };
        let Some(driver) = &mut device.driver else { return };
        let mut readings = Vec::new();
        let result = act(driver.as_mut(), &mut readings);
        let complaint = driver.complaint();
        device.take(now_ms, self.up, readings);
        match (result, complaint) {
            (Err(reason), _) => self.failed(now_ms, id, reason),
            (Ok(()), Some(complaint)) => device.become_state(id, "unhealthy", complaint),
            (Ok(()), None) => device.become_state(id, "online", String::new()),
        }
    }

    fn failed(&mut self, now_ms: u64, id: &str, reason: String) {
        let Some(device) = self.devices.get_mut(id) else { return };
        device.driver = None;
        device.open_at_ms = Some(now_ms + device.retry_delay_ms);
        device.retry_delay_ms = (device.retry_delay_ms * 2).min(RETRY_DELAY_MS_MAX);
        device.become_state(id, "offline", reason);
    }

    /// Opens what is due, lets drivers look at the clock, and repeats reports.
    pub fn tick(&mut self, now_ms: u64) {
        let ids: Vec<String> = self.devices.keys().cloned().collect();
        for id in ids {
            self.open_due(now_ms, &id);
            let due = self.devices.get(&id).and_then(|device| device.driver.as_ref()?.deadline_ms());
            if due.is_some_and(|at| at <= now_ms) {
                self.drive(now_ms, &id, |driver, readings| driver.tick(now_ms, readings));
            }
            let Some(device) = self.devices.get_mut(&id) else { continue };
            let again: Vec<Reading> = device
                .report_at_ms
                .iter()
                .enumerate()
                .filter(|(_, at)| at.is_some_and(|at| at <= now_ms))
                .filter_map(|(property, _)| Some(Reading { property, value: device.last[property].clone()? }))
                .collect();
            if device.driver.is_some() {
                device.take(now_ms, self.up, again);
            }
        }
    }

    fn open_due(&mut self, now_ms: u64, id: &str) {
        let Some(device) = self.devices.get_mut(id) else { return };
        let (Some(at), Ok(plan)) = (device.open_at_ms, &device.plan) else { return };
        if at > now_ms {
            return;
        }
        let mut readings = Vec::new();
        match self.opener.open(now_ms, id, plan, &mut readings) {
            Ok(driver) => {
                device.driver = Some(driver);
                device.open_at_ms = None;
                device.retry_delay_ms = RETRY_DELAY_MS_MIN;
                device.take(now_ms, self.up, readings);
                device.become_state(id, "online", String::new());
            }
            Err(reason) => self.failed(now_ms, id, reason),
        }
    }

    pub fn deadline_ms(&self) -> Option<u64> {
        let times = self.devices.values().flat_map(|device| {
            let reports =
                device.report_at_ms.iter().filter(|_| device.driver.is_some()).flatten().copied().min();
            [device.open_at_ms, device.driver.as_ref().and_then(|driver| driver.deadline_ms()), reports]
        });
        times.flatten().min()
    }

    /// Hands out messages (topic, payload) as long as `publish` takes them.
    pub fn flush(&mut self, wall_ms: u64, mut publish: impl FnMut(&str, &str) -> bool) {
        for (id, device) in &mut self.devices {
            if !device.state_told {
                let reason = serde_json::Value::from(device.reason.as_str());
                let payload = format!(
                    "{{\"event_id\":\"\",\"timestamp\":{wall_ms},\"state\":\"{}\",\"reason\":{reason}}}",
                    device.state
                );
                if !publish(&format!("$hw/events/device/{id}/state/update"), &payload) {
                    return;
                }
                device.state_told = true;
            }
            while !device.readings.is_empty() {
                let Ok(plan) = &device.plan else { break };
                let (payload, used) = update(plan, &device.readings, wall_ms);
                if !publish(&format!("$hw/events/device/{id}/twin/update"), &payload) {
                    return;
                }
                device.readings.drain(..used);
            }
        }
    }
}

/// One twin update from the readings at the front, up to the first property that comes a second time: a pulse is two updates.
fn update(plan: &Plan, readings: &VecDeque<Reading>, wall_ms: u64) -> (String, usize) {
    let mut payload = format!("{{\"event_id\":\"\",\"timestamp\":{wall_ms},\"twin\":{{");
    let mut used = 0;
    for (at, reading) in readings.iter().enumerate() {
        if readings.iter().take(at).any(|before| before.property == reading.property) {
            break;
        }
        // Names and values have no character that JSON would escape (checked when they were taken).
        let comma = if at == 0 { "" } else { "," };
        let name = &plan.properties[reading.property].name;
        payload += &format!(
            "{comma}\"{name}\":{{\"actual\":{{\"value\":\"{}\",\"metadata\":{{\"timestamp\":{wall_ms}}}}}}}",
            reading.value
        );
        used += 1;
    }
    payload += "}}";
    (payload, used)
}

fn names(plan: &Plan) -> Vec<&str> {
    plan.properties.iter().map(|property| property.name.as_str()).collect()
}

/// The new desired values, when nothing else is different: then the driver stays open.
fn only_desired_differs(before: Option<&Plan>, after: &Plan) -> Option<Vec<(usize, String)>> {
    let before = before?;
    let mut same = after.clone();
    let mut changes = Vec::new();
    for (at, property) in same.properties.iter_mut().enumerate() {
        let old = before.properties.get(at)?;
        if let Some(value) = property.desired.clone()
            && property.desired != old.desired
        {
            changes.push((at, value));
        }
        property.desired.clone_from(&old.desired);
    }
    (same == *before).then_some(changes)
}

#[cfg(test)]
mod tests;
