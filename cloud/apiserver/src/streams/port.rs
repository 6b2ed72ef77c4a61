//! HTTP to a server in a pod (`pods/proxy`): one port-forward of the node's kubelet, as `kubectl port-forward` asks for it, with
//! HTTP/1.1 on its data stream. Any kubelet can do it, a stock one too, and the server sees the connection come from its own pod.

use std::sync::{Arc, Mutex, PoisonError};

use ::http::Response;
use ::http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, UPGRADE,
};
use ::http::request::Parts;
use bytes::Bytes;
use http_body_util::BodyExt;
use kapi::ApiError;
use kserve::{Body, NodeAsk, PodPort, Purpose};
use rt::BoxIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, WriteHalf, split};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::http::{Reply, SendError};
use super::session::{Receiver, Sender, open};
use super::{Node, Streams, http, raw, request, switching, upgrade_of};
use crate::limits::{LINGER_MAX, NODE_ANSWER_MAX, NODE_ERROR_BYTES_MAX, PIPE_BYTES};
use crate::spdy::Event;

/// What concerns one connection only (RFC 9110 section 7.6.1), or is set anew.
const OF_THE_CONNECTION: &[HeaderName] = &[
    AUTHORIZATION,
    CONNECTION,
    CONTENT_LENGTH,
    HOST,
    UPGRADE,
    ::http::header::PROXY_AUTHENTICATE,
    ::http::header::PROXY_AUTHORIZATION,
    ::http::header::TE,
    ::http::header::TRAILER,
    ::http::header::TRANSFER_ENCODING,
];

/// What the node said of the port, if it said something.
#[derive(Clone, Default)]
struct Words(Arc<Mutex<Vec<u8>>>);

