//! Questions about the history, and their answers.

use serde::Serialize;
use serde_json::{Map, Value};

use super::{Entry, History};
use crate::{contract::HistoryQuery, limits::HISTORY_ANSWER_BYTES_MAX};

#[derive(Serialize)]
struct Answer<'a> {
    event_id: &'a str,
    timestamp: i64,
    device: &'a str,
    /// By name: `[time, value]`, or `[time, value, quality]` where it is not good. Oldest first.
    properties: Map<String, Value>,
    /// Not everything had room in the answer: ask for a property alone, or for a shorter time.
    more: bool,
}

fn takes(query: &HistoryQuery, entry: &Entry) -> bool {
    query.since.is_none_or(|since| entry.at_ms >= since)
        && query.until.is_none_or(|until| entry.at_ms < until)
}

impl History {
    /// The answer as JSON of no more than about [`HISTORY_ANSWER_BYTES_MAX`]; when that is full, each property's newest values
    /// have the room.
    pub fn answer(&self, now_ms: i64, id: &str, query: &HistoryQuery) -> String {
        let rings: Vec<_> = self
            .rings
            .iter()
            .filter(|((device, property), _)| {
                device == id && (query.property.is_empty() || *property == query.property)
            })
            .collect();
        let share = HISTORY_ANSWER_BYTES_MAX / rings.len().max(1);
        let mut more = false;
        let mut properties = Map::new();
        for ((_, property), ring) in rings {
            let mut room = share;
            let mut rows = Vec::new();
            let limit = query.limit.unwrap_or(usize::MAX);
            let wanted: Vec<Entry> = ring.entries().filter(|entry| takes(query, entry)).collect();
            for entry in wanted.iter().rev().take(limit) {
                let row = row(entry);
                // Brackets and the comma between rows.
                let len = row.to_string().len() + 1;
                if len > room {
                    more = true;
                    break;
                }
                room -= len;
                rows.push(row);
            }
            rows.reverse();
            properties.insert(property.clone(), Value::Array(rows));
        }
        let answer = Answer { event_id: &query.event_id, timestamp: now_ms, device: id, properties, more };
        serde_json::to_string(&answer).expect("an answer serialises without error")
    }
}

fn row(entry: &Entry) -> Value {
    let mut row = vec![Value::from(entry.at_ms), Value::from(&*entry.value)];
    if !entry.quality.is_empty() {
        row.push(Value::from(&*entry.quality));
    }
    Value::Array(row)
}

/// Any bytes are a question or none. For random bytes.
pub fn fuzz_query(data: &[u8]) {
    if let Ok(query) = serde_json::from_slice::<HistoryQuery>(data) {
        let mut history = History::new(4, 4096);
        for at_ms in 0..6 {
            let (value, quality) = ("1".into(), Box::default());
            history.insert("d/x", "t", Entry { at_ms, value, quality });
        }
        history.answer(1, "d/x", &query);
    }
}
