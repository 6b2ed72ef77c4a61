//! Keeps the cluster task informed of all objects of one kind: list, then watch, then again.
//!
//! One watch per kind for the whole of cloudcore. A list is handed over whole and only when all its pages arrived, so that an
//! interrupted list never looks like deleted objects.

use bytes::{Buf, Bytes, BytesMut};
use http::Method;
use http_body_util::BodyExt;
use kube::client::Body;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::views::{Kind, View, parse};
use crate::api::{Api, ApiError, collect};
use crate::limits::{API_TIME_MAX, LIST_PAGE_BYTES_MAX, LIST_PAGE_LEN, WATCH_RETRY, WATCH_SECONDS};

#[derive(Debug)]
pub enum Change {
    /// All objects of the kind.
    Listed(Kind, Vec<View>),
    Set(Kind, View),
    Gone(Kind, View),
}

/// Runs until the cluster task has ended.
pub async fn run(api: Api, kind: Kind, tx: mpsc::Sender<Change>) {
    let mut version = None;
    let mut told = false;
    while !tx.is_closed() {
        match step(&api, kind, &mut version, &tx).await {
            Ok(()) => told = false,
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!("cannot watch {} objects, trying again: {}", kind.name(), error.line());
                }
                if !matches!(error, ApiError::Broken(_)) {
                    version = None;
                }
                // Nothing else may wait for a kind that this cluster keeps to itself.
                if kind.is_optional() && matches!(error, ApiError::Refused { code: 403 | 404, .. }) {
                    drop(tx.send(Change::Listed(kind, Vec::new())).await);
                }
                tokio::time::sleep(WATCH_RETRY).await;
            }
        }
    }
}

async fn step(
    api: &Api,
    kind: Kind,
    version: &mut Option<String>,
    tx: &mpsc::Sender<Change>,
) -> Result<(), ApiError> {
    if version.is_none() {
        let (views, listed) = list(api, kind).await?;
        // A closed channel ends `run`.
        drop(tx.send(Change::Listed(kind, views)).await);
        *version = Some(listed);
    }
    watch(api, kind, version, tx).await
}

#[derive(Deserialize)]
struct List<'a> {
    metadata: ListMeta,
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ListMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    next: Option<String>,
}

async fn list(api: &Api, kind: Kind) -> Result<(Vec<View>, String), ApiError> {
    let mut views = Vec::new();
    let mut next = String::new();
    loop {
        let path = format!("{}?limit={LIST_PAGE_LEN}{next}", kind.list_path());
        let page = async {
            let body = api.open(Method::GET, &path, "application/json", Bytes::new()).await?;
            collect(body, LIST_PAGE_BYTES_MAX).await
        };
        let page = tokio::time::timeout(API_TIME_MAX, page).await.map_err(|_| ApiError::Timeout)??;
        let list: List = serde_json::from_slice(&page).map_err(ApiError::Json)?;
        views.extend(list.items.unwrap_or_default().into_iter().filter_map(|item| readable(kind, item)));
        match list.metadata.next.filter(|token| !token.is_empty()) {
            Some(token) => next = format!("&continue={}", escape(&token)),
            None => return Ok((views, list.metadata.resource_version)),
        }
    }
}

/// An object that cannot be read is left out with a log line: it must not stop all others.
fn readable(kind: Kind, object: &RawValue) -> Option<View> {
    parse(kind, object)
        .inspect_err(|error| tracing::warn!("a {} object is left out: {error}", kind.name()))
        .ok()
}

/// Percent-encoding for a query value.
pub fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    event_type: String,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ErrorStatus {
    code: u16,
    reason: String,
    message: String,
}

async fn watch(
    api: &Api,
    kind: Kind,
    version: &mut Option<String>,
    tx: &mpsc::Sender<Change>,
) -> Result<(), ApiError> {
    let from = version.clone().unwrap_or_default();
    let path = format!(
        "{}?watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}&resourceVersion={}",
        kind.list_path(),
        escape(&from)
    );
    let open = api.open(Method::GET, &path, "application/json", Bytes::new());
    let mut lines =
        Lines::new(tokio::time::timeout(API_TIME_MAX, open).await.map_err(|_| ApiError::Timeout)??);
    loop {
        let line = tokio::select! {
            line = lines.next() => line?,
            () = tx.closed() => return Ok(()),
        };
        let Some(line) = line else { return Ok(()) };
        let event: Event = serde_json::from_slice(&line).map_err(ApiError::Json)?;
        if event.event_type == "ERROR" {
            let status: ErrorStatus = serde_json::from_str(event.object.get()).unwrap_or_default();
            let body = Bytes::copy_from_slice(event.object.get().as_bytes());
            return Err(ApiError::Refused {
                code: status.code,
                reason: status.reason,
                message: status.message,
                body,
            });
        }
        let Some(view) = readable(kind, event.object) else { continue };
        *version = Some(view.meta.resource_version.clone());
        let change = match event.event_type.as_str() {
            "ADDED" | "MODIFIED" => Change::Set(kind, view),
            "DELETED" => Change::Gone(kind, view),
            _ => continue,
        };
        drop(tx.send(change).await);
    }
}

/// Splits a body into lines.
pub struct Lines {
    body: Body,
    buffer: BytesMut,
    /// Bytes of the buffer that hold no line end.
    searched: usize,
}

impl Lines {
    pub fn new(body: Body) -> Lines {
        Lines { body, buffer: BytesMut::new(), searched: 0 }
    }

    /// Keeps what was read when the future is dropped.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            if let Some(at) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.searched + at).freeze();
                self.buffer.advance(1);
                self.searched = 0;
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            if self.searched > crate::limits::API_ANSWER_BYTES_MAX {
                return Err(ApiError::TooLarge(crate::limits::API_ANSWER_BYTES_MAX));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|error| ApiError::Broken(error.into()))?;
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}
