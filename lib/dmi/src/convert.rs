//! Device and DeviceModel objects as DMI messages, and back.
//!
//! Outward, as KubeEdge does: the Device's own configuration is laid over the model's, key by key, for the protocol and for each
//! visitor. `desired`, `visitors` and `configData` are always sent, since mappers made with KubeEdge's framework end without them.

use std::collections::BTreeMap;

use prost::Message;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Number, Value, json};

use crate::messages::{
    Any, Config, CustomizedValue, Device, DeviceMethod, DeviceModel, DeviceProperty, DeviceSpec,
    DeviceStatus, ModelProperty, ModelSpec, TwinProperty,
};

const WRAPPERS: &str = "type.googleapis.com/google.protobuf.";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Description {
    device: DeviceObject,
    model: ModelObject,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: String,
    namespace: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DeviceObject {
    metadata: Metadata,
    spec: SpecObject,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SpecObject {
    device_model_ref: Metadata,
    protocol: Config,
    properties: Vec<DeviceProperty>,
    methods: Vec<DeviceMethod>,
    state_report: Option<StateReport>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct StateReport {
    report_to_cloud: bool,
    report_cycle: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ModelObject {
    metadata: Metadata,
    spec: ModelSpecObject,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ModelSpecObject {
    properties: Vec<ModelPropertyObject>,
    protocol_config_data: Option<CustomizedValue>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ModelPropertyObject {
    #[serde(flatten)]
    property: ModelProperty,
    visitors: Option<Config>,
}

/// Reads `{"device": Device, "model": DeviceModel}` (the description of a device on the bus) as what a mapper is sent.
pub fn from_description(description: &Value) -> Result<(Device, DeviceModel), String> {
    let Description { device, model } = Description::deserialize(description)
        .map_err(|error| format!("the description is no Device: {error}"))?;
    let ModelObject { metadata: named, spec: declared } = model;
    let mut properties = device.spec.properties;
    for property in &mut properties {
        let declared = declared.properties.iter().find(|declared| declared.property.name == property.name);
        let own = property.visitors.take().unwrap_or_default();
        property.visitors = Some(match declared.and_then(|declared| declared.visitors.clone()) {
            Some(model) => Config {
                config_data: Some(laid_over(model.config_data, own.config_data)),
                protocol_name: model.protocol_name,
            },
            None => Config { config_data: Some(own.config_data.unwrap_or_default()), ..own },
        });
        property.desired.get_or_insert_with(TwinProperty::default);
    }
    let protocol = Config {
        protocol_name: device.spec.protocol.protocol_name,
        config_data: Some(laid_over(declared.protocol_config_data, device.spec.protocol.config_data)),
    };
    let report = device.spec.state_report.unwrap_or_default();
    let namespace = |namespace: String| if namespace.is_empty() { "default".into() } else { namespace };
    let model = DeviceModel {
        name: named.name,
        namespace: namespace(named.namespace),
        spec: Some(ModelSpec { properties: declared.properties.into_iter().map(|p| p.property).collect() }),
    };
    let device = Device {
        name: device.metadata.name,
        namespace: namespace(device.metadata.namespace),
        spec: Some(DeviceSpec {
            device_model_reference: device.spec.device_model_ref.name,
            protocol: Some(protocol),
            properties,
            methods: device.spec.methods,
        }),
        status: Some(DeviceStatus {
            twins: Vec::new(),
            report_to_cloud: report.report_to_cloud,
            report_cycle: report.report_cycle,
        }),
    };
    Ok((device, model))
}

fn laid_over(model: Option<CustomizedValue>, own: Option<CustomizedValue>) -> CustomizedValue {
    let mut merged = model.unwrap_or_default();
    merged.data.extend(own.unwrap_or_default().data);
    merged
}

/// What a mapper was sent, as the description that it would have had on the bus.
pub fn description(device: &Device, model: Option<&DeviceModel>) -> Value {
    let empty = DeviceSpec::default();
    let spec = device.spec.as_ref().unwrap_or(&empty);
    let mut body = json!({"version": 0, "device": {
    "metadata": {"name": device.name, "namespace": device.namespace},
    "spec": {
        "deviceModelRef": {"name": spec.device_model_reference},
        "protocol": spec.protocol,
        "properties": spec.properties,
        "methods": spec.methods,
    }}});
    if let Some(model) = model {
        body["model"] = json!({"metadata": {"name": model.name, "namespace": model.namespace},
            "spec": model.spec.as_ref()});
    }
    body
}

/// A text, or a number written where a text belongs.
pub fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Null => String::new(),
        Value::String(text) => text,
        other => other.to_string(),
    })
}

impl<'de> Deserialize<'de> for CustomizedValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<CustomizedValue, D::Error> {
        let map = Option::<Map<String, Value>>::deserialize(deserializer)?.unwrap_or_default();
        Ok(CustomizedValue { data: map.into_iter().map(|(key, value)| (key, any(&value))).collect() })
    }
}

impl Serialize for CustomizedValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let map: BTreeMap<&String, Value> =
            self.data.iter().filter_map(|(key, any)| Some((key, value(any)?))).collect();
        map.serialize(serializer)
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct StringValue {
    #[prost(string, tag = "1")]
    value: String,
}
#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Int32Value {
    #[prost(int32, tag = "1")]
    value: i32,
}
#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Int64Value {
    #[prost(int64, tag = "1")]
    value: i64,
}
#[derive(Clone, Copy, PartialEq, prost::Message)]
struct FloatValue {
    #[prost(float, tag = "1")]
    value: f32,
}
#[derive(Clone, Copy, PartialEq, prost::Message)]
struct DoubleValue {
    #[prost(double, tag = "1")]
    value: f64,
}
#[derive(Clone, Copy, PartialEq, prost::Message)]
struct BoolValue {
    #[prost(bool, tag = "1")]
    value: bool,
}