impl Words {
    fn add(&self, bytes: &[u8]) {
        let mut words = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = NODE_ERROR_BYTES_MAX - words.len();
        words.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn said(&self) -> Option<String> {
        let words = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (!words.is_empty()).then(|| String::from_utf8_lossy(&words).trim_end().to_owned())
    }
}

pub(super) async fn serve(
    streams: &Streams,
    ask: &NodeAsk,
    port: &PodPort,
    client: &Parts,
    body: &Bytes,
) -> Result<Response<Body>, ApiError> {
    let mut headers = passed_on(&client.headers);
    if let Some(wanted) = client.headers.get(UPGRADE) {
        headers.insert(UPGRADE, wanted.clone());
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    if let Ok(uri) = HeaderValue::from_str(client.uri.path()) {
        headers.insert("x-forwarded-uri", uri);
    }
    let mut request = request(client.method.clone(), ask, headers, body.clone())?;
    if let Ok(host) = HeaderValue::from_str(&port.host) {
        request.headers_mut().insert(HOST, host);
    }
    // Before the node is asked for anything: a client that cannot change the protocol is told so.
    let upgrade = client.headers.contains_key(UPGRADE).then(|| upgrade_of(client)).transpose()?;
    let (io, words) = connect(streams, ask, port).await?;
    let answer = match encrypted(io, port.tls).await {
        Ok(io) => http::send(io, request).await,
        Err(error) => return Err(unreachable(&words, error)),
    };
    match (answer, upgrade) {
        (Err(error), _) => Err(unreachable(&words, error)),
        (Ok(Reply::Answer(answer)), _) => {
            let (mut parts, body) = answer.into_parts();
            parts.headers = passed_on(&parts.headers);
            // Its extensions are of another connection.
            parts.extensions.clear();
            if let Some(there) =
                parts.headers.get(LOCATION).and_then(|there| moved(there.to_str().ok()?, port))
            {
                parts.headers.insert(LOCATION, there);
            }
            Ok(Response::from_parts(parts, body.boxed_unsync()))
        }
        (Ok(Reply::Switched(headers, server)), Some(upgrade)) => {
            streams.spawn(async move {
                if let Ok(client) = upgrade.await {
                    raw::pipe(hyper_util::rt::TokioIo::new(client), server).await;
                }
            })?;
            Ok(switching(headers))
        }
        (Ok(Reply::Switched(..)), None) => Err(super::unasked_switch()),
    }
}

/// As an API server says it of a pod that nothing listens in.
fn unreachable(words: &Words, error: impl std::fmt::Display) -> ApiError {
    let why = words.said().unwrap_or_else(|| error.to_string());
    let mut unreachable = ApiError::unavailable(format!("error trying to reach service: {why}"));
    unreachable.details.retry_after_s = 0;
    unreachable
}

fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let dropped = |name: &HeaderName| {
        let text = name.as_str();
        OF_THE_CONNECTION.contains(name)
            // Whom the client acts as is between it and the API server.
            || text.starts_with("impersonate-")
            || text == "keep-alive"
            || text == "proxy-connection"
    };
    let kept = headers.iter().filter(|(name, _)| !dropped(name));
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Where the client finds what the server calls `location`, if that is on the server (apimachinery, `proxy.Transport`).
fn moved(location: &str, port: &PodPort) -> Option<HeaderValue> {
    let own = ["http://", "https://"]
        .into_iter()
        .find_map(|scheme| location.strip_prefix(scheme)?.strip_prefix(port.host.as_str()));
    let path = own.or((!location.starts_with("//")).then_some(location))?;
    let is_absolute = path.starts_with('/');
    if !(is_absolute || own == Some("")) || path.starts_with(&port.base) {
        return None;
    }
    let slash = if is_absolute { "" } else { "/" };
    HeaderValue::from_str(&format!("{}{slash}{path}", port.base)).ok()
}

/// Nobody checks the certificate, as an API server does not: it is for a name that the pod has elsewhere.
async fn encrypted(io: DuplexStream, tls: bool) -> Result<BoxIo, std::io::Error> {
    if !tls {
        return Ok(Box::new(io));
    }
    let config = pki::tls::for_probes().map_err(std::io::Error::other)?;
    let name = ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
    let connected = TlsConnector::from(Arc::new(config)).connect(name, io);
    match timeout(NODE_ANSWER_MAX, connected).await {
        Ok(connected) => Ok(Box::new(connected?)),
        Err(_) => Err(std::io::Error::other(SendError::Silent)),
    }
}

/// The port as a byte stream, which ends when either end does.
async fn connect(
    streams: &Streams,
    ask: &NodeAsk,
    port: &PodPort,
) -> Result<(DuplexStream, Words), ApiError> {
    let forward =
        NodeAsk { path: port.forward.clone(), purpose: Purpose::PodPort(port.clone()), ..ask.clone() };
    let node = streams.spdy(&forward, &["portforward.k8s.io"]).await?;
    let number = port.port.to_string();
    let pair =
        ["error", "data"].map(|kind| vec![("streamtype", kind), ("port", &number), ("requestid", "0")]);
    let opened = timeout(NODE_ANSWER_MAX, open(node, &pair)).await;
    let opened = opened.unwrap_or(Err(super::session::SessionError::Closed)).map_err(ApiError::dialing)?;
    let (sender, receiver, numbers) = opened;
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let words = Words::default();
    let (error, data) = (numbers[0], numbers[1]);
    streams.spawn(pump(theirs, sender, receiver, Pair { error, data }, words.clone()))?;
    Ok((ours, words))
}

#[derive(Clone, Copy)]
struct Pair {
    error: u32,
    data: u32,
}

async fn pump(
    io: DuplexStream,
    mut sender: Sender<Node>,
    mut receiver: Receiver<Node>,
    pair: Pair,
    words: Words,
) {
    let (mut read, mut write) = split(io);
    // Pings of the node are few; one that finds the queue full is asked again.
    let (pings, mut asked) = mpsc::channel(4);
    {
        let up = async {
            let mut buffer = vec![0; PIPE_BYTES];
            loop {
                let sent = tokio::select! {
                    id = asked.recv() => match id {
                        Some(id) => sender.pong(id).await,
                        None => return,
                    },
                    count = read.read(&mut buffer) => match count {
                        Ok(count @ 1..) => sender.data(pair.data, &buffer[..count]).await,
                        // Whoever asked is gone, or has said all; with HTTP that is the same.
                        _ => return,
                    },
                };
                if sent.is_err() {
                    // What the node said last is still on its way down.
                    return std::future::pending().await;
                }
            }
        };
        let down = async {
            down(&mut receiver, &mut write, &pings, pair, &words).await;
            let _ = write.shutdown().await;
        };
        let (mut up, mut down) = (std::pin::pin!(up), std::pin::pin!(down));
        tokio::select! {
            () = &mut up => {}
            () = &mut down => drop(timeout(LINGER_MAX, up).await),
        }
    }
    sender.close().await;
}

/// From the server to whoever asked, until it has said everything.
async fn down(
    receiver: &mut Receiver<Node>,
    write: &mut WriteHalf<DuplexStream>,
    pings: &mpsc::Sender<u32>,
    pair: Pair,
    words: &Words,
) {
    while let Ok(Some(event)) = receiver.next().await {
        match event {
            Event::Data { stream, bytes } if stream == pair.data => {
                let taken = write.write_all(&bytes).await;
                if taken.is_err() {
                    return;
                }
            }
            Event::Data { stream, bytes } if stream == pair.error => words.add(&bytes),
            Event::Ended(stream) | Event::Reset { stream, .. } if stream == pair.data => return,
            // Nothing more comes from a port that could not be reached; a runtime does not always say so on its data stream.
            Event::Ended(stream) | Event::Reset { stream, .. }
                if stream == pair.error && words.said().is_some() =>
            {
                return;
            }
            Event::Ping(id) => drop(pings.try_send(id)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_server_sends_its_clients() {
        let port = PodPort {
            pod: "web".into(),
            port: 80,
            tls: false,
            host: "10.1.2.3:80".into(),
            base: "/api/v1/namespaces/a/pods/web:80/proxy".into(),
            forward: String::new(),
        };
        for (location, there) in [
            ("/login?next=/", Some("/api/v1/namespaces/a/pods/web:80/proxy/login?next=/")),
            ("http://10.1.2.3:80/a/", Some("/api/v1/namespaces/a/pods/web:80/proxy/a/")),
            ("http://10.1.2.3:80", Some("/api/v1/namespaces/a/pods/web:80/proxy/")),
            ("http://10.1.2.3:8080/a", None),
            ("http://elsewhere/a", None),
            ("//elsewhere/a", None),
            ("next", None),
            ("/api/v1/namespaces/a/pods/web:80/proxy/a", None),
        ] {
            let moved = moved(location, &port);
            assert_eq!(moved.as_ref().map(|there| there.to_str().unwrap()), there, "{location}");
        }
    }

    #[test]
    fn nothing_of_the_connection_is_passed_on() {
        let headers: HeaderMap =
            [("authorization", "Bearer x"), ("te", "trailers"), ("impersonate-user", "u"), ("cookie", "c=1")]
                .into_iter()
                .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
                .collect();
        let names: Vec<String> = passed_on(&headers).keys().map(HeaderName::to_string).collect();
        assert_eq!(names, ["cookie"]);
    }
}
