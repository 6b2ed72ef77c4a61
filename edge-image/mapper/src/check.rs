//! `mapper check`: what a Device would read and write, without touching anything.

use std::fmt::Write;

use serde_json::Value;

use crate::plan::{
    self, Access, Plan, Protocol,
    gpio::{Direction, LineRef},
    serial::Framing,
};

/// Reads a Device (JSON; also a List with its DeviceModel, or a description as a mapper gets it) and says what it means.
pub fn check(text: &str, model: Option<&str>) -> Result<String, String> {
    let read = |text: &str| -> Result<Value, String> {
        serde_json::from_str(text)
            .map_err(|error| format!("not JSON: {error}; `kubectl get device NAME -o json` writes it"))
    };
    let mut value = read(text)?;
    let mut model = model.map(read).transpose()?;
    if let Some(items) = value.get("items").and_then(Value::as_array).cloned() {
        let of = |kind: &str| items.iter().find(|item| item["kind"] == kind).cloned();
        value = of("Device").ok_or("there is no Device in the list")?;
        model = model.or_else(|| of("DeviceModel"));
    }
    if value.get("device").is_none() {
        value = serde_json::json!({"version": 0, "device": value, "model": model});
    }
    let (description, plan) = plan::read(value.to_string().as_bytes())?;
    let metadata = &description.device.metadata;
    let mut out = format!("device {}/{}\n", metadata.namespace, metadata.name);
    if description.model.is_none() {
        out.push_str("note: without its DeviceModel types are unknown; give it as second file\n");
    }
    render(&plan?, &mut out);
    Ok(out)
}

fn render(plan: &Plan, out: &mut String) {
    if let Protocol::Serial(port) = &plan.protocol {
        let framing = if port.framing == Framing::Lines { "text lines" } else { "frames" };
        let _ = writeln!(out, "opens {} at {} baud, {framing}", port.path, port.baud_rate);
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
                write!(out, "{}: {act} line {place} of {chip}", property.name)
            }
            Access::Text(text) => {
                let write = text.write.as_ref().map(|line| format!(", writes {line:?}")).unwrap_or_default();
                write!(out, "{}: reads what follows {:?}{write}", property.name, text.prefix)
            }
            Access::Channel(channel) => write!(out, "{}: channel {channel}", property.name),
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
