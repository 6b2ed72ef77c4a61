//! Strategic merge patch: a merge patch that knows the keys of lists, from the schema table.
//!
//! Directives: `$patch: delete | replace | merge`, `$deleteFromPrimitiveList/<field>`, `$setElementOrder/<field>`, `$retainKeys`.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::ApiError;
use crate::schema::{Field, Merge, Message, Shape, Type};

const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// Applies `patch` to an object of type `message`.
pub fn apply(target: &mut Value, patch: Value, message: &'static Message) -> Result<(), ApiError> {
    let Value::Object(patch) = patch else {
        return Err(ApiError::bad_request("a strategic merge patch is an object"));
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    merge_object(target.as_object_mut().expect("made an object above"), patch, Some(message))
}

fn merge_object(
    target: &mut Map<String, Value>,
    mut patch: Map<String, Value>,
    message: Option<&'static Message>,
) -> Result<(), ApiError> {
    match patch.remove("$patch").as_ref().map(|value| value.as_str().unwrap_or("?")) {
        None | Some("merge") => {}
        Some("replace") => {
            *target = strip_object(patch);
            return Ok(());
        }
        Some("delete") => {
            target.clear();
            return Ok(());
        }
        Some(other) => return Err(ApiError::bad_request(format!("unknown directive \"$patch: {other}\""))),
    }
    if let Some(keep) = patch.remove("$retainKeys") {
        let keep = strings(&keep, "$retainKeys")?;
        target.retain(|key, _| keep.contains(&key.as_str()));
    }
    let mut orders = Vec::new();
    let mut fields = Vec::new();
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix(DELETE_FROM) {
            if let Some(Value::Array(list)) = target.get_mut(field) {
                let gone = array(value, &key)?;
                list.retain(|item| !gone.contains(item));
            }
        } else if let Some(field) = key.strip_prefix(ORDER) {
            orders.push((field.to_string(), array(value, &key)?));
        } else {
            fields.push((key, value));
        }
    }
    for (key, value) in fields {
        if value.is_null() {
            target.remove(&key);
            continue;
        }
        let field = message.and_then(|message| message.field(&key));
        merge_field(target, key, value, field)?;
    }
    for (name, order) in orders {
        let field = message.and_then(|message| message.field(&name));
        if let Some(Value::Array(list)) = target.get_mut(&name) {
            reorder(list, &order, field);
        }
    }
    Ok(())
}

fn merge_field(
    target: &mut Map<String, Value>,
    key: String,
    value: Value,
    field: Option<&'static Field>,
) -> Result<(), ApiError> {
    match value {
        Value::Object(patch) => {
            // The members of a map have any name: only one message is described by fields.
            let message = field.filter(|field| field.shape == Shape::One).and_then(message_of);
            let slot = target.entry(key).or_insert(Value::Null);
            if !slot.is_object() {
                *slot = Value::Object(Map::new());
            }
            merge_object(slot.as_object_mut().expect("made an object above"), patch, message)
        }
        Value::Array(items) => {
            let merge = field.map_or(Merge::Atomic, |field| field.merge);
            let old = match target.remove(&key) {
                Some(Value::Array(list)) => list,
                _ => Vec::new(),
            };
            let merged = match merge {
                Merge::Atomic => items.into_iter().map(strip).collect(),
                Merge::Set => merge_set(old, items),
                Merge::Key(by) => merge_keyed(old, items, by, field.and_then(message_of), &key)?,
            };
            target.insert(key, Value::Array(merged));
            Ok(())
        }
        other => {
            target.insert(key, other);
            Ok(())
        }
    }
}

fn message_of(field: &'static Field) -> Option<&'static Message> {
    match field.what {
        Type::Message(message) => Some(message),
        _ => None,
    }
}

fn merge_set(mut old: Vec<Value>, items: Vec<Value>) -> Vec<Value> {
    for item in items {
        if !old.contains(&item) {
            old.push(item);
        }
    }
    old
}

fn merge_keyed(
    mut old: Vec<Value>,
    items: Vec<Value>,
    by: &str,
    message: Option<&'static Message>,
    name: &str,
) -> Result<Vec<Value>, ApiError> {
    let replace = items
        .iter()
        .any(|item| item.get("$patch").and_then(Value::as_str) == Some("replace") && item.get(by).is_none());
    if replace {
        return Ok(items.into_iter().filter(|item| item.get("$patch").is_none()).map(strip).collect());
    }
    for item in items {
        let Value::Object(mut item) = item else {
            return Err(ApiError::bad_request(format!("the elements of {name} are objects")));
        };
        let Some(id) = item.get(by).cloned() else {
            return Err(ApiError::bad_request(format!(
                "map: {} does not contain declared merge key: {by}",
                Value::Object(item)
            )));
        };
        let same = |entry: &Value| entry.get(by) == Some(&id);
        match item.get("$patch").and_then(Value::as_str) {
            Some("delete") => old.retain(|entry| !same(entry)),
            Some("replace") => {
                item.remove("$patch");
                let fresh = Value::Object(strip_object(item));
                match old.iter().position(same) {
                    Some(at) => old[at] = fresh,
                    None => old.push(fresh),
                }
            }
            _ => match old.iter_mut().find(|entry| same(entry)) {
                Some(Value::Object(entry)) => merge_object(entry, item, message)?,
                _ => {
                    // Through an empty object, so that directives inside a new element are carried out too.
                    let mut fresh = Map::new();
                    merge_object(&mut fresh, item, message)?;
                    old.push(Value::Object(fresh));
                }
            },
        }
    }
    Ok(old)
}

/// Puts the elements named in `order` into that order. Elements that the patch does not know stay before the named
/// element that they preceded.
fn reorder(list: &mut Vec<Value>, order: &[Value], field: Option<&'static Field>) {
    let id = |value: &Value| -> Value {
        match field.map(|field| field.merge) {
            Some(Merge::Key(by)) => value.get(by).cloned().unwrap_or(Value::Null),
            _ => value.clone(),
        }
    };
    let rank: HashMap<String, usize> =
        order.iter().enumerate().map(|(at, item)| (id(item).to_string(), at)).collect();
    let ranks: Vec<Option<usize>> =
        list.iter().map(|item| rank.get(&id(item).to_string()).copied()).collect();
    let mut named: Vec<(usize, Value)> = Vec::new();
    let mut others: Vec<(usize, Value)> = Vec::new();
    for (at, item) in list.drain(..).enumerate() {
        match ranks[at] {
            Some(rank) => named.push((rank, item)),
            None => others.push((at, item)),
        }
    }
    named.sort_by_key(|(rank, _)| *rank);
    let mut others = others.into_iter().peekable();
    for (rank, item) in named {
        let was_at = ranks.iter().position(|entry| *entry == Some(rank)).unwrap_or(0);
        while let Some((_, other)) = others.next_if(|(at, _)| *at < was_at) {
            list.push(other);
        }
        list.push(item);
    }
    list.extend(others.map(|(_, item)| item));
}

/// A value that is inserted as it is carries no directives.
fn strip(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(strip_object(map)),
        other => other,
    }
}

