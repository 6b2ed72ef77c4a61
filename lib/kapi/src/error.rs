//! Errors as clients see them: `Status` objects with upstream's reasons, codes and words, because clients branch on them.

use serde_json::{Value, json};

use crate::kinds::Kind;

/// One violated field or condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    pub reason: &'static str,
    pub message: String,
    pub field: String,
}

impl Cause {
    fn text(&self) -> String {
        if self.field.is_empty() { self.message.clone() } else { format!("{}: {}", self.field, self.message) }
    }
}

/// What a Status says beside its message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    pub name: String,
    pub group: &'static str,
    /// The resource's plural name, as upstream has it; for `Invalid` the kind.
    pub kind: &'static str,
    pub causes: Vec<Cause>,
    pub retry_after_s: u32,
    /// The token with which an expired list can go on, at the price of consistency.
    pub continue_token: Option<String>,
}

/// A failed request. `Display` is the message that the client prints.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub code: u16,
    pub reason: &'static str,
    pub message: String,
    pub details: Box<Details>,
}

impl ApiError {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { code, reason, message: message.into(), details: Box::default() }
    }

    fn of(mut self, kind: &Kind, name: &str) -> ApiError {
        self.details.group = kind.group;
        self.details.kind = kind.plural;
        self.details.name = name.to_string();
        self
    }

    fn retry(mut self) -> ApiError {
        self.details.retry_after_s = 1;
        self
    }

    pub fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError::new(400, "BadRequest", message)
    }

    pub fn unauthorized() -> ApiError {
        ApiError::new(401, "Unauthorized", "Unauthorized")
    }

    pub fn forbidden(kind: Option<&Kind>, name: &str, why: impl std::fmt::Display) -> ApiError {
        let Some(kind) = kind else { return ApiError::new(403, "Forbidden", format!("forbidden: {why}")) };
        let shown = if name.is_empty() { String::new() } else { format!(" \"{name}\"") };
        ApiError::new(403, "Forbidden", format!("{}{shown} is forbidden: {why}", kind.resource()))
            .of(kind, name)
    }

    pub fn not_found(kind: &Kind, name: &str) -> ApiError {
        ApiError::new(404, "NotFound", format!("{} \"{name}\" not found", kind.resource())).of(kind, name)
    }

    /// The path names nothing that is served.
    pub fn no_such_path() -> ApiError {
        ApiError::new(404, "NotFound", "the server could not find the requested resource")
    }

    pub fn method_not_allowed() -> ApiError {
        ApiError::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    pub fn not_acceptable(can: &str) -> ApiError {
        ApiError::new(406, "NotAcceptable", format!("only the following media types are accepted: {can}"))
    }

    pub fn already_exists(kind: &Kind, name: &str) -> ApiError {
        ApiError::new(409, "AlreadyExists", format!("{} \"{name}\" already exists", kind.resource()))
            .of(kind, name)
    }

    pub fn conflict(kind: &Kind, name: &str, why: impl std::fmt::Display) -> ApiError {
        let text = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", kind.resource());
        ApiError::new(409, "Conflict", text).of(kind, name)
    }

    /// A compare-and-swap that lost.
    pub fn modified(kind: &Kind, name: &str) -> ApiError {
        ApiError::conflict(
            kind,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    pub fn expired(message: impl Into<String>) -> ApiError {
        ApiError::new(410, "Expired", message)
    }

    pub fn too_old(asked: u64, oldest: u64) -> ApiError {
        ApiError::expired(format!("too old resource version: {asked} ({oldest})"))
    }

    pub fn too_large(limit: usize) -> ApiError {
        ApiError::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit}"))
    }

    pub fn unsupported_media_type(can: &str) -> ApiError {
        ApiError::new(
            415,
            "UnsupportedMediaType",
            format!("the body of the request was in an unknown format - accepted media types include: {can}"),
        )
    }

    /// Parameters of a request that upstream calls an object of their own.
    pub fn invalid_options(what: &'static str, name: &str, causes: Vec<Cause>) -> ApiError {
        let shown: Vec<String> = causes.iter().map(Cause::text).collect();
        let list = match shown.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let mut error = ApiError::new(422, "Invalid", format!("{what} \"{name}\" is invalid: {list}"));
        error.details.causes = causes;
        error.details.kind = what;
        error.details.name = name.to_string();
        error
    }

    /// The object breaks rules; each cause names a field.
    pub fn invalid(kind: &Kind, name: &str, causes: Vec<Cause>) -> ApiError {
        let shown: Vec<String> =
            causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
        let list = match shown.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let what = if kind.group.is_empty() {
            kind.kind.to_string()
        } else {
            format!("{}.{}", kind.kind, kind.group)
        };
        let mut error = ApiError::new(422, "Invalid", format!("{what} \"{name}\" is invalid: {list}"));
        error.details.causes = causes;
        error.details.group = kind.group;
        error.details.kind = kind.kind;
        error.details.name = name.to_string();
        error
    }

    /// A request that breaks a rule of the API, not of an object.
    pub fn unprocessable(message: impl Into<String>) -> ApiError {
        ApiError::new(422, "Invalid", message)
    }

    /// The node cannot be asked. Without a time to retry after: a client that tries by itself only delays these words.
    pub fn dialing(why: impl std::fmt::Display) -> ApiError {
        ApiError::new(500, "InternalError", format!("error dialing backend: {why}"))
    }

    /// Nobody measured it, or its node cannot be asked.
    pub fn not_measured(what: &'static str, name: &str) -> ApiError {
        let mut error = ApiError::new(404, "NotFound", format!("{what}.metrics.k8s.io \"{name}\" not found"));
        error.details.group = "metrics.k8s.io";
        error.details.kind = what;
        error.details.name = name.to_string();
        error
    }

    /// What a node refused, in the form that it has when it comes through an API server.
    pub fn from_node(code: u16, resource: &'static str, name: &str, words: &str) -> ApiError {
        match code {
            400 => ApiError::bad_request(words),
            404 => {
                let text = format!("the server could not find the requested resource ( {resource} {name})");
                let mut error = ApiError::new(404, "NotFound", text);
                error.details.kind = resource;
                error.details.name = name.to_string();
                error.details.causes = vec![Cause {
                    reason: "UnexpectedServerResponse",
                    message: words.into(),
                    field: String::new(),
                }];
                error
            }
            403 => ApiError::new(403, "Forbidden", words),
            429 => ApiError::new(429, "TooManyRequests", words),
            503 => ApiError::new(503, "ServiceUnavailable", words),
            _ => ApiError::internal(words),
        }
    }

    pub fn too_many_requests(message: impl Into<String>) -> ApiError {
        ApiError::new(429, "TooManyRequests", message).retry()
    }

    pub fn internal(message: impl std::fmt::Display) -> ApiError {
        ApiError::new(500, "InternalError", format!("Internal error occurred: {message}"))
    }

    pub fn unavailable(message: impl Into<String>) -> ApiError {
        ApiError::new(503, "ServiceUnavailable", message).retry()
    }

    /// The client asked for a version that is not reached yet.
    pub fn version_in_future(asked: u64, current: u64) -> ApiError {
        let mut error = ApiError::new(
            504,
            "Timeout",
            format!("Timeout: Too large resource version: {asked}, current: {current}"),
        );
        error.details.causes = vec![Cause {
            reason: "ResourceVersionTooLarge",
            message: "Too large resource version".into(),
            field: String::new(),
        }];
        error.details.retry_after_s = 1;
        error
    }

    /// Creation in a namespace that is going away.
    pub fn namespace_terminating(kind: &Kind, name: &str, namespace: &str) -> ApiError {
        let why =
            format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut error = ApiError::forbidden(Some(kind), name, &why);
        error.details.causes = vec![Cause {
            reason: "NamespaceTerminating",
            message: format!("namespace {namespace} is being terminated"),
            field: "metadata.namespace".into(),
        }];
        error
    }

    pub fn status(&self) -> Value {
        let mut details = serde_json::Map::new();
        for (key, text) in
            [("name", self.details.name.as_str()), ("group", self.details.group), ("kind", self.details.kind)]
        {
            if !text.is_empty() {
                details.insert(key.into(), text.into());
            }
        }
        if !self.details.causes.is_empty() {
            let causes: Vec<Value> = self
                .details
                .causes
                .iter()
                .map(|cause| {
                    let mut out = json!({"reason": cause.reason, "message": cause.message});
                    if !cause.field.is_empty() {
                        out["field"] = cause.field.as_str().into();
                    }
                    out
                })
                .collect();
            details.insert("causes".into(), causes.into());
        }
        if self.details.retry_after_s > 0 {
            details.insert("retryAfterSeconds".into(), self.details.retry_after_s.into());
        }
        let mut metadata = json!({});
        if let Some(token) = &self.details.continue_token {
            metadata["continue"] = token.as_str().into();
        }
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !details.is_empty() {
            status["details"] = details.into();
        }
        status
    }
}
