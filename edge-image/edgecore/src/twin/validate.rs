//! What KubeEdge accepts as the name and the value of a twin (kubeedge-wire.md section 5).

use crate::limits::REASON_BYTES_MAX;

const NAME_LEN_MAX: usize = 128;
const VALUE_LEN_MAX: usize = 512;

fn text_is_allowed(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.,:/@#".contains(&byte))
}

/// Why a name cannot be a twin's.
pub fn name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > NAME_LEN_MAX || !text_is_allowed(name) {
        return Err(format!(
            "{name:?} is not a property name: use 1 to {NAME_LEN_MAX} letters, digits and - _ . , : / @ #"
        ));
    }
    Ok(())
}

/// Why a value cannot be a twin's value of that type.
pub fn value(value_type: &str, value: &str) -> Result<(), String> {
    if value.len() > VALUE_LEN_MAX || !text_is_allowed(value) {
        return Err(format!(
            "{value:?} is not a twin value: use at most {VALUE_LEN_MAX} letters, digits and - _ . , : / @ #"
        ));
    }
    let fits = match value_type {
        "" | "string" | super::types::DELETED => true,
        "int" | "integer" => value.parse::<i64>().is_ok(),
        "float" => value.parse::<f64>().is_ok(),
        "boolean" => matches!(value, "true" | "false"),
        other => return Err(format!("{other:?} is not a value type: use string, int, float or boolean")),
    };
    if fits { Ok(()) } else { Err(format!("{value:?} is not of type {value_type}")) }
}

/// The twin's type for a model's type. KubeEdge's edge knows no `double`.
pub fn twin_type(model_type: &str) -> Option<&'static str> {
    Some(match model_type.to_ascii_uppercase().as_str() {
        "INT" => "int",
        "FLOAT" | "DOUBLE" => "float",
        "BOOLEAN" => "boolean",
        "STRING" | "BYTES" | "STREAM" | "" => "string",
        _ => return None,
    })
}

/// How much a value can be trusted, as mappers say it; empty for what is none of their words.
pub fn quality(text: &str) -> &'static str {
    ["good", "stale", "disconnected", "bad"].into_iter().find(|known| *known == text).unwrap_or_default()
}

/// A reason for people, cut at [`REASON_BYTES_MAX`].
pub fn reason(text: &str) -> &str {
    &text[..text.floor_char_boundary(REASON_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values() {
        for good in ["temperature", "a-b_c.d,e:f/g@h#1"] {
            assert!(name(good).is_ok());
        }
        for bad in ["", "a b", "{", "ü", &"x".repeat(129)] {
            assert!(name(bad).is_err(), "{bad}");
        }
        for (value_type, good, bad) in [
            ("int", "-5", "5.5"),
            ("integer", "0", "x"),
            ("float", "-1.5e3", "1,5"),
            ("boolean", "true", "1"),
            ("string", "", "two words"),
            ("", "x", "{\"a\":1}"),
        ] {
            assert!(value(value_type, good).is_ok(), "{value_type} {good}");
            assert!(value(value_type, bad).is_err(), "{value_type} {bad}");
        }
        assert!(value("double", "1").is_err());
        assert_eq!(twin_type("DOUBLE"), Some("float"));
        assert_eq!(twin_type("PICTURE"), None);
    }
}
