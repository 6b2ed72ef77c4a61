//! One dial: TCP, TLS, WebSocket upgrade, and is it the cloud that we joined.

use std::{sync::Arc, time::Duration};

use streams::{Counted, Streams};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{self, client::IntoClientRequest, http::HeaderValue, protocol::WebSocketConfig},
};
use wire::{
    headers,
    lane::{End, Frames, Lane, LaneError, Received},
    limits::MESSAGE_BYTES_MAX,
};

use super::Endpoint;
use crate::{
    credentials::{CredentialsError, client_config, server_name},
    tls_fault,
};

pub type Socket = streams::Socket<WebSocketStream<TlsStream<Counted<TcpStream>>>>;

/// What the node knows of its earlier links, for the next dial's request.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// The number of the link that was dialled last; 0 after a start.
    pub dialled: u64,
    /// The link that came up last, and the numbers of what was stored from it.
    pub stored: Option<(u64, Vec<u32>)>,
}

/// A link that the cloud has accepted.
pub struct Dialled {
    pub socket: Socket,
    pub lane: Lane,
    /// The cloud goes on where the last link ended.
    pub resumed: bool,
    /// What came with the cloud's first word.
    pub received: Vec<Received>,
}

/// tungstenite takes 128 kB each by default; a node's messages are a few kilobytes.
const BUFFER_LEN: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(
        "cannot reach the cloud at {server}: {reason}; check that cloudcore runs there and that the network allows it"
    )]
    Unreachable { server: String, reason: String },
    #[error("{}", rt::error_chain(.0))]
    Credentials(CredentialsError),
    #[error("TLS cannot be set up with the node's certificate: {0}; run `edgecore join` again")]
    Certificate(String),
    #[error("{0:?} is not the address of a cloud; set modules.edgeHub.websocket.server to host:10000")]
    Address(String),
    /// `rejected`: one end does not accept the certificate of the other.
    #[error("TLS with the cloud at {server} failed: {reason}")]
    Tls { server: String, reason: String, rejected: bool },
    /// `rejected`: because of who we are.
    #[error("the cloud at {server} refused this node: {reason}")]
    Refused { server: String, reason: String, rejected: bool },
    #[error("the cloud at {server} keeps this node away for {} s: {reason}", .after.as_secs())]
    Busy { server: String, reason: String, after: Duration },
    #[error("the cloud at {server} knows another device under this node's name: {reason}")]
    NameInUse { server: String, reason: String, after: Duration },
    #[error("the cloud at {server} accepted the compact lane and then did not speak it: {reason}")]
    Lane { server: String, reason: String },
    #[error(
        "the cloud at {server} is {found}, this node joined {joined}; its objects are not taken. To move the node, run `edgecore join --adopt`"
    )]
    OtherCloud { server: String, found: String, joined: String },
    #[error(
        "the cloud at {server} did not answer within {seconds} s; check that it is a cloudcore and not overloaded"
    )]
    Timeout { server: String, seconds: u64 },
}

impl ConnectError {
    /// Whether other certificates may do better.
    pub fn is_rejection(&self) -> bool {
        matches!(
            self,
            ConnectError::Tls { rejected: true, .. } | ConnectError::Refused { rejected: true, .. }
        )
    }
}

/// Reads the certificates anew, since they may have been renewed.
/// `link`: the number of the new link, random.
pub async fn connect(endpoint: &Endpoint, link: u64, past: &Past) -> Result<Dialled, ConnectError> {
    let timeout = endpoint.handshake_timeout;
    tokio::time::timeout(timeout, dial(endpoint, link, past)).await.unwrap_or_else(|_| {
        Err(ConnectError::Timeout { server: endpoint.server.clone(), seconds: timeout.as_secs() })
    })
}

