//! One property of a device as Home Assistant's entity.

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Key prefix of a Device's annotations with further keys for an entity: `homeassistant/<property>: '{"icon": "mdi:pump"}'`.
const ANNOTATION: &str = "homeassistant/";
/// What Home Assistant takes as the bounds of a number that has none in its model.
const NUMBER_MAX: f64 = 1e9;
const TEXT_LEN_MAX: u32 = 255;

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ModelProperty {
    pub name: String,
    #[serde(rename = "type")]
    pub value_type: String,
    pub access_mode: String,
    pub minimum: Value,
    pub maximum: Value,
    pub unit: String,
    pub description: String,
}

/// Where the entity's device is.
#[derive(Clone, Debug)]
pub struct Place<'a> {
    pub node: &'a str,
    pub namespace: &'a str,
    pub device: &'a str,
    pub model: &'a str,
}

impl Place<'_> {
    /// The device's plain topics are below it.
    pub fn base(&self) -> String {
        format!("kinglet/{}/{}/{}", self.node, self.namespace, self.device)
    }

    /// Unique among all nodes: names in Kubernetes have no `_`.
    fn id(&self) -> String {
        word(&format!("{}_{}_{}", self.node, self.namespace, self.device))
    }
}

/// What kind of value a wish must be brought into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Boolean,
    Int,
    Number,
    Text,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Entity {
    pub component: &'static str,
    pub kind: Kind,
    pub writable: bool,
    /// Below the discovery prefix.
    pub topic: String,
    pub config: String,
}

/// `annotations` are the Device's.
pub fn entity(place: &Place<'_>, property: &ModelProperty, annotations: &Map<String, Value>) -> Entity {
    let writable = !property.access_mode.eq_ignore_ascii_case("ReadOnly");
    let kind = match property.value_type.to_ascii_uppercase().as_str() {
        "BOOLEAN" => Kind::Boolean,
        "INT" => Kind::Int,
        "FLOAT" | "DOUBLE" => Kind::Number,
        _ => Kind::Text,
    };
    let component = match (kind, writable) {
        (Kind::Boolean, true) => "switch",
        (Kind::Boolean, false) => "binary_sensor",
        (Kind::Int | Kind::Number, true) => "number",
        (Kind::Text, true) => "text",
        (_, false) => "sensor",
    };
    let (base, name) = (place.base(), &property.name);
    let mut config = Map::new();
    let mut put = |key: &str, value: Value| drop(config.insert(key.to_owned(), value));
    put("name", json!(name));
    put("unique_id", json!(format!("kinglet-{}-{}", place.id(), word(name))));
    put("state_topic", json!(format!("{base}/{name}")));
    put("availability_topic", json!(format!("{base}/available")));
    if writable {
        put("command_topic", json!(format!("{base}/{name}/set")));
    }
    match component {
        "switch" | "binary_sensor" => {
            put("payload_on", json!("true"));
            put("payload_off", json!("false"));
        }
        "number" => {
            // Home Assistant would otherwise offer 1 to 100.
            put("min", json!(bound(&property.minimum).unwrap_or(-NUMBER_MAX)));
            put("max", json!(bound(&property.maximum).unwrap_or(NUMBER_MAX)));
            put("step", if kind == Kind::Int { json!(1) } else { json!(0.001) });
            put("mode", json!("box"));
        }
        "text" => put("max", json!(TEXT_LEN_MAX)),
        _ => {}
    }
    let class = match component {
        "sensor" | "number" => class_of_unit(&property.unit, name),
        "binary_sensor" => class_of_name(name),
        _ => None,
    };
    if let Some(class) = class {
        put("device_class", json!(class));
    }
    if matches!(component, "sensor" | "number") && !property.unit.is_empty() {
        put("unit_of_measurement", json!(property.unit));
    }
    if component == "sensor" && kind != Kind::Text {
        // Meters count up; all else goes up and down.
        put("state_class", json!(if class == Some("energy") { "total_increasing" } else { "measurement" }));
    }
    put(
        "device",
        json!({
            "identifiers": [format!("kinglet-{}", place.id())],
            "name": place.device,
            "model": place.model,
            "manufacturer": "Kinglet",
        }),
    );
    put("origin", json!({"name": "kinglet", "sw_version": env!("CARGO_PKG_VERSION")}));
    let own = annotations.get(&format!("{ANNOTATION}{name}")).and_then(Value::as_str);
    if let Some(Value::Object(own)) = own.and_then(|text| serde_json::from_str(text).ok()) {
        config.extend(own);
    }
    Entity {
        component,
        kind,
        writable,
        topic: format!("{component}/{}/{}/config", place.id(), word(name)),
        config: Value::Object(config).to_string(),
    }
}

/// A wish in the form that a twin of that kind takes; Home Assistant writes 21 as 21.0 now and then, and people write `on`.
pub fn wish(kind: Kind, payload: &str) -> Option<String> {
    let text = payload.trim();
    match kind {
        Kind::Boolean => match text.to_ascii_lowercase().as_str() {
            "true" | "on" | "1" => Some("true".into()),
            "false" | "off" | "0" => Some("false".into()),
            _ => None,
        },
        Kind::Int => {
            let number = text.parse::<f64>().ok().filter(|number| number.fract() == 0.0)?;
            (number.abs() < 9e15).then(|| format!("{}", number as i64))
        }
        Kind::Number => text.parse::<f64>().ok().filter(|number| number.is_finite()).map(|_| text.into()),
        Kind::Text => Some(text.into()),
    }
}

/// The classes whose units Home Assistant documents; a unit that it does not know for a class would be refused there.
fn class_of_unit(unit: &str, name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    Some(match unit {
        "°C" | "°F" | "K" => "temperature",
        "Pa" | "hPa" | "kPa" | "mbar" | "bar" | "psi" => "pressure",
        "V" | "mV" | "kV" => "voltage",
        "A" | "mA" => "current",
        "W" | "kW" | "mW" => "power",
        "VA" => "apparent_power",
        "var" => "reactive_power",
        "Wh" | "kWh" | "MWh" => "energy",
        "Hz" | "kHz" | "MHz" => "frequency",
        "lx" => "illuminance",
        "dB" | "dBm" => "signal_strength",
        "m/s" | "km/h" | "kn" => "speed",
        "L/min" | "m³/h" => "volume_flow_rate",
        "%" if name.contains("humid") => "humidity",
        "%" if name.contains("batter") => "battery",
        "%" if name.contains("moisture") => "moisture",
        "ppm" if name.contains("co2") => "carbon_dioxide",
        _ => return None,
    })
}

fn class_of_name(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    let table = [
        ("motion", "motion"),
        ("window", "window"),
        ("door", "door"),
        ("open", "opening"),
        ("leak", "moisture"),
        ("smoke", "smoke"),
    ];
    table.iter().find(|(part, _)| name.contains(part)).map(|(_, class)| *class)
}

fn bound(value: &Value) -> Option<f64> {
    match value {
        Value::String(text) => text.trim().parse().ok().filter(|bound: &f64| bound.is_finite()),
        other => other.as_f64(),
    }
}

/// Of the letters that Home Assistant takes; others become their number, so that two names stay two.
fn word(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii_alphanumeric() || c == '_' || c == '-' {
            out.push(c);
        } else {
            out.push_str(&format!("_{:x}", u32::from(c)));
        }
    }
    out
}
