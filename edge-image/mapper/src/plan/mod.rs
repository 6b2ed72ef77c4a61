//! What a Device's fields mean to us. Every error names the field and says what to put there.

pub mod fields;
pub mod gpio;
pub mod serial;

use serde::Deserialize;
use serde_json::Value;

use crate::limits::{
    COLLECT_CYCLE_MS_DEFAULT, CYCLE_MS_MIN, NAME_BYTES_MAX, PROPERTIES_MAX, VALUE_BYTES_MAX,
};
use fields::Fields;

/// The payload of a description topic.
#[derive(Debug, Deserialize)]
pub struct Description {
    #[serde(default)]
    pub version: u64,
    pub device: DeviceView,
    #[serde(default)]
    pub model: Option<ModelView>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct DeviceView {
    pub metadata: Metadata,
    spec: DeviceSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Metadata {
    pub name: String,
    pub namespace: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DeviceSpec {
    properties: Vec<PropertyView>,
    protocol: Visitor,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Visitor {
    protocol_name: String,
    config_data: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PropertyView {
    name: String,
    desired: Option<Desired>,
    visitors: Option<Visitor>,
    report_cycle: u64,
    collect_cycle: u64,
    report_to_cloud: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Desired {
    value: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ModelView {
    spec: ModelSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ModelSpec {
    properties: Vec<ModelProperty>,
    protocol_config_data: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ModelProperty {
    name: String,
    #[serde(rename = "type")]
    value_type: String,
    access_mode: String,
    visitors: Option<Visitor>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub protocol: Protocol,
    pub properties: Vec<Property>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Protocol {
    Gpio,
    Serial(serial::Port),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Property {
    pub name: String,
    /// Model type BOOLEAN: values are `true` and `false`.
    pub boolean: bool,
    pub desired: Option<String>,
    /// 0: on change only.
    pub report_cycle_ms: u64,
    pub collect_cycle_ms: u64,
    pub reported: bool,
    pub access: Access,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Access {
    Line(gpio::LineSpec),
    Text(serial::TextField),
    Channel(u8),
}

/// Reads a description. The text of an error is a whole line for the user.
pub fn read(payload: &[u8]) -> Result<(Description, Result<Plan, String>), String> {
    let description: Description = serde_json::from_slice(payload)
        .map_err(|error| format!("the description is not a Device: {error}"))?;
    let plan = plan(&description);
    Ok((description, plan))
}

fn plan(description: &Description) -> Result<Plan, String> {
    let empty = ModelSpec::default();
    let model = description.model.as_ref().map_or(&empty, |model| &model.spec);
    let spec = &description.device.spec;
    let config = spec.protocol.config_data.as_ref().or(model.protocol_config_data.as_ref());
    let mut fields = Fields::new("spec.protocol.configData", config)?;
    let (protocol, chip) = match spec.protocol.protocol_name.as_str() {
        "gpio" => (Protocol::Gpio, gpio::chip(&mut fields)?),
        "serial" => (Protocol::Serial(serial::port(&mut fields)?), None),
        other => {
            return Err(format!(
                "spec.protocol.protocolName: this mapper knows gpio and serial, not {other:?}"
            ));
        }
    };
    fields.done()?;
    if spec.properties.len() > PROPERTIES_MAX {
        return Err(format!("spec.properties: more than {PROPERTIES_MAX}; make two devices of it"));
    }
    let mut properties = Vec::with_capacity(spec.properties.len());
    for (at, view) in spec.properties.iter().enumerate() {
        properties.push(property(at, view, model, &protocol, chip.as_deref())?);
    }
    Ok(Plan { protocol, properties })
}

fn property(
    at: usize,
    view: &PropertyView,
    model: &ModelSpec,
    protocol: &Protocol,
    chip: Option<&str>,
) -> Result<Property, String> {
    let field = format!("spec.properties[{at}]");
    if view.name.len() > NAME_BYTES_MAX || !value_is_allowed(&view.name) || view.name.is_empty() {
        return Err(format!("{field}.name: {:?} is not a property name", view.name));
    }
    let declared = model.properties.iter().find(|declared| declared.name == view.name);
    let boolean = declared.is_some_and(|declared| declared.value_type.eq_ignore_ascii_case("BOOLEAN"));
    let visitor = view.visitors.as_ref().or(declared.and_then(|declared| declared.visitors.as_ref()));
    let mut fields = Fields::new(
        &format!("{field}.visitors.configData"),
        visitor.and_then(|visitor| visitor.config_data.as_ref()),
    )?;
    let access = match protocol {
        Protocol::Gpio => Access::Line(gpio::line(&mut fields, chip)?),
        Protocol::Serial(port) if port.framing == serial::Framing::Frames => {
            Access::Channel(serial::channel(&mut fields)?)
        }
        Protocol::Serial(_) => Access::Text(serial::text_field(&mut fields, &view.name)?),
    };
    fields.done()?;
    let desired =
        view.desired.as_ref().map(|desired| desired.value.clone()).filter(|value| !value.is_empty());
    let read_only = match &access {
        Access::Line(line) => line.direction == gpio::Direction::Input,
        Access::Text(text) => text.write.is_none(),
        Access::Channel(_) => {
            declared.is_some_and(|declared| declared.access_mode.eq_ignore_ascii_case("ReadOnly"))
        }
    };
    if desired.is_some() && read_only {
        let remedy = match &access {
            Access::Line(_) => "set configData.direction to output",
            Access::Text(_) => "set configData.write to the line to send, with {} for the value",
            Access::Channel(_) => "set accessMode to ReadWrite in the model",
        };
        return Err(format!("{field}.desired.value: {} is read only; remove it, or {remedy}", view.name));
    }
    if let (Access::Line(_), Some(value)) = (&access, &desired) {
        level(value).ok_or_else(|| {
            format!("{field}.desired.value: {value:?} is no level; write 1, 0, true, false, on or off")
        })?;
    }
    let cycle = |cycle: u64, default: u64| if cycle == 0 { default } else { cycle.max(CYCLE_MS_MIN) };
    Ok(Property {
        name: view.name.clone(),
        boolean,
        desired,
        report_cycle_ms: cycle(view.report_cycle, 0),
        collect_cycle_ms: cycle(view.collect_cycle, COLLECT_CYCLE_MS_DEFAULT),
        reported: view.report_to_cloud != Some(false),
        access,
    })
}

impl Property {
    /// A level as the twin's text.
    pub fn level_text(&self, active: bool) -> &'static str {
        match (self.boolean, active) {
            (true, true) => "true",
            (true, false) => "false",
            (false, true) => "1",
            (false, false) => "0",
        }
    }
}

/// A level as people write it.
pub fn level(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "on" => Some(true),
        "0" | "false" | "off" => Some(false),
        _ => None,
    }
}

/// What a twin takes as a value.
pub fn value_is_allowed(value: &str) -> bool {
    value.len() <= VALUE_BYTES_MAX
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.,:/@#".contains(&byte))
}

#[cfg(test)]
mod tests;
