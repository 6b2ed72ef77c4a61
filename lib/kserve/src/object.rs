//! Reading objects from requests, and turning store errors into API errors.

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use kapi::decode::{self, Findings};
use kapi::{ApiError, Kind, meta, protobuf};
use serde_json::Value;
use store::{CommitError, Key, Record};

use crate::query::Query;

pub(crate) const ACCEPTED: &str = "application/json, application/vnd.kubernetes.protobuf";

pub(crate) fn key(kind: &Kind, namespace: &str, name: &str) -> Key {
    Key::new(&kind.resource(), namespace, name)
}

pub(crate) fn parse(record: &Record) -> Result<Value, ApiError> {
    serde_json::from_slice(&record.value).map_err(|error| {
        ApiError::internal(format!("the stored object {} is not JSON: {error}", record.key.name))
    })
}

/// How unknown and duplicate fields are met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strictness {
    Strict,
    Warn,
    Ignore,
}

impl Strictness {
    pub fn of(query: &Query) -> Result<Strictness, ApiError> {
        match query.text("fieldValidation") {
            "Strict" => Ok(Strictness::Strict),
            "" | "Warn" => Ok(Strictness::Warn),
            "Ignore" => Ok(Strictness::Ignore),
            other => Err(ApiError::unprocessable(format!(
                "fieldValidation: Unsupported value: \"{other}\": supported values: \"Ignore\", \"Strict\", \"Warn\""
            ))),
        }
    }

    /// The warnings to send, or the refusal.
    pub fn judge(self, kind: &str, version: &str, findings: Findings) -> Result<Vec<String>, ApiError> {
        match self {
            Strictness::Ignore => Ok(Vec::new()),
            Strictness::Warn => Ok(findings.texts),
            Strictness::Strict if findings.texts.is_empty() => Ok(Vec::new()),
            Strictness::Strict => Err(ApiError::bad_request(format!(
                "{kind} in version \"{version}\" cannot be handled as a {kind}: strict decoding error: {}",
                findings.texts.join(", ")
            ))),
        }
    }
}

/// The media type of a body, in lower case, without parameters; JSON when none is given.
pub(crate) fn media_type(headers: &HeaderMap) -> String {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("application/json");
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// A body of any type that we read, as a value with `apiVersion` and `kind` where given.
pub(crate) fn read_any(
    headers: &HeaderMap,
    body: &Bytes,
    findings: &mut Findings,
) -> Result<Value, ApiError> {
    match media_type(headers).as_str() {
        "application/json" | "" | "*/*" => decode::json(body, findings),
        protobuf::MEDIA_TYPE => protobuf::decode(body),
        _ => Err(ApiError::unsupported_media_type(ACCEPTED)),
    }
}

/// An object of the expected kind that fits its schema, with the warnings to send along.
pub(crate) fn read(
    headers: &HeaderMap,
    body: &Bytes,
    kind: &Kind,
    query: &Query,
) -> Result<(Value, Vec<String>), ApiError> {
    let mut findings = Findings::default();
    let mut object = read_any(headers, body, &mut findings)?;
    check_type(kind, &object)?;
    decode::conform(kind, &mut object, &mut findings)?;
    meta::set_type(&mut object, kind);
    let warnings = Strictness::of(query)?.judge(kind.kind, &kind.api_version(), findings)?;
    Ok((object, warnings))
}

pub(crate) fn check_type(kind: &Kind, object: &Value) -> Result<(), ApiError> {
    let (version, name) = (meta::text(object, "apiVersion"), meta::text(object, "kind"));
    if !version.is_empty() && version != kind.api_version() {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version ({})",
            kind.api_version()
        )));
    }
    if !name.is_empty() && name != kind.kind {
        return Err(ApiError::bad_request(format!(
            "{name} in version \"{}\" cannot be handled as a {}: the object provided is of another kind",
            kind.api_version(),
            kind.kind
        )));
    }
    Ok(())
}

/// What a lost or failed commit means to the client.
pub(crate) fn commit_error(kind: &Kind, name: &str, error: &CommitError) -> ApiError {
    match error {
        CommitError::Exists { .. } => ApiError::already_exists(kind, name),
        CommitError::Conflict { .. } | CommitError::Absent { .. } => ApiError::modified(kind, name),
        CommitError::TooLarge { max, .. } => ApiError::too_large(*max),
        CommitError::Closed => ApiError::unavailable("the server is shutting down"),
        CommitError::Full { .. } | CommitError::Io { .. } => ApiError::internal(error),
    }
}

pub(crate) fn durability(kind: &Kind, subresource: &str) -> store::Durability {
    // Status is reported again; what a user wrote is not.
    if subresource == "status" || kind.durability == kapi::Durability::Lazy {
        store::Durability::Lazy
    } else {
        store::Durability::Sync
    }
}
