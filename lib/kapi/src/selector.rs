//! Label and field selectors.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::limits::SELECTOR_TERMS_MAX;
use crate::{ApiError, Kind, meta};

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Exists,
    Absent,
    In(Vec<String>),
    NotIn(Vec<String>),
}

/// A parsed label selector. The empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(Vec<(String, Test)>);

impl Labels {
    /// `a=b`, `a==b`, `a!=b`, `a in (x,y)`, `a notin (x)`, `a`, `!a`, joined by commas.
    pub fn parse(text: &str) -> Result<Labels, ApiError> {
        let bad = |why: &str| {
            ApiError::bad_request(format!("unable to parse requirement in label selector \"{text}\": {why}"))
        };
        let mut terms = Vec::new();
        for part in split_outside_parentheses(text) {
            let part = part.trim();
            if part.is_empty() {
                if text.trim().is_empty() {
                    break;
                }
                return Err(bad("empty requirement"));
            }
            if terms.len() == SELECTOR_TERMS_MAX {
                return Err(bad("too many requirements"));
            }
            let (key, test) = term(part).map_err(bad)?;
            if !is_qualified_name(&key) {
                return Err(bad(
                    "a key is an optional DNS prefix, a slash, and a name of at most 63 characters",
                ));
            }
            terms.push((key, test));
        }
        Ok(Labels(terms))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn matches(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.0.iter().all(|(key, test)| {
            let value = labels.and_then(|labels| labels.get(key));
            match test {
                Test::Exists => value.is_some(),
                Test::Absent => value.is_none(),
                Test::In(set) => value.is_some_and(|value| set.contains(value)),
                Test::NotIn(set) => value.is_none_or(|value| !set.contains(value)),
            }
        })
    }
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut out) = (0_usize, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                out.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    out.push(&text[start..]);
    out
}

fn term(part: &str) -> Result<(String, Test), &'static str> {
    let value = |text: &str| {
        let text = text.trim();
        if is_label_value(text) {
            Ok(text.to_string())
        } else {
            Err("a value has at most 63 letters, digits, - _ .")
        }
    };
    if let Some(key) = part.strip_prefix('!') {
        return Ok((key.trim().to_string(), Test::Absent));
    }
    if let Some((key, right)) = part.split_once("!=") {
        return Ok((key.trim().to_string(), Test::NotIn(vec![value(right)?])));
    }
    if let Some((key, right)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Ok((key.trim().to_string(), Test::In(vec![value(right)?])));
    }
    let Some((key, rest)) = part.split_once(char::is_whitespace) else {
        return Ok((part.to_string(), Test::Exists));
    };
    let (word, set) = rest.split_once('(').ok_or("expected =, !=, in or notin")?;
    let set = set.trim_end().strip_suffix(')').ok_or("a set ends with )")?;
    let set = set.split(',').map(value).collect::<Result<Vec<_>, _>>()?;
    match word.trim() {
        "in" => Ok((key.to_string(), Test::In(set))),
        "notin" => Ok((key.to_string(), Test::NotIn(set))),
        _ => Err("expected in or notin before a set"),
    }
}

fn is_label_value(text: &str) -> bool {
    text.len() <= 63 && (text.is_empty() || is_name_part(text))
}

fn is_name_part(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !text.is_empty()
        && text.len() <= 63
        && text.chars().all(inner)
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
}

/// `name` or `prefix/name` as label and annotation keys have it.
pub fn is_qualified_name(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => crate::validate::is_dns_subdomain(prefix) && is_name_part(name),
        None => is_name_part(text),
    }
}

/// A value that a label may have.
pub fn is_valid_label_value(text: &str) -> bool {
    is_label_value(text)
}

/// A parsed field selector.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(Vec<(String, String, bool)>);

