//! Device reports of the edge, merged into DeviceStatus objects. Values only.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use wire::Message;

use crate::limits::TWINS_PER_DEVICE_MAX;

/// KubeEdge's MsgTwin, as far as the cloud uses it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct TwinReport {
    actual: Option<TwinValue>,
    expected: Option<TwinValue>,
    metadata: Option<TypeMeta>,
    /// A wish without a value and with this was withdrawn.
    expected_version: Option<IgnoredAny>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct TwinValue {
    value: Option<String>,
    metadata: Option<ValueMeta>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ValueMeta {
    timestamp: i64,
    /// Ours: where the wish was made, when that was on the node.
    origin: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct TypeMeta {
    #[serde(rename = "type")]
    value_type: String,
    /// Ours: `good`, `stale`, `disconnected`.
    quality: String,
    /// Ours: why the wish is not carried out.
    refused: String,
    /// Ours: the model's.
    unit: String,
}

impl TypeMeta {
    /// Whether the device has no value of the property at all.
    fn is_disconnected(&self) -> bool {
        matches!(self.quality.as_str(), "disconnected" | "bad")
    }
}

#[derive(Deserialize)]
struct TwinsContent {
    twin: BTreeMap<String, Option<TwinReport>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StateReport {
    pub state: String,
    pub last_online_time: String,
    /// Ours: why the device is in that state (KubeEdge's edge sends none). Kept as `extensions.reason`.
    pub reason: String,
}

#[derive(Deserialize)]
struct StateContent {
    device: StateReport,
}

/// The type of a property that was deleted on the node, as KubeEdge's edge reports it.
const DELETED: &str = "deleted";

/// A `None` twin was deleted on the node.
pub fn parse_twins(message: &Message) -> Result<BTreeMap<String, Option<TwinReport>>, serde_json::Error> {
    message.content_as::<TwinsContent>().map(|content| content.twin)
}

pub fn parse_state(message: &Message) -> Result<StateReport, serde_json::Error> {
    message.content_as::<StateContent>().map(|content| content.device)
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusTwin {
    property_name: String,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Debug, thiserror::Error)]
#[error("device has more than {TWINS_PER_DEVICE_MAX} twin properties")]
pub struct TooManyTwins;

/// The new `status` of a DeviceStatus. `None`: it says so already, nothing is to be written.
///
/// The first report of a property is kept (KubeEdge v1.23 appends an empty entry and loses the value).
pub fn merge_twins(
    status: &Value,
    reports: &BTreeMap<String, Option<TwinReport>>,
) -> Result<Option<Value>, TooManyTwins> {
    let mut twins: Vec<StatusTwin> =
        status.get("twins").and_then(|twins| serde_json::from_value(twins.clone()).ok()).unwrap_or_default();
    for (name, report) in reports {
        let deleted = |report: &&TwinReport| {
            report.metadata.as_ref().is_some_and(|metadata| metadata.value_type == DELETED)
        };
        let Some(report) = report.as_ref().filter(|report| !deleted(report)) else {
            twins.retain(|twin| twin.property_name != *name);
            continue;
        };
        let at = twins.iter().position(|twin| twin.property_name == *name).unwrap_or_else(|| {
            twins.push(StatusTwin { property_name: name.clone(), rest: Map::new() });
            twins.len() - 1
        });
        let none = TypeMeta::default();
        let metadata = report.metadata.as_ref().unwrap_or(&none);
        let rest = &mut twins[at].rest;
        if let Some(entry) = entry(
            report.actual.as_ref(),
            metadata,
            &[("unit", &metadata.unit), ("quality", &metadata.quality)],
        ) {
            rest.insert("reported".into(), entry);
        } else if metadata.is_disconnected() {
            // The last value stands, with what it is worth.
            let last = rest
                .entry("reported")
                .or_insert_with(|| json!({"value": "", "metadata": {"type": metadata.value_type}}));
            last["metadata"]["quality"] = metadata.quality.as_str().into();
        }
        if let Some(entry) = entry(report.expected.as_ref(), metadata, &[("refused", &metadata.refused)]) {
            rest.insert("observedDesired".into(), entry);
        } else if report.expected_version.is_some() && report.expected.is_none() {
            rest.remove("observedDesired");
        }
    }
    if twins.len() > TWINS_PER_DEVICE_MAX {
        return Err(TooManyTwins);
    }
    let twins = serde_json::to_value(&twins).expect("twins serialise without error");
    Ok(replaced(status, [("twins", twins)]))
}

/// A value as DeviceStatus has it: all metadata are texts. What is empty of `more` is left out.
fn entry(side: Option<&TwinValue>, metadata: &TypeMeta, more: &[(&str, &str)]) -> Option<Value> {
    let (side, value) = side.and_then(|side| Some((side, side.value.as_ref()?)))?;
    let (timestamp, origin) =
        side.metadata.as_ref().map_or((0, ""), |metadata| (metadata.timestamp, metadata.origin.as_str()));
    let mut shown = json!({"timestamp": timestamp.to_string(), "type": metadata.value_type});
    for (key, text) in more.iter().chain([&("origin", origin)]).filter(|(_, text)| !text.is_empty()) {
        shown[*key] = (*text).into();
    }
    Some(json!({"value": value, "metadata": shown}))
}

/// Nothing but times is different: not worth a write each time.
pub fn only_times_differ(before: &Value, after: &Value) -> bool {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            before.len() == after.len()
                && before.iter().all(|(key, before)| match (key.as_str(), after.get(key)) {
                    ("timestamp" | "lastOnlineTime", Some(_)) => true,
                    (_, Some(after)) => only_times_differ(before, after),
                    (_, None) => false,
                })
        }
        (Value::Array(before), Value::Array(after)) => {
            before.len() == after.len() && before.iter().zip(after).all(|(a, b)| only_times_differ(a, b))
        }
        (before, after) => before == after,
    }
}

pub fn merge_state(status: &Value, report: &StateReport) -> Option<Value> {
    let mut set = vec![("state", Value::from(report.state.clone()))];
    if !report.last_online_time.is_empty() {
        set.push(("lastOnlineTime", Value::from(report.last_online_time.clone())));
    }
    let mut extensions = status.get("extensions").and_then(Value::as_object).cloned().unwrap_or_default();
    let had_reason = extensions.remove("reason").is_some();
    if !report.reason.is_empty() {
        extensions.insert("reason".into(), Value::from(report.reason.clone()));
    }
    if had_reason || !report.reason.is_empty() {
        set.push(("extensions", Value::Object(extensions)));
    }
    replaced(status, set)
}

fn replaced<'a>(status: &Value, set: impl IntoIterator<Item = (&'a str, Value)>) -> Option<Value> {
    let mut fields = status.as_object().cloned().unwrap_or_default();
    for (key, value) in set {
        fields.insert(key.into(), value);
    }
    let merged = Value::Object(fields);
    (merged != *status).then_some(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reports(twin: Value) -> BTreeMap<String, Option<TwinReport>> {
        let message = Message::new(1, "twin", "resource", "update", "device/d/x/twin/edge_updated");
        parse_twins(&message.with_content(&json!({"event_id": "", "timestamp": 1, "twin": twin}))).unwrap()
    }

    #[test]
    fn the_first_value_is_kept_and_later_ones_replace_it() {
        let first = json!({"temperature": {"actual": {"value": "41", "metadata": {"timestamp": 7}}, "metadata": {"type": "int"},
                           "optional": false, "actual_version": {"cloud": 0, "edge": 1}}});
        let status = merge_twins(&json!({}), &reports(first.clone())).unwrap().unwrap();
        assert_eq!(
            status,
            json!({"twins": [{"propertyName": "temperature",
                   "reported": {"value": "41", "metadata": {"timestamp": "7", "type": "int"}}}]})
        );
        assert_eq!(merge_twins(&status, &reports(first)).unwrap(), None, "a repeated report writes nothing");
        let next = json!({"temperature": {"actual": {"value": "42", "metadata": {"timestamp": 8}},
                          "expected": {"value": "20", "metadata": {"timestamp": 3}}, "metadata": {"type": "int"}}});
        let status = merge_twins(&status, &reports(next)).unwrap().unwrap();
        assert_eq!(status["twins"][0]["reported"]["value"], "42");
        assert_eq!(
            status["twins"][0]["observedDesired"]["metadata"],
            json!({"timestamp": "3", "type": "int"})
        );
    }

    #[test]
    fn units_quality_refusals_and_origins_are_metadata() {
        let report = json!({"t": {"actual": {"value": "21", "metadata": {"timestamp": 7}},
            "expected": {"value": "99", "metadata": {"timestamp": 6, "origin": "node"}}, "expected_version": {"cloud": 0, "edge": 1},
            "metadata": {"type": "int", "unit": "C", "quality": "good", "refused": "over 30"}}});
        let status = merge_twins(&json!({}), &reports(report)).unwrap().unwrap();
        assert_eq!(
            status["twins"][0]["reported"]["metadata"],
            json!({"timestamp": "7", "type": "int", "unit": "C", "quality": "good"})
        );
        assert_eq!(
            status["twins"][0]["observedDesired"]["metadata"],
            json!({"timestamp": "6", "type": "int", "refused": "over 30", "origin": "node"})
        );
        let gone = json!({"t": {"expected_version": {"cloud": 0, "edge": 2}, "metadata": {"type": "int", "quality": "disconnected"}},
                          "new": {"metadata": {"type": "int", "quality": "disconnected"}}});
        let status = merge_twins(&status, &reports(gone)).unwrap().unwrap();
        let twin = &status["twins"][0];
        assert_eq!(
            (&twin["reported"]["value"], &twin["reported"]["metadata"]["quality"]),
            (&json!("21"), &json!("disconnected"))
        );
        assert!(twin["observedDesired"].is_null(), "a withdrawn wish is no wish");
        assert_eq!(status["twins"][1]["reported"]["metadata"]["quality"], "disconnected");
    }

    #[test]
    fn what_a_report_does_not_name_stays() {
        let status = json!({"state": "online", "twins": [{"propertyName": "a", "reported": {"value": "1", "metadata": {}}},
                            {"propertyName": "gone", "reported": {"value": "1", "metadata": {}}}]});
        let merged = merge_twins(&status, &reports(json!({"b": {"actual": {"value": ""}}, "gone": null})))
            .unwrap()
            .unwrap();
        assert_eq!(merged["state"], "online");
        let names: Vec<&str> =
            merged["twins"].as_array().unwrap().iter().filter_map(|t| t["propertyName"].as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(merged["twins"][1]["reported"]["value"], "", "an empty value is a value");
    }

    #[test]
    fn state_comes_as_json_inside_a_string() {
        let text = r#"{"event_id":"e","timestamp":1,"device":{"name":"d","state":"online","lastOnlineTime":"2026-01-01T00:00:00Z"}}"#;
        let message =
            Message::new(1, "twin", "resource", "update", "device/d/x/state/update").with_content(text);
        let report = parse_state(&message).unwrap();
        let status = merge_state(&json!({"twins": []}), &report).unwrap();
        assert_eq!(status, json!({"twins": [], "state": "online", "lastOnlineTime": "2026-01-01T00:00:00Z"}));
        assert_eq!(merge_state(&status, &report), None);
    }

    #[test]
    fn the_reason_of_a_state_is_shown_until_it_is_over() {
        let report = |state: &str, reason: &str| StateReport {
            state: state.into(),
            reason: reason.into(),
            ..StateReport::default()
        };
        let status =
            merge_state(&json!({"extensions": {"other": 1}}), &report("offline", "no chip")).unwrap();
        assert_eq!(status, json!({"state": "offline", "extensions": {"other": 1, "reason": "no chip"}}));
        let status = merge_state(&status, &report("online", "")).unwrap();
        assert_eq!(status, json!({"state": "online", "extensions": {"other": 1}}));
    }

    #[test]
    fn a_property_that_the_edge_marks_as_deleted_goes() {
        let status = json!({"twins": [{"propertyName": "gone", "reported": {"value": "1", "metadata": {}}}]});
        let report = json!({"gone": {"actual": {}, "metadata": {"type": "deleted"}}});
        assert_eq!(merge_twins(&status, &reports(report)).unwrap(), Some(json!({"twins": []})));
    }

    #[test]
    fn too_many_properties_are_refused() {
        let many: Map<String, Value> = (0..=TWINS_PER_DEVICE_MAX)
            .map(|n| (format!("p{n}"), json!({"actual": {"value": "1"}})))
            .collect();
        assert!(merge_twins(&json!({}), &reports(Value::Object(many))).is_err());
    }
}
