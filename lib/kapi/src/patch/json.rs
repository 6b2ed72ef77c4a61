//! JSON patch (RFC 6902).

use serde_json::Value;

use crate::ApiError;
use crate::limits::JSON_PATCH_OPS_MAX;

/// Applies `patch`, or leaves `target` in an undefined state and says why not. A `test` that fails is 422 as upstream.
pub fn apply(target: &mut Value, patch: &Value) -> Result<(), ApiError> {
    let ops =
        patch.as_array().ok_or_else(|| ApiError::bad_request("a JSON patch is a list of operations"))?;
    if ops.len() > JSON_PATCH_OPS_MAX {
        return Err(ApiError::bad_request(format!(
            "The allowed maximum operations in a JSON patch is {JSON_PATCH_OPS_MAX}, got {}",
            ops.len()
        )));
    }
    ops.iter().try_for_each(|op| one(target, op))
}

fn one(target: &mut Value, op: &Value) -> Result<(), ApiError> {
    let member = |key: &str| {
        op.get(key).and_then(Value::as_str).ok_or_else(|| {
            ApiError::bad_request(format!("an operation of a JSON patch needs the string member \"{key}\""))
        })
    };
    let value = || {
        op.get("value")
            .cloned()
            .ok_or_else(|| ApiError::bad_request("this operation of a JSON patch needs a \"value\""))
    };
    let path = member("path")?;
    match member("op")? {
        "add" => add(target, path, value()?),
        "remove" => remove(target, path).map(drop),
        "replace" => {
            let slot = find(target, path)?;
            *slot = value()?;
            Ok(())
        }
        "move" => {
            let from = member("from")?;
            if path.strip_prefix(from).is_some_and(|rest| rest.starts_with('/')) {
                return Err(failed(format!("cannot move {from} into itself")));
            }
            let moved = remove(target, from)?;
            add(target, path, moved)
        }
        "copy" => {
            let copied = find(target, member("from")?)?.clone();
            add(target, path, copied)
        }
        "test" => {
            // A member that is absent equals null, as in upstream's library.
            let wanted = value()?;
            let found = find(target, path).map(|slot| slot.clone()).unwrap_or(Value::Null);
            if found == wanted { Ok(()) } else { Err(failed(format!("testing value {path} failed"))) }
        }
        other => Err(ApiError::bad_request(format!("unknown operation \"{other}\" in a JSON patch"))),
    }
}

fn failed(why: impl std::fmt::Display) -> ApiError {
    ApiError::unprocessable(format!("the server rejected our request due to an error in our request: {why}"))
}

fn split(path: &str) -> Result<Option<(&str, String)>, ApiError> {
    if path.is_empty() {
        return Ok(None);
    }
    let at = path.rfind('/').ok_or_else(|| ApiError::bad_request(format!("bad JSON pointer \"{path}\"")))?;
    if !path.starts_with('/') {
        return Err(ApiError::bad_request(format!("bad JSON pointer \"{path}\"")));
    }
    Ok(Some((&path[..at], path[at + 1..].replace("~1", "/").replace("~0", "~"))))
}

fn find<'a>(target: &'a mut Value, path: &str) -> Result<&'a mut Value, ApiError> {
    split(path)?;
    target.pointer_mut(path).ok_or_else(|| failed(format!("nothing at {path}")))
}

/// An index into a list. RFC 6902 has no signs and no leading zeros.
fn index(text: &str, len: usize, path: &str) -> Result<usize, ApiError> {
    let plain = text == "0" || !text.starts_with(['0', '+']);
    let at = text.parse::<usize>().ok().filter(|at| plain && *at <= len);
    at.ok_or_else(|| failed(format!("no index \"{text}\" at {path}")))
}

fn add(target: &mut Value, path: &str, value: Value) -> Result<(), ApiError> {
    let Some((parent, key)) = split(path)? else {
        *target = value;
        return Ok(());
    };
    match find(target, parent)? {
        Value::Object(map) => {
            map.insert(key, value);
        }
        Value::Array(list) if key == "-" => list.push(value),
        Value::Array(list) => {
            let at = index(&key, list.len(), path)?;
            list.insert(at, value);
        }
        _ => return Err(failed(format!("nothing can be added at {path}"))),
    }
    Ok(())
}

fn remove(target: &mut Value, path: &str) -> Result<Value, ApiError> {
    let Some((parent, key)) = split(path)? else { return Ok(target.take()) };
    let removed = match find(target, parent)? {
        Value::Object(map) => map.remove(&key),
        Value::Array(list) => {
            let at = index(&key, list.len(), path)?;
            (at < list.len()).then(|| list.remove(at))
        }
        _ => None,
    };
    removed.ok_or_else(|| failed(format!("nothing to remove at {path}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn operations() {
        let doc = json!({"a":{"b":[1,2,3]},"m~n":1,"x/y":2});
        for (patch, result) in [
            (json!([{"op":"add","path":"/a/b/1","value":9}]), Some(json!([1, 9, 2, 3]))),
            (json!([{"op":"add","path":"/a/b/-","value":9}]), Some(json!([1, 2, 3, 9]))),
            (json!([{"op":"remove","path":"/a/b/0"}]), Some(json!([2, 3]))),
            (json!([{"op":"replace","path":"/a/b/0","value":7}]), Some(json!([7, 2, 3]))),
            (json!([{"op":"move","from":"/a/b/0","path":"/a/b/2"}]), Some(json!([2, 3, 1]))),
            (json!([{"op":"copy","from":"/m~0n","path":"/a/b"}]), Some(json!(1))),
            (json!([{"op":"copy","from":"/x~1y","path":"/a/b"}]), Some(json!(2))),
            (json!([{"op":"test","path":"/a/b/0","value":1}]), Some(json!([1, 2, 3]))),
            (json!([{"op":"test","path":"/a/b/0","value":2}]), None),
            (json!([{"op":"remove","path":"/a/b/3"}]), None),
            (json!([{"op":"add","path":"/a/b/01","value":9}]), None),
            (json!([{"op":"move","from":"/a","path":"/a/b"}]), None),
            (json!([{"op":"replace","path":"/nothing","value":7}]), None),
            (json!([{"op":"shake","path":"/a"}]), None),
        ] {
            let mut got = doc.clone();
            let outcome = apply(&mut got, &patch);
            match result {
                Some(result) => assert_eq!(got["a"]["b"], result, "{patch}"),
                None => assert!(outcome.is_err(), "{patch}"),
            }
        }
    }
}
