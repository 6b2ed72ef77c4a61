//! Levels of GPIO lines from power-on: Device objects in, the Raspberry Pi firmware's `gpio=` lines out.
//!
//! Is: the one reading of a Device's fields for this purpose, shared by mkimage (an image's first boot), edgecore (a node whose
//! devices changed) and the mapper's `check`. Is not: the driver of the lines, nor a check of the Device (the mapper's plan is that:
//! what makes no sense there has no power-on level here).
//!
//! Invariant: only a level that the Device names is set. An output with neither `initial` nor `failsafe` is left to its pull.
//! Source: the Raspberry Pi documentation of config.txt, "gpio".
//!
//! Start at [`power_on`], then [`with_block`].

use std::collections::BTreeMap;

use serde_json::Value;

/// How the block of `config.txt` begins that is ours, and its length. It is the file's end and begins at a sector, so that a node
/// overwrites it in place: nothing else of the file is ever touched, and a power cut leaves lines that the firmware skips at worst.
/// Not an included file: the bootloader in a Pi's EEPROM does not include.
pub const MARK: &str =
    "# Levels from power-on, written from the device files. Edit those, not these lines.\n";
pub const BLOCK_BYTES: usize = 1024;
pub const SECTOR_BYTES: usize = 512;
/// Lines of a Pi's header chip that the firmware sets.
const LINES: u32 = 54;

/// What the firmware makes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    Output { high: bool },
    PullUp,
    PullDown,
    NoPull,
}

/// Whose wish it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PowerOn {
    pub setting: Setting,
    /// `<namespace>/<name>`, and the property.
    pub device: String,
    pub property: String,
}

/// By line. Of two devices that want one line the first counts; whoever checks devices says that.
pub fn power_on(objects: &[Value]) -> BTreeMap<u32, PowerOn> {
    let mut lines = BTreeMap::new();
    for device in objects.iter().filter(|object| object["kind"] == "Device") {
        let spec = &device["spec"];
        if text(&spec["protocol"], "protocolName").as_deref() != Some("gpio") {
            continue;
        }
        let model = objects.iter().find(|object| {
            object["kind"] == "DeviceModel"
                && object["metadata"]["name"] == spec["deviceModelRef"]["name"]
                && namespace(object) == namespace(device)
        });
        let name = device["metadata"]["name"].as_str().unwrap_or_default();
        let device_chip = text(&spec["protocol"]["configData"], "chip")
            .or_else(|| text(&model?["spec"]["protocolConfigData"], "chip"));
        for property in spec["properties"].as_array().into_iter().flatten() {
            let declared = model.and_then(|model| {
                let mut all = model["spec"]["properties"].as_array()?.iter();
                all.find(|declared| declared["name"] == property["name"])
            });
            let own = &property["visitors"]["configData"];
            let config =
                if own.is_null() { declared.map(|d| &d["visitors"]["configData"]) } else { Some(own) };
            let Some((line, setting)) = config.and_then(|config| wish(config, device_chip.as_deref())) else {
                continue;
            };
            lines.entry(line).or_insert_with(|| PowerOn {
                setting,
                device: format!("{}/{name}", namespace(device)),
                property: property["name"].as_str().unwrap_or_default().to_owned(),
            });
        }
    }
    lines
}

/// A line for each wish.
pub fn config_text(lines: &BTreeMap<u32, PowerOn>) -> String {
    let mut out = String::new();
    for (line, wish) in lines {
        let words = match wish.setting {
            Setting::Output { high: true } => "op,dh",
            Setting::Output { high: false } => "op,dl",
            Setting::PullUp => "ip,pu",
            Setting::PullDown => "ip,pd",
            Setting::NoPull => "ip,pn",
        };
        out += &format!("gpio={line}={words}\n");
    }
    out
}

/// The block: always of the same length.
pub fn block(lines: &BTreeMap<u32, PowerOn>) -> Vec<u8> {
    let mut block = format!("{MARK}{}", config_text(lines)).into_bytes();
    debug_assert!(block.len() <= BLOCK_BYTES, "a line has {LINES} names at most");
    block.resize(BLOCK_BYTES, b'\n');
    block
}

/// Where the block is in a `config.txt`; `None`: the file was not written by this image, or somebody edited its end.
pub fn find_block(config: &[u8]) -> Option<usize> {
    let at = config.len().checked_sub(BLOCK_BYTES)?;
    (at % SECTOR_BYTES == 0 && config[at..].starts_with(MARK.as_bytes())).then_some(at)
}

/// A `config.txt` with room for the block, and the block.
pub fn with_block(config: &str, lines: &BTreeMap<u32, PowerOn>) -> Vec<u8> {
    let mut file = config.as_bytes().to_vec();
    file.resize(file.len().next_multiple_of(SECTOR_BYTES), b'\n');
    file.extend(block(lines));
    file
}

