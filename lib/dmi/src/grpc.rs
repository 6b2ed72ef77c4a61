//! gRPC's unary calls over one byte stream: both halves on `h2`, without a framework above it.
//!
//! tonic's server half would add a router and middleware for three methods, and neither half of it fits the mapper; measured in
//! docs/decisions/dmi.md. The caller of [`Channel`] and [`serve`] owns the socket and the task, nothing here spawns.

use std::future::Future;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{FutureExt, StreamExt, future::poll_fn, stream::FuturesUnordered};
use h2::{RecvStream, client, server::SendResponse};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    authority::AnyAuthority,
    limits::{HEADER_BYTES_MAX, MESSAGE_BYTES_MAX, REFUSAL_BYTES_MAX, STREAMS_MAX},
};

/// gRPC's codes, those that we say.
pub mod code {
    pub const UNKNOWN: u32 = 2;
    pub const INVALID_ARGUMENT: u32 = 3;
    pub const NOT_FOUND: u32 = 5;
    pub const RESOURCE_EXHAUSTED: u32 = 8;
    pub const FAILED_PRECONDITION: u32 = 9;
    pub const UNIMPLEMENTED: u32 = 12;
    pub const UNAVAILABLE: u32 = 14;
}

/// A call that was refused: gRPC's code and a text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} (gRPC code {code})")]
pub struct Refusal {
    pub code: u32,
    pub message: String,
}

impl Refusal {
    pub fn new(code: u32, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into() }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The other side has it and says no.
    #[error(transparent)]
    Refused(Refusal),
    /// The connection is of no use any more.
    #[error("{0}")]
    Broken(String),
}

/// What a call carries: any message of [`crate::messages`].
pub trait Body: Message + Default {}

impl<M: Message + Default> Body for M {}

/// One message out of gRPC's framing: a byte for compression, four for the length.
pub fn unframe(body: &[u8]) -> Result<&[u8], String> {
    let (message, rest) = unframe_first(body)?;
    match rest.is_empty() {
        true => Ok(message),
        false => Err(format!("{} bytes follow the message of a unary call", rest.len())),
    }
}

fn unframe_first(body: &[u8]) -> Result<(&[u8], &[u8]), String> {
    let (head, rest) = body.split_at_checked(5).ok_or("the message is cut off")?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if head[0] != 0 {
        return Err("compressed messages are not taken".into());
    }
    rest.split_at_checked(length)
        .ok_or_else(|| format!("the message has {} bytes and says {length}", rest.len()))
}

/// All messages of a body.
pub fn unframe_all(mut body: &[u8]) -> Result<usize, String> {
    let mut count = 0;
    while !body.is_empty() {
        body = unframe_first(body)?.1;
        count += 1;
    }
    Ok(count)
}

pub fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(5 + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).expect("our messages are small"));
    message.encode(&mut frame).expect("the buffer grows");
    frame.freeze()
}

/// Decodes a request, or says which one cannot be read.
pub fn decode<M: Message + Default>(message: &[u8]) -> Result<M, Refusal> {
    M::decode(message).map_err(|error| Refusal::new(code::INVALID_ARGUMENT, error.to_string()))
}

/// Serves one connection until its peer ends it. `service` gets the path of the method and the message, and returns the framed
/// answer. Messages over `bytes_max` are refused before they are read whole.
pub async fn serve<Io, F>(io: Io, bytes_max: usize, service: &impl Fn(String, Bytes) -> F)
where
    Io: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = Result<Bytes, Refusal>>,
{
    let handshake = h2::server::Builder::new()
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .handshake::<_, Bytes>(AnyAuthority::new(io));
    let Ok(mut connection) = handshake.await else { return };
    let mut calls = FuturesUnordered::new();
    loop {
        // Accepting also moves the bytes of the calls under way.
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => calls.push(answer(request, respond, bytes_max, service)),
                _ => return,
            },
            Some(()) = calls.next(), if !calls.is_empty() => {}
        }
    }
}

async fn answer<F>(
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    bytes_max: usize,
    service: &impl Fn(String, Bytes) -> F,
) where
    F: Future<Output = Result<Bytes, Refusal>>,
{
    let path = request.uri().path().to_owned();
    let result = match read(request.into_body(), bytes_max).await {
        Ok(body) => match unframe(&body) {
            Ok(message) => service(path, body.slice_ref(message)).await,
            Err(error) => Err(Refusal::new(code::INVALID_ARGUMENT, error)),
        },
        Err(refusal) => Err(refusal),
    };
    // The peer may be gone; then nobody misses the answer.
    let _ = reply(respond, result).await;
}

async fn read(mut body: RecvStream, bytes_max: usize) -> Result<Bytes, Refusal> {
    let mut all = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(|error| Refusal::new(code::UNAVAILABLE, error.to_string()))?;
        if all.len() + chunk.len() > bytes_max.saturating_add(5) {
            let message = format!("the message is longer than {bytes_max} bytes");
            return Err(Refusal::new(code::RESOURCE_EXHAUSTED, message));
        }
        all.extend_from_slice(&chunk);
        let _ = body.flow_control().release_capacity(chunk.len());
    }
    Ok(all.freeze())
}

