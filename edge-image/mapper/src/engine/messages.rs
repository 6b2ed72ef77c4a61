//! What the engine says on KubeEdge's topics.

use std::{collections::VecDeque, fmt::Write};

use super::device::Taken;
use crate::{driver::Quality, plan::Plan};

pub(super) fn state(state: &str, reason: &str, wall_ms: u64) -> String {
    let reason = serde_json::Value::from(reason);
    format!("{{\"event_id\":\"\",\"timestamp\":{wall_ms},\"state\":\"{state}\",\"reason\":{reason}}}")
}

/// One twin update from the readings at the front, up to the first property that comes a second time: a pulse is two updates.
/// `metadata` beside the value is KubeEdge's; its keys `quality` and `refused` are ours, and others ignore them.
pub(super) fn update(plan: &Plan, readings: &VecDeque<Taken>, now_ms: u64, wall_ms: u64) -> (String, usize) {
    let mut payload = format!("{{\"event_id\":\"\",\"timestamp\":{wall_ms},\"twin\":{{");
    let mut used = 0;
    for (at, Taken { reading, at_ms }) in readings.iter().enumerate() {
        if readings.iter().take(at).any(|before| before.reading.property == reading.property) {
            break;
        }
        let property = &plan.properties[reading.property];
        // Names and values have no character that JSON would escape (checked when they were taken).
        let _ = write!(payload, "{}\"{}\":{{", if at == 0 { "" } else { "," }, property.name);
        if reading.quality != Quality::Bad {
            // What waited for the broker is told with the time of its reading.
            let then_ms = wall_ms.saturating_sub(now_ms.saturating_sub(*at_ms)) as i64;
            let timestamp = reading.at_ms.unwrap_or(then_ms);
            let value = &reading.value;
            let _ = write!(
                payload,
                "\"actual\":{{\"value\":\"{value}\",\"metadata\":{{\"timestamp\":{timestamp}}}}},"
            );
        }
        let _ = write!(payload, "\"metadata\":{{\"quality\":\"{}\"", reading.quality.name());
        if let Some(refused) = &property.refused {
            let _ = write!(payload, ",\"refused\":{}", serde_json::Value::from(refused.as_str()));
        }
        payload += "}}";
        used += 1;
    }
    payload += "}}";
    (payload, used)
}
