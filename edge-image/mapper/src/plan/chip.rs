//! Chips on I2C whose registers are no values by themselves: `configData.chip` names a decoder of ours (docs/devices.md).

use super::fields::Fields;

/// What of a chip a property is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Chip {
    Bme280(Quantity),
    Ads1115(Input),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    Temperature,
    Pressure,
    Humidity,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Input {
    /// 0 to 3, against GND.
    pub channel: u8,
    pub range: Range,
    /// For a voltage divider or a sensor: the value is volts times `scale` plus `offset`.
    pub scale: f64,
    pub offset: f64,
}

/// Code and volts of the ADS1115's amplifier (data sheet, table of the config register's PGA bits).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    pub code: u8,
    pub volts: f64,
}

const RANGES: [(&str, Range); 6] = [
    ("6.144", Range { code: 0, volts: 6.144 }),
    ("4.096", Range { code: 1, volts: 4.096 }),
    ("2.048", Range { code: 2, volts: 2.048 }),
    ("1.024", Range { code: 3, volts: 1.024 }),
    ("0.512", Range { code: 4, volts: 0.512 }),
    ("0.256", Range { code: 5, volts: 0.256 }),
];

/// `None`: the property is a register.
pub fn chip(fields: &mut Fields<'_>) -> Result<Option<Chip>, String> {
    #[derive(Clone, Copy)]
    enum Name {
        Bme280,
        Ads1115,
    }
    let Some(name) = fields.choice("chip", &[("bme280", Name::Bme280), ("ads1115", Name::Ads1115)])? else {
        return Ok(None);
    };
    let missing = |path: String, what: &str| format!("{path} is missing: write {what}");
    Ok(Some(match name {
        Name::Bme280 => {
            let quantities = [
                ("temperature", Quantity::Temperature),
                ("pressure", Quantity::Pressure),
                ("humidity", Quantity::Humidity),
            ];
            let quantity = fields.choice("value", &quantities)?;
            Chip::Bme280(quantity.ok_or_else(|| {
                missing(fields.path("value"), "temperature (°C), pressure (hPa) or humidity (%)")
            })?)
        }
        Name::Ads1115 => {
            let channel = fields.number("channel", 0, 3)?;
            Chip::Ads1115(Input {
                channel: channel.ok_or_else(|| missing(fields.path("channel"), "0 to 3"))? as u8,
                range: fields.choice("range", &RANGES)?.unwrap_or(RANGES[1].1),
                scale: fields.decimal("scale")?.unwrap_or(1.0),
                offset: fields.decimal("offset")?.unwrap_or(0.0),
            })
        }
    }))
}
