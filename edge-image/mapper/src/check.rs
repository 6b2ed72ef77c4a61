//! `mapper check`: what a Device would read and write, without touching anything.

use std::fmt::Write;

use serde_json::Value;

use crate::plan::{
    self, Access, Plan, Protocol,
    chip::Chip,
    gpio::{Direction, Function, LineRef, LineSpec},
    serial::Framing,
    text::Template,
};

/// A Device of the file that makes sense.
pub struct Checked {
    /// `<namespace>/<name>`.
    pub id: String,
    pub plan: Plan,
}

/// Reads Devices and DeviceModels (YAML documents, JSON, a List, or a description as a mapper gets it) and says what each Device
/// means, where its lines come out and what is odd about the wiring. `model` is the text of a file with further models. The error has
/// a line for each Device that makes no sense.
pub fn check(text: &str, model: Option<&str>) -> Result<String, String> {
    let mut objects = objects(text)?;
    if let Some(text) = model {
        objects.extend(self::objects(text)?);
    }
    let (mut out, mut checked, mut faults) = (String::new(), Vec::new(), Vec::new());
    for object in &objects {
        let description = if object.get("device").is_some() {
            object.clone()
        } else if object["kind"] == "Device" {
            let name = &object["spec"]["deviceModelRef"]["name"];
            let models = || objects.iter().filter(|object| object["kind"] == "DeviceModel");
            let model = models().find(|model| model["metadata"]["name"] == *name);
            serde_json::json!({"version": 0, "device": object, "model": model})
        } else {
            continue;
        };
        match describe(&description, &mut out) {
            Ok(device) => checked.push(device),
            Err(fault) => faults.push(fault),
        }
    }
    if !faults.is_empty() {
        return Err(faults.join("\n"));
    }
    if checked.is_empty() {
        return Err("there is no object of kind Device".into());
    }
    #[cfg(feature = "laptop")]
    out.push_str(&crate::wiring::report(&checked, &objects));
    Ok(out)
}

/// The objects of a text, those of Lists one by one.
pub fn objects(text: &str) -> Result<Vec<Value>, String> {
    let mut objects = Vec::new();
    for value in documents(text)? {
        match value.get("items").and_then(Value::as_array) {
            Some(items) => objects.extend(items.iter().cloned()),
            // What is left between two `---`.
            None if value.is_null() => {}
            None => objects.push(value),
        }
    }
    Ok(objects)
}

fn describe(description: &Value, out: &mut String) -> Result<Checked, String> {
    let (description, plan) = plan::read(description.to_string().as_bytes())?;
    let metadata = &description.device.metadata;
    let namespace = if metadata.namespace.is_empty() { "default" } else { &metadata.namespace };
    let id = format!("{namespace}/{}", metadata.name);
    let _ = writeln!(out, "device {id}");
    if description.model.is_none() {
        out.push_str("  note: without its DeviceModel types are unknown; put it into the same file, or give it as second file\n");
    }
    let wrong = |reason: &String| format!("device {id}: {reason}");
    let plan = plan.map_err(|reason| wrong(&reason))?;
    if let Some(refused) = plan.properties.iter().find_map(|property| property.refused.as_ref()) {
        return Err(wrong(refused));
    }
    render(&plan, out);
    Ok(Checked { id, plan })
}

#[cfg(feature = "yaml")]
fn documents(text: &str) -> Result<Vec<Value>, String> {
    // JSON is YAML, too; its own parser has the better messages for it.
    if text.trim_start().starts_with('{') {
        return json(text);
    }
    serde_saphyr::from_multiple(text).map_err(|error| format!("not YAML: {error}"))
}

#[cfg(not(feature = "yaml"))]
fn documents(text: &str) -> Result<Vec<Value>, String> {
    json(text).map_err(|error| {
        format!("{error}; for YAML use kinglet-mapper, the build for a laptop (docs/devices.md)")
    })
}

fn json(text: &str) -> Result<Vec<Value>, String> {
    serde_json::from_str(text).map(|value| vec![value]).map_err(|error| format!("not JSON: {error}"))
}

#[cfg(feature = "laptop")]
fn pin(line: &LineSpec) -> String {
    crate::wiring::pin(line)
}

