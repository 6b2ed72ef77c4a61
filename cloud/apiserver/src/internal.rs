//! Calls of the API's own controllers: the same requests that a client makes, without a socket.

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::BodyExt;
use kserve::Identity;
use serde_json::Value;

use crate::Api;

/// A request of a controller that was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{method} {path}: {message}")]
pub struct CallError {
    pub method: &'static str,
    pub path: String,
    pub code: u16,
    pub reason: String,
    pub message: String,
}

impl CallError {
    pub(crate) fn is(&self, reason: &str) -> bool {
        self.reason == reason
    }
}

impl Api {
    pub(crate) async fn call(
        &self,
        method: &'static str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, CallError> {
        let identity = Identity::internal("system:kinglet:controllers");
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let content_type =
            if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let failed = |code: u16, reason: &str, message: String| CallError {
            method,
            path: path.to_string(),
            code,
            reason: reason.to_string(),
            message,
        };
        let request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).unwrap_or(Method::GET))
            .uri(path)
            .header("content-type", content_type)
            .body(body)
            .map_err(|error| failed(400, "BadRequest", error.to_string()))?;
        let response = self.server.handle(request, &identity).await;
        let code = response.status().as_u16();
        let bytes = match response.into_body().collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return Err(failed(code, "InternalError", error.to_string())),
        };
        let value: Value = serde_json::from_slice(&bytes)
            .map_err(|error| failed(code, "InternalError", error.to_string()))?;
        if code < 400 {
            return Ok(value);
        }
        Err(failed(code, kapi::meta::text(&value, "reason"), kapi::meta::text(&value, "message").to_string()))
    }
}
