//! How Go writes what Rust reads: `null` for an empty list, numbers for quantities.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Deserializer};

/// Go writes an empty list as `null`.
pub fn null_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    input: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(input)?.unwrap_or_default())
}

/// As [`null_default`], and no larger than what is in it: a pod is kept for as long as it runs.
pub fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(input: D) -> Result<Vec<T>, D::Error> {
    let mut list: Vec<T> = null_default(input)?;
    list.shrink_to_fit();
    Ok(list)
}

/// Text that is nearly always one of a few words, which then takes no memory of its own.
pub type Word = Cow<'static, str>;

/// Types and states of a pod's conditions.
const CONDITION_WORDS: [&str; 8] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    "True",
    "False",
    "Unknown",
];

pub fn condition_word<'de, D: Deserializer<'de>>(input: D) -> Result<Word, D::Error> {
    let text = String::deserialize(input)?;
    let known = CONDITION_WORDS.iter().find(|word| **word == text);
    Ok(known.map_or(Cow::Owned(text), |word| Cow::Borrowed(*word)))
}

/// A time in RFC 3339; what is none counts as not given.
pub fn unix_seconds<'de, D: Deserializer<'de>>(input: D) -> Result<Option<i64>, D::Error> {
    let text = Option::<Cow<str>>::deserialize(input)?;
    Ok(text.and_then(|text| text.parse::<jiff::Timestamp>().ok()).map(jiff::Timestamp::as_second))
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