/// The boards' headers are data for a laptop.
#[cfg(not(feature = "laptop"))]
fn pin(_line: &LineSpec) -> String {
    String::new()
}

fn render(plan: &Plan, out: &mut String) {
    if let Protocol::Serial(port) = &plan.protocol {
        let framing = if port.framing == Framing::Lines { "text lines" } else { "frames" };
        let _ = writeln!(out, "  opens {} at {} baud, {framing}", port.path, port.baud_rate);
    }
    match &plan.protocol {
        Protocol::I2c(place) => {
            let _ = writeln!(out, "  opens /dev/i2c-{}, address {:#04x}", place.bus, place.address);
        }
        Protocol::Spi(place) => {
            let (bus, select) = (place.bus, place.select);
            let _ =
                writeln!(out, "  opens /dev/spidev{bus}.{select} at {} Hz, mode {}", place.hz, place.mode);
        }
        _ => {}
    }
    if let Protocol::Modbus(slave) = &plan.protocol {
        let _ = writeln!(out, "  asks unit {} on {}", slave.unit, slave.line.link.name());
    }
    for property in &plan.properties {
        let _ = match &property.access {
            Access::Line(line) => {
                let chip = line.chip.as_deref().unwrap_or("the Pi's header chip");
                let place = match &line.line {
                    LineRef::Offset(offset) => offset.to_string(),
                    LineRef::Name(name) => format!("{name:?}"),
                };
                let act = match (line.function, line.direction) {
                    (Function::Count { .. }, _) => "counts the edges of",
                    (Function::Frequency { .. }, _) => "measures the frequency of",
                    (Function::Pwm { .. }, _) => "switches, for a duty cycle,",
                    (Function::Level, Direction::Input) => "reads",
                    (Function::Level, Direction::Output) => "drives",
                };
                write!(out, "  {}: {act} line {place} of {chip}{}", property.name, pin(line))
            }
            Access::Text(text) => {
                let said = |verb: &str, line: &Option<Template>| {
                    line.as_ref().map(|line| format!(", {verb} {:?}", line.text)).unwrap_or_default()
                };
                let (write, ask) = (said("writes", &text.write), said("asks", &text.ask));
                write!(out, "  {}: reads {}{ask}{write}", property.name, text.describe())
            }
            Access::Pwm(pwm) => {
                let chip = pwm.chip.as_deref().unwrap_or("the Pi's PWM chip");
                write!(out, "  {}: drives channel {} of {chip}", property.name, pwm.channel)
            }
            Access::Thermometer(sensor) => {
                let id = sensor.id.as_deref().unwrap_or("the only one on the wire");
                write!(out, "  {}: reads 1-Wire thermometer {id}", property.name)
            }
            Access::Bytes(register) => {
                let act = if register.write.is_some() { "reads and writes" } else { "reads" };
                let sent: Vec<String> = register.read.iter().map(|byte| format!("{byte:02x}")).collect();
                write!(
                    out,
                    "  {}: {act} {} byte(s) after sending {}",
                    property.name,
                    register.length,
                    sent.join(" ")
                )
            }
            Access::Chip(Chip::Bme280(quantity)) => {
                write!(out, "  {}: measures {quantity:?} with a BME280", property.name)
            }
            Access::Chip(Chip::Ads1115(input)) => {
                let (channel, volts) = (input.channel, input.range.volts);
                write!(out, "  {}: measures input {channel} of an ADS1115, up to {volts} V", property.name)
            }
            Access::Channel(channel) => write!(out, "  {}: channel {channel}", property.name),
            Access::Register(register) => {
                let span = register.span;
                let many =
                    if span.count > 1 { format!(" and {} more", span.count - 1) } else { String::new() };
                let cycle = property.collect_cycle_ms;
                write!(
                    out,
                    "  {}: {} {}{many} every {cycle} ms",
                    property.name,
                    span.table.name(),
                    span.address
                )
            }
        };
        if let Some(desired) = &property.desired {
            let _ = write!(out, "; wanted: {desired}");
        }
        let _ = match property.report_cycle_ms {
            0 => writeln!(out, "; reported on change"),
            cycle => writeln!(out, "; reported on change and every {cycle} ms"),
        };
    }
}
