//! A node for tests: a kubelet API whose containers are processes of this machine, behind a `NodeDialer`.
//!
//! exec runs the command, attach echoes, port-forward connects to 127.0.0.1, logs show what was asked for. Its SPDY is written
//! apart from the product's, so that they do not share mistakes.
#![allow(dead_code)]

pub mod spdy;
mod streams;

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::StreamExt;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use kserve::{DialError, NodeDialer};
use rt::{BoxFuture, BoxIo};

pub const NODE: &str = "pi";

#[derive(Default)]
pub struct Node {
    /// Streams that were dialed, and those still open.
    pub dialed: AtomicUsize,
    pub open: AtomicUsize,
    /// Bytes of endless logs that were taken.
    pub sent: AtomicU64,
    /// What /stats/summary answers.
    pub summary: std::sync::Mutex<String>,
}

pub struct Dialer(pub Arc<Node>);

impl NodeDialer for Dialer {
    fn dial<'a>(&'a self, node: &'a str) -> BoxFuture<'a, Result<BoxIo, DialError>> {
        let known = node == NODE;
        let state = self.0.clone();
        Box::pin(async move {
            if !known {
                return Err(DialError::NotConnected(node.to_string()));
            }
            // As much as a stream of the link holds.
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            state.dialed.fetch_add(1, Ordering::Relaxed);
            state.open.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let service = hyper::service::service_fn(|request| answer(state.clone(), request));
                let builder = hyper::server::conn::http1::Builder::new();
                let _ = builder.serve_connection(TokioIo::new(theirs), service).with_upgrades().await;
                state.open.fetch_sub(1, Ordering::Relaxed);
            });
            Ok(Box::new(ours) as BoxIo)
        })
    }
}

type Body = BoxBody<Bytes, Infallible>;

fn text(code: u16, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(text.into()).boxed());
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

/// Decoded pairs.
pub fn pairs(query: &str) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let mut out = Vec::new();
        let mut bytes = text.bytes();
        while let Some(byte) = bytes.next() {
            if byte == b'%' {
                let hex: String =
                    [bytes.next().unwrap(), bytes.next().unwrap()].iter().map(|b| char::from(*b)).collect();
                out.push(u8::from_str_radix(&hex, 16).unwrap());
            } else {
                out.push(byte);
            }
        }
        String::from_utf8(out).unwrap()
    };
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        })
        .collect()
}

async fn answer(node: Arc<Node>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_string();
    let query = request.uri().query().unwrap_or_default().to_string();
    let words: Vec<&str> = path.split('/').skip(1).collect();
    Ok(match words.as_slice() {
        ["containerLogs", _, pod, container] => logs(node, pod, container, &query),
        ["exec", ..] => streams::upgrade(request, streams::exec(pairs(&query))),
        ["attach", ..] => streams::upgrade(request, streams::attach(pairs(&query))),
        ["portForward", ..] => streams::upgrade(request, streams::port_forward()),
        ["stats", "summary"] => text(200, node.summary.lock().unwrap().clone()),
        ["healthz"] => text(200, "ok"),
        ["echo", ..] => {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let head = format!("{} {} {:?} ", parts.method, parts.uri, parts.headers.get("authorization"));
            text(200, [head.as_bytes(), &body].concat())
        }
        _ => text(404, "404 page not found\n"),
    })
}

fn logs(node: Arc<Node>, pod: &str, container: &str, query: &str) -> Response<Body> {
    let pairs: HashMap<String, String> = pairs(query).into_iter().collect();
    match container {
        "waiting" => {
            let words =
                format!("container \"waiting\" in pod \"{pod}\" is waiting to start: ContainerCreating");
            return text(400, words);
        }
        "lost" => return text(404, "no log file"),
        "broken" => return text(500, "the disk is on fire"),
        _ => {}
    }
    let mut shown: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
    shown.sort();
    let first = Bytes::from(format!("log of {container}: {}\n", shown.join(" ")));
    if pairs.get("follow").map(String::as_str) != Some("true") {
        return text(200, first);
    }
    match container {
        // Goes on for ever, as fast as it is taken.
        "endless" => {
            let line = Bytes::from([b"0123456789abcde".repeat(68), b"\n".to_vec()].concat());
            let lines = futures_util::stream::repeat(line).map(move |line| {
                node.sent.fetch_add(line.len() as u64, Ordering::Relaxed);
                Ok(Frame::data(line))
            });
            Response::new(BodyExt::boxed(StreamBody::new(lines)))
        }
        // Says one line, then nothing until the client goes.
        "quiet" => {
            let lines = futures_util::stream::once(async { Ok(Frame::data(first)) });
            let lines = lines.chain(futures_util::stream::pending());
            Response::new(BodyExt::boxed(StreamBody::new(lines)))
        }
        _ => {
            let lines = (1..=3).map(|at| Ok(Frame::data(Bytes::from(format!("line {at} of {container}\n")))));
            Response::new(BodyExt::boxed(StreamBody::new(futures_util::stream::iter(
                lines.collect::<Vec<_>>(),
            ))))
        }
    }
}