impl Fields {
    /// `path=value`, `path==value`, `path!=value`, joined by commas; paths that the kind does not support are refused.
    pub fn parse(text: &str, kind: &Kind) -> Result<Fields, ApiError> {
        let mut terms = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (path, value, equal) = if let Some((path, value)) = part.split_once("!=") {
                (path, value, false)
            } else if let Some((path, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (path, value, true)
            } else {
                return Err(ApiError::bad_request(format!(
                    "invalid field selector \"{text}\": expected key=value, key==value or key!=value"
                )));
            };
            let path = path.trim();
            let known = matches!(path, "metadata.name" | "metadata.namespace")
                && (kind.namespaced || path == "metadata.name")
                || kind.field_labels.contains(&path);
            if !known {
                return Err(ApiError::bad_request(format!("field label not supported: {path}")));
            }
            if terms.len() == SELECTOR_TERMS_MAX {
                return Err(ApiError::bad_request("too many requirements in the field selector"));
            }
            terms.push((path.to_string(), value.trim().to_string(), equal));
        }
        Ok(Fields(terms))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The name that the selector pins, so that one object is read instead of all.
    pub fn exact_name(&self) -> Option<&str> {
        self.0
            .iter()
            .find(|(path, _, equal)| *equal && path == "metadata.name")
            .map(|(_, value, _)| value.as_str())
    }

    /// Whether name and namespace are all that is asked: then the object's bytes need not be read.
    pub fn needs_only_names(&self) -> bool {
        self.0.iter().all(|(path, _, _)| path.starts_with("metadata."))
    }

    pub fn matches_names(&self, namespace: &str, name: &str) -> bool {
        self.0.iter().all(|(path, value, equal)| match path.as_str() {
            "metadata.name" => (value == name) == *equal,
            "metadata.namespace" => (value == namespace) == *equal,
            _ => true,
        })
    }

    pub fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|(path, value, equal)| (field_value(object, path) == *value) == *equal)
    }
}

/// The value of a field label as upstream's conversion functions give it.
fn field_value(object: &Value, path: &str) -> String {
    match path {
        // An event's component stands in one of two places.
        "source" => match meta::text(object, "source.component") {
            "" => meta::text(object, "reportingComponent").to_string(),
            component => component.to_string(),
        },
        "status.podIPs" => meta::text(object, "status.podIP").to_string(),
        _ => match meta::at(object, path) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Bool(value)) => value.to_string(),
            Some(Value::Number(number)) => number.to_string(),
            _ if matches!(path, "spec.unschedulable" | "spec.hostNetwork") => "false".into(),
            _ => String::new(),
        },
    }
}

/// For fuzzing: any text is parsed or refused.
pub fn fuzz_selectors(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(labels) = Labels::parse(&text) {
        labels.matches(None);
    }
    for kind in crate::kinds::KINDS {
        if let Ok(fields) = Fields::parse(&text, kind) {
            fields.matches(&Value::Null);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::by_path;

    #[test]
    fn label_selectors() {
        let labels: BTreeMap<String, String> =
            [("app", "web"), ("tier", "front"), ("x.io/y", "")].map(|(k, v)| (k.into(), v.into())).into();
        for (text, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier!=back", true),
            ("app in (web, db),!gone", true),
            ("app notin (web)", false),
            ("other notin (web)", true),
            ("x.io/y", true),
            ("x.io/y=", true),
            ("!app", false),
            ("app!=web", false),
            ("gone!=web", true),
            ("gone=web", false),
        ] {
            assert_eq!(Labels::parse(text).unwrap().matches(Some(&labels)), expected, "{text}");
        }
        for bad in
            ["=a", "a in", "a in (b", "a b c", "a=b,,c=d", "-a=b", "a=b c", "a is (b)", "UP/x/y=1", ","]
        {
            assert!(Labels::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn field_selectors() {
        let pods = by_path("", "v1", "pods").unwrap();
        let pod = json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"nodeName": "pi"}, "status": {"phase": "Running"}});
        for (text, expected) in [
            ("", true),
            ("metadata.name=a", true),
            ("spec.nodeName=pi,status.phase!=Succeeded,status.phase!=Failed", true),
            ("spec.nodeName=", false),
            ("spec.nodeName!=pi", false),
            ("spec.hostNetwork=false", true),
        ] {
            assert_eq!(Fields::parse(text, pods).unwrap().matches(&pod), expected, "{text}");
        }
        let error = Fields::parse("spec.color=red", pods).unwrap_err();
        assert_eq!(error.message, "field label not supported: spec.color");
        assert!(Fields::parse("metadata.namespace=a", by_path("", "v1", "nodes").unwrap()).is_err());
        assert!(Fields::parse("x", pods).is_err());
    }
}
