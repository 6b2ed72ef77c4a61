//! Fields of 1-Wire thermometers (docs/gpio.md).

use super::fields::Fields;

#[derive(Clone, Debug, PartialEq)]
pub struct Thermometer {
    /// `28-0316a2795cff`; `None` is the only one on the wire.
    pub id: Option<String>,
    /// Added to what it says: calibration.
    pub offset: f64,
}

pub fn thermometer(fields: &mut Fields<'_>) -> Result<Thermometer, String> {
    let id = fields.text("id")?.map(|id| id.to_ascii_lowercase());
    if let Some(id) = &id {
        let hex =
            |text: &str, len: usize| text.len() == len && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !id.split_once('-').is_some_and(|(family, serial)| hex(family, 2) && hex(serial, 12)) {
            return Err(format!(
                "{}: {id:?} is no 1-Wire id; write it as 28-0316a2795cff (mapper scan prints them)",
                fields.path("id")
            ));
        }
    }
    Ok(Thermometer { id, offset: fields.decimal("offset")?.unwrap_or(0.0) })
}
