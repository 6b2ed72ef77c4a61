//! `mapper check`: what a Device would read and write, without touching anything.

use std::fmt::Write;

use serde_json::Value;

use crate::plan::{
    self, Access, Plan, Protocol,
    gpio::{Direction, LineRef},
    serial::Framing,
};

/// Reads Devices and DeviceModels (YAML documents, JSON, a List, or a description as a mapper gets it) and says what each Device
/// means. `model` is the text of a file with further models.
pub fn check(text: &str, model: Option<&str>) -> Result<String, String> {
    let mut objects = Vec::new();
    for text in [Some(text), model].into_iter().flatten() {
        for value in documents(text)? {
            match value.get("items").and_then(Value::as_array) {
                Some(items) => objects.extend(items.iter().cloned()),
                None => objects.push(value),
            }
        }
    }
    let mut out = String::new();
    let mut devices = 0;
    for object in &objects {
        if object.get("device").is_some() {
            describe(object.to_string().as_bytes(), &mut out)?;
        } else if object["kind"] == "Device" {
            let name = &object["spec"]["deviceModelRef"]["name"];
            let models = || objects.iter().filter(|object| object["kind"] == "DeviceModel");
            let model = models().find(|model| model["metadata"]["name"] == *name);
            describe(
                serde_json::json!({"version": 0, "device": object, "model": model}).to_string().as_bytes(),
                &mut out,
            )?;
        } else {
            continue;
        }
        devices += 1;
    }
    if devices == 0 {
        return Err("there is no object of kind Device".into());
    }
    Ok(out)
}

fn describe(description: &[u8], out: &mut String) -> Result<(), String> {
    let (description, plan) = plan::read(description)?;
    let metadata = &description.device.metadata;
    let namespace = if metadata.namespace.is_empty() { "default" } else { &metadata.namespace };
    let _ = writeln!(out, "device {namespace}/{}", metadata.name);
    if description.model.is_none() {
        out.push_str("  note: without its DeviceModel types are unknown; put it into the same file, or give it as second file\n");
    }
    let wrong = |reason: &String| format!("device {namespace}/{}: {reason}", metadata.name);
    let plan = plan.as_ref().map_err(wrong)?;
    if let Some(refused) = plan.properties.iter().find_map(|property| property.refused.as_ref()) {
        return Err(wrong(refused));
    }
    render(plan, out);
    Ok(())
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
    json(text)
        .map_err(|error| format!("{error}; for YAML use: cargo run -p mapper --features yaml -- check FILE"))
}

fn json(text: &str) -> Result<Vec<Value>, String> {
    serde_json::from_str(text).map(|value| vec![value]).map_err(|error| format!("not JSON: {error}"))
}

fn render(plan: &Plan, out: &mut String) {
    if let Protocol::Serial(port) = &plan.protocol {
        let framing = if port.framing == Framing::Lines { "text lines" } else { "frames" };
        let _ = writeln!(out, "  opens {} at {} baud, {framing}", port.path, port.baud_rate);
    }
    for property in &plan.properties {
        let _ = match &property.access {
            Access::Line(line) => {
                let chip = line.chip.as_deref().unwrap_or("the Pi's header chip");
                let place = match &line.line {
                    LineRef::Offset(offset) => offset.to_string(),
                    LineRef::Name(name) => format!("{name:?}"),
                };
                let act = if line.direction == Direction::Input { "reads" } else { "drives" };
                write!(out, "  {}: {act} line {place} of {chip}", property.name)
            }
            Access::Text(text) => {
                let write = text.write.as_ref().map(|line| format!(", writes {line:?}")).unwrap_or_default();
                write!(out, "  {}: reads what follows {:?}{write}", property.name, text.prefix)
            }
            Access::Channel(channel) => write!(out, "  {}: channel {channel}", property.name),
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
