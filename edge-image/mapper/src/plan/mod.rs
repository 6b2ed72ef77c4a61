//! What a Device's fields mean to us. Every error names the field and says what to put there.

pub mod chip;
pub mod fields;
pub mod gpio;
pub mod modbus;
pub mod pwm;
pub mod register;
pub mod safety;
pub mod sensor;
pub mod serial;
pub mod text;
pub mod value;

use serde::Deserialize;
use serde_json::Value;

use crate::limits::{
    COLLECT_CYCLE_MS_DEFAULT, CYCLE_MS_MIN, NAME_BYTES_MAX, PROPERTIES_MAX, VALUE_BYTES_MAX,
};
use fields::Fields;
pub use value::{Domain, Type};

/// The protocols of [`Protocol`], as Devices name them: a topic of descriptions each.
pub const PROTOCOLS: [&str; 7] = ["gpio", "i2c", "modbus", "onewire", "pwm", "serial", "spi"];

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
    metadata: Option<Value>,
}

impl Desired {
    /// `metadata.timestamp`, in milliseconds or (below the year 5138) seconds since 1970.
    fn at_ms(&self) -> Option<i64> {
        let stamp = self.metadata.as_ref()?.get("timestamp")?;
        let number = stamp.as_i64().or_else(|| stamp.as_str()?.parse().ok()).filter(|number| *number > 0)?;
        Some(if number < 100_000_000_000 { number * 1000 } else { number })
    }
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
    /// Texts in KubeEdge's CRD; numbers are taken too.
    minimum: Option<Value>,
    maximum: Option<Value>,
    unit: String,
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
    Pwm,
    OneWire,
    I2c(register::I2cPlace),
    Spi(register::SpiPlace),
    Serial(serial::Port),
    Modbus(Box<modbus::Slave>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Property {
    pub name: String,
    /// Type, range, unit and access mode of the model.
    pub domain: Domain,
    /// The desired value, of the right type and within its range.
    pub desired: Option<String>,
    /// When it was made (wall clock), if the Device says so.
    pub desired_at_ms: Option<i64>,
    /// Why the Device's desired value is not that: it is not applied.
    pub refused: Option<String>,
    /// 0: on change only.
    pub report_cycle_ms: u64,
    pub collect_cycle_ms: u64,
    pub reported: bool,
    pub access: Access,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Access {
    Line(gpio::LineSpec),
    Pwm(pwm::PwmSpec),
    Thermometer(sensor::Thermometer),
    Bytes(Box<register::Register>),
    Text(Box<text::TextField>),
    /// On I2C, with a decoder of ours.
    Chip(chip::Chip),
    Channel(u8),
    Register(Box<modbus::Register>),
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
    let config = laid_over(model.protocol_config_data.as_ref(), spec.protocol.config_data.as_ref());
    let config = config.as_ref();
    let mut fields = Fields::new("spec.protocol.configData", config)?;
    let (protocol, chip) = match spec.protocol.protocol_name.as_str() {
        "gpio" => (Protocol::Gpio, gpio::chip(&mut fields)?),
        "pwm" => (Protocol::Pwm, gpio::chip(&mut fields)?),
        "onewire" => (Protocol::OneWire, None),
        "i2c" => (Protocol::I2c(register::i2c(&mut fields)?), None),
        "spi" => (Protocol::Spi(register::spi(&mut fields)?), None),
        "serial" => (Protocol::Serial(serial::port(&mut fields)?), None),
        "modbus" => (Protocol::Modbus(Box::new(modbus::slave(&mut fields)?)), None),
        other => {
            return Err(format!(
                "spec.protocol.protocolName: this mapper knows {}, not {other:?}",
                PROTOCOLS.join(", ")
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
    let chips = properties.iter().filter(|property| matches!(property.access, Access::Chip(_))).count();
    if chips != 0 && chips != properties.len() {
        return Err(
            "spec.properties: some have configData.chip and some have registers; make two devices of it"
                .into(),
        );
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
    let domain = declared.map(domain).transpose()?.unwrap_or_default();
    let of_model = declared.and_then(|declared| declared.visitors.as_ref()?.config_data.as_ref());
    let own = view.visitors.as_ref().and_then(|visitor| visitor.config_data.as_ref());
    let config = laid_over(of_model, own);
    let mut fields = Fields::new(&format!("{field}.visitors.configData"), config.as_ref())?;
    let access = match protocol {
        Protocol::Gpio => Access::Line(gpio::line(&mut fields, chip)?),
        Protocol::Pwm => Access::Pwm(pwm::channel(&mut fields, chip)?),
        Protocol::OneWire => Access::Thermometer(sensor::thermometer(&mut fields)?),
        Protocol::I2c(_) => match chip::chip(&mut fields)? {
            Some(chip) => Access::Chip(chip),
            None => Access::Bytes(Box::new(register::register(&mut fields, false)?)),
        },
        Protocol::Spi(_) => Access::Bytes(Box::new(register::register(&mut fields, true)?)),
        Protocol::Serial(port) if port.framing == serial::Framing::Frames => {
            Access::Channel(serial::channel(&mut fields)?)
        }
        Protocol::Modbus(slave) => {
            Access::Register(Box::new(modbus::register(&mut fields, slave, domain.kind)?))
        }
        Protocol::Serial(_) => {
            Access::Text(Box::new(text::text_field(&mut fields, &view.name, domain.kind)?))
        }
    };
    fields.done()?;
    let wish = view.desired.as_ref().map(|desired| desired.value.as_str()).filter(|value| !value.is_empty());
    let (desired, refused) = match wish.map(|value| wish_for(value, &domain, &access)) {
        None => (None, None),
        Some(Ok(value)) => (Some(value), None),
        Some(Err(reason)) => (None, Some(format!("{field}.desired.value of {}: {reason}", view.name))),
    };
    let cycle = |cycle: u64, default: u64| if cycle == 0 { default } else { cycle.max(CYCLE_MS_MIN) };
    Ok(Property {
        name: view.name.clone(),
        domain,
        desired,
        desired_at_ms: view.desired.as_ref().and_then(Desired::at_ms),
        refused,
        report_cycle_ms: cycle(view.report_cycle, 0),
        collect_cycle_ms: cycle(view.collect_cycle, COLLECT_CYCLE_MS_DEFAULT),
        reported: view.report_to_cloud != Some(false),
        access,
    })
}

/// A Device's own configuration over its model's, key by key, as KubeEdge does it (a Device of a library model needs only what
/// is different about it).
fn laid_over(model: Option<&Value>, own: Option<&Value>) -> Option<Value> {
    match (model, own.filter(|own| !own.is_null())) {
        (Some(Value::Object(model)), Some(Value::Object(own))) => {
            let mut merged = model.clone();
            merged.retain(|key, _| !own.keys().any(|own| own.eq_ignore_ascii_case(key)));
            merged.extend(own.clone());
            Some(Value::Object(merged))
        }
        (model, own) => own.or(model).cloned(),
    }
}

/// What a model says about a property's values.
fn domain(declared: &ModelProperty) -> Result<Domain, String> {
    let name = &declared.name;
    let kind = Type::parse(&declared.value_type)
        .map_err(|reason| format!("DeviceModel, property {name}: {reason}"))?;
    let bound = |key: &str, value: &Option<Value>| {
        let text = match value {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(text)) if text.trim().is_empty() => return Ok(None),
            Some(Value::String(text)) => text.trim().to_owned(),
            Some(other) => other.to_string(),
        };
        match text.parse::<f64>() {
            Ok(bound) if bound.is_finite() => Ok(Some(bound)),
            _ => Err(format!("DeviceModel, property {name}: {key} {text:?} is no number")),
        }
    };
    let (minimum, maximum) = (bound("minimum", &declared.minimum)?, bound("maximum", &declared.maximum)?);
    if let (Some(low), Some(high)) = (minimum, maximum)
        && low > high
    {
        return Err(format!("DeviceModel, property {name}: minimum {low} is above maximum {high}"));
    }
    let read_only = declared.access_mode.eq_ignore_ascii_case("ReadOnly");
    Ok(Domain { kind, minimum, maximum, unit: declared.unit.clone(), read_only })
}

/// The desired value as the driver gets it: of the model's type and range, and one that its place on the wire can take.
fn wish_for(value: &str, domain: &Domain, access: &Access) -> Result<String, String> {
    let remedy = match access {
        Access::Line(line) if line.direction == gpio::Direction::Input => {
            Some("set configData.direction to output")
        }
        Access::Thermometer(_) | Access::Chip(_) => Some("use another device: this one only measures"),
        Access::Bytes(register) if register.write.is_none() => Some("set configData.write to true"),
        Access::Text(text) if text.write.is_none() => {
            Some("set configData.write to the line to send, with {} for the value")
        }
        _ => None,
    };
    if let Some(remedy) = remedy {
        return Err(format!("it is read only; remove the value, or {remedy}"));
    }
    match access {
        Access::Line(line) => gpio::value(line.function, value).map(drop)?,
        Access::Pwm(_) => gpio::duty(value).map(drop)?,
        Access::Bytes(register) => register.with_value(0, value).map(drop)?,
        _ => {}
    }
    if let Access::Register(register) = access {
        let value = domain.wish(value)?;
        return register.refuses(&value).map_or(Ok(value), Err);
    }
    // A level is a level, whatever the model calls it.
    let is_level = matches!(access, Access::Line(line) if line.function == gpio::Function::Level);
    if is_level && domain.kind != Type::Boolean && !domain.read_only {
        return Ok(value.to_owned());
    }
    domain.wish(value)
}

impl Property {
    /// A property without a model, range or cycle.
    pub fn new(name: &str, access: Access) -> Property {
        Property {
            name: name.into(),
            domain: Domain::default(),
            desired: None,
            desired_at_ms: None,
            refused: None,
            report_cycle_ms: 0,
            collect_cycle_ms: COLLECT_CYCLE_MS_DEFAULT,
            reported: true,
            access,
        }
    }

    /// How old the desired value is; 0 when nobody says.
    pub fn desired_age_ms(&self, wall_ms: u64) -> u64 {
        self.desired_at_ms.map_or(0, |at_ms| (wall_ms as i64).saturating_sub(at_ms).max(0) as u64)
    }

    /// A level as the twin's text.
    pub fn level_text(&self, active: bool) -> &'static str {
        match (self.domain.kind == Type::Boolean, active) {
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
