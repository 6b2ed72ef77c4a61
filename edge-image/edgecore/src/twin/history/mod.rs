//! What devices said lately, at full rate, on the node: a ring for each property, in memory.
//!
//! Read over MQTT (`$kinglet/device/<ns>/<name>/history/get`, answered on `.../get/result`) and over the node's read-only HTTP port
//! (`/kinglet/devices/<ns>/<name>/history`). With `kinglet.devices.historyDurable` a part of it outlives restarts ([`tail`]).
//!
//! Invariants: no property has more than `historyLen` values, and all together no more than `historyBytes`, whatever devices say;
//! what does not fit is the oldest of the property that has most, and is counted.

mod query;
mod ring;
pub mod tail;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use query::fuzz_query;

use self::ring::Ring;
use super::machine::Sample;
use crate::limits::HISTORY_PROPERTIES_MAX;

/// One value of a property. Short keys, because the durable tail is made of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    #[serde(rename = "t")]
    pub at_ms: i64,
    #[serde(rename = "v")]
    pub value: Box<str>,
    /// Empty: good, or nothing was said of it.
    #[serde(rename = "q", default, skip_serializing_if = "str::is_empty")]
    pub quality: Box<str>,
}

impl Entry {
    fn of(sample: &Sample) -> Entry {
        let quality = if sample.quality == "good" { "" } else { &sample.quality };
        Entry { at_ms: sample.at_ms, value: sample.value.as_str().into(), quality: quality.into() }
    }
}

#[derive(Debug)]
pub struct History {
    len_max: usize,
    bytes_max: usize,
    bytes: usize,
    /// By device and property.
    rings: BTreeMap<(String, String), Ring>,
    dropped: u64,
}

impl History {
    pub fn new(len_max: usize, bytes_max: usize) -> History {
        History { len_max, bytes_max, bytes: 0, rings: BTreeMap::new(), dropped: 0 }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Values that made room for others before they were as many as `historyLen`.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    pub fn push(&mut self, sample: &Sample) {
        self.insert(&sample.id, &sample.property, Entry::of(sample));
    }

    fn insert(&mut self, id: &str, property: &str, entry: Entry) {
        if self.len_max == 0 || self.bytes_max == 0 {
            return;
        }
        let key = (id.to_owned(), property.to_owned());
        if !self.rings.contains_key(&key) && self.rings.len() >= HISTORY_PROPERTIES_MAX {
            self.dropped += 1;
            return;
        }
        let ring = self.rings.entry(key).or_default();
        if ring.len() >= self.len_max {
            self.bytes -= ring.drop_oldest(1);
        }
        self.bytes += ring.push(&entry);
        while self.bytes > self.bytes_max {
            self.shrink();
        }
    }

    /// Whoever has most gives up its older half: seldom, and no property is starved by a faster one.
    fn shrink(&mut self) {
        let Some(largest) = self.rings.values_mut().max_by_key(|ring| ring.bytes()) else { return };
        let count = largest.len().div_ceil(2);
        self.dropped += count as u64;
        self.bytes -= largest.drop_oldest(count);
        largest.shrink();
    }

    /// The device is gone.
    pub fn forget(&mut self, id: &str) {
        let bytes = &mut self.bytes;
        self.rings.retain(|(device, _), ring| {
            let stays = device != id;
            *bytes -= if stays { 0 } else { ring.bytes() };
            stays
        });
    }
}

#[cfg(test)]
mod tests;
