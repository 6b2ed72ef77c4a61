//! watch: a stream of events, one JSON object per line.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use http::StatusCode;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use kapi::table::{self, Include};
use kapi::{ApiError, Kind, meta};
use serde_json::{Value, json};
use store::{Event, EventKind, Record};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use crate::backend::{Backend, WatchStream};
use crate::body::respond;
use crate::limits::{BOOKMARK_EVERY, FRAME_BYTES, WATCH_DEFAULT, WATCH_MAX};
use crate::read::{Selection, include};
use crate::server::{Answer, Call, Format, Server};

/// Where a watch starts.
struct Start<W> {
    stream: W,
    /// Existing objects that are sent first.
    backlog: Vec<Arc<Record>>,
    /// The snapshot's revision, if the end of the backlog is to be marked.
    mark_end: Option<u64>,
}

struct Watch<W> {
    stream: W,
    backlog: std::vec::IntoIter<Arc<Record>>,
    mark_end: Option<u64>,
    selection: Selection,
    lines: Lines,
    bookmarks: bool,
    ends_at: Instant,
    bookmark_at: Instant,
    finished: bool,
    _permit: OwnedSemaphorePermit,
}

impl<B: Backend> Server<B> {
    pub(crate) fn watch(&self, call: &Call<'_>) -> Answer {
        let selection = Selection::of(call)?;
        let permit = self.inner.watches.clone().try_acquire_owned().map_err(|_| {
            ApiError::too_many_requests("too many watches are open on this server; close some and try again")
        })?;
        let start = self.start(call, &selection)?;
        let lasts = match call.query.number("timeoutSeconds")? {
            Some(seconds) if seconds > 0 => Duration::from_secs(seconds).min(WATCH_MAX),
            _ => WATCH_DEFAULT,
        };
        let lines = Lines {
            kind: call.target.kind,
            format: call.format,
            include: include(call.query)?,
            now: self.inner.options.now,
            columns_sent: false,
        };
        let now = Instant::now();
        let watch = Watch {
            stream: start.stream,
            backlog: start.backlog.into_iter(),
            mark_end: start.mark_end,
            selection,
            lines,
            bookmarks: call.query.flag("allowWatchBookmarks"),
            ends_at: now + lasts,
            bookmark_at: now + BOOKMARK_EVERY,
            finished: false,
            _permit: permit,
        };
        let frames = futures_util::stream::unfold(watch, |mut watch| async move {
            let bytes = watch.next_frame().await?;
            Some((Ok::<_, crate::body::BodyError>(Frame::data(bytes)), watch))
        });
        Ok(respond(StatusCode::OK, "application/json", StreamBody::new(frames).boxed_unsync()))
    }

    fn start(&self, call: &Call<'_>, selection: &Selection) -> Result<Start<B::Watch>, ApiError> {
        let query = call.query;
        let resource = call.target.kind.resource();
        let asked = query.number("resourceVersion")?.unwrap_or(0);
        let initial = initial_events(call)?;
        let current = self.inner.backend.revision();
        if asked > current {
            // The version is from another history (a store made anew): waiting for it would be for ever.
            return Err(ApiError::too_old(asked, current));
        }
        let compacted = |gone: store::Compacted| ApiError::too_old(asked, gone.oldest);
        if initial == Some(true) || asked == 0 && initial.is_none() {
            let snapshot = self.inner.backend.list(&resource, selection.namespace());
            let stream = self.inner.backend.watch(&resource, snapshot.revision).map_err(compacted)?;
            let mut backlog = snapshot.records;
            backlog.retain(|record| selection.matches(record));
            let mark_end = (initial == Some(true)).then_some(snapshot.revision);
            return Ok(Start { stream, backlog, mark_end });
        }
        let after = if asked == 0 { current } else { asked };
        let stream = self.inner.backend.watch(&resource, after).map_err(compacted)?;
        Ok(Start { stream, backlog: Vec::new(), mark_end: None })
    }
}

