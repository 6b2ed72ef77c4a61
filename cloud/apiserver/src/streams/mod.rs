//! Requests that nodes answer: logs, commands, port-forwards, and whatever else a kubelet API has. Each is one byte stream of the
//! [`NodeDialer`], with HTTP/1.1 on it as between an API server and a kubelet.
//!
//! Not here: which node and which options (`kserve`), how byte streams get to nodes (`cloudcore`), SPDY's frames (`spdy`).
//!
//! Invariants
//! - Nothing is read ahead: a slow client holds the node back through buffers of fixed size, and a slow node the client.
//! - SPDY of a client goes to the node as raw bytes. WebSocket ends here and goes on as SPDY, because a node need not know it.
//! - When one side is gone, the other is closed.
//!
//! Start at [`Streams`].

mod http;
mod port;
mod raw;
mod session;
mod translate;
mod usage;
mod websocket;

use std::sync::Arc;

use ::http::header::{
    ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, UPGRADE,
};
use ::http::request::Parts;
use ::http::{Method, Request, Response, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::upgrade::OnUpgrade;
use kapi::ApiError;
use kserve::{Body, DialError, NodeAsk, NodeCalls, NodeDialer, NodeUsage, Purpose};
use rt::{BoxFuture, Drain, TaskGroup};

pub use self::usage::fuzz_summary;

use self::http::{NodeBody, Reply};
use crate::limits::{NODE_ERROR_BYTES_MAX, STREAMS_MAX};

/// Opens streams to nodes and carries requests over them.
pub(crate) struct Streams {
    dialer: Arc<dyn NodeDialer>,
    /// Connections that changed their protocol.
    changed: TaskGroup,
    usage: usage::Cache,
}

/// A node's byte stream after the change of its protocol.
type Node = hyper_util::rt::TokioIo<hyper::upgrade::Upgraded>;

/// SPDY clients say and hear by it what flows in their streams.
const STREAM_PROTOCOL: &str = "x-stream-protocol-version";

impl Streams {
    pub fn new(dialer: Arc<dyn NodeDialer>) -> Streams {
        Streams {
            dialer,
            changed: TaskGroup::new("api stream", STREAMS_MAX, Drain::new()),
            usage: usage::Cache::default(),
        }
    }

    /// Ends all streams.
    pub fn close(&self) {
        self.changed.drain().start();
    }

    async fn send(&self, node: &str, request: Request<Full<Bytes>>) -> Result<Reply, ApiError> {
        let io = self.dialer.dial(node).await.map_err(|error| match error {
            DialError::NotConnected(_) => ApiError::dialing(error),
            DialError::Refused { .. } => {
                let mut refused = ApiError::too_many_requests(error.to_string());
                refused.details.retry_after_s = 0;
                refused
            }
        })?;
        http::send(io, request).await.map_err(ApiError::dialing)
    }

    async fn log(&self, ask: &NodeAsk, pod: &str) -> Result<Response<Body>, ApiError> {
        let request = request(Method::GET, ask, HeaderMap::new(), Bytes::new())?;
        match self.send(&ask.node, request).await? {
            Reply::Answer(answer) if answer.status().is_success() => {
                let mut response = Response::new(answer.into_body().boxed_unsync());
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
                Ok(response)
            }
            Reply::Answer(answer) => Err(refused(answer, "pods/log", pod).await),
            Reply::Switched(..) => Err(unasked_switch()),
        }
    }

    async fn proxy(&self, ask: &NodeAsk, client: &Parts, body: &Bytes) -> Result<Response<Body>, ApiError> {
        let mut headers = HeaderMap::new();
        for name in [ACCEPT, CONTENT_TYPE] {
            if let Some(value) = client.headers.get(&name) {
                headers.insert(name, value.clone());
            }
        }
        let request = request(client.method.clone(), ask, headers, body.clone())?;
        match self.send(&ask.node, request).await? {
            Reply::Answer(answer) => {
                let (mut parts, body) = answer.into_parts();
                for name in ["connection", "keep-alive", "transfer-encoding", "upgrade"] {
                    parts.headers.remove(name);
                }
                // Its extensions are of another connection.
                parts.extensions.clear();
                Ok(Response::from_parts(parts, body.boxed_unsync()))
            }
            Reply::Switched(..) => Err(unasked_switch()),
        }
    }

    /// A client that changes the protocol itself, SPDY mostly: the node answers it.
    async fn pass_on(&self, ask: &NodeAsk, client: &Parts) -> Result<Response<Body>, ApiError> {
        let upgrade = upgrade_of(client)?;
        let mut headers = HeaderMap::new();
        let carried = client.headers.iter().filter(|(name, _)| {
            **name == STREAM_PROTOCOL || **name == UPGRADE || name.as_str().starts_with("sec-websocket-")
        });
        for (name, value) in carried {
            headers.append(name, value.clone());
        }
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        let request = request(client.method.clone(), ask, headers, Bytes::new())?;
        match self.send(&ask.node, request).await? {
            Reply::Switched(headers, node) => {
                self.spawn(async move {
                    if let Ok(client) = upgrade.await {
                        raw::pipe(hyper_util::rt::TokioIo::new(client), node).await;
                    }
                })?;
                Ok(switching(headers))
            }
            Reply::Answer(answer) => Err(refused_of(answer, ask).await),
        }
    }

    /// The way to the streaming server of a node's container runtime, past the kubelet API.
    async fn spdy(&self, ask: &NodeAsk, protocols: &[&'static str]) -> Result<Node, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
        for protocol in protocols {
            headers.append(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
        }
        let request = request(Method::POST, ask, headers, Bytes::new())?;
        match self.send(&ask.node, request).await? {
            Reply::Switched(_, node) => Ok(node),
            Reply::Answer(answer) => Err(refused_of(answer, ask).await),
        }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> Result<(), ApiError> {
        let drain = self.changed.drain().clone();
        let task = async move {
            drain.or(task).await;
            Ok::<(), std::convert::Infallible>(())
        };
        self.changed.spawn(task).map_err(|full| ApiError::too_many_requests(full.to_string()))
    }
}

impl NodeCalls for Streams {
    fn call<'a>(
        &'a self,
        ask: NodeAsk,
        client: &'a Parts,
        body: &'a Bytes,
    ) -> BoxFuture<'a, Result<Response<Body>, ApiError>> {
        Box::pin(async move {
            let wanted =
                client.headers.get(UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
            match (&ask.purpose, wanted) {
                (Purpose::Log { pod }, _) => self.log(&ask, pod).await,
                (Purpose::Proxy, "") => self.proxy(&ask, client, body).await,
                (Purpose::PodPort(to), _) => port::serve(self, &ask, to, client, body).await,
                (_, "") => Err(ApiError::bad_request("Upgrade request required")),
                (Purpose::Command { .. } | Purpose::PortForward { .. }, wanted)
                    if wanted.eq_ignore_ascii_case("websocket") =>
                {
                    translate::serve(self, &ask, client).await
                }
                _ => self.pass_on(&ask, client).await,
            }
        })
    }

    fn usage<'a>(&'a self, nodes: Vec<String>) -> BoxFuture<'a, Vec<(String, Arc<NodeUsage>)>> {
        Box::pin(self.usage_of(nodes))
    }
}

/// The client's end of a change of the protocol.
fn upgrade_of(client: &Parts) -> Result<OnUpgrade, ApiError> {
    let upgrade = client.extensions.get::<OnUpgrade>().cloned();
    upgrade.ok_or_else(|| ApiError::bad_request("the protocol can be changed on HTTP/1.1 only"))
}

fn switching(headers: HeaderMap) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = headers;
    response
}