async fn dial(endpoint: &Endpoint, link: u64, past: &Past) -> Result<Dialled, ConnectError> {
    let server = &endpoint.server;
    let bundle = endpoint.credentials.load().map_err(ConnectError::Credentials)?;
    let config =
        client_config(&bundle).map_err(|error| ConnectError::Certificate(rt::error_chain(&error)))?;
    let name = server_name(server).ok_or_else(|| ConnectError::Address(server.clone()))?;
    let unreachable = |error: std::io::Error| ConnectError::Unreachable {
        server: server.clone(),
        reason: error.to_string(),
    };
    let tcp = TcpStream::connect(server.as_str()).await.map_err(unreachable)?;
    // Streams: a key that was typed must not wait for the acknowledgement of the one before.
    let _ = tcp.set_nodelay(true);
    streams::tune(&tcp).map_err(unreachable)?;
    let (tcp, progress) = Counted::new(tcp);
    let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
    let tls = tls.map_err(|error| tls_failed(server, &error))?;

    let upgraded =
        client_async_with_config(request(endpoint, link, past)?, tls, Some(websocket_config())).await;
    let (ws, response) = upgraded.map_err(|error| refusal(server, error))?;
    let found = response.headers().get(headers::CLOUD_ID).and_then(|id| id.to_str().ok()).unwrap_or_default();
    if !found.is_empty() && !endpoint.cloud_id.is_empty() && found != endpoint.cloud_id {
        let (found, joined) = (found.to_owned(), endpoint.cloud_id.clone());
        return Err(ConnectError::OtherCloud { server: server.clone(), found, joined });
    }
    let accepted = |name: &str, version: &str| response.headers().get(name).is_some_and(|v| v == version);
    let streams = endpoint.streams && accepted(headers::STREAMS, headers::STREAMS_VERSION);
    let compact = endpoint.lane && accepted(headers::LANE, headers::LANE_VERSION);
    let streams = streams.then(Streams::acceptor);
    let socket = Socket::new(ws, progress, streams, endpoint.write_timeout).with_lane(compact);
    let lane = if compact { Lane::compact(link, End::Edge) } else { Lane::json() };
    let mut dialled = Dialled { socket, lane, resumed: false, received: Vec::new() };
    if compact {
        welcome(&mut dialled)
            .await
            .map_err(|reason| ConnectError::Lane { server: server.clone(), reason })?;
    }
    Ok(dialled)
}

/// The cloud's first word comes when the node's last link, if it was still there, has ended.
async fn welcome(dialled: &mut Dialled) -> Result<(), String> {
    loop {
        let event = dialled.socket.next(true).await.map_err(|ended| rt::error_chain(&ended))?;
        let streams::Event::Frames(bytes) = event else { continue };
        let line = |error: LaneError| rt::error_chain(&error);
        for received in dialled.lane.receive(Frames::Binary(&bytes)).map_err(line)? {
            match received {
                Received::Welcome { resumed } => dialled.resumed = resumed,
                other => dialled.received.push(other),
            }
        }
        return Ok(());
    }
}

fn request(
    endpoint: &Endpoint,
    link: u64,
    past: &Past,
) -> Result<tungstenite::handshake::client::Request, ConnectError> {
    let Endpoint { server, project_id, node, .. } = endpoint;
    let address = || ConnectError::Address(server.clone());
    let mut request =
        format!("wss://{server}/{project_id}/{node}/events").into_client_request().map_err(|_| address())?;
    let link = headers::render_link(link, past.dialled);
    let resume = past.stored.clone().map(|(link, seqs)| headers::render_resume(link, seqs));
    let lane = |value| if endpoint.lane { value } else { "" };
    for (name, value) in [
        (headers::NODE_ID, node.as_str()),
        (headers::PROJECT_ID, project_id.as_str()),
        ("ConnectionUse", "msg"),
        (headers::STORE_ID, endpoint.store_id.as_str()),
        (headers::STREAMS, if endpoint.streams { headers::STREAMS_VERSION } else { "" }),
        (headers::LANE, lane(headers::LANE_VERSION)),
        (headers::LINK, lane(&link)),
        (headers::RESUME, lane(resume.as_deref().unwrap_or_default())),
    ] {
        if !value.is_empty() {
            let name: tungstenite::http::HeaderName = name.parse().map_err(|_| address())?;
            request.headers_mut().insert(name, HeaderValue::from_str(value).map_err(|_| address())?);
        }
    }
    Ok(request)
}

fn websocket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(BUFFER_LEN)
        .write_buffer_size(BUFFER_LEN)
        .max_write_buffer_size(MESSAGE_BYTES_MAX + 64 * 1024)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX))
}

fn tls_failed(server: &str, error: &std::io::Error) -> ConnectError {
    let (reason, rejected) = (tls_fault::explain(error), tls_fault::is_rejection(error));
    ConnectError::Tls { server: server.into(), reason, rejected }
}

fn refusal(server: &str, error: tungstenite::Error) -> ConnectError {
    let reason = match error {
        // What a TLS 1.3 server thinks of our certificate arrives with the first bytes we read.
        tungstenite::Error::Io(error) => return tls_failed(server, &error),
        tungstenite::Error::Http(response) => {
            let body = response.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
            let body: String = body.trim().chars().take(300).collect();
            let reason = if body.is_empty() { response.status().to_string() } else { body };
            let server = server.to_owned();
            let after =
                response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
            return match (after.map(Duration::from_secs), response.status().as_u16()) {
                (Some(after), 409) => ConnectError::NameInUse { server, reason, after },
                (Some(after), _) => ConnectError::Busy { server, reason, after },
                (None, status) => {
                    ConnectError::Refused { server, reason, rejected: matches!(status, 401 | 403) }
                }
            };
        }
        other => other.to_string(),
    };
    ConnectError::Refused { server: server.into(), reason, rejected: false }
}