/// Whether existing objects are wanted first; `None` when the parameter is absent.
fn initial_events(call: &Call<'_>) -> Result<Option<bool>, ApiError> {
    let query = call.query;
    let matching = query.text("resourceVersionMatch");
    let wanted = query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
    let rule =
        |why: &str| Err(ApiError::unprocessable(format!("ListOptions.meta.k8s.io \"\" is invalid: {why}")));
    match wanted {
        Some(true) if matching != "NotOlderThan" => rule(
            "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ),
        None if !matching.is_empty() => rule(
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ),
        other => Ok(other),
    }
}

impl<W: WatchStream> Watch<W> {
    /// The next bytes to send; `None` when the watch is over.
    async fn next_frame(&mut self) -> Option<Bytes> {
        let mut frame = BytesMut::new();
        while frame.is_empty() {
            if self.finished {
                return None;
            }
            self.fill_from_backlog(&mut frame);
            if frame.is_empty() {
                self.fill_from_events(&mut frame).await;
            }
        }
        Some(frame.freeze())
    }

    fn fill_from_backlog(&mut self, frame: &mut BytesMut) {
        while frame.len() < FRAME_BYTES {
            match self.backlog.next() {
                Some(record) => self.lines.object(frame, "ADDED", &record),
                None => {
                    if let Some(revision) = self.mark_end.take() {
                        self.lines.bookmark(frame, revision, true);
                    }
                    return;
                }
            }
        }
    }

    async fn fill_from_events(&mut self, frame: &mut BytesMut) {
        let wake_at = if self.bookmarks { self.ends_at.min(self.bookmark_at) } else { self.ends_at };
        match timeout_at(wake_at, self.stream.next()).await {
            Err(_) => self.on_time(frame),
            Ok(Ok(None)) => self.finished = true,
            Ok(Ok(Some(event))) => {
                self.lines.event(frame, &event, &self.selection);
                // What is ready goes into the same frame.
                while frame.len() < FRAME_BYTES && !self.finished {
                    match self.stream.next().now_or_never() {
                        Some(Ok(Some(event))) => self.lines.event(frame, &event, &self.selection),
                        Some(Ok(None)) => self.finished = true,
                        Some(Err(gone)) => self.compacted(frame, gone),
                        None => break,
                    }
                }
            }
            Ok(Err(gone)) => self.compacted(frame, gone),
        }
    }

    fn on_time(&mut self, frame: &mut BytesMut) {
        self.finished = Instant::now() >= self.ends_at;
        self.bookmark_at = Instant::now() + BOOKMARK_EVERY;
        if self.bookmarks {
            self.lines.bookmark(frame, self.stream.position(), false);
        }
    }

    /// The client was slower than the history is long.
    fn compacted(&mut self, frame: &mut BytesMut, gone: store::Compacted) {
        let error = ApiError::too_old(self.stream.position(), gone.oldest);
        frame.put(json!({"type": "ERROR", "object": error.status()}).to_string().as_bytes());
        frame.put_u8(b'\n');
        self.finished = true;
    }
}

/// Writes events in the form that the client asked for.
struct Lines {
    kind: &'static Kind,
    format: Format,
    include: Include,
    now: fn() -> i64,
    columns_sent: bool,
}

impl Lines {
    fn event(&mut self, frame: &mut BytesMut, event: &Event, selection: &Selection) {
        let before = event.previous.as_ref().filter(|record| selection.matches(record));
        let after =
            (event.kind == EventKind::Put && selection.matches(&event.record)).then_some(&event.record);
        match (before, after) {
            (None, Some(record)) => self.object(frame, "ADDED", record),
            (Some(_), Some(record)) => self.object(frame, "MODIFIED", record),
            // Gone, or no longer selected: the last state that was, with the version of the change.
            (Some(record), None) => {
                let Ok(mut object) = serde_json::from_slice::<Value>(&record.value) else { return };
                meta::metadata(&mut object)
                    .insert("resourceVersion".into(), event.revision.to_string().into());
                self.value(frame, "DELETED", &object);
            }
            (None, None) => {}
        }
    }

    fn object(&mut self, frame: &mut BytesMut, what: &str, record: &Record) {
        if self.format == Format::Json {
            line(frame, what, &record.value);
        } else if let Ok(object) = serde_json::from_slice(&record.value) {
            self.value(frame, what, &object);
        }
    }

    fn value(&mut self, frame: &mut BytesMut, what: &str, object: &Value) {
        let text = match self.format {
            Format::Json => object.to_string(),
            Format::Partial => table::partial(object).to_string(),
            Format::Table => {
                let metadata = json!({"resourceVersion": meta::text(object, "metadata.resourceVersion")});
                let first = !std::mem::replace(&mut self.columns_sent, true);
                let row = table::row(self.kind, object, self.include, (self.now)());
                format!("{}{row}]}}", table::head(self.kind, &metadata, first))
            }
        };
        line(frame, what, text.as_bytes());
    }

    fn bookmark(&mut self, frame: &mut BytesMut, revision: u64, initial_end: bool) {
        let mut object = json!({
            "kind": self.kind.kind, "apiVersion": self.kind.api_version(),
            "metadata": {"resourceVersion": revision.to_string(), "creationTimestamp": null},
        });
        if initial_end {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        self.value(frame, "BOOKMARK", &object);
    }
}

fn line(frame: &mut BytesMut, what: &str, object: &[u8]) {
    frame.put(format!("{{\"type\":\"{what}\",\"object\":").as_bytes());
    frame.put(object);
    frame.put(&b"}\n"[..]);
}
