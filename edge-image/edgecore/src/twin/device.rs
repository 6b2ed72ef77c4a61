//! Reading Device and DeviceModel objects: what twin needs of them, what a mapper is given, and what is wrong with them.

use std::{collections::BTreeMap, sync::Arc};

use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use super::{
    policy::{self, Policies},
    push::{self, Push},
    types::Twins,
    validate,
    wish::Desired,
};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Meta {
    name: String,
    namespace: String,
    uid: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

impl Meta {
    fn policies(&self) -> Option<&str> {
        self.annotations.get(policy::ANNOTATION).map(String::as_str)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DeviceView {
    metadata: Meta,
    spec: DeviceSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DeviceSpec {
    device_model_ref: Named,
    properties: Vec<Property>,
    protocol: Protocol,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Protocol {
    protocol_name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Property {
    name: String,
    desired: Option<DesiredView>,
    visitors: Option<Box<RawValue>>,
    #[serde(rename = "reportToCloud")]
    report_to_cloud: Option<bool>,
    #[serde(rename = "pushMethod")]
    push_method: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DesiredView {
    value: String,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ModelView {
    metadata: Meta,
    spec: ModelSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ModelSpec {
    properties: Vec<ModelProperty>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ModelProperty {
    name: String,
    #[serde(rename = "type")]
    value_type: String,
    unit: String,
    visitors: Option<Box<RawValue>>,
}

/// A property as the twin keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub name: String,
    pub value_type: &'static str,
    pub unit: String,
    pub desired: Option<Desired>,
    /// `reportToCloud: false` of the Device; the annotation counts before it.
    pub stays: bool,
    /// Where its values go besides the cloud.
    pub push: Arc<[Push]>,
}

/// A Device with its model, read and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    pub uid: String,
    pub name: String,
    pub description: String,
    pub protocol: String,
    pub properties: Vec<Wanted>,
    pub policies: Policies,
    /// What cannot be done although the Device makes sense.
    pub complaints: Vec<String>,
    /// JSON of the device and of the model, for mappers.
    pub body: String,
}

/// The name of the model that a Device refers to, if the Device can be read at all.
pub fn model_name(device: &[u8]) -> Option<String> {
    serde_json::from_slice::<DeviceView>(device).ok().map(|view| view.spec.device_model_ref.name)
}

/// Reads a Device and its model. The error names the field and says what to put there.
pub fn read(device: &[u8], model: Option<&[u8]>) -> Result<Spec, String> {
    let view: DeviceView =
        serde_json::from_slice(device).map_err(|error| format!("the Device cannot be read: {error}"))?;
    if view.spec.protocol.protocol_name.is_empty() {
        return Err(
            "spec.protocol.protocolName is missing: write gpio, serial or another mapper's name".into()
        );
    }
    if !mqtt::topic::topic_is_valid(&view.spec.protocol.protocol_name)
        || view.spec.protocol.protocol_name.contains('/')
    {
        return Err(format!(
            "spec.protocol.protocolName {:?} is not one word: write gpio, serial or another mapper's name",
            view.spec.protocol.protocol_name
        ));
    }
    let model_name = &view.spec.device_model_ref.name;
    if model_name.is_empty() {
        return Err("spec.deviceModelRef.name is missing: name a DeviceModel of the same namespace".into());
    }
    let Some(model) = model else {
        return Err(format!(
            "spec.deviceModelRef.name: DeviceModel {model_name} is not on this node: create it in namespace {}",
            view.metadata.namespace
        ));
    };
    let model_view: ModelView = serde_json::from_slice(model)
        .map_err(|error| format!("DeviceModel {model_name} cannot be read: {error}"))?;
    let mut complaints = Vec::new();
    let properties = properties(&view.spec, &model_view.spec, model_name, &mut complaints)?;
    let body = format!("\"device\":{},\"model\":{}", trimmed(device)?, trimmed(model)?);
    let policies = Policies::read(view.metadata.policies(), model_view.metadata.policies())
        .map_err(|reason| format!("annotation {}: {reason}", policy::ANNOTATION))?;
    let description = view.metadata.labels.get("description").cloned().unwrap_or_default();
    Ok(Spec {
        uid: view.metadata.uid,
        name: view.metadata.name,
        description,
        protocol: view.spec.protocol.protocol_name,
        properties,
        policies,
        complaints,
        body,
    })
}

fn properties(
    device: &DeviceSpec,
    model: &ModelSpec,
    model_name: &str,
    complaints: &mut Vec<String>,
) -> Result<Vec<Wanted>, String> {
    let mut wanted: Vec<Wanted> = Vec::with_capacity(device.properties.len());
    for (at, property) in device.properties.iter().enumerate() {
        let field = format!("spec.properties[{at}]");
        validate::name(&property.name).map_err(|reason| format!("{field}.name: {reason}"))?;
        if wanted.iter().any(|before| before.name == property.name) {
            return Err(format!("{field}.name: {} is there twice: remove one", property.name));
        }
        let Some(declared) = model.properties.iter().find(|declared| declared.name == property.name) else {
            let known: Vec<&str> = model.properties.iter().map(|declared| declared.name.as_str()).collect();
            return Err(format!(
                "{field}.name: DeviceModel {model_name} has no property {}: use one of {}, or add it to the model",
                property.name,
                known.join(", ")
            ));
        };
        let value_type = validate::twin_type(&declared.value_type).ok_or_else(|| {
            format!(
                "DeviceModel {model_name}: type {} of {} is unknown: use INT, FLOAT, DOUBLE, STRING, BOOLEAN, BYTES or STREAM",
                declared.value_type, property.name
            )
        })?;
        if property.visitors.is_none() && declared.visitors.is_none() {
            return Err(format!(
                "{field}.visitors is missing: it tells the mapper how to read {}",
                property.name
            ));
        }
        let desired = property.desired.as_ref().filter(|desired| !desired.value.is_empty());
        if let Some(desired) = desired {
            validate::value(value_type, &desired.value)
                .map_err(|reason| format!("{field}.desired.value: {reason}"))?;
        }
        let desired = desired.map(|desired| Desired {
            value: desired.value.clone(),
            at_ms: desired.metadata.get("timestamp").and_then(|text| text.parse().ok()).unwrap_or(0),
        });
        let (push, unsupported) =
            property.push_method.as_ref().map(|method| push::read(method, value_type)).unwrap_or_default();
        complaints.extend(unsupported.into_iter().map(|reason| format!("{field}.{reason}")));
        let (name, unit) = (property.name.clone(), declared.unit.clone());
        let stays = property.report_to_cloud == Some(false);
        wanted.push(Wanted { name, value_type, unit, desired, stays, push: push.into() });
    }
    Ok(wanted)
}

/// The object without what no mapper needs: managed fields, the copy that kubectl apply leaves, status.
fn trimmed(object: &[u8]) -> Result<String, String> {
    let mut value: Value =
        serde_json::from_slice(object).map_err(|error| format!("the object cannot be read: {error}"))?;
    if let Some(object) = value.as_object_mut() {
        object.remove("status");
    }
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|key, _| matches!(key.as_str(), "name" | "namespace" | "uid" | "labels"));
    }
    Ok(value.to_string())
}

/// The body with the wishes that count in the place of what the Device desires, each with the time when it was made: this is what a
/// mapper carries out, and whose age its fail-safe values may depend on.
pub fn with_wishes(body: &str, twins: &Twins) -> String {
    let Ok(mut value) = serde_json::from_str::<Value>(&format!("{{{body}}}")) else { return body.to_owned() };
    let properties = value.pointer_mut("/device/spec/properties").and_then(Value::as_array_mut);
    let mut changed = false;
    for property in properties.into_iter().flatten() {
        let twin = twins.get(property["name"].as_str().unwrap_or_default());
        let expected = twin.and_then(|twin| twin.expected.as_ref());
        let counts = expected.and_then(|expected| {
            let made_at_ms = expected.metadata.as_ref().map_or(0, |metadata| metadata.timestamp);
            let value = expected.value.as_deref()?;
            Some(json!({"value": value, "metadata": {"timestamp": made_at_ms.to_string()}}))
        });
        let Some(property) = property.as_object_mut() else { continue };
        let says = property
            .get("desired")
            .filter(|desired| !desired["value"].as_str().unwrap_or_default().is_empty());
        if counts.as_ref() == says {
            continue;
        }
        changed = true;
        match counts {
            Some(counts) => _ = property.insert("desired".into(), counts),
            None => _ = property.remove("desired"),
        }
    }
    if !changed {
        return body.to_owned();
    }
    let text = value.to_string();
    text[1..text.len() - 1].to_owned()
}
