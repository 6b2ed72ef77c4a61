//! KubeEdge's message as it stands on the WebSocket: one JSON object per WebSocket message.
//!
//! Source: KubeEdge v1.23.1, `pkg/common/message` and beehive's `model.Message`.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::limits::MESSAGE_BYTES_MAX;

/// Names of the modules that send, as they stand in `route.source`.
pub mod source {
    pub const WEBSOCKET: &str = "websocket";
    pub const EDGED: &str = "edged";
    pub const META_MANAGER: &str = "metamanager";
    pub const TWIN: &str = "twin";
    pub const BUS: &str = "bus";
    pub const EDGE_CONTROLLER: &str = "edgecontroller";
    pub const DEVICE_CONTROLLER: &str = "devicecontroller";
    pub const POLICY_CONTROLLER: &str = "policycontroller";
    pub const DYNAMIC_CONTROLLER: &str = "dynamiccontroller";
}

/// Values of `route.operation`. Kept as text in [`Route`], since a peer may send one that we do not know.
#[allow(non_snake_case)]
pub mod Operation {
    pub const INSERT: &str = "insert";
    pub const DELETE: &str = "delete";
    pub const QUERY: &str = "query";
    pub const UPDATE: &str = "update";
    pub const PATCH: &str = "patch";
    pub const UPLOAD: &str = "upload";
    pub const GET: &str = "get";
    pub const RESPONSE: &str = "response";
    pub const ERROR: &str = "error";
    pub const KEEPALIVE: &str = "keepalive";
    pub const UPDATE_NODE_ACTION_STATUS: &str = "UpdateNodeActionStatus";
}

/// Content of an acknowledgement.
pub const ACK_CONTENT: &str = "OK";

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// UUID v4.
    #[serde(default)]
    pub msg_id: String,
    /// `msg_id` of the message that this one answers; empty when it answers none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub parent_msg_id: String,
    /// Milliseconds since the Unix epoch.
    #[serde(default)]
    pub timestamp: i64,
    /// The object's resourceVersion on object pushes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub resourceversion: String,
    #[serde(default, skip_serializing_if = "is_false")]
    pub sync: bool,
    #[serde(default, skip_serializing_if = "String::is_empty", rename = "type")]
    pub message_type: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Route {
    #[serde(default)]
    pub source: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub destination: String,
    #[serde(default)]
    pub group: String,
    #[serde(default)]
    pub operation: String,
    #[serde(default)]
    pub resource: String,
}

/// One message. `content` stays JSON text: objects pass through the link without being parsed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Message {
    pub header: Header,
    pub route: Route,
    #[serde(default = "null")]
    pub content: Box<RawValue>,
}

/// Why a frame is not a message.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("message of {len} bytes is over the limit of {MESSAGE_BYTES_MAX}")]
    TooLarge { len: usize },
    #[error("message is not KubeEdge JSON")]
    Json(#[source] serde_json::Error),
}

impl Message {
    /// A new message with a fresh id. `now_ms` is Unix time in milliseconds.
    pub fn new(now_ms: i64, source: &str, group: &str, operation: &str, resource: &str) -> Message {
        Message {
            header: Header {
                msg_id: uuid::Uuid::new_v4().to_string(),
                timestamp: now_ms,
                ..Header::default()
            },
            route: Route {
                source: source.into(),
                group: group.into(),
                operation: operation.into(),
                resource: resource.into(),
                ..Route::default()
            },
            content: null(),
        }
    }

    /// Sets the content from any value that serialises to JSON.
    pub fn with_content<T: Serialize + ?Sized>(mut self, content: &T) -> Message {
        self.content =
            serde_json::value::to_raw_value(content).expect("content types serialise without error");
        self
    }

    /// Sets the content from JSON text that is already at hand.
    pub fn with_raw_content(mut self, content: Box<RawValue>) -> Message {
        self.content = content;
        self
    }

    pub fn with_resource_version(mut self, version: &str) -> Message {
        self.header.resourceversion = version.into();
        self
    }

    /// The acknowledgement of an object push: same source, group and resource, content `OK`
    /// (KubeEdge `edge/pkg/metamanager/process.go`, reference kubeedge-wire.md section 3.3).
    pub fn ack(&self, now_ms: i64) -> Message {
        self.response(now_ms, &self.route.source, &self.route.group).with_content(ACK_CONTENT)
    }

