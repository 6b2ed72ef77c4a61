//! What a property's value may be: its type, its range, and who may write it. Checked here once, for all drivers.

use super::{level, value_is_allowed};

/// The types of a DeviceModel (`spec.properties[].type`). STREAM is refused when the model is read: a stream is no value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Type {
    Int,
    Float,
    Double,
    /// A model that names no type.
    #[default]
    String,
    Boolean,
    /// Written as hexadecimal digits, two for each byte: twins take no other text for bytes.
    Bytes,
}

impl Type {
    pub fn parse(text: &str) -> Result<Type, String> {
        Ok(match text.to_ascii_uppercase().as_str() {
            "INT" => Type::Int,
            "FLOAT" => Type::Float,
            "DOUBLE" => Type::Double,
            "STRING" | "" => Type::String,
            "BOOLEAN" => Type::Boolean,
            "BYTES" => Type::Bytes,
            "STREAM" => {
                return Err("type STREAM is no value that a twin can hold; take the stream from the device itself, or use BYTES".into());
            }
            _ => {
                return Err(format!(
                    "type {text} is unknown; use INT, FLOAT, DOUBLE, STRING, BOOLEAN or BYTES"
                ));
            }
        })
    }

    pub fn name(self) -> &'static str {
        match self {
            Type::Int => "INT",
            Type::Float => "FLOAT",
            Type::Double => "DOUBLE",
            Type::String => "STRING",
            Type::Boolean => "BOOLEAN",
            Type::Bytes => "BYTES",
        }
    }

    pub fn is_number(self) -> bool {
        matches!(self, Type::Int | Type::Float | Type::Double)
    }
}

/// What a property's values must be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Domain {
    pub kind: Type,
    pub minimum: Option<f64>,
    pub maximum: Option<f64>,
    pub unit: String,
    /// The model's accessMode is ReadOnly.
    pub read_only: bool,
}

impl Domain {
    /// A value as the twin of this type takes it (`on` is `true`, `21.0` is the INT `21`), or why it cannot be one.
    pub fn normal(&self, value: &str) -> Result<String, String> {
        let no = |what: &str| Err(format!("{value:?} is no {}; {what}", self.kind.name()));
        let normal = match self.kind {
            Type::Int => match (value.parse::<i64>(), value.parse::<f64>()) {
                (Ok(number), _) => number.to_string(),
                // Meters and scripts write whole numbers with a point.
                (_, Ok(number)) if number.fract() == 0.0 && number.abs() < 9e15 => {
                    (number as i64).to_string()
                }
                _ => return no("write a whole number"),
            },
            Type::Float | Type::Double => match value.parse::<f64>() {
                Ok(number) if !number.is_finite() => return no("write a finite number"),
                Ok(number) if self.kind == Type::Float && number.abs() > f64::from(f32::MAX) => {
                    return no("its range is that of 32 bits; use DOUBLE");
                }
                // As it was written: 21.50 says more than 21.5.
                Ok(_) => value.to_owned(),
                Err(_) => return no("write a number such as 21.5"),
            },
            Type::Boolean => match level(value) {
                Some(active) => active.to_string(),
                None => return no("write true or false"),
            },
            Type::Bytes => {
                if !value.len().is_multiple_of(2) || !value.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    return no("write two hexadecimal digits for each byte");
                }
                value.to_owned()
            }
            Type::String => value.to_owned(),
        };
        if !value_is_allowed(&normal) {
            return Err(format!("{value:?} is no twin value: at most 512 letters, digits and -_.,:/@#"));
        }
        Ok(normal)
    }

    /// A desired value as drivers get it, or why it is refused.
    pub fn wish(&self, value: &str) -> Result<String, String> {
        if self.read_only {
            return Err("the model's accessMode is ReadOnly; remove the value, or make it ReadWrite".into());
        }
        let normal = self.normal(value)?;
        let Some(number) = self.kind.is_number().then(|| normal.parse::<f64>().ok()).flatten() else {
            return Ok(normal);
        };
        let unit = if self.unit.is_empty() { String::new() } else { format!(" {}", self.unit) };
        match (self.minimum, self.maximum) {
            (Some(minimum), _) if number < minimum => {
                Err(format!("{normal}{unit} is below the model's minimum {minimum}{unit}"))
            }
            (_, Some(maximum)) if number > maximum => {
                Err(format!("{normal}{unit} is above the model's maximum {maximum}{unit}"))
            }
            _ => Ok(normal),
        }
    }
}
