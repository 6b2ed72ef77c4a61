//! One HTTP/1.1 exchange with a node's kubelet API.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use kserve::BodyError;
use rt::BoxIo;
use tokio::time::timeout;

use crate::limits::{NODE_ANSWER_MAX, NODE_BUFFER_BYTES};

#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error("the node did not answer within {} s", NODE_ANSWER_MAX.as_secs())]
    Silent,
    #[error("the connection to the node ended: {0}")]
    Broken(#[from] hyper::Error),
}

pub(crate) enum Reply {
    Answer(Response<NodeBody>),
    /// The node changed the protocol; with the headers that it said so with.
    Switched(HeaderMap, TokioIo<Upgraded>),
}

type Connection = Pin<Box<dyn Future<Output = Result<(), hyper::Error>> + Send>>;

pub(crate) async fn send(io: BoxIo, request: Request<Full<Bytes>>) -> Result<Reply, SendError> {
    timeout(NODE_ANSWER_MAX, exchange(io, request)).await.map_err(|_| SendError::Silent)?
}

async fn exchange(io: BoxIo, request: Request<Full<Bytes>>) -> Result<Reply, SendError> {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(NODE_BUFFER_BYTES);
    let (mut sender, connection) = builder.handshake(TokioIo::new(io)).await?;
    let mut connection: Connection = Box::pin(connection.with_upgrades());
    let mut answer = std::pin::pin!(sender.send_request(request));
    let (response, connection) = tokio::select! {
        response = &mut answer => (response?, Some(connection)),
        // It may end with the answer, and with the change of the protocol.
        // A peer that has said everything may be gone before it hears that we close: what it said counts.
        ended = &mut connection => match (answer.await, ended) {
            (Ok(response), _) => (response, None),
            (Err(_), Err(error)) | (Err(error), Ok(())) => return Err(error.into()),
        },
    };
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (parts, body) = response.into_parts();
        return Ok(Reply::Answer(Response::from_parts(parts, NodeBody { body, connection })));
    }
    let headers = response.headers().clone();
    let switched = hyper::upgrade::on(response);
    let upgraded = match connection {
        None => switched.await?,
        Some(connection) => {
            let (upgraded, ended) = tokio::join!(switched, connection);
            ended?;
            upgraded?
        }
    };
    Ok(Reply::Switched(headers, TokioIo::new(upgraded)))
}

/// The answer's body. Nothing is read from the node that nobody takes; dropped, it ends the connection.
pub(crate) struct NodeBody {
    body: Incoming,
    connection: Option<Connection>,
}

impl http_body::Body for NodeBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        loop {
            if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
                return Poll::Ready(frame.map(|frame| frame.map_err(|error| BodyError(error.to_string()))));
            }
            let Some(connection) = &mut this.connection else { return Poll::Pending };
            // What went wrong here comes out of the body as well.
            let _ = ready!(connection.as_mut().poll(cx));
            this.connection = None;
        }
    }
}
