//! A scripted stock edge: it writes as KubeEdge's edgecore does, and follows a session that is written down.
//!
//! Its quirks: JSON as Go writes it (`<`, `>` and `&` escaped, a newline at the end), frames of at most 4 KiB so that larger
//! messages come in pieces, and an acknowledgement for everything of group `resource`, answers included.
//!
//! A session (`tests/vectors/kubeedge/stock-edge-*.jsonl`) is a list of steps: `edge` is sent, `cloud` must come, `api` is done at
//! the API; what is named in `may` comes or not. In what must come, `"*"` is anything, `"*text"` any text but an empty one, `"$name"` the same text at each place
//! (sent as `${name}`), and a member `"..."` allows more members. What came and was not foreseen is an error.

use std::collections::BTreeMap;

use futures_util::SinkExt;
use serde_json::{Map, Value, json};
use tokio_tungstenite::tungstenite::protocol::frame::Frame as RawFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use super::{Cloud, Edge, Frame};

/// The write buffer of KubeEdge's WebSocket library.
const FRAME_LEN: usize = 4096;

/// `message` as Go's JSON encoder writes it.
pub fn go_json(message: &Value) -> String {
    let text = message.to_string();
    text.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026") + "\n"
}

/// Sends text in pieces, as KubeEdge's edge does.
pub async fn send_in_pieces(edge: &mut Edge, text: &str) {
    let pieces: Vec<&[u8]> = text.as_bytes().chunks(FRAME_LEN).collect();
    for (at, piece) in pieces.iter().enumerate() {
        let code = OpCode::Data(if at == 0 { Data::Text } else { Data::Continue });
        let frame = RawFrame::message(piece.to_vec(), code, at + 1 == pieces.len());
        edge.ws.send(Frame::Frame(frame)).await.unwrap();
    }
}

/// Runs a session on a fresh link; the names that it bound.
pub async fn follow(cloud: &Cloud, edge: &mut Edge, session: &str) -> BTreeMap<String, Value> {
    edge.acks_answers = true;
    let mut bound = BTreeMap::new();
    let mut flow = String::new();
    let mut may_come = Vec::new();
    for (number, line) in session.lines().enumerate() {
        let step: Map<String, Value> = serde_json::from_str(line).unwrap();
        if let Some(name) = step.get("flow").and_then(Value::as_str) {
            flow = format!("line {}: {name}", number + 1);
        }
        if let Some(message) = step.get("edge") {
            send_in_pieces(edge, &go_json(&filled(message, &bound))).await;
        } else if let Some(pattern) = step.get("cloud") {
            expect(edge, pattern, &mut bound).await.unwrap_or_else(|why| panic!("{flow}: {why}"));
        } else if let Some(may) = step.get("may").and_then(Value::as_array) {
            may_come.extend(may.iter().filter_map(Value::as_str).map(str::to_owned));
        } else if let Some([method, path]) = step["api"].as_array().map(Vec::as_slice) {
            let (method, path) = (method.as_str().unwrap(), path.as_str().unwrap());
            let done = cloud.call(method, path, step.get("body").cloned()).await;
            let done = done.unwrap_or_else(|status| panic!("{flow}: {method} {path}: {status}"));
            if let Some(pattern) = step.get("gives") {
                fits(pattern, &done, "", &mut bound).unwrap_or_else(|why| panic!("{flow}: {path}: {why}"));
            }
            for (name, pointer) in step.get("save").and_then(Value::as_object).into_iter().flatten() {
                let value = done.pointer(pointer.as_str().unwrap()).unwrap();
                bound.insert(name.clone(), value.clone());
            }
        }
    }
    let names = edge.waiting.iter().map(|m| format!("{} {}", m.route.operation, m.route.resource));
    let more: Vec<String> = names.filter(|name| !may_come.contains(name)).collect();
    assert!(more.is_empty(), "more came than the session foresees: {more:?}");
    bound
}

