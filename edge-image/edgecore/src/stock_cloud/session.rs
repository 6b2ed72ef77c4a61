//! Follows a script. Each line is a step; `from` and `until` are minor versions of KubeEdge for which it holds.
//!
//! - `edge`: this must come; `cloud`: this is sent (`${name}` stands for what was bound).
//! - `fetch`, `token` (with `as`): the edge asks; `got`: what came of it.
//! - `report`, `send`: a module's message; `mqtt`: a mapper's; `heard`: what a mapper must hear.
//! - `stored`: what meta holds; `condition`: what the node says; `may`: comes or not.
//!
//! In a pattern `"*"` is anything, `"$name"` the same text at each place, `{"$json": pattern}` text that holds JSON, and a member
//! `"..."` allows more members.

use std::{collections::BTreeMap, time::Duration};

use futures_util::SinkExt;
use serde_json::{Map, Value, json};
use tokio::{task::JoinHandle, time::timeout};
use tokio_tungstenite::tungstenite::{
    Message as Frame,
    protocol::frame::{
        Frame as RawFrame,
        coding::{Data, OpCode},
    },
};
use wire::{Message, Resource};

use super::edge::Edge;
use crate::{
    contract::Report,
    edged::{
        pod::{Pod, TokenProjection},
        tokens::Tokens,
    },
    hub::tests::cloud::Session,
};

/// The write buffer of KubeEdge's WebSocket library.
const FRAME_LEN: usize = 4096;
const PATIENCE: Duration = Duration::from_secs(10);

type Bound = BTreeMap<String, Value>;

struct Stage<'a> {
    session: &'a mut Session,
    edge: &'a Edge,
    bound: Bound,
    /// Came before it was asked for.
    waiting: Vec<Message>,
    asked: BTreeMap<String, JoinHandle<Result<String, String>>>,
    may: Vec<String>,
}

pub async fn follow(session: &mut Session, edge: &Edge, script: &str, minor: u32) {
    let bound = Bound::new();
    let mut stage =
        Stage { session, edge, bound, waiting: Vec::new(), asked: BTreeMap::new(), may: Vec::new() };
    let mut flow = String::new();
    for (number, line) in script.lines().enumerate() {
        let step: Map<String, Value> =
            serde_json::from_str(line).unwrap_or_else(|e| panic!("line {}: {e}", number + 1));
        let bound = |key: &str, other: u64| step.get(key).and_then(Value::as_u64).unwrap_or(other) as u32;
        if !(bound("from", 0)..=bound("until", 99)).contains(&minor) {
            continue;
        }
        if let Some(name) = step.get("flow").and_then(Value::as_str) {
            flow = name.to_owned();
        }
        let did = stage.step(&step).await;
        did.unwrap_or_else(|why| panic!("1.{minor}, line {}, {flow}: {why}", number + 1));
    }
    let more: Vec<String> = stage.waiting.iter().map(name_of).filter(|n| !stage.may.contains(n)).collect();
    assert!(more.is_empty(), "1.{minor}: more came than the script foresees: {more:?}");
}

fn name_of(message: &Message) -> String {
    format!("{} {}", message.route.operation, message.route.resource)
}

/// `message` as Go's JSON encoder writes it.
fn go_json(message: &Value) -> String {
    message.to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026") + "\n"
}