    /// An answer to this message with null content.
    pub fn response(&self, now_ms: i64, source: &str, group: &str) -> Message {
        let mut answer = Message::new(now_ms, source, group, Operation::RESPONSE, &self.route.resource);
        answer.header.parent_msg_id = self.header.msg_id.clone();
        answer
    }

    /// True when the content is the JSON string `OK`.
    pub fn content_is_ok(&self) -> bool {
        self.content.get().trim() == "\"OK\""
    }

    /// An answer to a node's query that carries an object which the node keeps, and so acknowledges: those of these types do. An error
    /// carries no resourceVersion.
    pub fn is_kept_answer(&self) -> bool {
        const KEPT: [&str; 5] =
            ["configmap", "secret", "persistentvolume", "persistentvolumeclaim", "volumeattachment"];
        self.route.operation == Operation::RESPONSE
            && self.route.source == crate::source::EDGE_CONTROLLER
            && !self.header.resourceversion.is_empty()
            && crate::Resource::parse(&self.route.resource).is_some_and(|r| KEPT.contains(&r.kind.as_str()))
    }

    /// The content as a value of `T`. KubeEdge puts some JSON inside a JSON string (nodepatch, podpatch, device state):
    /// a string is unwrapped once when `T` is not a string itself.
    pub fn content_as<T: serde::de::DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        match serde_json::from_str(self.content.get()) {
            Ok(value) => Ok(value),
            Err(error) => match serde_json::from_str::<String>(self.content.get()) {
                Ok(inner) => serde_json::from_str(&inner),
                Err(_) => Err(error),
            },
        }
    }

    /// JSON text with a trailing newline, as Go's encoder writes it.
    pub fn encode(&self) -> String {
        let mut text = serde_json::to_string(self).expect("a message serialises without error");
        text.push('\n');
        text
    }

    pub fn decode(frame: &[u8]) -> Result<Message, DecodeError> {
        if frame.len() > MESSAGE_BYTES_MAX {
            return Err(DecodeError::TooLarge { len: frame.len() });
        }
        serde_json::from_slice(frame).map_err(DecodeError::Json)
    }
}

fn null() -> Box<RawValue> {
    RawValue::NULL.to_owned()
}

fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keepalive_is_what_kubeedge_sends() {
        let mut message =
            Message::new(1, source::WEBSOCKET, "resource", Operation::KEEPALIVE, "node").with_content("ping");
        message.header.msg_id = "u1".into();
        assert_eq!(
            message.encode(),
            "{\"header\":{\"msg_id\":\"u1\",\"timestamp\":1},\"route\":{\"source\":\"websocket\",\"group\":\"resource\",\
             \"operation\":\"keepalive\",\"resource\":\"node\"},\"content\":\"ping\"}\n"
        );
    }

    #[test]
    fn ack_names_its_parent() {
        let push = Message::new(4, source::EDGE_CONTROLLER, "resource", Operation::INSERT, "default/pod/web");
        let ack = push.ack(5);
        assert_eq!(ack.header.parent_msg_id, push.header.msg_id);
        assert_eq!((ack.route.source.as_str(), ack.route.operation.as_str()), ("edgecontroller", "response"));
        assert!(ack.content_is_ok());
    }

    #[test]
    fn json_inside_a_string_is_unwrapped() {
        let message = Message::new(1, source::EDGED, "meta", Operation::PATCH, "null/nodepatch/pi")
            .with_content("{\"a\":1}");
        let value: std::collections::BTreeMap<String, i32> = message.content_as().unwrap();
        assert_eq!(value["a"], 1);
    }

    #[test]
    fn missing_content_is_null_and_garbage_is_an_error() {
        let text = br#"{"header":{"msg_id":"a","timestamp":1},"route":{"source":"s","group":"g","operation":"o","resource":"r"}}"#;
        assert_eq!(Message::decode(text).unwrap().content.get(), "null");
        assert!(matches!(Message::decode(b"\xff"), Err(DecodeError::Json(_))));
        assert!(matches!(
            Message::decode(&vec![b' '; MESSAGE_BYTES_MAX + 1]),
            Err(DecodeError::TooLarge { .. })
        ));
    }
}