async fn expect(edge: &mut Edge, pattern: &Value, bound: &mut BTreeMap<String, Value>) -> Result<(), String> {
    let (route, header) = (&pattern["route"], &pattern["header"]);
    let what = format!("{} {}", route["operation"], route["resource"]);
    let message = edge
        .receive(&what, |m| {
            route["operation"] == m.route.operation.as_str()
                && route["resource"] == m.route.resource.as_str()
                && header.get("parent_msg_id").and_then(Value::as_str).unwrap_or_default()
                    == m.header.parent_msg_id
        })
        .await;
    let came: Value = serde_json::from_str(&message.encode()).unwrap();
    fits(pattern, &came, "", bound).map_err(|why| format!("{what}: {why}; came: {came}"))
}

/// Puts what is bound into a message: `${name}`, also inside text.
fn filled(value: &Value, bound: &BTreeMap<String, Value>) -> Value {
    match value {
        Value::String(text) => {
            let put = |text: String, (name, value): (&String, &Value)| {
                text.replace(&format!("${{{name}}}"), value.as_str().unwrap_or_default())
            };
            Value::from(bound.iter().fold(text.clone(), put))
        }
        Value::Array(items) => items.iter().map(|item| filled(item, bound)).collect(),
        Value::Object(members) => {
            members.iter().map(|(key, member)| (key.clone(), filled(member, bound))).collect()
        }
        other => other.clone(),
    }
}

fn fits(pattern: &Value, value: &Value, at: &str, bound: &mut BTreeMap<String, Value>) -> Result<(), String> {
    match (pattern, value) {
        (Value::String(any), _) if any == "*" => Ok(()),
        (Value::String(any), Value::String(text)) if any == "*text" && !text.is_empty() => Ok(()),
        (Value::String(name), _) if name.starts_with('$') => {
            let first = bound.entry(name[1..].to_owned()).or_insert_with(|| value.clone());
            if first == value { Ok(()) } else { Err(format!("{at} is {value}, was {first}")) }
        }
        (Value::Object(wanted), Value::Object(members)) => {
            let open = wanted.contains_key("...");
            for (key, pattern) in wanted.iter().filter(|(key, _)| *key != "...") {
                let member = members.get(key).ok_or_else(|| format!("{at}/{key} is missing"))?;
                fits(pattern, member, &format!("{at}/{key}"), bound)?;
            }
            match members.keys().find(|key| !open && !wanted.contains_key(*key)) {
                Some(key) => Err(format!("{at}/{key} is one too many")),
                None => Ok(()),
            }
        }
        (Value::Array(wanted), Value::Array(items)) if wanted.len() == items.len() => {
            let mut pairs = wanted.iter().zip(items).enumerate();
            pairs.try_for_each(|(n, (pattern, item))| fits(pattern, item, &format!("{at}/{n}"), bound))
        }
        _ if pattern == value => Ok(()),
        _ => Err(format!("{at} is {value}, not {pattern}")),
    }
}

/// A session that asks for nothing else than `wrong` must not pass, or the comparison is worth nothing.
pub fn comparison_can_fail() {
    let came = json!({"a": {"b": "x", "c": 1}, "d": [1, 2]});
    let ok = |pattern: Value| fits(&pattern, &came, "", &mut BTreeMap::new()).is_ok();
    assert!(ok(json!({"a": {"b": "*text", "...": ""}, "d": [1, "*"]})));
    assert!(ok(json!({"a": {"b": "$x", "c": 1}, "d": "*"})));
    for wrong in [
        json!({"a": {"b": "x"}, "d": [1, 2]}),
        json!({"a": {"b": "y", "...": ""}, "d": [1, 2]}),
        json!({"a": {"b": "x", "c": "*text"}, "d": [1, 2]}),
        json!({"a": {"...": ""}, "d": [1]}),
        json!({"a": {"e": "*", "...": ""}, "d": [1, 2]}),
        json!({"a": "*"}),
    ] {
        assert!(!ok(wrong.clone()), "{wrong}");
    }
}
