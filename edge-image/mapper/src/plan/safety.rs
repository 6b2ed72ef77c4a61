//! When an output is to fall back to its fail-safe value: four keys that each output's visitor may have (docs/gpio.md).

use super::fields::Fields;
use crate::limits::{
    FAILSAFE_WAIT_MS_MAX, HOLDER_DEADLINE_MS_DEFAULT, HOLDER_DEADLINE_MS_MAX, HOLDER_DEADLINE_MS_MIN,
};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Safety {
    /// In the output's own unit: 0 or 1, or millionths of a duty cycle. `None`: the output stays as it is.
    pub value: Option<u32>,
    /// Nobody has spoken for the output for this long: mapper or agent are dead. 0: never.
    pub deadline_ms: u64,
    /// The link to the cloud has been gone for this long. 0: never.
    pub link_lost_ms: u64,
    /// The desired value is older than this. 0: never.
    pub desired_age_ms_max: u64,
}

pub const KEYS: [&str; 4] = ["failsafe", "deadlineMs", "linkLostMs", "desiredMaxAgeMs"];

/// `value_of` reads the fail-safe value's text.
pub fn safety(
    fields: &mut Fields<'_>,
    value_of: impl Fn(&str) -> Result<u32, String>,
) -> Result<Safety, String> {
    let value = match fields.text("failsafe")? {
        None => None,
        Some(text) => Some(value_of(&text).map_err(|error| format!("{}: {error}", fields.path("failsafe")))?),
    };
    let deadline_ms = fields.number("deadlineMs", 0, HOLDER_DEADLINE_MS_MAX)?;
    let link_lost_ms = fields.number("linkLostMs", 0, FAILSAFE_WAIT_MS_MAX)?;
    let desired_age_ms_max = fields.number("desiredMaxAgeMs", 0, FAILSAFE_WAIT_MS_MAX)?;
    let given =
        [("deadlineMs", deadline_ms), ("linkLostMs", link_lost_ms), ("desiredMaxAgeMs", desired_age_ms_max)];
    for (key, ms) in given {
        let Some(ms) = ms.filter(|ms| *ms > 0) else { continue };
        if value.is_none() {
            return Err(format!(
                "{}: has no meaning without a fail-safe value; write configData.failsafe too",
                fields.path(key)
            ));
        }
        if ms < HOLDER_DEADLINE_MS_MIN {
            return Err(format!(
                "{}: {ms} is too short; write 0 (never) or at least {HOLDER_DEADLINE_MS_MIN}",
                fields.path(key)
            ));
        }
    }
    let default_ms = if value.is_some() { HOLDER_DEADLINE_MS_DEFAULT } else { 0 };
    Ok(Safety {
        value,
        deadline_ms: deadline_ms.unwrap_or(default_ms),
        link_lost_ms: link_lost_ms.unwrap_or(0),
        desired_age_ms_max: desired_age_ms_max.unwrap_or(0),
    })
}
