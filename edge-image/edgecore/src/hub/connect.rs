//! One dial: TCP, TLS, WebSocket upgrade, and is it the cloud that we joined.

use std::sync::Arc;

use streams::{Counted, Streams};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    client_async_with_config,
    tungstenite::{self, client::IntoClientRequest, http::HeaderValue, protocol::WebSocketConfig},
};
use wire::{headers, limits::MESSAGE_BYTES_MAX};

use super::Endpoint;
use crate::credentials::{CredentialsError, client_config, server_name};

pub type Socket = streams::Socket<TlsStream<Counted<TcpStream>>>;

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
    #[error(
        "TLS with the cloud at {server} failed: {reason}; if that cloud was made anew, run `edgecore join --adopt` with a new token"
    )]
    Tls { server: String, reason: String },
    #[error("the cloud at {server} refused this node: {reason}")]
    Refused { server: String, reason: String },
    #[error(
        "the cloud at {server} is {found}, this node joined {joined}; its objects are not taken. To move the node, run `edgecore join --adopt`"
    )]
    OtherCloud { server: String, found: String, joined: String },
    #[error(
        "the cloud at {server} did not answer within {seconds} s; check that it is a cloudcore and not overloaded"
    )]
    Timeout { server: String, seconds: u64 },
}

/// Reads the certificates anew, since they may have been renewed.
pub async fn connect(endpoint: &Endpoint) -> Result<Socket, ConnectError> {
    let timeout = endpoint.handshake_timeout;
    tokio::time::timeout(timeout, dial(endpoint)).await.unwrap_or_else(|_| {
        Err(ConnectError::Timeout { server: endpoint.server.clone(), seconds: timeout.as_secs() })
    })
}

async fn dial(endpoint: &Endpoint) -> Result<Socket, ConnectError> {
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
    let tls_error =
        |error: std::io::Error| ConnectError::Tls { server: server.clone(), reason: error.to_string() };
    let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(tls_error)?;

    let upgraded = client_async_with_config(request(endpoint)?, tls, Some(websocket_config())).await;
    let (ws, response) = upgraded.map_err(|error| refusal(server, error))?;
    let found = response.headers().get(headers::CLOUD_ID).and_then(|id| id.to_str().ok()).unwrap_or_default();
    if !found.is_empty() && !endpoint.cloud_id.is_empty() && found != endpoint.cloud_id {
        let (found, joined) = (found.to_owned(), endpoint.cloud_id.clone());
        return Err(ConnectError::OtherCloud { server: server.clone(), found, joined });
    }
    let accepted = response.headers().get(headers::STREAMS).is_some_and(|v| v == headers::STREAMS_VERSION);
    let streams = (endpoint.streams && accepted).then(Streams::acceptor);
    Ok(Socket::new(ws, progress, streams, endpoint.write_timeout))
}

fn request(endpoint: &Endpoint) -> Result<tungstenite::handshake::client::Request, ConnectError> {
    let Endpoint { server, project_id, node, .. } = endpoint;
    let address = || ConnectError::Address(server.clone());
    let mut request =
        format!("wss://{server}/{project_id}/{node}/events").into_client_request().map_err(|_| address())?;
    for (name, value) in [
        (headers::NODE_ID, node.as_str()),
        (headers::PROJECT_ID, project_id.as_str()),
        ("ConnectionUse", "msg"),
        (headers::STORE_ID, endpoint.store_id.as_str()),
        (headers::STREAMS, if endpoint.streams { headers::STREAMS_VERSION } else { "" }),
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

fn refusal(server: &str, error: tungstenite::Error) -> ConnectError {
    let reason = match error {
        // What a TLS 1.3 server thinks of our certificate arrives with the first bytes we read.
        tungstenite::Error::Io(error) => {
            return ConnectError::Tls { server: server.into(), reason: error.to_string() };
        }
        tungstenite::Error::Http(response) => {
            let body = response.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
            let body: String = body.trim().chars().take(300).collect();
            if body.is_empty() { response.status().to_string() } else { body }
        }
        other => other.to_string(),
    };
    ConnectError::Refused { server: server.into(), reason }
}
