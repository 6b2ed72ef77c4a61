//! KubeEdge's CloudStream: the tunnel port, which stock nodes dial for logs, exec, attach and metrics, and the stream port, where
//! an API server's kubelet client finds every node.
//!
//! Source: reference kubeedge-wire.md section 8.4; KubeEdge v1.23.1, `cloud/pkg/cloudstream`. A Kinglet node needs neither: its
//! link carries streams. There are no iptables rules, and the Node's kubelet port is left alone.
//!
//! Invariants: the node's name is the one in the client certificate, on every connect; the newest tunnel of a node counts; a
//! connection ends with its tunnel. The stream port is open only to clients of its own CA, never to nodes' certificates.
//!
//! Start at [`TunnelServer::serve`] and [`StreamServer::serve`].

mod session;
mod stream_server;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rt::{BoxFuture, BoxIo, Drain, TaskGroup};
use streams::limits::TUNNEL_PIPE_LEN;
use streams::{Counted, Relabelled, Socket, Tunnel};
use tokio::io::DuplexStream;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, accept_hdr_async_with_config};
use wire::limits::TUNNEL_DATA_LEN_MAX;
use wire::tunnel::{HEADER_NODE, PATH};

pub use stream_server::{StreamServer, StreamServerError, stream_tls};

use crate::accept::accept;
use crate::authority::{Peer, PeerError, TlsPort, node_of_certificate};
use crate::contract::{Carrier, Rank, Routes};
use crate::join::now_s;
use crate::limits::{HUB_HANDSHAKE_TIME_MAX, HUB_HANDSHAKES_MAX, TUNNEL_DIALS_MAX};
use crate::records::{RecordError, Records};
use crate::refusals::RefusalLog;
use crate::revoke::Revocations;

/// Before the data stand two numbers of at most ten bytes.
const MESSAGE_LEN_MAX: usize = TUNNEL_DATA_LEN_MAX + 20;

pub struct TunnelServer {
    pub tls: TlsPort,
    pub revocations: Revocations,
    pub refusals: RefusalLog,
    pub records: Records,
    pub routes: Routes,
    pub write_timeout: Duration,
    pub nodes_max: usize,
    pub open: OpenTunnels,
}

/// Stops the older tunnel of a node.
#[derive(Default)]
pub struct OpenTunnels(Mutex<HashMap<String, Drain>>);

