//! The library of models (top folder `devices/`), which the laptop's program carries: 40 kB of text, so nothing has to be found
//! beside it. A node has no use for it.

/// The text of a model's file, by its name.
macro_rules! models {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../devices/", $name, ".yaml")))),*]
    };
}

/// By name. Each file is a DeviceModel and an example Device `<model>-1`; its first line says in a few words what it is.
pub const MODELS: &[(&str, &str)] = models![
    "ads1115",
    "arduino-lines",
    "bme280",
    "button",
    "contact",
    "ds18b20",
    "gps-nmea",
    "led",
    "mcp3008",
    "modbus-relay-8",
    "pir",
    "relay-board-4",
    "s0-meter",
    "sdm120",
    "sdm630",
    "servo"
];

/// `new --list`.
pub fn list() -> String {
    let width = MODELS.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    MODELS.iter().map(|(name, text)| format!("{name:width$}  {}\n", about(text))).collect()
}

/// What a model is, in a line.
pub fn about(text: &str) -> &str {
    text.lines().next().unwrap_or_default().trim_start_matches("# ")
}

/// `new MODEL`: the file, with the Device's name and node as asked for.
pub fn new(model: &str, name: Option<&str>, node: Option<&str>) -> Result<String, String> {
    let Some((known, text)) = MODELS.iter().find(|(known, _)| *known == model) else {
        let like: Vec<&str> =
            MODELS.iter().map(|(known, _)| *known).filter(|known| is_like(known, model)).collect();
        let like = if like.is_empty() { String::new() } else { format!(", or {}", like.join(", ")) };
        return Err(format!("there is no model {model:?}; see kinglet-mapper new --list{like}"));
    };
    let mut text = (*text).to_owned();
    if let Some(name) = name {
        text = text
            .replace(&format!("metadata: {{name: {known}-1}}"), &format!("metadata: {{name: \"{name}\"}}"));
    }
    if let Some(node) = node {
        let reference = format!("deviceModelRef: {{name: {known}}}\n");
        text = text.replace(&reference, &format!("{reference}  nodeName: \"{node}\"\n"));
    }
    Ok(text)
}

fn is_like(known: &str, wanted: &str) -> bool {
    let wanted = wanted.to_ascii_lowercase();
    known.split('-').any(|part| part.len() > 2 && wanted.contains(part))
        || (wanted.len() > 2 && known.contains(&wanted))
}

#[cfg(test)]
mod tests;