fn strip_object(map: Map<String, Value>) -> Map<String, Value> {
    map.into_iter().filter(|(key, value)| !key.starts_with('$') && !value.is_null()).collect()
}

fn strings<'a>(value: &'a Value, what: &str) -> Result<Vec<&'a str>, ApiError> {
    let list = value.as_array().ok_or_else(|| ApiError::bad_request(format!("{what} is a list")))?;
    list.iter()
        .map(|item| {
            item.as_str().ok_or_else(|| ApiError::bad_request(format!("{what} is a list of strings")))
        })
        .collect()
}

fn array(value: Value, what: &str) -> Result<Vec<Value>, ApiError> {
    match value {
        Value::Array(list) => Ok(list),
        _ => Err(ApiError::bad_request(format!("{what} is a list"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::CORE_V1_POD;

    fn patched(patch: Value) -> Value {
        let mut pod = json!({
            "metadata": {"labels": {"a": "1"}, "finalizers": ["x", "y"]},
            "spec": {
                "containers": [
                    {"name": "one", "image": "i:1", "env": [{"name": "A", "value": "1"}], "args": ["p", "q"]},
                    {"name": "two", "image": "i:2"},
                ],
                "volumes": [{"name": "v", "emptyDir": {}}],
            },
        });
        apply(&mut pod, patch, &CORE_V1_POD).unwrap();
        pod
    }

    #[test]
    fn lists_merge_by_their_key() {
        let pod = patched(json!({"spec": {"containers": [{"name": "two", "image": "i:3"}]}}));
        assert_eq!(pod["spec"]["containers"][0]["image"], "i:1");
        assert_eq!(pod["spec"]["containers"][1]["image"], "i:3");
        let pod = patched(json!({"spec": {"containers": [
            {"name": "one", "env": [{"name": "B", "value": "2"}], "args": ["r"]}]}}));
        assert_eq!(pod["spec"]["containers"][0]["env"].as_array().unwrap().len(), 2);
        assert_eq!(pod["spec"]["containers"][0]["args"], json!(["r"]));
    }

    #[test]
    fn directives() {
        let pod = patched(json!({"spec": {"containers": [{"name": "one", "$patch": "delete"}]}}));
        assert_eq!(pod["spec"]["containers"].as_array().unwrap().len(), 1);
        let pod = patched(json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "three"}]}}));
        assert_eq!(pod["spec"]["containers"], json!([{"name": "three"}]));
        let pod = patched(json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["x"]}}));
        assert_eq!(pod["metadata"]["finalizers"], json!(["y"]));
        let pod = patched(json!({"metadata": {"finalizers": ["z", "x"]}}));
        assert_eq!(pod["metadata"]["finalizers"], json!(["x", "y", "z"]));
        let pod = patched(json!({"metadata": {"labels": {"a": null, "b": "2"}}}));
        assert_eq!(pod["metadata"]["labels"], json!({"b": "2"}));
        let pod = patched(json!({"spec": {"volumes": [
            {"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}}));
        assert_eq!(pod["spec"]["volumes"], json!([{"name": "v", "hostPath": {"path": "/x"}}]));
        let pod = patched(json!({"spec": {
            "$setElementOrder/containers": [{"name": "two"}, {"name": "three"}, {"name": "one"}],
            "containers": [{"name": "three"}]}}));
        let names: Vec<&Value> =
            pod["spec"]["containers"].as_array().unwrap().iter().map(|item| &item["name"]).collect();
        assert_eq!(names, ["two", "three", "one"]);
        let mut pod = json!({});
        assert!(apply(&mut pod, json!({"spec": {"containers": [{"image": "x"}]}}), &CORE_V1_POD).is_err());
    }
}
