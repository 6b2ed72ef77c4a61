//! From the bytes of a request to a value that fits the schema: JSON with duplicate keys found, unknown fields found and
//! dropped, wrong types refused.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::limits::{DEPTH_MAX, WARNINGS_MAX};
use crate::schema::{Field, Message, Shape, Type};
use crate::{ApiError, Kind};

/// What a lenient reader passes over and a strict one refuses.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// `unknown field "spec.x"`, `duplicate field "spec.y"`.
    pub texts: Vec<String>,
}

impl Findings {
    fn add(&mut self, text: String) {
        if self.texts.len() < WARNINGS_MAX {
            self.texts.push(text);
        }
    }
}

/// Parses JSON; the last of duplicate keys counts.
pub fn json(bytes: &[u8], findings: &mut Findings) -> Result<Value, ApiError> {
    let mut de = serde_json::Deserializer::from_slice(bytes);
    let mut path = String::new();
    let value = Node { path: &mut path, findings }
        .deserialize(&mut de)
        .and_then(|value| de.end().map(|()| value))
        .map_err(|error| ApiError::bad_request(format!("the body is not JSON: {error}")))?;
    Ok(value)
}

struct Node<'a> {
    path: &'a mut String,
    findings: &'a mut Findings,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a number"))
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_string()))
    }
    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        loop {
            let len = self.path.len();
            self.path.push_str(&format!("[{}]", out.len()));
            let item = seq.next_element_seed(Node { path: self.path, findings: self.findings })?;
            self.path.truncate(len);
            match item {
                Some(item) => out.push(item),
                None => return Ok(Value::Array(out)),
            }
        }
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let len = self.path.len();
            join(self.path, &key);
            let value = map.next_value_seed(Node { path: self.path, findings: self.findings })?;
            if out.insert(key, value).is_some() {
                self.findings.add(format!("duplicate field \"{}\"", self.path));
            }
            if len > 64 * DEPTH_MAX * DEPTH_MAX {
                return Err(A::Error::custom("names nest too deeply"));
            }
            self.path.truncate(len);
        }
        Ok(Value::Object(out))
    }
}

fn join(path: &mut String, key: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(key);
}

/// Makes `object` fit the schema of `kind`: unknown fields are found and dropped, nulls dropped, wrong types refused.
/// `apiVersion` and `kind` may stand at the top.
pub fn conform(kind: &Kind, object: &mut Value, findings: &mut Findings) -> Result<(), ApiError> {
    conform_to(kind.schema, kind.kind, &kind.api_version(), object, findings)
}

/// As [`conform`], for a message that is not a kind of the table.
pub fn conform_to(
    schema: &'static Message,
    kind: &str,
    version: &str,
    object: &mut Value,
    findings: &mut Findings,
) -> Result<(), ApiError> {
    let wrong = |why: String| {
        ApiError::bad_request(format!("{kind} in version \"{version}\" cannot be handled as a {kind}: {why}"))
    };
    let Value::Object(map) = object else { return Err(wrong("json: expected an object".into())) };
    let types = [map.remove("apiVersion"), map.remove("kind")];
    let mut path = String::new();
    walk_object(map, schema, &mut path, 0, findings).map_err(wrong)?;
    for (key, value) in ["apiVersion", "kind"].into_iter().zip(types) {
        if let Some(value) = value {
            map.insert(key.into(), value);
        }
    }
    Ok(())
}

fn walk_object(
    map: &mut Map<String, Value>,
    schema: &'static Message,
    path: &mut String,
    depth: usize,
    findings: &mut Findings,
) -> Result<(), String> {
    if depth > DEPTH_MAX {
        return Err(format!("{path} nests too deeply"));
    }
    let mut failed = None;
    map.retain(|key, value| {
        if failed.is_some() {
            return true;
        }
        let len = path.len();
        join(path, key);
        let keep = match schema.field(key) {
            None => {
                findings.add(format!("unknown field \"{path}\""));
                false
            }
            Some(_) if value.is_null() => false,
            Some(field) => {
                if let Err(error) = walk_field(value, field, path, depth + 1, findings) {
                    failed = Some(error);
                }
                true
            }
        };
        path.truncate(len);
        keep
    });
    failed.map_or(Ok(()), Err)
}

fn walk_field(
    value: &mut Value,
    field: &'static Field,
    path: &mut String,
    depth: usize,
    findings: &mut Findings,
) -> Result<(), String> {
    match field.shape {
        Shape::One => walk_value(value, field.what, path, depth, findings),
        Shape::List => {
            let Value::Array(items) = value else { return Err(mismatch(value, path, "array")) };
            for (at, item) in items.iter_mut().enumerate() {
                let len = path.len();
                path.push_str(&format!("[{at}]"));
                walk_value(item, field.what, path, depth, findings)?;
                path.truncate(len);
            }
            Ok(())
        }
        Shape::Map => {
            let Value::Object(members) = value else { return Err(mismatch(value, path, "map")) };
            members.retain(|_, member| !member.is_null());
            for (key, member) in members.iter_mut() {
                let len = path.len();
                join(path, key);
                walk_value(member, field.what, path, depth, findings)?;
                path.truncate(len);
            }
            Ok(())
        }
    }
}

