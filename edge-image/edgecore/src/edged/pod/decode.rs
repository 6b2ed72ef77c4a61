//! How Go writes what Rust reads: `null` for an empty list, numbers for quantities.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// Go writes an empty list as `null`.
pub fn null_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    input: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(input)?.unwrap_or_default())
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TextOrNumber {
    Text(String),
    Number(serde_json::Number),
}

pub fn quantity<'de, D: Deserializer<'de>>(input: D) -> Result<String, D::Error> {
    Ok(match Option::<TextOrNumber>::deserialize(input)? {
        Some(TextOrNumber::Text(text)) => text,
        Some(TextOrNumber::Number(number)) => number.to_string(),
        None => String::new(),
    })
}

pub fn quantities<'de, D: Deserializer<'de>>(input: D) -> Result<BTreeMap<String, String>, D::Error> {
    let map = Option::<BTreeMap<String, TextOrNumber>>::deserialize(input)?.unwrap_or_default();
    Ok(map
        .into_iter()
        .map(|(name, value)| match value {
            TextOrNumber::Text(text) => (name, text),
            TextOrNumber::Number(number) => (name, number.to_string()),
        })
        .collect())
}
