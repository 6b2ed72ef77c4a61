//! Values as the places read them.

use std::fmt::Write;

use serde_json::json;

use super::{queue::Item, target::Form};

/// KubeEdge's form (`<property>=<value>&time=<text>`), and behind it what is needed to tell one device's value from another's.
pub fn form(item: &Item) -> String {
    let time = jiff::Timestamp::from_millisecond(item.at_ms).unwrap_or_default();
    let time = time.strftime("%Y-%m-%d %H:%M:%S").to_string();
    let mut text = format!(
        "{}={}&time={}&timestamp={}&device={}",
        percent(&item.property),
        percent(&item.value),
        percent(&time),
        item.at_ms,
        percent(&item.id)
    );
    if !item.quality.is_empty() {
        let _ = write!(text, "&quality={}", percent(&item.quality));
    }
    text
}

/// What goes to a topic. KubeEdge writes a sentence there; a program cannot read that back.
pub fn message(item: &Item) -> String {
    let quality = (!item.quality.is_empty()).then_some(item.quality.as_str());
    let mut message = json!({
        "device": item.id, "property": item.property, "value": item.value, "type": item.value_type, "timestamp": item.at_ms,
    });
    if let Some(quality) = quality {
        message["quality"] = quality.into();
    }
    message.to_string()
}

/// InfluxDB's line protocol, with times in milliseconds. Values that are missing are left out.
pub fn lines(items: &[Item]) -> String {
    let mut text = String::new();
    for item in items.iter().filter(|item| !item.value.is_empty()) {
        let Form::Influx { measurement, tags, field } = item.form() else { continue };
        let value = match item.value_type.as_str() {
            // One type for all numbers: a field whose type changes is refused by the database.
            "int" | "integer" | "float" => match item.value.parse::<f64>() {
                Ok(number) if number.is_finite() => item.value.clone(),
                _ => continue,
            },
            "boolean" => item.value.clone(),
            _ => format!("\"{}\"", item.value.replace('\\', "\\\\").replace('"', "\\\"")),
        };
        text += &escaped(measurement, &[',', ' ']);
        for (key, tag) in tags.iter().filter(|(key, tag)| !key.is_empty() && !tag.is_empty()) {
            let _ = write!(text, ",{}={}", escaped(key, &[',', '=', ' ']), escaped(tag, &[',', '=', ' ']));
        }
        let _ = writeln!(text, " {}={value} {}", escaped(field, &[',', '=', ' ']), item.at_ms);
    }
    text
}

/// Line breaks have no place in a line.
fn escaped(text: &str, special: &[char]) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars().filter(|letter| !letter.is_control()) {
        if special.contains(&letter) {
            out.push('\\');
        }
        out.push(letter);
    }
    out
}

/// Percent encoding of everything but unreserved characters.
pub fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(byte as char);
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}
