//! What happens to devices: descriptions come, drivers are opened, read and tried again, values and states go out.
//!
//! It owns no socket and no clock; [`crate::run`] moves its messages. What the broker has not taken yet is kept here, bounded:
//! the last value of each property and the last state are never lost.

mod device;
mod messages;

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{
    driver::{Driver, Reading, Surroundings, Wait},
    limits::{DEVICES_MAX, HOT_PLUG_DELAY_MS, RETRY_DELAY_MS_MAX, RETRY_DELAY_MS_MIN},
    plan::{self, Plan},
};
use device::Device;

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
    around: Surroundings,
    link_told: bool,
}

#[derive(Deserialize)]
struct Inventory {
    devices: Vec<String>,
}

impl Engine {
    pub fn new(opener: Box<dyn Opener>) -> Engine {
        Engine {
            devices: BTreeMap::new(),
            opener,
            up: false,
            around: Surroundings::default(),
            link_told: false,
        }
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
        let mut plan = plan::read(payload).and_then(|(_, plan)| plan);
        if let (Some(Ok(old)), Ok(new)) = (self.devices.get(id).map(|device| &device.plan), &mut plan) {
            keep_accepted(old, new);
        }
        let before = self.devices.get_mut(id);
        if let (Some(device), Ok(plan)) = (before, &plan)
            && let Some(changes) = only_desired_differs(device.plan.as_ref().ok(), plan)
            && device.driver.is_some()
        {
            device.payload = payload.to_vec();
            self.wish(now_ms, id, plan.clone(), &changes);
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
        let mut device = Device::new(now_ms, protocol, payload, plan);
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

    /// The same device, but other desired values.
    fn wish(&mut self, now_ms: u64, id: &str, plan: Plan, changes: &[(usize, String)]) {
        let Some(device) = self.devices.get_mut(id) else { return };
        let verdicts = |plan: &Plan| -> Vec<Option<String>> {
            plan.properties.iter().map(|property| property.refused.clone()).collect()
        };
        let before = device.plan.as_ref().map(verdicts).unwrap_or_default();
        let after = verdicts(&plan);
        let wall_ms = crate::wall_ms();
        let ages_ms: Vec<u64> =
            plan.properties.iter().map(|property| property.desired_age_ms(wall_ms)).collect();
        device.plan = Ok(plan);
        self.drive(now_ms, id, |driver, readings| {
            changes.iter().try_for_each(|(property, value)| {
                driver.desired_age(*property, ages_ms[*property]);
                driver.set(now_ms, *property, value, readings)
            })
        });
        let Some(device) = self.devices.get_mut(id) else { return };
        for property in (0..after.len()).filter(|at| before.get(*at) != after.get(*at)) {
            device.retell(now_ms, self.up, property);
        }
    }

    /// Runs a device method; the error is for the caller.
    pub fn call(&mut self, now_ms: u64, id: &str, method: &str, argument: &str) -> Result<(), String> {
        let Some(device) = self.devices.get_mut(id) else { return Err(format!("there is no device {id}")) };
        if device.driver.is_none() {
            return Err(format!("the device is {}: {}", device.state, device.reason));
        }
        let mut result = Ok(());
        self.drive(now_ms, id, |driver, readings| {
            result = driver.call(now_ms, method, argument, readings);
            Ok(())
        });
        result
    }

    /// What the node's agent says of the link to the cloud; `since_ms` is on our clock.
    pub fn link(&mut self, now_ms: u64, connected: bool, since_ms: u64) {
        // An agent that was restarted does not know how long the link has been gone already.
        let before = self.around.cloud_lost_ms.unwrap_or(u64::MAX);
        self.around.cloud_lost_ms = (!connected).then_some(since_ms.min(before));
        self.link_told = true;
        self.tell_surroundings(now_ms);
    }

    fn tell_surroundings(&mut self, now_ms: u64) {
        let (around, ids) = (self.around, self.devices.keys().cloned().collect::<Vec<String>>());
        for id in ids {
            self.drive(now_ms, &id, |driver, readings| driver.surroundings(now_ms, &around, readings));
        }
    }

    /// The connection to the broker came up: everything is told again, because edgecore may have forgotten it.
    pub fn connected(&mut self, now_ms: u64) {
        self.up = true;
        self.around.agent = true;
        if !self.link_told {
            // Until somebody says that there is a link, there is none: that is the safe side.
            self.around.cloud_lost_ms.get_or_insert(now_ms);
        }
        self.tell_surroundings(now_ms);
        for device in self.devices.values_mut() {
            device.retell_all(now_ms);
        }
    }

    pub fn disconnected(&mut self, now_ms: u64) {
        self.up = false;
        if std::mem::take(&mut self.around.agent) {
            self.tell_surroundings(now_ms);
        }
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
        match result {
            Err(reason) => self.failed(now_ms, id, reason),
            Ok(()) => device.settle(id, complaint),
        }
    }

    fn failed(&mut self, now_ms: u64, id: &str, reason: String) {
        let Some(device) = self.devices.get_mut(id) else { return };
        device.driver = None;
        device.open_at_ms = Some(now_ms + device.retry_delay_ms);
        device.retry_delay_ms = (device.retry_delay_ms * 2).min(RETRY_DELAY_MS_MAX);
        device.lose(now_ms, self.up);
        device.become_state(id, "offline", reason);
    }

    /// A device file came: what waits for one is opened soon.
    pub fn hurry(&mut self, now_ms: u64) {
        let soon_ms = now_ms + HOT_PLUG_DELAY_MS;
        for device in self.devices.values_mut() {
            device.open_at_ms = device.open_at_ms.map(|at_ms| at_ms.min(soon_ms));
        }
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
                .filter_map(|(property, _)| device.last[property].as_ref().map(|taken| taken.reading.clone()))
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
                let complaint = driver.complaint();
                device.driver = Some(driver);
                device.open_at_ms = None;
                device.retry_delay_ms = RETRY_DELAY_MS_MIN;
                device.take(now_ms, self.up, readings);
                device.retell_refusals(now_ms, self.up);
                device.settle(id, complaint);
                let around = self.around;
                self.drive(now_ms, id, |driver, readings| driver.surroundings(now_ms, &around, readings));
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
    pub fn flush(&mut self, now_ms: u64, wall_ms: u64, mut publish: impl FnMut(&str, &str) -> bool) {
        for (id, device) in &mut self.devices {
            if !device.flush(id, now_ms, wall_ms, &mut publish) {
                return;
            }
        }
    }
}

fn names(plan: &Plan) -> Vec<&str> {
    plan.properties.iter().map(|property| property.name.as_str()).collect()
}

/// A wish that is refused leaves the one before it in force.
fn keep_accepted(before: &Plan, after: &mut Plan) {
    for property in after.properties.iter_mut().filter(|property| property.refused.is_some()) {
        let old = before.properties.iter().find(|old| old.name == property.name);
        let kept = old.filter(|old| old.access == property.access && old.domain == property.domain);
        property.desired = kept.and_then(|old| old.desired.clone());
        property.desired_at_ms = kept.and_then(|old| old.desired_at_ms);
    }
}

/// The new desired values, when nothing else is different: then the driver stays open.
fn only_desired_differs(before: Option<&Plan>, after: &Plan) -> Option<Vec<(usize, String)>> {
    let before = before?;
    let mut same = after.clone();
    let mut changes = Vec::new();
    for (at, property) in same.properties.iter_mut().enumerate() {
        let old = before.properties.get(at)?;
        if let Some(value) = property.desired.clone()
            && (property.desired != old.desired || property.desired_at_ms != old.desired_at_ms)
        {
            changes.push((at, value));
        }
        property.desired.clone_from(&old.desired);
        property.desired_at_ms = old.desired_at_ms;
        property.refused.clone_from(&old.refused);
    }
    (same == *before).then_some(changes)
}

#[cfg(test)]
mod tests;