/// A value of a configuration as KubeEdge's mappers read it: they know strings, 32 and 64 bit integers, floats and booleans.
/// KubeEdge sends every number as a float and refuses objects and lists; we keep integers whole and send the rest as JSON text.
fn any(value: &Value) -> Any {
    let wrapped = |name: &str, value: Vec<u8>| Any { type_url: format!("{WRAPPERS}{name}"), value };
    let text = |value: String| wrapped("StringValue", StringValue { value }.encode_to_vec());
    match value {
        Value::String(value) => text(value.clone()),
        Value::Bool(value) => wrapped("BoolValue", BoolValue { value: *value }.encode_to_vec()),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => match i32::try_from(whole) {
                Ok(value) => wrapped("Int32Value", Int32Value { value }.encode_to_vec()),
                Err(_) => wrapped("Int64Value", Int64Value { value: whole }.encode_to_vec()),
            },
            (None, Some(value)) => wrapped("FloatValue", FloatValue { value: value as f32 }.encode_to_vec()),
            (None, None) => text(number.to_string()),
        },
        other => text(other.to_string()),
    }
}

/// `None`: of a type that nobody sends, or cut off.
fn value(any: &Any) -> Option<Value> {
    let bytes = any.value.as_slice();
    let name = any.type_url.rsplit('/').next()?.strip_prefix("google.protobuf.")?;
    Some(match name {
        "StringValue" => StringValue::decode(bytes).ok()?.value.into(),
        "Int32Value" => Int32Value::decode(bytes).ok()?.value.into(),
        "Int64Value" => Int64Value::decode(bytes).ok()?.value.into(),
        "BoolValue" => BoolValue::decode(bytes).ok()?.value.into(),
        "DoubleValue" => number(DoubleValue::decode(bytes).ok()?.value)?,
        // By its shortest text: 0.1 as 32 bits is 0.1 and not 0.10000000149.
        "FloatValue" => number(FloatValue::decode(bytes).ok()?.value.to_string().parse().ok()?)?,
        _ => return None,
    })
}

/// Stock edgecore sends the 502 of a port as 502.0.
fn number(number: f64) -> Option<Value> {
    if number.fract() == 0.0 && number.abs() < 9e15 {
        return Some(Value::from(number as i64));
    }
    Number::from_f64(number).map(Value::Number)
}
