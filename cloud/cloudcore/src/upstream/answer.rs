//! Answers to nodes in KubeEdge's shapes. Values only.

use bytes::Bytes;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use wire::{Message, Operation, source};

use super::objects::resource_version_of;
use super::request::{Request, RequestError};
use crate::api::{ApiError, raw};

const GROUP: &str = "resource";

/// Why a request was not carried out, for the log; the node gets it as part of the answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{}", .0.line())]
    Api(ApiError),
    #[error("the message's content is not what {0} needs: {1}")]
    Content(&'static str, serde_json::Error),
    #[error("{0}")]
    Denied(String),
    /// There is none, and every pod of the node that names it can do without.
    #[error("{}", .0.line())]
    Optional(ApiError),
}

pub fn at_api(error: ApiError) -> Failure {
    Failure::Api(error)
}

/// What the node gets back.
pub enum Answer {
    None,
    /// A bare content.
    Content(Box<RawValue>),
    /// `{"Object": ..., "Err": null}`
    Object(Box<RawValue>),
    Ok,
}

pub fn object(answer: Result<Bytes, ApiError>) -> Result<Answer, Failure> {
    let body = answer.map_err(at_api)?;
    Ok(Answer::Object(raw(&body).map_err(at_api)?))
}

pub fn text(text: &str) -> Box<RawValue> {
    serde_json::value::to_raw_value(text).expect("text serialises without error")
}

/// How an answer and its failure are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `{Object, Err}`
    Response,
    /// The object, or an error as plain text: KubeEdge's edge stores anything else as if it were the object.
    Plain,
    /// Nothing is answered on failure: the node sends it again.
    Silent,
}

pub fn shape_of(request: &Request) -> Shape {
    match request {
        Request::NodeInsert
        | Request::NodePatch
        | Request::LeaseQuery
        | Request::LeaseInsert
        | Request::LeaseUpdate
        | Request::LeaseRenew
        | Request::NodeBeat
        | Request::PodPatch(_)
        | Request::PodInsert(_) => Shape::Response,
        Request::NodeQuery
        | Request::NodeUpdate
        | Request::PodDelete(_)
        | Request::Query(_)
        | Request::Attachment { .. }
        | Request::Token { .. } => Shape::Plain,
        _ => Shape::Silent,
    }
}

fn response(message: &Message, request: &Request) -> Message {
    let now_ms = jiff::Timestamp::now().as_millisecond();
    let device = matches!(request, Request::Twins { .. } | Request::DeviceState { .. });
    if !device {
        return message.response(now_ms, source::EDGE_CONTROLLER, GROUP);
    }
    let mut answer = message.response(now_ms, source::DEVICE_CONTROLLER, "twin");
    answer.route.resource = "twin".into();
    answer
}

pub fn reply(message: &Message, request: &Request, answer: Answer) -> Option<Message> {
    let reply = response(message, request);
    let (content, object) = match answer {
        Answer::None => return None,
        Answer::Ok => return Some(reply.with_content(wire::message::ACK_CONTENT)),
        Answer::Content(content) => (content.clone(), content),
        Answer::Object(object) => (wrapped(&object), object),
    };
    let version = resource_version_of(&object).unwrap_or_default();
    Some(reply.with_raw_content(content).with_resource_version(&version))
}

fn wrapped(object: &RawValue) -> Box<RawValue> {
    RawValue::from_string(format!("{{\"Object\":{},\"Err\":null}}", object.get()))
        .expect("an object inside an object is JSON")
}

pub fn reply_failure(message: &Message, shape: Shape, failure: &Failure) -> Option<Message> {
    let now_ms = jiff::Timestamp::now().as_millisecond();
    let answer = message.response(now_ms, source::EDGE_CONTROLLER, GROUP);
    match shape {
        Shape::Silent => None,
        // KubeEdge's edge takes this for an empty object, which is what a pod that can do without needs; a text would be an
        // error that keeps the pod from starting.
        Shape::Plain if matches!(failure, Failure::Optional(_)) => {
            Some(answer.with_content(&json!({"ErrStatus": status_of(failure)})))
        }
        Shape::Plain => Some(answer.with_content(&failure.to_string())),
        Shape::Response => {
            Some(answer.with_content(&json!({"Object": null, "Err": {"ErrStatus": status_of(failure)}})))
        }
    }
}

