//! Desired values of devices that mappers of others drive: what the model does not allow is not sent to them. Our own mapper checks
//! for itself, with the same words.

use std::collections::BTreeMap;

use dmi::messages::{Device, DeviceModel, DeviceProperty, ModelProperty};

/// By device and property: why.
pub type Refusals = BTreeMap<String, BTreeMap<String, String>>;

/// Puts what was accepted before (`before` is the device as its mapper has it) in the place of what is refused, and says what that was.
pub fn check(device: &mut Device, model: &DeviceModel, before: Option<&Device>) -> BTreeMap<String, String> {
    let mut refused = BTreeMap::new();
    let declared = model.spec.as_ref().map(|spec| spec.properties.as_slice()).unwrap_or_default();
    let known = before.and_then(|before| before.spec.as_ref()).map(|spec| spec.properties.as_slice());
    for property in device.spec.iter_mut().flat_map(|spec| &mut spec.properties) {
        let declared = declared.iter().find(|declared| declared.name == property.name);
        let Some(reason) = declared.and_then(|declared| refusal(property, declared)) else { continue };
        refused.insert(property.name.clone(), format!("desired value of {}: {reason}", property.name));
        let accepted = known.and_then(|known| known.iter().find(|known| known.name == property.name));
        property.desired = Some(accepted.and_then(|accepted| accepted.desired.clone()).unwrap_or_default());
    }
    refused
}

fn refusal(property: &DeviceProperty, declared: &ModelProperty) -> Option<String> {
    let value =
        property.desired.as_ref().map(|desired| desired.value.as_str()).filter(|value| !value.is_empty())?;
    if declared.access_mode.eq_ignore_ascii_case("ReadOnly") {
        return Some("the model's accessMode is ReadOnly; remove the value, or make it ReadWrite".into());
    }
    let is_number =
        ["INT", "FLOAT", "DOUBLE"].iter().any(|kind| declared.value_type.eq_ignore_ascii_case(kind));
    let number: f64 = value.parse().ok().filter(|_| is_number)?;
    let bound = |text: &str| text.trim().parse::<f64>().ok();
    let unit = if declared.unit.is_empty() { String::new() } else { format!(" {}", declared.unit) };
    match (bound(&declared.minimum), bound(&declared.maximum)) {
        (Some(minimum), _) if number < minimum => {
            Some(format!("{value}{unit} is below the model's minimum {minimum}{unit}"))
        }
        (_, Some(maximum)) if number > maximum => {
            Some(format!("{value}{unit} is above the model's maximum {maximum}{unit}"))
        }
        _ => None,
    }
}
