//! One device of the engine: its plan, its driver, and what is still to be told of it.

use std::collections::VecDeque;

use super::messages;
use crate::{
    driver::{Driver, Quality, Reading},
    limits::{READINGS_MAX, RETRY_DELAY_MS_MIN},
    plan::Plan,
};

/// A reading and when it was taken, on the clock that never steps.
#[derive(Clone, Debug)]
pub(super) struct Taken {
    pub reading: Reading,
    pub at_ms: u64,
}

pub(super) struct Device {
    /// Of the topic that described it.
    pub protocol: String,
    pub payload: Vec<u8>,
    pub plan: Result<Plan, String>,
    pub driver: Option<Box<dyn Driver>>,
    /// When the driver is to be opened (again).
    pub open_at_ms: Option<u64>,
    pub retry_delay_ms: u64,
    pub readings: VecDeque<Taken>,
    pub last: Vec<Option<Taken>>,
    pub report_at_ms: Vec<Option<u64>>,
    /// Why what was read last cannot be the property's value.
    odd: Vec<Option<String>>,
    pub state: &'static str,
    pub reason: String,
    pub state_told: bool,
}

impl Device {
    pub fn new(now_ms: u64, protocol: &str, payload: &[u8], plan: Result<Plan, String>) -> Device {
        let properties = plan.as_ref().map_or(0, |plan| plan.properties.len());
        Device {
            protocol: protocol.to_owned(),
            payload: payload.to_vec(),
            open_at_ms: plan.is_ok().then_some(now_ms),
            driver: None,
            retry_delay_ms: RETRY_DELAY_MS_MIN,
            readings: VecDeque::new(),
            last: vec![None; properties],
            report_at_ms: vec![None; properties],
            odd: vec![None; properties],
            state: "",
            reason: String::new(),
            state_told: true,
            plan,
        }
    }

    pub fn become_state(&mut self, id: &str, state: &'static str, reason: String) {
        if self.state == state && self.reason == reason {
            return;
        }
        let colon = if reason.is_empty() { "" } else { ": " };
        eprintln!("mapper: device {id} is {state}{colon}{reason}");
        (self.state, self.reason, self.state_told) = (state, reason, false);
    }

    /// The state of a device whose driver is open.
    pub fn settle(&mut self, id: &str, complaint: Option<String>) {
        let refused = self.plan.iter().flat_map(|plan| &plan.properties).filter_map(|p| p.refused.as_ref());
        let odd = self.odd.iter().flatten();
        let all: Vec<&str> = complaint.iter().chain(refused).chain(odd).map(String::as_str).collect();
        match all.is_empty() {
            true => self.become_state(id, "online", String::new()),
            false => self.become_state(id, "unhealthy", all.join("; ")),
        }
    }

    /// Takes what the driver read. A value that is not of the model's type is not told, but complained about.
    pub fn take(&mut self, now_ms: u64, up: bool, readings: Vec<Reading>) {
        let Ok(plan) = &self.plan else { return };
        for mut reading in readings {
            let property = &plan.properties[reading.property];
            self.odd[reading.property] = None;
            if reading.quality != Quality::Bad {
                match property.domain.normal(&reading.value) {
                    Ok(value) => reading.value = value,
                    Err(reason) => {
                        self.odd[reading.property] = Some(format!("{} was read as {reason}", property.name));
                        reading = Reading::bad(reading.property);
                    }
                }
            }
            let at = reading.property;
            let taken = Taken { reading, at_ms: now_ms };
            self.last[at] = Some(taken.clone());
            if !property.reported {
                continue;
            }
            if property.report_cycle_ms > 0 {
                self.report_at_ms[at] = Some(now_ms + property.report_cycle_ms);
            }
            if !up || self.readings.len() >= READINGS_MAX {
                self.readings.retain(|waiting| waiting.reading.property != at);
            }
            self.readings.push_back(taken);
        }
    }

    /// The driver is gone: no property has a value any more.
    pub fn lose(&mut self, now_ms: u64, up: bool) {
        let known_bad =
            |last: &Option<Taken>| last.as_ref().is_some_and(|taken| taken.reading.quality == Quality::Bad);
        let lost = self.last.iter().enumerate().filter(|(_, last)| !known_bad(last));
        let lost = lost.map(|(property, _)| Reading::bad(property)).collect();
        self.take(now_ms, up, lost);
    }

    /// Tells a property's last value once more; its metadata changed.
    pub fn retell(&mut self, now_ms: u64, up: bool, property: usize) {
        let last = self.last[property].as_ref().map(|taken| taken.reading.clone());
        self.take(now_ms, up, vec![last.unwrap_or_else(|| Reading::bad(property))]);
    }

    /// What is refused is told also of properties that nothing was read of yet.
    pub fn retell_refusals(&mut self, now_ms: u64, up: bool) {
        let Ok(plan) = &self.plan else { return };
        let silent = plan.properties.iter().enumerate().filter(|(_, property)| property.refused.is_some());
        let silent: Vec<usize> = silent.map(|(at, _)| at).filter(|at| self.last[*at].is_none()).collect();
        for property in silent {
            self.retell(now_ms, up, property);
        }
    }

    /// Everything is to be told again.
    pub fn retell_all(&mut self, now_ms: u64) {
        let Ok(plan) = &self.plan else {
            self.state_told = false;
            return;
        };
        self.state_told = self.state.is_empty();
        self.readings.clear();
        for (property, last) in self.last.iter().enumerate() {
            let planned = &plan.properties[property];
            let taken = match last {
                Some(taken) => taken.clone(),
                None if planned.refused.is_some() => Taken { reading: Reading::bad(property), at_ms: now_ms },
                None => continue,
            };
            if planned.reported {
                self.readings.push_back(taken);
            }
        }
    }

    /// Hands out what is to be told, as long as `publish` takes it; false when it does not.
    pub fn flush(
        &mut self,
        id: &str,
        now_ms: u64,
        wall_ms: u64,
        publish: &mut impl FnMut(&str, &str) -> bool,
    ) -> bool {
        if !self.state_told {
            let payload = messages::state(self.state, &self.reason, wall_ms);
            if !publish(&format!("$hw/events/device/{id}/state/update"), &payload) {
                return false;
            }
            self.state_told = true;
        }
        while !self.readings.is_empty() {
            let Ok(plan) = &self.plan else { break };
            let (payload, used) = messages::update(plan, &self.readings, now_ms, wall_ms);
            if !publish(&format!("$hw/events/device/{id}/twin/update"), &payload) {
                return false;
            }
            self.readings.drain(..used);
        }
        true
    }
}
