//! Requests to the Kubernetes API, over any `kube::Client` (the embedded API in-process, or a cluster). The only user of
//! `kube` in this crate. Objects stay bytes.

use bytes::{Bytes, BytesMut};
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use kube::client::Body;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::limits::{API_ANSWER_BYTES_MAX, API_TIME_MAX};

pub const MERGE_PATCH: &str = "application/merge-patch+json";
pub const STRATEGIC_PATCH: &str = "application/strategic-merge-patch+json";
const JSON: &str = "application/json";

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The API refused; `body` is its `Status` object.
    #[error("{reason}: {message}")]
    Refused { code: u16, reason: String, message: String, body: Bytes },
    #[error("the Kubernetes API cannot be reached")]
    Unreachable(#[source] kube::Error),
    #[error("the connection to the Kubernetes API broke")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the Kubernetes API did not answer within {} s", API_TIME_MAX.as_secs())]
    Timeout,
    #[error("the Kubernetes API sent more than {0} bytes for one request")]
    TooLarge(usize),
    #[error("the Kubernetes API sent what is not the expected JSON")]
    Json(#[source] serde_json::Error),
    #[error("not a request path: {0}")]
    Path(String),
}

impl ApiError {
    pub fn is_not_found(&self) -> bool {
        matches!(self, ApiError::Refused { code: 404, .. })
    }
    /// The object exists already, or it changed in the meantime.
    pub fn is_conflict(&self) -> bool {
        matches!(self, ApiError::Refused { code: 409, .. })
    }
    /// The whole chain in one line.
    pub fn line(&self) -> String {
        rt::error_chain(self)
    }
}

#[derive(Clone)]
pub struct Api {
    client: kube::Client,
}

impl Api {
    pub fn new(client: kube::Client) -> Api {
        Api { client }
    }

    pub async fn get(&self, path: &str) -> Result<Bytes, ApiError> {
        self.call(Method::GET, path, JSON, Bytes::new()).await
    }

    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> Result<Bytes, ApiError> {
        self.call(Method::POST, path, JSON, body).await
    }

    pub async fn put(&self, path: &str, body: impl Into<Bytes>) -> Result<Bytes, ApiError> {
        self.call(Method::PUT, path, JSON, body).await
    }

    pub async fn delete(&self, path: &str, options: impl Into<Bytes>) -> Result<Bytes, ApiError> {
        self.call(Method::DELETE, path, JSON, options).await
    }

    pub async fn patch(
        &self,
        path: &str,
        patch_type: &str,
        body: impl Into<Bytes>,
    ) -> Result<Bytes, ApiError> {
        self.call(Method::PATCH, path, patch_type, body).await
    }

    /// Server-side apply. `force`: fields that others set are taken over.
    pub async fn apply(&self, path: &str, body: impl Into<Bytes>, force: bool) -> Result<Bytes, ApiError> {
        let path = format!("{path}?fieldManager=kinglet&force={force}");
        self.call(Method::PATCH, &path, "application/apply-patch+yaml", body).await
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: impl Into<Bytes>,
    ) -> Result<Bytes, ApiError> {
        let answer = async {
            let body = self.open(method, path, content_type, body.into()).await?;
            collect(body, API_ANSWER_BYTES_MAX).await
        };
        tokio::time::timeout(API_TIME_MAX, answer).await.map_err(|_| ApiError::Timeout)?
    }

    /// Sends a request; the body of the answer is still to be read.
    pub async fn open(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> Result<Body, ApiError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::ACCEPT, JSON)
            .header(header::CONTENT_TYPE, content_type)
            .body(Body::from(body.to_vec()))
            .map_err(|_| ApiError::Path(path.into()))?;
        let response = self.client.send(request).await.map_err(ApiError::Unreachable)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response.into_body());
        }
        Err(refusal(status, collect(response.into_body(), API_ANSWER_BYTES_MAX).await?))
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct StatusView {
    reason: String,
    message: String,
}

fn refusal(status: StatusCode, body: Bytes) -> ApiError {
    let view: StatusView = serde_json::from_slice(&body).unwrap_or_default();
    let reason = if view.reason.is_empty() { status.to_string() } else { view.reason };
    let message =
        if view.message.is_empty() { String::from_utf8_lossy(&body).into_owned() } else { view.message };
    ApiError::Refused { code: status.as_u16(), reason, message, body }
}

/// Reads a whole body of at most `bytes_max`.
pub async fn collect(mut body: Body, bytes_max: usize) -> Result<Bytes, ApiError> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ApiError::Broken(error.into()))?;
        if let Ok(data) = frame.into_data() {
            if whole.len() + data.len() > bytes_max {
                return Err(ApiError::TooLarge(bytes_max));
            }
            whole.extend_from_slice(&data);
        }
    }
    Ok(whole.freeze())
}

/// The JSON text of an answer, for a message's content.
pub fn raw(bytes: &Bytes) -> Result<Box<RawValue>, ApiError> {
    serde_json::from_slice(bytes).map_err(ApiError::Json)
}
