//! Reading Device and DeviceModel objects: what twin needs of them, what a mapper is given, and what is wrong with them.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::validate;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Meta {
    name: String,
    namespace: String,
    uid: String,
    labels: BTreeMap<String, String>,
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
    desired: Option<Desired>,
    visitors: Option<Box<RawValue>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Desired {
    value: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ModelView {
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
    visitors: Option<Box<RawValue>>,
}

/// A property as the twin keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub name: String,
    pub value_type: &'static str,
    pub desired: Option<String>,
}

/// A Device with its model, read and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    pub uid: String,
    pub name: String,
    pub description: String,
    pub protocol: String,
    pub properties: Vec<Wanted>,
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
    let properties = properties(&view.spec, &model_view.spec, model_name)?;
    let body = format!("\"device\":{},\"model\":{}", trimmed(device)?, trimmed(model)?);
    let description = view.metadata.labels.get("description").cloned().unwrap_or_default();
    Ok(Spec {
        uid: view.metadata.uid,
        name: view.metadata.name,
        description,
        protocol: view.spec.protocol.protocol_name,
        properties,
        body,
    })
}

fn properties(device: &DeviceSpec, model: &ModelSpec, model_name: &str) -> Result<Vec<Wanted>, String> {
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
        let desired =
            property.desired.as_ref().map(|desired| desired.value.clone()).filter(|value| !value.is_empty());
        if let Some(value) = &desired {
            validate::value(value_type, value)
                .map_err(|reason| format!("{field}.desired.value: {reason}"))?;
        }
        wanted.push(Wanted { name: property.name.clone(), value_type, desired });
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