async fn reply(mut respond: SendResponse<Bytes>, result: Result<Bytes, Refusal>) -> Result<(), h2::Error> {
    let head = |headers: HeaderMap| {
        let mut response = Response::new(());
        *response.headers_mut() = headers;
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        response
    };
    let mut trailers = HeaderMap::new();
    match result {
        Ok(frame) => {
            let mut body = respond.send_response(head(HeaderMap::new()), false)?;
            body.send_data(frame, false)?;
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            body.send_trailers(trailers)
        }
        Err(Refusal { code, message }) => {
            trailers.insert("grpc-status", HeaderValue::from(code));
            if let Ok(text) = HeaderValue::try_from(percent_encoded(&message)) {
                trailers.insert(HeaderName::from_static("grpc-message"), text);
            }
            respond.send_response(head(trailers), true).map(drop)
        }
    }
}

/// As gRPC writes `grpc-message`: anything that is not printable ASCII, and `%`, as `%XX`.
fn percent_encoded(text: &str) -> String {
    use std::fmt::Write;
    let mut encoded = String::new();
    for byte in text.bytes().take(REFUSAL_BYTES_MAX) {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            _ => drop(write!(encoded, "%{byte:02X}")),
        }
    }
    encoded
}

fn percent_decoded(text: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(text.len().min(REFUSAL_BYTES_MAX));
    let mut rest = text;
    while let ([first, tail @ ..], true) = (rest, bytes.len() < REFUSAL_BYTES_MAX) {
        let hex = |byte: &u8| char::from(*byte).to_digit(16);
        match (first, tail) {
            (b'%', [high, low, after @ ..]) if hex(high).is_some() && hex(low).is_some() => {
                bytes.push((hex(high).unwrap_or(0) * 16 + hex(low).unwrap_or(0)) as u8);
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A client's end of one connection; one call at a time.
pub struct Channel<Io> {
    send: client::SendRequest<Bytes>,
    connection: client::Connection<Io, Bytes>,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Channel<Io> {
    pub async fn open(io: Io) -> Result<Channel<Io>, CallError> {
        let handshake = client::Builder::new()
            .max_header_list_size(HEADER_BYTES_MAX)
            .enable_push(false)
            .handshake::<_, Bytes>(io);
        let (send, connection) = handshake.await.map_err(broken)?;
        Ok(Channel { send, connection })
    }

    /// Calls one method. Dropping the future gives the call up; the channel is of use afterwards.
    pub async fn call<A: Message + Default>(
        &mut self,
        path: &str,
        request: &impl Message,
    ) -> Result<A, CallError> {
        let exchange = exchange(self.send.clone(), path, frame(request));
        tokio::select! {
            biased;
            ended = &mut self.connection => Err(match ended {
                Ok(()) => CallError::Broken("the connection was closed".into()),
                Err(error) => broken(error),
            }),
            answered = exchange => {
                let body = answered?;
                let message = unframe(&body).map_err(CallError::Broken)?;
                A::decode(message).map_err(|error| CallError::Broken(format!("the answer cannot be read: {error}")))
            }
        }
    }

    /// Ends when the other side has closed the connection. Answers its pings meanwhile.
    pub async fn closed(&mut self) {
        let _ = poll_fn(|cx| self.connection.poll_unpin(cx)).await;
    }
}

fn broken(error: h2::Error) -> CallError {
    CallError::Broken(error.to_string())
}

async fn exchange(send: client::SendRequest<Bytes>, path: &str, frame: Bytes) -> Result<Bytes, CallError> {
    let mut send = send.ready().await.map_err(broken)?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .map_err(|error| CallError::Broken(error.to_string()))?;
    let (answer, mut body) = send.send_request(request, false).map_err(broken)?;
    body.send_data(frame, true).map_err(broken)?;
    let (head, mut body) = answer.await.map_err(broken)?.into_parts();
    let mut message = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(broken)?;
        if message.len() + chunk.len() > MESSAGE_BYTES_MAX + 5 {
            return Err(CallError::Broken(format!("the answer is longer than {MESSAGE_BYTES_MAX} bytes")));
        }
        message.extend_from_slice(&chunk);
        let _ = body.flow_control().release_capacity(chunk.len());
    }
    let trailers = body.trailers().await.map_err(broken)?.unwrap_or_default();
    let said = |name: &str| trailers.get(name).or_else(|| head.headers.get(name)).cloned();
    match said("grpc-status") {
        Some(status) if status == "0" => Ok(message.freeze()),
        Some(status) => {
            let code = status.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(code::UNKNOWN);
            let text = said("grpc-message").map(|text| percent_decoded(text.as_bytes())).unwrap_or_default();
            Err(CallError::Refused(Refusal::new(code, text)))
        }
        None => Err(CallError::Broken(format!("HTTP {} without a gRPC status", head.status.as_u16()))),
    }
}