fn walk_value(
    value: &mut Value,
    what: Type,
    path: &mut String,
    depth: usize,
    findings: &mut Findings,
) -> Result<(), String> {
    let fits = match what {
        Type::Message(message) => {
            let Value::Object(map) = value else { return Err(mismatch(value, path, "object")) };
            return walk_object(map, message, path, depth, findings);
        }
        Type::Any => true,
        Type::Fields => value.is_object(),
        Type::Bool => value.is_boolean(),
        Type::Int => value.as_i64().is_some() || value.as_u64().is_some(),
        Type::Double => value.is_number(),
        Type::String | Type::Duration => value.is_string(),
        Type::Bytes => value.as_str().is_some_and(is_base64),
        Type::Time | Type::MicroTime => value.as_str().is_some_and(|text| crate::time::parse(text).is_some()),
        Type::IntOrString => value.is_string() || value.is_i64(),
        Type::Quantity => return quantity(value, path),
        Type::Strings => value.as_array().is_some_and(|list| list.iter().all(Value::is_string)),
    };
    if fits { Ok(()) } else { Err(mismatch(value, path, name(what))) }
}

/// Numbers become strings, as upstream's type writes them back.
fn quantity(value: &mut Value, path: &str) -> Result<(), String> {
    if let Value::Number(number) = value {
        *value = Value::String(number.to_string());
    }
    let text = value.as_str().ok_or_else(|| mismatch(value, path, "quantity"))?;
    let digits = text.trim_start_matches(['+', '-']);
    let unit_at = digits.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(digits.len());
    let (number, unit) = digits.split_at(unit_at);
    let unit_ok = matches!(
        unit,
        "" | "n" | "u" | "m" | "k" | "M" | "G" | "T" | "P" | "E" | "Ki" | "Mi" | "Gi" | "Ti" | "Pi" | "Ei"
    ) || unit.strip_prefix(['e', 'E']).is_some_and(|power| power.parse::<i8>().is_ok());
    let number_ok = number.bytes().any(|b| b.is_ascii_digit()) && number.matches('.').count() <= 1;
    if unit_ok && number_ok {
        Ok(())
    } else {
        Err(format!(
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$': \"{text}\" at {path}"
        ))
    }
}

fn is_base64(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    text.len().is_multiple_of(4)
        && text.len() - body.len() <= 2
        && body.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/'))
}

fn mismatch(value: &Value, path: &str, wanted: &str) -> String {
    let got = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    format!("json: cannot unmarshal {got} into field {path} of type {wanted}")
}

fn name(what: Type) -> &'static str {
    match what {
        Type::String | Type::Duration => "string",
        Type::Bytes => "base64 bytes",
        Type::Bool => "bool",
        Type::Int => "int",
        Type::Double => "float",
        Type::Quantity => "quantity",
        Type::IntOrString => "int or string",
        Type::Time | Type::MicroTime => "RFC 3339 time",
        Type::Any => "any",
        Type::Fields | Type::Message(_) => "object",
        Type::Strings => "list of strings",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::by_path;

    #[test]
    fn findings_name_the_path() {
        let pods = by_path("", "v1", "pods").unwrap();
        let mut findings = Findings::default();
        let body = br#"{"kind":"Pod","spec":{"x":1,"containers":[{"name":"a","name":"b","imag":"i"}],"nodeName":null}}"#;
        let mut pod = json(body, &mut findings).unwrap();
        conform(pods, &mut pod, &mut findings).unwrap();
        assert_eq!(
            findings.texts,
            [
                "duplicate field \"spec.containers[0].name\"",
                "unknown field \"spec.containers[0].imag\"",
                "unknown field \"spec.x\"",
            ]
        );
        assert_eq!(pod, json!({"kind": "Pod", "spec": {"containers": [{"name": "b"}]}}));
    }

    #[test]
    fn wrong_types_are_refused() {
        let pods = by_path("", "v1", "pods").unwrap();
        for (spec, word) in [
            (json!({"nodeName": 1}), "spec.nodeName of type string"),
            (json!({"containers": {}}), "spec.containers of type array"),
            (json!({"volumes": [{"name": "a", "emptyDir": {"sizeLimit": "many"}}]}), "quantities must match"),
            (json!({"terminationGracePeriodSeconds": "5"}), "of type int"),
            (json!("x"), "spec of type object"),
        ] {
            let mut pod = json!({"spec": spec});
            let error = conform(pods, &mut pod, &mut Findings::default()).unwrap_err();
            assert!(error.message.contains(word), "{error}");
        }
        let mut node = json!({"status": {"capacity": {"cpu": 4, "memory": "1e3"}}});
        conform(by_path("", "v1", "nodes").unwrap(), &mut node, &mut Findings::default()).unwrap();
        assert_eq!(node["status"]["capacity"]["cpu"], "4");
        for bad in [&b"{"[..], b"{}x", b"", b"\xff", b"{\"a\":}"] {
            assert!(json(bad, &mut Findings::default()).is_err());
        }
    }
}