/// A `Status` object: the API's own where it gave one.
fn status_of(failure: &Failure) -> Value {
    let made = |code: u16, reason: &str| {
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
               "message": failure.to_string(), "reason": reason, "code": code})
    };
    match failure {
        Failure::Api(ApiError::Refused { code, reason, body, .. })
        | Failure::Optional(ApiError::Refused { code, reason, body, .. }) => {
            serde_json::from_slice(body).ok().filter(Value::is_object).unwrap_or_else(|| made(*code, reason))
        }
        Failure::Api(_) | Failure::Optional(_) => made(503, "ServiceUnavailable"),
        Failure::Content(..) => made(400, "BadRequest"),
        Failure::Denied(_) => made(403, "Forbidden"),
    }
}

pub fn log_failure(node: &str, message: &Message, failure: &Failure) {
    let (operation, resource) = (&message.route.operation, &message.route.resource);
    let expected = match failure {
        Failure::Api(error) => error.is_not_found() || error.is_conflict(),
        Failure::Optional(_) => true,
        Failure::Content(..) | Failure::Denied(_) => false,
    };
    if expected {
        tracing::debug!("{operation} {resource} of node {node}: {failure}");
    } else {
        tracing::warn!("{operation} {resource} of node {node} failed: {failure}");
    }
}

/// The refusal of a message that could not even be read as a request, when it waits for an answer.
pub fn refuse(message: &Message, error: &RequestError) -> Option<Message> {
    if message.route.source == METASERVER {
        return refuse_application(message);
    }
    let waits = matches!(
        message.route.operation.as_str(),
        Operation::QUERY | Operation::INSERT | Operation::UPDATE | Operation::PATCH
    );
    let resource = &message.route.resource;
    let shape = match resource.split('/').nth(1) {
        Some("node" | "lease" | "nodepatch" | "podpatch" | "pod") => Shape::Response,
        Some("certificatesigningrequest") if message.route.operation == Operation::INSERT => Shape::Response,
        _ => Shape::Plain,
    };
    (waits && message.route.group != "user")
        .then(|| reply_failure(message, shape, &Failure::Denied(error.to_string())))
        .flatten()
}

/// The module of a stock edge that serves the Kubernetes API to its pods.
const METASERVER: &str = "metaserver";

/// MetaServer's calls have a form of their own, and the edge waits 10 s for each (`Application`, kubeedge-wire.md section 4). Its watches
/// come together as a map (`watchapp/sync`); the answer names those that failed.
fn refuse_application(message: &Message) -> Option<Message> {
    let why = Failure::Denied(
        "this cloudcore has no dynamicController: MetaServer's requests are not served; ask the Kubernetes API itself".into(),
    );
    let reject = |application: &mut Value| {
        if let Some(fields) = application.as_object_mut() {
            fields.insert("Status".into(), "Rejected".into());
            fields.insert("Reason".into(), why.to_string().into());
            fields.insert("Error".into(), json!({"ErrStatus": status_of(&why)}));
        }
    };
    let mut content: Value = message.content_as().ok()?;
    match message.route.resource.as_str() {
        "watchapp/sync" => content.as_object_mut()?.values_mut().for_each(reject),
        _ if content.is_object() => reject(&mut content),
        _ => return None,
    }
    let now_ms = jiff::Timestamp::now().as_millisecond();
    let mut answer = message.response(now_ms, source::DYNAMIC_CONTROLLER, GROUP).with_content(&content);
    answer.route.operation = "applicationResponse".into();
    answer.route.resource = "ignore/Application/ignore".into();
    Some(answer)
}
