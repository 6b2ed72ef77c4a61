//! Fields of hardware PWM (docs/gpio.md).

use super::{
    fields::Fields,
    gpio::{chip, duty},
    safety::{Safety, safety},
};

#[derive(Clone, Debug, PartialEq)]
pub struct PwmSpec {
    /// Name of the device that has the chip (`fe20c000.pwm`); `None` is the header's on a Pi.
    pub chip: Option<String>,
    pub channel: u32,
    pub period_ns: u32,
    pub inverted: bool,
    /// Millionths; `None` keeps what the channel does.
    pub initial: Option<u32>,
    pub safety: Safety,
}

const HZ_MIN: f64 = 1.0;
const HZ_MAX: f64 = 10_000_000.0;
const HZ_DEFAULT: f64 = 1_000.0;

pub fn channel(fields: &mut Fields<'_>, device_chip: Option<&str>) -> Result<PwmSpec, String> {
    let chip = chip(fields)?.or(device_chip.map(str::to_owned));
    let Some(channel) = fields.number("channel", 0, 63)? else {
        return Err(format!(
            "{} is missing: write the chip's channel (0, 1, ...); mapper scan prints them",
            fields.path("channel")
        ));
    };
    let hz = fields.decimal("pwmHz")?.unwrap_or(HZ_DEFAULT);
    if !(HZ_MIN..=HZ_MAX).contains(&hz) {
        return Err(format!("{}: {hz} is not from {HZ_MIN} to {HZ_MAX}", fields.path("pwmHz")));
    }
    let inverted = fields.switch("activeLow")?.unwrap_or(false);
    let initial = match fields.text("initial")?.filter(|initial| initial != "keep") {
        None => None,
        Some(text) => Some(duty(&text).map_err(|error| format!("{}: {error}", fields.path("initial")))?),
    };
    let safety = safety(fields, duty)?;
    Ok(PwmSpec { chip, channel: channel as u32, period_ns: (1e9 / hz) as u32, inverted, initial, safety })
}
