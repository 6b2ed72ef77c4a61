//! Any bytes as what applications, mappers and a cloud say of devices; for fuzzing.

use serde_json::json;

use super::machine::{Action, Input, Machine};
use crate::limits::{REASON_BYTES_MAX, REPORT_EVERY_MS, TWINS_PER_DEVICE_MAX};

const TOPICS: [&str; 8] = [
    "$hw/events/device/default/d/twin/update",
    "$hw/events/device/default/d/twin/cloud_updated",
    "$hw/events/device/default/d/twin/get",
    "$hw/events/device/default/d/state/update",
    "$hw/events/device/default/stranger/twin/update",
    "$hw/events/node/n/membership/get",
    "$kinglet/mapper/m",
    "$kinglet/mapper/other",
];

/// Messages divided by zero bytes; the first byte of each chooses its topic. What comes out is JSON and bounded, whatever goes in.
pub fn fuzz_twin(data: &[u8]) {
    let ids = || "id".to_owned();
    let mut machine =
        Machine::new("n", Vec::new(), REPORT_EVERY_MS, Box::new(ids), Box::new(|_| "then".into()));
    let property = |name: &str| json!({"name": name, "visitors": {"protocolName": "p", "configData": {}}});
    let device = json!({"metadata": {"name": "d", "namespace": "default", "uid": "u"}, "spec": {
        "deviceModelRef": {"name": "m"}, "nodeName": "n", "protocol": {"protocolName": "p"},
        "properties": [property("a"), property("b")]}});
    let model = json!({"metadata": {"name": "m", "namespace": "default"}, "spec": {"protocol": "p", "properties": [
        {"name": "a", "type": "INT"}, {"name": "b", "type": "STRING"}]}});
    let devices = vec![("default/d".to_owned(), device.to_string().into())];
    let models = vec![("default/m".to_owned(), model.to_string().into())];
    machine.handle(0, Input::Objects { devices, models });
    for (at, message) in data.split(|byte| *byte == 0).enumerate() {
        let Some((first, payload)) = message.split_first() else { continue };
        let (now_ms, topic) = (at as i64 * 3_000, TOPICS[usize::from(*first) % TOPICS.len()]);
        let mut actions = machine.handle(now_ms, Input::Mqtt { topic, payload });
        actions.extend(machine.handle(now_ms + 1_000, Input::Tick));
        for action in actions {
            match action {
                Action::Publish { payload, .. } if !payload.is_empty() => {
                    // The largest tells all twins twice over.
                    assert!(
                        payload.len() <= 4 * TWINS_PER_DEVICE_MAX * (2_048 + REASON_BYTES_MAX),
                        "{topic}"
                    );
                    serde_json::from_slice::<serde::de::IgnoredAny>(&payload).expect("what is said is JSON");
                }
                Action::Sample(sample) => assert!(sample.value.len() <= 512),
                _ => {}
            }
        }
    }
}
