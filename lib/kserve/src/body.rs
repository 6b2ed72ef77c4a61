//! Response bodies: whole, a list streamed from its records, or a watch.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use kapi::ApiError;
use serde_json::Value;

use crate::limits::FRAME_BYTES;

/// The body of every response. Only what comes from a node can fail: then the client must not take what it has for everything.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// The node, or the way to it, broke off.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the rest of the answer is lost: {0}")]
pub struct BodyError(pub String);

pub(crate) fn respond(code: StatusCode, content_type: &str, body: Body) -> Response<Body> {
    Response::builder()
        .status(code)
        .header(CONTENT_TYPE, content_type)
        .header(CACHE_CONTROL, "no-cache, private")
        .body(body)
        .expect("constant headers are valid")
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn json_bytes(code: StatusCode, bytes: impl Into<Bytes>) -> Response<Body> {
    respond(code, "application/json", full(bytes))
}

pub(crate) fn json(code: StatusCode, value: &Value) -> Response<Body> {
    json_bytes(code, value.to_string())
}

pub(crate) fn text(code: StatusCode, text: &str) -> Response<Body> {
    respond(code, "text/plain; charset=utf-8", full(text.to_string()))
}

pub(crate) fn failure(error: &ApiError) -> Response<Body> {
    let code = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(code, &error.status());
    if error.details.retry_after_s > 0 && matches!(error.code, 429 | 503) {
        response.headers_mut().insert(http::header::RETRY_AFTER, error.details.retry_after_s.into());
    }
    response
}

/// `head`, the items joined by commas, `tail`: made frame by frame, so that a long list is never in memory twice.
pub(crate) struct ListBody<I> {
    pub head: String,
    pub items: I,
    pub tail: &'static str,
    pub started: bool,
    pub done: bool,
}

impl<I: Iterator<Item = Bytes> + Send + Unpin + 'static> ListBody<I> {
    pub fn boxed(head: String, items: I, tail: &'static str) -> Body {
        ListBody { head, items, tail, started: false, done: false }.boxed_unsync()
    }
}

impl<I: Iterator<Item = Bytes> + Send + Unpin> http_body::Body for ListBody<I> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.done {
            return Poll::Ready(None);
        }
        let mut frame = BytesMut::new();
        frame.put(std::mem::take(&mut this.head).as_bytes());
        while frame.len() < FRAME_BYTES {
            let Some(item) = this.items.next() else {
                frame.put(this.tail.as_bytes());
                this.done = true;
                break;
            };
            if std::mem::replace(&mut this.started, true) {
                frame.put_u8(b',');
            }
            frame.put(item);
        }
        Poll::Ready(Some(Ok(Frame::data(frame.freeze()))))
    }
}