fn wish(config: &Value, device_chip: Option<&str>) -> Option<(u32, Setting)> {
    let chip = text(config, "chip");
    // The firmware knows the header's lines only; an expander's come up with the kernel.
    if chip.as_deref().or(device_chip).is_some_and(|chip| !chip.starts_with("pinctrl-")) {
        return None;
    }
    let line = text(config, "line")?;
    let line: u32 = line.strip_prefix("GPIO").unwrap_or(&line).parse().ok()?;
    if line >= LINES {
        return None;
    }
    let is = |key: &str, word: &str| text(config, key).is_some_and(|text| text.eq_ignore_ascii_case(word));
    let setting = if is("direction", "output") {
        let of = |key: &str| level(&text(config, key)?);
        let active = of("initial").or_else(|| of("failsafe"))?;
        let active_low = text(config, "activeLow").as_deref().and_then(level).unwrap_or(false);
        Setting::Output { high: active != active_low }
    } else if is("bias", "pull-up") {
        Setting::PullUp
    } else if is("bias", "pull-down") {
        Setting::PullDown
    } else if is("bias", "disabled") {
        Setting::NoPull
    } else {
        return None;
    };
    Some((line, setting))
}

fn level(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "on" => Some(true),
        "0" | "false" | "off" => Some(false),
        _ => None,
    }
}

/// A field in any case; numbers and booleans as text, as people and KubeEdge's samples write both.
fn text(object: &Value, key: &str) -> Option<String> {
    let (_, value) = object.as_object()?.iter().find(|(have, _)| have.eq_ignore_ascii_case(key))?;
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        _ => None,
    }
}

fn namespace(object: &Value) -> &str {
    object["metadata"]["namespace"].as_str().filter(|namespace| !namespace.is_empty()).unwrap_or("default")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn device(properties: Value) -> Value {
        json!({"kind": "Device", "metadata": {"name": "board"}, "spec": {
            "deviceModelRef": {"name": "m"}, "protocol": {"protocolName": "gpio"}, "properties": properties,
        }})
    }

    fn visitor(config: Value) -> Value {
        json!({"name": "p", "visitors": {"configData": config}})
    }

    #[test]
    fn outputs_get_the_physical_level_of_their_initial_or_fail_safe_value_and_inputs_their_pull() {
        let properties = json!([
            visitor(json!({"line": 5, "direction": "output", "initial": "0", "activeLow": true})),
            visitor(json!({"line": "GPIO6", "direction": "output", "initial": 1})),
            visitor(json!({"Line": "7", "Direction": "output", "failsafe": "off"})),
            visitor(json!({"line": 8, "direction": "output"})),
            visitor(json!({"line": 9, "direction": "output", "initial": "keep"})),
            visitor(json!({"line": 27, "bias": "pull-up"})),
            visitor(json!({"line": 22, "direction": "input", "bias": "pull-down"})),
            visitor(json!({"line": 23, "bias": "disabled"})),
            visitor(json!({"line": 24})),
            visitor(json!({"line": 2, "chip": "mcp23017", "bias": "pull-up"})),
            visitor(json!({"line": 1000, "bias": "pull-up"})),
            visitor(json!({"bias": "pull-up"})),
            // Taken already.
            visitor(json!({"line": 5, "direction": "output", "initial": "1", "activeLow": true})),
        ]);
        let text = config_text(&power_on(&[device(properties)]));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "gpio=5=op,dh",
                "gpio=6=op,dh",
                "gpio=7=op,dl",
                "gpio=22=ip,pd",
                "gpio=23=ip,pn",
                "gpio=27=ip,pu"
            ]
        );
    }

    #[test]
    fn the_block_is_found_again_and_has_room_for_every_line() {
        let all: Vec<Value> = (0..LINES + 3)
            .map(|line| visitor(json!({"line": line, "direction": "output", "initial": 1})))
            .collect();
        let lines = power_on(&[device(json!(all))]);
        assert_eq!(lines.len(), LINES as usize);
        let config = "arm_64bit=1\n".repeat(60);
        let file = with_block(&config, &lines);
        let at = find_block(&file).unwrap();
        assert!(file[at..].ends_with(b"gpio=53=op,dh\n\n") || file[at..].ends_with(b"\n\n"));
        assert!(at >= config.len() && file.starts_with(config.as_bytes()));
        let mut next = file.clone();
        next.splice(at.., block(&BTreeMap::new()));
        assert_eq!((next.len(), find_block(&next)), (file.len(), Some(at)));
        let edited = [file.as_slice(), b"dtparam=x\n"].concat();
        assert_eq!(find_block(&edited), None, "what somebody wrote below it is not ours");
        assert_eq!(find_block(b"short"), None);
    }

    #[test]
    fn a_visitor_may_be_in_the_model_and_other_protocols_have_no_levels() {
        let model = json!({"kind": "DeviceModel", "metadata": {"name": "m"}, "spec": {"properties": [
            {"name": "p", "visitors": {"configData": {"line": 17, "direction": "output", "initial": "off"}}},
        ]}});
        let objects = [device(json!([{"name": "p"}])), model.clone()];
        let wish = power_on(&objects)[&17].clone();
        assert_eq!(wish.setting, Setting::Output { high: false });
        assert_eq!((wish.device.as_str(), wish.property.as_str()), ("default/board", "p"));
        let mut elsewhere = model;
        elsewhere["metadata"]["namespace"] = "other".into();
        assert!(power_on(&[device(json!([{"name": "p"}])), elsewhere]).is_empty());
        let mut modbus = device(json!([visitor(json!({"line": 5, "bias": "pull-up"}))]));
        modbus["spec"]["protocol"]["protocolName"] = "modbus".into();
        assert_eq!(config_text(&power_on(&[modbus])), "", "nothing to set, nothing to write");
    }
}