fn request(
    method: Method,
    ask: &NodeAsk,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Request<Full<Bytes>>, ApiError> {
    let mut request = Request::builder()
        .method(method)
        .uri(&ask.path)
        .body(Full::new(body))
        .map_err(|error| ApiError::bad_request(format!("{}: {error}", ask.path)))?;
    *request.headers_mut() = headers;
    let host = HeaderValue::from_str(&ask.node).unwrap_or(HeaderValue::from_static("node"));
    request.headers_mut().insert(HOST, host);
    debug_assert!(
        !request.headers().contains_key(AUTHORIZATION),
        "the client's key is not the node's business"
    );
    Ok(request)
}

fn unasked_switch() -> ApiError {
    ApiError::internal("the node changed the protocol, which nobody asked for")
}

async fn refused_of(answer: Response<NodeBody>, ask: &NodeAsk) -> ApiError {
    let (resource, name) = match &ask.purpose {
        Purpose::Command { pod, .. } if ask.path.starts_with("/attach") => ("pods/attach", pod.as_str()),
        Purpose::Command { pod, .. } => ("pods/exec", pod.as_str()),
        Purpose::PortForward { pod, .. } => ("pods/portforward", pod.as_str()),
        Purpose::Log { pod } => ("pods/log", pod.as_str()),
        Purpose::Proxy => ("nodes/proxy", ask.node.as_str()),
        Purpose::PodPort(port) => ("pods/proxy", port.pod.as_str()),
    };
    refused(answer, resource, name).await
}

/// What the node said instead of doing it.
async fn refused(answer: Response<NodeBody>, resource: &'static str, name: &str) -> ApiError {
    let code = answer.status().as_u16();
    let words = match Limited::new(answer.into_body(), NODE_ERROR_BYTES_MAX).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim_end().to_string(),
        Err(_) => format!("the node refused with code {code} and more words than are read"),
    };
    ApiError::from_node(code, resource, name, &words)
}
