//! JSON values as YAML text, for files that people read. Strings are quoted wherever a reader could take them for something else.

use serde_json::Value;

/// Block style, two spaces, keys in the value's order.
pub fn render(value: &Value) -> String {
    let mut text = String::new();
    block(value, 0, &mut text);
    text
}

fn block(value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                *text += &format!("{indent}{}:", scalar(&Value::String(key.clone())));
                child(value, depth + 1, text);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for value in list {
                let mut item = String::new();
                block(value, depth + 1, &mut item);
                // The first line of the item stands behind the dash.
                *text += &format!("{indent}- {}", item.trim_start());
            }
        }
        other => *text += &format!("{indent}{}\n", scalar(other)),
    }
}

fn child(value: &Value, depth: usize, text: &mut String) {
    let has_lines = match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => false,
    };
    if has_lines {
        text.push('\n');
        block(value, depth, text);
    } else {
        *text += &format!(" {}\n", scalar(value));
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(plain) if is_plain(plain) => plain.clone(),
        Value::Object(_) => "{}".into(),
        Value::Array(_) => "[]".into(),
        // JSON's strings are YAML's double-quoted ones.
        other => other.to_string(),
    }
}

fn is_plain(text: &str) -> bool {
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'/' | b'_');
    let reserved = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    text.bytes().next().is_some_and(|first| first.is_ascii_alphabetic())
        && text.bytes().all(safe)
        && !reserved.contains(&text.to_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_is_read_back_as_the_same() {
        let value = json!({
            "a": {"b": [1, {"c": "x", "d": []}, [true, null]], "e": {}}, "f/g.h": "no", "i": "1.0", "j": "two words: #",
        });
        let text = render(&value);
        assert_eq!(serde_saphyr::from_str::<Value>(&text).unwrap(), value, "{text}");
    }
}
