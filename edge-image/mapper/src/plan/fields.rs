//! Reading a `configData` object: keys in any case and with or without `_`, numbers also as text (as KubeEdge's own samples write them), and no key
//! that nobody knows.

use serde_json::{Map, Value};

pub struct Fields<'a> {
    path: String,
    map: Option<&'a Map<String, Value>>,
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    pub fn new(path: &str, value: Option<&'a Value>) -> Result<Fields<'a>, String> {
        let map = match value {
            None | Some(Value::Null) => None,
            Some(Value::Object(map)) => Some(map),
            Some(other) => {
                return Err(format!("{path}: {other} is not an object; write key: value lines below it"));
            }
        };
        Ok(Fields { path: path.into(), map, known: Vec::new() })
    }

    pub fn path(&self, key: &str) -> String {
        format!("{}.{key}", self.path)
    }

    fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.known.push(key);
        let value = self.map?.iter().find(|(have, _)| is_same(have, key)).map(|(_, value)| value);
        value.filter(|value| !value.is_null())
    }

    pub fn text(&mut self, key: &'static str) -> Result<Option<String>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(Value::Number(number)) => Ok(Some(number.to_string())),
            Some(Value::Bool(value)) => Ok(Some(value.to_string())),
            Some(other) => Err(format!("{}: {other} is not a text", self.path(key))),
        }
    }

    pub fn number(&mut self, key: &'static str, min: u64, max: u64) -> Result<Option<u64>, String> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        match text.parse::<u64>() {
            Ok(number) if (min..=max).contains(&number) => Ok(Some(number)),
            _ => Err(format!("{}: {text} is not a whole number from {min} to {max}", self.path(key))),
        }
    }

    /// A number with a fraction, finite.
    pub fn decimal(&mut self, key: &'static str) -> Result<Option<f64>, String> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(Some(number)),
            _ => Err(format!("{}: {text} is not a number", self.path(key))),
        }
    }

    /// An object within the object.
    pub fn inner(&mut self, key: &'static str) -> Result<Fields<'a>, String> {
        let value = self.get(key);
        Fields::new(&self.path(key), value)
    }

    pub fn is_empty(&self) -> bool {
        self.map.is_none_or(Map::is_empty)
    }

    pub fn switch(&mut self, key: &'static str) -> Result<Option<bool>, String> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" => Ok(Some(true)),
            "false" | "0" => Ok(Some(false)),
            _ => Err(format!("{}: {text} is neither true nor false", self.path(key))),
        }
    }

    pub fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)]) -> Result<Option<T>, String> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        match choices.iter().find(|(name, _)| name.eq_ignore_ascii_case(&text)) {
            Some((_, value)) => Ok(Some(*value)),
            None => {
                let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
                Err(format!("{}: {text} is unknown; use {}", self.path(key), names.join(", ")))
            }
        }
    }

    /// Refuses keys that were not asked for: a typing error must not silently mean the default.
    pub fn done(&self) -> Result<(), String> {
        let Some(map) = self.map else { return Ok(()) };
        match map.keys().find(|key| !self.known.iter().any(|known| is_same(key, known))) {
            None => Ok(()),
            Some(unknown) => {
                Err(format!("{}: unknown field; known are {}", self.path(unknown), self.known.join(", ")))
            }
        }
    }
}

/// `slaveID`, `slaveid` and `slave_id` are one key.
fn is_same(have: &str, key: &str) -> bool {
    let letters = |text: &'_ str| -> String {
        text.chars().filter(|letter| *letter != '_').map(|letter| letter.to_ascii_lowercase()).collect()
    };
    have.eq_ignore_ascii_case(key) || letters(have) == letters(key)
}
