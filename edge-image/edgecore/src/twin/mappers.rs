//! Mappers on MQTT that say whether they are there: `{"alive":true,"protocols":[...]}` on `$kinglet/mapper/<name>`, and the same with
//! `false` as their will, which the broker publishes when they are gone without good-bye.
//!
//! One that is not back after [`MAPPER_GONE_MS`] leaves its devices `unknown` and their values `disconnected`, as a mapper on DMI does.
//! When it comes back it tells every value and state itself.

use serde::Deserialize;
use serde_json::json;

use super::{
    machine::{Action, Machine},
    merge::Origin,
    validate,
};
use crate::limits::{MAPPER_GONE_MS, MAPPERS_GONE_MAX};

#[derive(Deserialize)]
struct Word {
    alive: bool,
    #[serde(default)]
    protocols: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Gone {
    protocols: Vec<String>,
    pub at_ms: i64,
}

impl Machine {
    pub(super) fn mapper_says(&mut self, now_ms: i64, name: &str, payload: &[u8]) {
        let Ok(word) = serde_json::from_slice::<Word>(payload) else { return };
        if word.alive {
            self.gone.remove(name);
        } else if self.gone.len() < MAPPERS_GONE_MAX {
            let gone = Gone { protocols: word.protocols, at_ms: now_ms + MAPPER_GONE_MS };
            self.gone.entry(name.to_owned()).or_insert(gone);
        }
    }

    pub(super) fn mappers_gone(&mut self, now_ms: i64, actions: &mut Vec<Action>) {
        let due = self.gone.extract_if(.., |_, gone| gone.at_ms <= now_ms);
        for (name, gone) in due.collect::<Vec<_>>() {
            let reason = format!("mapper {} is gone; is it running?", validate::reason(&name));
            let is_its = |protocol: &str| gone.protocols.iter().any(|its| its == protocol);
            let devices =
                self.devices.iter().filter(|(_, device)| device.record.protocol().is_some_and(is_its));
            let ids: Vec<String> = devices.map(|(id, _)| id.clone()).collect();
            for id in ids {
                let Some(device) = self.devices.get(&id) else { continue };
                let known = device
                    .record
                    .twins
                    .iter()
                    .filter(|(_, twin)| twin.actual.is_some() && !twin.is_deleted());
                let update: serde_json::Map<_, _> = known
                    .map(|(name, _)| (name.clone(), json!({"metadata": {"quality": "disconnected"}})))
                    .collect();
                if !update.is_empty() {
                    let update = json!({"twin": update}).to_string();
                    self.twin_update(now_ms, &id, update.as_bytes(), Origin::Edge, actions);
                }
                let state = json!({"state": "unknown", "reason": reason}).to_string();
                self.state_update(now_ms, &id, state.as_bytes(), actions);
            }
        }
    }
}
