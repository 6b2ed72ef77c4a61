//! The registration socket: one gRPC method, served over HTTP/2 by hand.
//!
//! tonic's server half would add a router and its middleware for this one unary call; `h2` is linked for the client anyway.

use std::{future::Future, sync::Arc};

use bytes::{BufMut, Bytes, BytesMut};
use dmi::authority::AnyAuthority;
use futures_util::{StreamExt, stream::FuturesUnordered};
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use prost::Message;
use tokio::net::UnixStream;

use super::messages::{RegisterRequest, VERSION};
use crate::edged::limits;

const PATH: &str = "/v1beta1.Registration/Register";
const UNKNOWN: u32 = 2;
const UNIMPLEMENTED: u32 = 12;

/// A call that is refused: gRPC's code and a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub code: u32,
    pub message: String,
}

/// One message out of gRPC's framing: a byte for compression, four for the length.
pub fn unframe(body: &[u8]) -> Result<&[u8], String> {
    let (head, message) = body.split_at_checked(5).ok_or("the message is cut off")?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    match (head[0], message.len() == length) {
        (0, true) => Ok(message),
        (0, false) => Err(format!("the message has {} bytes and says {length}", message.len())),
        _ => Err("compressed messages are not taken".into()),
    }
}

pub fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(5 + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).expect("our messages are small"));
    message.encode(&mut frame).expect("the buffer grows");
    frame.freeze()
}

/// What a plugin may register as.
pub fn check(request: &RegisterRequest) -> Result<(), String> {
    if request.version != VERSION {
        return Err(format!(
            "requested API version {:?} is not supported by kubelet. Supported version is [{VERSION:?}]",
            request.version
        ));
    }
    let name = &request.resource_name;
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let valid = |(domain, name): (&str, &str)| {
        let reserved = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
        !reserved && !domain.is_empty() && !name.is_empty() && domain.chars().chain(name.chars()).all(allowed)
    };
    if name.len() > 316 || name.starts_with("requests.") || !name.split_once('/').is_some_and(valid) {
        return Err(format!("the ResourceName {name:?} is invalid"));
    }
    let endpoint = &request.endpoint;
    if endpoint.is_empty() || endpoint.len() > 90 || endpoint.contains('/') || endpoint.starts_with('.') {
        return Err(format!("endpoint {endpoint:?} must be the name of a socket beside kubelet.sock"));
    }
    Ok(())
}

/// Serves one connection until its peer ends it.
pub async fn serve<F>(stream: UnixStream, register: Arc<impl Fn(RegisterRequest) -> F>)
where
    F: Future<Output = Result<(), Refusal>>,
{
    let handshake = h2::server::Builder::new()
        .max_concurrent_streams(8)
        .max_header_list_size(16 * 1024)
        .handshake::<_, Bytes>(AnyAuthority::new(stream));
    let Ok(mut connection) = handshake.await else { return };
    let mut calls = FuturesUnordered::new();
    loop {
        // Accepting also moves the bytes of the calls under way.
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => calls.push(answer(request, respond, register.clone())),
                _ => return,
            },
            Some(()) = calls.next(), if !calls.is_empty() => {}
        }
    }
}

async fn answer<F>(
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    register: Arc<impl Fn(RegisterRequest) -> F>,
) where
    F: Future<Output = Result<(), Refusal>>,
{
    let unknown = |message| Refusal { code: UNKNOWN, message };
    let path = request.uri().path().to_string();
    let call = async {
        if path != PATH {
            return Err(Refusal { code: UNIMPLEMENTED, message: format!("unknown method {path}") });
        }
        let body = read(request.into_body()).await.map_err(unknown)?;
        let request = RegisterRequest::decode(unframe(&body).map_err(unknown)?);
        let request = request.map_err(|error| unknown(error.to_string()))?;
        check(&request).map_err(unknown)?;
        register(request).await
    };
    let result = call.await;
    if let Err(error) = reply(respond, result) {
        tracing::debug!("cannot answer a device plugin: {error}");
    }
}

async fn read(mut body: RecvStream) -> Result<BytesMut, String> {
    let mut all = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(|error| error.to_string())?;
        if all.len() + chunk.len() > limits::DEVICE_REGISTER_BYTES_MAX {
            return Err("the request is too large".into());
        }
        all.extend_from_slice(&chunk);
        let _ = body.flow_control().release_capacity(chunk.len());
    }
    Ok(all)
}

fn reply(mut respond: SendResponse<Bytes>, result: Result<(), Refusal>) -> Result<(), h2::Error> {
    let head = |end: HeaderMap| {
        let mut response = Response::new(());
        *response.headers_mut() = end;
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        response
    };
    let mut trailers = HeaderMap::new();
    match result {
        Ok(()) => {
            let mut body = respond.send_response(head(HeaderMap::new()), false)?;
            body.send_data(frame(&super::messages::Empty {}), false)?;
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            body.send_trailers(trailers)
        }
        Err(Refusal { code, message }) => {
            let text: String =
                message.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect();
            trailers.insert("grpc-status", HeaderValue::from(code));
            trailers.extend(
                HeaderValue::try_from(text)
                    .ok()
                    .map(|text| (http::HeaderName::from_static("grpc-message"), text)),
            );
            respond.send_response(head(trailers), true).map(drop)
        }
    }
}
