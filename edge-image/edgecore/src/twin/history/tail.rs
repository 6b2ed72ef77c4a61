//! The part of the history that outlives a restart, when the node is configured to: slots in the node's store, written lazily, each
//! in turn. A power cut loses what came since the last writing.
//!
//! A slot is JSON lines: the first has its number, the others a value each. Slots are written over in their order, so that flash sees
//! no more than a slot per [`HISTORY_TAIL_MS`].

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Entry, History};
use crate::limits::{HISTORY_SLOTS, HISTORY_TAIL_FACTOR, HISTORY_TAIL_MS};
use crate::twin::machine::Sample;

#[derive(Serialize, Deserialize)]
struct Head {
    slot: u64,
}

#[derive(Serialize, Deserialize)]
struct Line {
    #[serde(rename = "d")]
    id: String,
    #[serde(rename = "p")]
    property: String,
    #[serde(flatten)]
    entry: Entry,
}

#[derive(Debug)]
pub struct Tail {
    slot_bytes_max: usize,
    number: u64,
    text: String,
    /// Since when the slot holds what is not written.
    dirty_since_ms: Option<i64>,
}

impl Tail {
    /// `slots`: the bodies of the last run, in any order; what they hold goes into the history.
    pub fn load(slots: Vec<Bytes>, bytes_max: usize, history: &mut History) -> Tail {
        let mut found: Vec<(u64, Bytes)> = slots
            .into_iter()
            .filter_map(|body| {
                let head = body.split(|byte| *byte == b'\n').next()?;
                Some((serde_json::from_slice::<Head>(head).ok()?.slot, body))
            })
            .collect();
        found.sort_by_key(|(number, _)| *number);
        for (_, body) in &found {
            for line in body.split(|byte| *byte == b'\n').skip(1) {
                // What cannot be read is one value less.
                if let Ok(Line { id, property, entry }) = serde_json::from_slice(line) {
                    history.insert(&id, &property, entry);
                }
            }
        }
        let number = found.last().map_or(0, |(number, _)| number.saturating_add(1));
        let slot_bytes_max = HISTORY_TAIL_FACTOR * bytes_max / HISTORY_SLOTS as usize;
        Tail { slot_bytes_max, number, text: String::new(), dirty_since_ms: None }
    }

    /// A slot that is full and to be written now, as its name and body.
    pub fn push(&mut self, now_ms: i64, sample: &Sample) -> Option<(String, Bytes)> {
        if self.text.is_empty() {
            self.text = json(&Head { slot: self.number });
        }
        let (id, property) = (sample.id.clone(), sample.property.clone());
        self.text.push('\n');
        self.text += &json(&Line { id, property, entry: Entry::of(sample) });
        self.dirty_since_ms.get_or_insert(now_ms);
        if self.text.len() < self.slot_bytes_max {
            return None;
        }
        let full = self.written();
        self.number += 1;
        self.text.clear();
        Some(full)
    }

    pub fn deadline_ms(&self) -> Option<i64> {
        self.dirty_since_ms.map(|since| since + HISTORY_TAIL_MS)
    }

    /// The slot as it is, if it was not written for long; `always`: if at all.
    pub fn due(&mut self, now_ms: i64, always: bool) -> Option<(String, Bytes)> {
        let since = self.dirty_since_ms?;
        (always || since + HISTORY_TAIL_MS <= now_ms || since > now_ms).then(|| self.written())
    }

    fn written(&mut self) -> (String, Bytes) {
        self.dirty_since_ms = None;
        (format!("slot-{}", self.number % HISTORY_SLOTS), Bytes::from(self.text.clone()))
    }
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("lines serialise without error")
}
