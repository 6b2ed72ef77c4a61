//! One dial: TCP, TLS with the node's certificate, WebSocket.

use std::sync::Arc;

use streams::{Counted, Relabelled, Socket, Tunnel};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        self,
        client::IntoClientRequest,
        http::{HeaderName, HeaderValue},
        protocol::WebSocketConfig,
    },
};
use wire::{
    limits::TUNNEL_DATA_LEN_MAX,
    tunnel::{HEADER_IP, HEADER_NODE, PATH},
};

use super::Settings;
use crate::{
    credentials::{CredentialsError, client_config, server_name},
    tls_fault,
};

const BUFFER_LEN: usize = 4096;
/// Before the data stand two numbers of at most ten bytes.
const MESSAGE_LEN_MAX: usize = TUNNEL_DATA_LEN_MAX + 20;

#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error(
        "it cannot be reached; check modules.edgeStream.server and that cloudStream is enabled in the cloud"
    )]
    Unreachable(#[source] std::io::Error),
    #[error("the node's certificate cannot be read")]
    Credentials(#[source] CredentialsError),
    #[error("TLS cannot be set up with the node's certificate")]
    Certificate(#[source] pki::PkiError),
    #[error("modules.edgeStream.server is not host:port")]
    Address,
    #[error("TLS failed: {}", tls_fault::explain(.0))]
    Tls(std::io::Error),
    #[error("the cloud refused the tunnel")]
    WebSocket(#[source] Box<tungstenite::Error>),
    #[error("no answer in time")]
    Timeout,
}

type Stream = WebSocketStream<Relabelled<TlsStream<Counted<TcpStream>>>>;

pub(super) async fn dial(settings: &Settings) -> Result<Tunnel<Stream>, DialError> {
    let opened = tokio::time::timeout(settings.handshake_timeout, open(settings));
    opened.await.unwrap_or(Err(DialError::Timeout))
}

async fn open(settings: &Settings) -> Result<Tunnel<Stream>, DialError> {
    let Settings { server, node, .. } = settings;
    let bundle = settings.credentials.load().map_err(DialError::Credentials)?;
    let config = client_config(&bundle).map_err(DialError::Certificate)?;
    let name = server_name(server).ok_or(DialError::Address)?;
    let tcp = TcpStream::connect(server.as_str()).await.map_err(DialError::Unreachable)?;
    streams::tune(&tcp).map_err(DialError::Unreachable)?;
    let address = tcp.local_addr().map_err(DialError::Unreachable)?.ip().to_string();
    let (tcp, progress) = Counted::new(tcp);
    let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(DialError::Tls)?;

    let mut request =
        format!("wss://{server}{PATH}").into_client_request().map_err(|_| DialError::Address)?;
    for (name, value) in [(HEADER_NODE, node), (HEADER_IP, &address)] {
        let name: HeaderName = name.parse().map_err(|_| DialError::Address)?;
        let value = HeaderValue::from_str(value).map_err(|_| DialError::Address)?;
        request.headers_mut().insert(name, value);
    }
    let limits = WebSocketConfig::default()
        .read_buffer_size(BUFFER_LEN)
        .write_buffer_size(BUFFER_LEN)
        .max_message_size(Some(MESSAGE_LEN_MAX))
        .max_frame_size(Some(MESSAGE_LEN_MAX));
    let upgraded = client_async_with_config(request, Relabelled::new(tls), Some(limits)).await;
    let (ws, _) = upgraded.map_err(|error| DialError::WebSocket(Box::new(error)))?;
    Ok(Tunnel::new(Socket::new(ws, progress, None, settings.write_timeout)))
}