impl Stage<'_> {
    async fn step(&mut self, step: &Map<String, Value>) -> Result<(), String> {
        let text = |key: &str| step.get(key).and_then(Value::as_str);
        if let Some(may) = step.get("may").and_then(Value::as_array) {
            self.may.extend(may.iter().filter_map(Value::as_str).map(str::to_owned));
        } else if let Some(pattern) = step.get("edge") {
            self.expect(pattern).await?;
        } else if let Some(message) = step.get("cloud") {
            self.send(&filled(message, &self.bound)).await;
        } else if let Some(resource) = text("fetch") {
            let resource = Resource::parse(resource).ok_or("no resource")?;
            let meta = self.edge.handles.meta.clone();
            let task = async move { meta.fetch(&resource).await.map(|o| o.uid).map_err(|e| e.to_string()) };
            self.asked.insert(text("as").ok_or("as")?.into(), tokio::spawn(task));
        } else if let Some(account) = text("token") {
            let (handles, account) = (self.edge.handles.clone(), account.to_owned());
            let task = async move {
                let pod = json!({
                    "metadata": {"name": "web", "namespace": "default", "uid": "u-web"},
                    "spec": {"serviceAccountName": account, "containers": [{"name": "c", "image": "i"}]},
                });
                let pod = Pod::parse(pod.to_string().as_bytes()).map_err(|e| e.to_string())?;
                let wanted = TokenProjection { expiration_seconds: Some(3607), ..TokenProjection::default() };
                Tokens::new(handles)
                    .get(&pod, &wanted)
                    .await
                    .map(|found| found.token)
                    .map_err(|e| e.to_string())
            };
            self.asked.insert(text("as").ok_or("as")?.into(), tokio::spawn(task));
        } else if let Some(name) = text("got") {
            self.got(name, step).await?;
        } else if let Some(message) = step.get("report").or(step.get("send")) {
            self.tell(message, step.contains_key("report"), text("key").unwrap_or("key"));
        } else if let Some(topic) = text("mqtt") {
            let payload = step["payload"].to_string();
            self.edge.handles.bus.publish(topic, payload.into(), false).await.map_err(|e| e.to_string())?;
        } else if let Some(topic) = text("heard") {
            self.heard(topic, &step["payload"]).await?;
        } else if let Some(resource) = text("stored") {
            self.stored(resource, step).await?;
        } else if let Some(kind) = text("condition") {
            self.condition(kind, text("has").unwrap_or_default()).await?;
        }
        Ok(())
    }

    /// In pieces when it is large, as Go's library does.
    async fn send(&mut self, message: &Value) {
        let text = go_json(message);
        if text.len() <= FRAME_LEN {
            return self.session.send_frame(Frame::Text(text.into())).await;
        }
        let pieces: Vec<&[u8]> = text.as_bytes().chunks(FRAME_LEN).collect();
        for (at, piece) in pieces.iter().enumerate() {
            let code = OpCode::Data(if at == 0 { Data::Text } else { Data::Continue });
            let frame = RawFrame::message(piece.to_vec(), code, at + 1 == pieces.len());
            self.session.0.send(Frame::Frame(frame)).await.unwrap();
        }
    }

    async fn expect(&mut self, pattern: &Value) -> Result<(), String> {
        let route = &pattern["route"];
        let parent = filled(&pattern["header"]["parent_msg_id"], &self.bound);
        let fits_name = |m: &Message| {
            route["operation"] == m.route.operation.as_str()
                && route["resource"] == m.route.resource.as_str()
                && parent.as_str().is_none_or(|parent| parent == m.header.parent_msg_id)
        };
        let came = match self.waiting.iter().position(fits_name) {
            Some(at) => self.waiting.remove(at),
            None => loop {
                let next = timeout(PATIENCE, self.session.receive()).await;
                let next =
                    next.map_err(|_| format!("{} {} did not come", route["operation"], route["resource"]))?;
                if fits_name(&next) {
                    break next;
                }
                self.waiting.push(next);
            },
        };
        let came: Value = serde_json::from_str(&came.encode()).map_err(|e| e.to_string())?;
        let filled = filled(pattern, &self.bound);
        fits(&filled, &came, "", &mut self.bound).map_err(|why| format!("{why}; came: {came}"))
    }

    async fn got(&mut self, name: &str, step: &Map<String, Value>) -> Result<(), String> {
        let asked = self.asked.remove(name).ok_or("nothing was asked under this name")?;
        let got = timeout(PATIENCE, asked).await.map_err(|_| "no end")?.map_err(|e| e.to_string())?;
        match (&got, step.get("is").and_then(Value::as_str), step.get("error").and_then(Value::as_str)) {
            (Ok(value), Some(wanted), None) if value == wanted => Ok(()),
            (Err(error), None, Some(wanted)) if error.contains(wanted) => Ok(()),
            _ => Err(format!("got {got:?}")),
        }
    }

    fn tell(&self, message: &Value, is_report: bool, key: &str) {
        let text = |pointer: &str| message.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (source, group) = (text("/source"), text("/group"));
        let message = Message::new(1, source, group, text("/operation"), text("/resource"))
            .with_content(&message["content"]);
        match is_report {
            true => self.edge.handles.uplink.report(Report { key: key.into(), message, durable: false }),
            false => self.edge.handles.uplink.send(message),
        }
    }

    async fn heard(&mut self, topic: &str, pattern: &Value) -> Result<(), String> {
        let mut last = String::new();
        for _ in 0..500 {
            for payload in self.edge.bus.on(topic) {
                let value: Value = serde_json::from_slice(&payload).map_err(|e| e.to_string())?;
                match fits(pattern, &value, "", &mut self.bound) {
                    Ok(()) => return Ok(()),
                    Err(why) => last = format!("{why}; heard: {value}"),
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err(format!("{topic}: {last}"))
    }

    async fn stored(&self, resource: &str, step: &Map<String, Value>) -> Result<(), String> {
        use crate::contract::Meta;
        let object = self.edge.meta.get(&Resource::parse(resource).ok_or("no resource")?);
        let seen = object.as_ref().map(|object| (object.uid.as_str(), object.resource_version.as_str()));
        let wanted = step["uid"].as_str().map(|uid| (uid, step["version"].as_str().unwrap_or_default()));
        if seen == wanted { Ok(()) } else { Err(format!("{resource} is {seen:?}")) }
    }

    async fn condition(&self, kind: &str, has: &str) -> Result<(), String> {
        let mut raised = self.edge.board.subscribe();
        let wanted = |all: &Vec<crate::contract::Condition>| {
            let found = all.iter().find(|condition| condition.condition_type == kind && condition.status);
            if has.is_empty() { found.is_none() } else { found.is_some_and(|c| c.message.contains(has)) }
        };
        let seen = timeout(PATIENCE, raised.wait_for(wanted)).await;
        seen.map(drop).map_err(|_| {
            format!("condition {kind} is not as wanted: {:?}", self.edge.board.subscribe().borrow())
        })
    }
}

fn filled(value: &Value, bound: &Bound) -> Value {
    match value {
        Value::String(text) => {
            let put = |text: String, (name, value): (&String, &Value)| {
                text.replace(&format!("${{{name}}}"), value.as_str().unwrap_or_default())
            };
            Value::from(bound.iter().fold(text.clone(), put))
        }
        Value::Array(items) => items.iter().map(|item| filled(item, bound)).collect(),
        Value::Object(members) => members.iter().map(|(key, m)| (key.clone(), filled(m, bound))).collect(),
        other => other.clone(),
    }
}

fn fits(pattern: &Value, value: &Value, at: &str, bound: &mut Bound) -> Result<(), String> {
    match (pattern, value) {
        (Value::String(any), _) if any == "*" => Ok(()),
        (Value::String(name), _) if name.starts_with('$') => {
            let first = bound.entry(name[1..].to_owned()).or_insert_with(|| value.clone());
            if first == value { Ok(()) } else { Err(format!("{at} is {value}, was {first}")) }
        }
        (Value::Object(wanted), Value::String(text)) if wanted.contains_key("$json") => {
            let inner: Value =
                serde_json::from_str(text).map_err(|e| format!("{at}: no JSON in the text: {e}"))?;
            fits(&wanted["$json"], &inner, at, bound)
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
        (Value::Array(wanted), Value::Array(items)) if wanted.len() == items.len() => wanted
            .iter()
            .zip(items)
            .enumerate()
            .try_for_each(|(n, (pattern, item))| fits(pattern, item, &format!("{at}/{n}"), bound)),
        _ if pattern == value => Ok(()),
        _ => Err(format!("{at} is {value}, not {pattern}")),
    }
}

/// A comparison that cannot fail is worth nothing.
pub fn comparison_can_fail() {
    let came = json!({"a": {"b": "x", "c": 1}, "d": [1, 2], "e": "{\"f\":1}"});
    let ok = |pattern: Value| fits(&pattern, &came, "", &mut Bound::new()).is_ok();
    assert!(ok(json!({"a": {"b": "$x", "...": ""}, "d": [1, "*"], "e": {"$json": {"f": 1}}})));
    for wrong in [
        json!({"a": {"b": "x"}, "d": "*", "e": "*"}),
        json!({"a": {"...": ""}, "d": [1], "e": "*"}),
        json!({"a": "*", "d": "*", "e": {"$json": {"f": 2}}}),
        json!({"a": "*", "d": "*"}),
    ] {
        assert!(!ok(wrong.clone()), "{wrong}");
    }
}