#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("no TLS or WebSocket handshake within {} s", HUB_HANDSHAKE_TIME_MAX.as_secs())]
    Timeout,
    #[error("TLS handshake failed")]
    Tls(#[source] std::io::Error),
    #[error("WebSocket handshake failed")]
    WebSocket(#[source] Box<tokio_tungstenite::tungstenite::Error>),
    #[error("its certificate does not name a node")]
    Certificate(#[source] PeerError),
    #[error("its records cannot be read")]
    Records(#[source] RecordError),
}

type NodeTunnel = Tunnel<WebSocketStream<Relabelled<TlsStream<Counted<TcpStream>>>>>;

impl TunnelServer {
    /// Accepts nodes until the drain; returns when all tunnels have ended.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, drain: Drain) {
        let group = TaskGroup::new("tunnel", self.nodes_max + HUB_HANDSHAKES_MAX, drain.clone());
        let handshakes = Arc::new(Semaphore::new(HUB_HANDSHAKES_MAX));
        loop {
            let permit = drain.or(handshakes.clone().acquire_owned()).await;
            let Some(permit) = permit.map(|permit| permit.expect("the semaphore is never closed")) else {
                break;
            };
            let Some((stream, address)) = accept(&listener, &drain, "the tunnel port").await else { break };
            let (server, drain) = (self.clone(), drain.clone());
            let tunnel = async move {
                let opened = tokio::time::timeout(HUB_HANDSHAKE_TIME_MAX, server.open(stream)).await;
                drop(permit);
                match opened.unwrap_or(Err(Refusal::Timeout)) {
                    Ok(Some((peer, tunnel))) => server.run(peer, tunnel, address, drain).await,
                    Ok(None) => {}
                    Err(refusal) => {
                        let line = format!("tunnel of {address} refused: {}", rt::error_chain(&refusal));
                        server.refusals.tell(&address.ip().to_string(), &line);
                    }
                }
                Ok::<(), std::convert::Infallible>(())
            };
            if let Err(error) = group.spawn(tunnel) {
                tracing::warn!("tunnel of {address} refused: {error}");
            }
        }
        group.wait(Duration::from_secs(5)).await;
    }

    async fn run(&self, peer: Peer, tunnel: NodeTunnel, address: SocketAddr, drain: Drain) {
        let node = peer.node.clone();
        let stop = drain.child();
        let older = self.open.lock().insert(node.clone(), stop.clone());
        older.inspect(Drain::start);
        let (dials, dialled) = mpsc::channel(TUNNEL_DIALS_MAX);
        let route = self.routes.add(&node, Rank::Tunnel, Arc::new(Dials(dials)));
        tracing::info!("node {node} opened a tunnel from {address}");
        let why = tokio::select! {
            why = session::run(tunnel, dialled, &stop) => why.to_string(),
            refusal = self.revocations.refused(&peer) => refusal.to_string(),
        };
        drop(route);
        if !stop.is_draining() {
            self.open.lock().remove(&node);
        }
        tracing::info!("tunnel of node {node} ended: {why}");
    }

    /// `None`: refused with an HTTP answer that says why.
    #[expect(clippy::result_large_err, reason = "the signature of the check is tungstenite's")]
    async fn open(&self, stream: TcpStream) -> Result<Option<(Peer, NodeTunnel)>, Refusal> {
        // A failure costs latency only.
        drop(streams::tune(&stream));
        let (stream, progress) = Counted::new(stream);
        let tls = self.tls.accept(stream).await.map_err(Refusal::Tls)?;
        let certificates = tls.get_ref().1.peer_certificates().unwrap_or_default();
        let certificate = certificates.first().ok_or(Refusal::Certificate(PeerError::None))?;
        let peer = node_of_certificate(certificate).and_then(|peer| peer.current(now_s()));
        let peer = peer.map_err(Refusal::Certificate)?;
        let record = self.records.node(&peer.node).await.map_err(Refusal::Records)?;
        let mut refused = None;
        let check = |request: &Request, response: Response| {
            let name = request.headers().get(HEADER_NODE).and_then(|name| name.to_str().ok());
            let reason = if request.uri().path() != PATH {
                (404, format!("there is nothing at {}; a tunnel is at {PATH}", request.uri().path()))
            } else if name != Some(&peer.node) {
                let name = name.unwrap_or_default();
                (403, format!("{HEADER_NODE} is {name:?}, but the certificate is of node {:?}", peer.node))
            } else if let Err(refusal) = self.revocations.check(&peer) {
                (refusal.status(), refusal.to_string())
            } else if !record.accepts(&peer.fingerprint) {
                (403, format!("the certificate of node {} was replaced or revoked; join again", peer.node))
            } else {
                return Ok(response);
            };
            let mut refusal = ErrorResponse::new(Some(format!("{}\n", reason.1)));
            *refusal.status_mut() = http::StatusCode::from_u16(reason.0).expect("a constant");
            refused = Some(reason.1);
            Err(refusal)
        };
        let limits = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_LEN_MAX))
            .max_frame_size(Some(MESSAGE_LEN_MAX))
            .read_buffer_size(8 * 1024)
            .write_buffer_size(8 * 1024);
        let ws = accept_hdr_async_with_config(Relabelled::new(tls), check, Some(limits)).await;
        if let Some(reason) = refused {
            self.refusals.tell(&peer.node, &format!("tunnel of node {} refused: {reason}", peer.node));
            return Ok(None);
        }
        let ws = ws.map_err(|error| Refusal::WebSocket(Box::new(error)))?;
        Ok(Some((peer, Tunnel::new(Socket::new(ws, progress, None, self.write_timeout)))))
    }
}

impl OpenTunnels {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Drain>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands pipes to a tunnel's task.
struct Dials(mpsc::Sender<DuplexStream>);

impl Carrier for Dials {
    fn open(&self) -> BoxFuture<'_, Result<BoxIo, String>> {
        Box::pin(async move {
            let (ours, theirs) = tokio::io::duplex(TUNNEL_PIPE_LEN);
            match self.0.try_send(theirs) {
                Ok(()) => Ok(Box::new(ours) as BoxIo),
                Err(_) => Err("its tunnel takes no further connection at the moment".to_owned()),
            }
        })
    }
}
