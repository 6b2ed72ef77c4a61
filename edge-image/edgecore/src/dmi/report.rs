//! What mappers report, as the messages that every mapper's reports are on the bus.

use std::collections::BTreeMap;

use dmi::{
    grpc::{Refusal, code},
    messages::{Device, ReportDeviceStatesRequest, ReportDeviceStatusRequest, Texts},
};
use serde_json::{Value, json};

use super::{book::Action, wish::Refusals};
use crate::{contract::device_works, limits::TWINS_PER_DEVICE_MAX};

const DEVICE_TOPIC: &str = "$hw/events/device/";

/// All values of a report in one update. What the mapper saw as desired is not repeated to the twin: the wish is the cloud's or
/// the node's, and a mapper that is behind must not turn it back (KubeEdge's edge lets it).
pub fn values(request: &ReportDeviceStatusRequest, refusals: &Refusals) -> Result<Action, Refusal> {
    let id = device_id(&request.device_namespace, &request.device_name)?;
    let twins = request.reported_device.as_ref().map(|device| device.twins.as_slice()).unwrap_or_default();
    if twins.is_empty() || twins.len() > TWINS_PER_DEVICE_MAX {
        let message = format!("a report has 1 to {TWINS_PER_DEVICE_MAX} twins, not {}", twins.len());
        return Err(Refusal::new(code::INVALID_ARGUMENT, message));
    }
    let refused = refusals.get(&id);
    let mut update = BTreeMap::new();
    for twin in twins {
        let Some(reported) = &twin.reported else { continue };
        let mut value = json!({"actual": {"value": reported.value}});
        if let Some(at_ms) = timestamp(&reported.metadata) {
            value["actual"]["metadata"] = json!({"timestamp": at_ms});
        }
        // Our own mapper says more than KubeEdge's.
        for key in ["quality", "refused"] {
            if let Some(text) = reported.metadata.get(key) {
                value["metadata"][key] = json!(text);
            }
        }
        if let Some(reason) = refused.and_then(|refused| refused.get(&twin.property_name)) {
            value["metadata"]["refused"] = json!(reason);
        }
        if reported.metadata.get("quality").is_some_and(|quality| quality == "disconnected")
            && let Some(value) = value.as_object_mut()
        {
            value.remove("actual");
        }
        update.insert(twin.property_name.as_str(), value);
    }
    Ok(twin_update(&id, &json!(update)))
}

pub fn states(request: &ReportDeviceStatesRequest, refusals: &Refusals) -> Result<Action, Refusal> {
    let id = device_id(&request.device_namespace, &request.device_name)?;
    if request.state.is_empty() {
        return Err(Refusal::new(code::INVALID_ARGUMENT, "the report has no state"));
    }
    // What the mapper was not sent it cannot know.
    if let Some(refused) = refusals.get(&id).filter(|_| device_works(&request.state)) {
        return Ok(state(&id, "unhealthy", &reason(refused)));
    }
    Ok(state(&id, &request.state, &request.reason))
}

/// Of a device with desired values that are refused.
pub fn reason(refused: &BTreeMap<String, String>) -> String {
    refused.values().map(String::as_str).collect::<Vec<_>>().join("; ")
}

pub fn state(id: &str, state: &str, reason: &str) -> Action {
    let payload = json!({"event_id": "", "state": state, "reason": reason});
    Action::Publish { topic: format!("{DEVICE_TOPIC}{id}/state/update"), payload: payload.to_string() }
}

/// Its mapper is gone, so nobody knows what its properties are.
pub fn disconnected(id: &str, device: &Device) -> Option<Action> {
    let properties = &device.spec.as_ref()?.properties;
    let update: BTreeMap<&str, Value> = properties
        .iter()
        .map(|property| (property.name.as_str(), json!({"metadata": {"quality": "disconnected"}})))
        .collect();
    (!update.is_empty()).then(|| twin_update(id, &json!(update)))
}

fn twin_update(id: &str, twin: &Value) -> Action {
    let payload = json!({"event_id": "", "twin": twin});
    Action::Publish { topic: format!("{DEVICE_TOPIC}{id}/twin/update"), payload: payload.to_string() }
}

/// Milliseconds, as KubeEdge's framework writes them.
fn timestamp(metadata: &Texts) -> Option<i64> {
    metadata.get("timestamp")?.parse().ok().filter(|at_ms| *at_ms > 0)
}

/// `<ns>/<name>`, for a topic.
fn device_id(namespace: &str, name: &str) -> Result<String, Refusal> {
    let namespace = if namespace.is_empty() { "default" } else { namespace };
    let valid = |text: &str| {
        !text.is_empty()
            && text.len() <= 253
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
    };
    match valid(namespace) && valid(name) {
        true => Ok(format!("{namespace}/{name}")),
        false => Err(Refusal::new(code::INVALID_ARGUMENT, format!("{namespace:?}/{name:?} is no device"))),
    }
}
