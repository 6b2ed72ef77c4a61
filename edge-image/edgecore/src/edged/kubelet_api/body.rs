//! Answers: a text, JSON, or a stream that is made as fast as the peer takes it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderValue, StatusCode, header::CONTENT_TYPE};
use http_body::{Frame, SizeHint};
use serde_json::Value;

pub enum Body {
    Whole(Option<Bytes>),
    /// Polled only when there is room at the peer's side, so a slow reader holds the source back.
    Stream(Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>),
}

pub type Answer = http::Response<Body>;

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Body::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Body::Stream(stream) => stream.as_mut().poll_next(cx).map_ok(Frame::data),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Body::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Body::Stream(_) => SizeHint::default(),
        }
    }
}

pub fn answer(status: StatusCode, content_type: &'static str, bytes: Bytes) -> Answer {
    let mut answer = Answer::new(Body::Whole(Some(bytes).filter(|bytes| !bytes.is_empty())));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// Errors are plain text, as a kubelet's are.
pub fn text(status: StatusCode, text: impl Into<String>) -> Answer {
    answer(status, "text/plain; charset=utf-8", Bytes::from(text.into()))
}

pub fn json(value: &Value) -> Answer {
    let bytes = serde_json::to_vec(value).expect("a JSON value serialises");
    answer(StatusCode::OK, "application/json", bytes.into())
}
