//! The link to the nodes: WebSocket over mutual TLS, port 10000, KubeEdge's JSON messages.
//!
//! Beside them the link carries byte streams to the node's kubelet API, when the node offers them.
//!
//! Not here: what requests mean (`upstream`), what belongs on a node (`cluster`). Start at [`Hub::serve`]; a link's life is
//! [`session::Session::run`].
//!
//! Invariants
//! - The node's name is the one in the client certificate; a `node_id` header that differs is refused.
//! - One session per node. A new connection takes over only after the old session has ended, so delivery records have one
//!   writer.

mod downlink;
pub mod session;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rt::{BoxFuture, BoxIo, Drain, TaskGroup};
use streams::{Counted, Socket, Streams};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::accept_hdr_async_with_config;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use wire::headers::{CLOUD_ID, NODE_ID, STORE_ID, STREAMS, STREAMS_VERSION};
use wire::limits::MESSAGE_BYTES_MAX;

use crate::accept::accept;
use crate::authority::{PeerError, node_of_certificate};
use crate::contract::{Carrier, Placements, Rank, Routes};
use crate::limits::{HUB_HANDSHAKE_TIME_MAX, HUB_HANDSHAKES_MAX};
use crate::records::{NodeRecord, RecordError, Records};
use crate::upstream::Upstream;
use session::{End, Session};

pub struct Hub {
    pub tls: TlsAcceptor,
    pub cloud_id: String,
    pub upstream: Upstream,
    pub placements: Placements,
    pub records: Records,
    pub keepalive: Duration,
    pub write_timeout: Duration,
    pub nodes_max: usize,
    pub sessions: Sessions,
    pub routes: Routes,
}

/// A link after its upgrade.
type Link = Socket<TlsStream<Counted<TcpStream>>>;

#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("no TLS or WebSocket handshake within {} s", HUB_HANDSHAKE_TIME_MAX.as_secs())]
    Timeout,
    #[error("TLS handshake failed")]
    Tls(#[source] std::io::Error),
    #[error("WebSocket handshake failed")]
    WebSocket(#[source] tokio_tungstenite::tungstenite::Error),
    #[error("its certificate does not name a node")]
    Certificate(#[source] PeerError),
    #[error("its records cannot be read")]
    Records(#[source] RecordError),
}

/// Who asks, from the certificate; what the upgrade request adds.
#[derive(Default)]
struct Upgrade {
    store_id: String,
    streams: bool,
    refused: Option<String>,
}

impl Hub {
    /// Accepts nodes until the drain; returns when all links have ended.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, drain: Drain) {
        let group = TaskGroup::new("hub link", self.nodes_max + HUB_HANDSHAKES_MAX, drain.clone());
        let handshakes = Arc::new(Semaphore::new(HUB_HANDSHAKES_MAX));
        loop {
            let permit = drain.or(handshakes.clone().acquire_owned()).await;
            let Some(permit) = permit.map(|permit| permit.expect("the semaphore is never closed")) else {
                break;
            };
            let Some((stream, address)) = accept(&listener, &drain, "the hub").await else { break };
            // Streams: small frames must not wait for the acknowledgement of those before.
            let _ = stream.set_nodelay(true);
            let (hub, link_drain) = (self.clone(), drain.clone());
            let link = async move {
                hub.link(stream, address, permit, link_drain).await;
                Ok::<(), std::convert::Infallible>(())
            };
            if let Err(error) = group.spawn(link) {
                tracing::warn!("connection of {address} refused: {error}");
            }
        }
        group.wait(Duration::from_secs(5)).await;
    }

    async fn link(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        handshake: tokio::sync::OwnedSemaphorePermit,
        drain: Drain,
    ) {
        let opened = tokio::time::timeout(HUB_HANDSHAKE_TIME_MAX, self.open(stream));
        let (node, record, socket) = match opened.await.unwrap_or(Err(Refusal::Timeout)) {
            Ok(Some(opened)) => opened,
            Ok(None) => return,
            Err(refusal) => {
                tracing::info!("connection of {address} refused: {}", rt::error_chain(&refusal));
                return;
            }
        };
        drop(handshake);
        let stop = drain.child();
        let Some(place) = self.sessions.take_over(&node, stop.clone()).await else { return };
        let Some(desired) = self.placements.subscribe(&node).await else { return };
        let streams = socket.streams().cloned();
        let way = streams.map(|streams| self.routes.add(&node, Rank::Link, Arc::new(streams)));
        tracing::info!("node {node} connected from {address}");
        let session = Session {
            node: node.clone(),
            generation: record.generation,
            socket,
            upstream: self.upstream.clone(),
            records: self.records.clone(),
            desired,
            keepalive: self.keepalive,
            stop: stop.clone(),
            drain,
        };
        let run = session.run();
        tokio::pin!(run);
        let end = tokio::select! {
            end = &mut run => end,
            () = self.records.superseded(&node, &record) => {
                stop.start();
                run.await
            }
        };
        drop((way, place));
        match end {
            End::Records(_) => tracing::error!("link of node {node} ended: {}", rt::error_chain(&end)),
            end => tracing::info!("link of node {node} ended: {}", rt::error_chain(&end)),
        }
    }

    /// `None`: refused with an HTTP answer that says why.
    #[expect(clippy::result_large_err, reason = "the signature of the check is tungstenite's")]
    async fn open(&self, stream: TcpStream) -> Result<Option<(String, NodeRecord, Link)>, Refusal> {
        // A failure costs latency only.
        drop(streams::tune(&stream));
        let (stream, progress) = Counted::new(stream);
        let tls = self.tls.accept(stream).await.map_err(Refusal::Tls)?;
        let certificates = tls.get_ref().1.peer_certificates().unwrap_or_default();
        let certificate = certificates.first().ok_or(Refusal::Certificate(PeerError::None))?;
        let peer = node_of_certificate(certificate).map_err(Refusal::Certificate)?;
        let record = self.records.node(&peer.node).await.map_err(Refusal::Records)?;
        let mut upgrade = Upgrade::default();
        let check = |request: &Request, response: Response| {
            self.check(request, response, &peer.node, &peer.fingerprint, &record, &mut upgrade)
        };
        let limits = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX))
            .read_buffer_size(8 * 1024)
            .write_buffer_size(8 * 1024);
        let ws = accept_hdr_async_with_config(tls, check, Some(limits)).await;
        if let Some(reason) = upgrade.refused {
            tracing::warn!("connection of node {} refused: {reason}", peer.node);
            return Ok(None);
        }
        let ws = ws.map_err(Refusal::WebSocket)?;
        let session = self.records.new_session();
        let record = self.records.update(&peer.node, |record| {
            if record.connect_store(&upgrade.store_id) {
                tracing::info!("node {} has a new store: everything is sent to it again", peer.node);
            }
            record.session.clone_from(&session);
            record.clone()
        });
        let record = record.await;
        let streams = upgrade.streams.then(Streams::opener);
        let socket = Socket::new(ws, progress, streams, self.write_timeout);
        Ok(Some((peer.node, record.map_err(Refusal::Records)?, socket)))
    }

    #[expect(clippy::result_large_err, reason = "the signature is tungstenite's")]
    fn check(
        &self,
        request: &Request,
        mut response: Response,
        node: &str,
        fingerprint: &str,
        record: &NodeRecord,
        upgrade: &mut Upgrade,
    ) -> Result<Response, ErrorResponse> {
        let header = |name: &str| {
            request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
        };
        let reason = if header(NODE_ID) != node {
            Some((
                403,
                format!(
                    "node_id is {:?}, but the certificate is of node {node:?}; join again under the name you want",
                    header(NODE_ID)
                ),
            ))
        } else if !record.accepts(fingerprint) {
            Some((
                403,
                format!(
                    "the certificate of node {node} was replaced or revoked; join again with a new token (`cloudcore token`)"
                ),
            ))
        } else if !self.sessions.has_room(node, self.nodes_max) {
            Some((
                503,
                format!("{} nodes are connected, the limit (cloudHub.nodeLimit) is reached", self.nodes_max),
            ))
        } else {
            None
        };
        if let Some((status, reason)) = reason {
            let mut refusal = ErrorResponse::new(Some(format!("{reason}\n")));
            *refusal.status_mut() = http::StatusCode::from_u16(status).expect("a constant");
            upgrade.refused = Some(reason);
            return Err(refusal);
        }
        upgrade.store_id = header(STORE_ID).chars().take(64).collect();
        response.headers_mut().insert(CLOUD_ID, self.cloud_id.parse().expect("an identity is header text"));
        if header(STREAMS) == STREAMS_VERSION {
            upgrade.streams = true;
            response.headers_mut().insert(STREAMS, http::HeaderValue::from_static(STREAMS_VERSION));
        }
        Ok(response)
    }
}

impl Carrier for Streams {
    fn open(&self) -> BoxFuture<'_, Result<BoxIo, String>> {
        Box::pin(async move {
            match Streams::open(self).await {
                Ok(stream) => Ok(Box::new(stream) as BoxIo),
                Err(error) => Err(error.to_string()),
            }
        })
    }
}

/// Which nodes are connected.
#[derive(Clone, Default)]
pub struct Sessions(Arc<Mutex<HashMap<String, Slot>>>);

struct Slot {
    /// Stops the session that has the place or waits for it.
    stop: Drain,
    /// One permit: the right to be the node's session.
    place: Arc<Semaphore>,
    claims: usize,
}

impl Sessions {
    /// Ends the node's session, if there is one, and waits until it has. `None`: stopped while waiting.
    async fn take_over(&self, node: &str, stop: Drain) -> Option<Place> {
        let semaphore = {
            let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let slot = slots.entry(node.to_owned()).or_insert_with(|| Slot {
                stop: stop.clone(),
                place: Arc::new(Semaphore::new(1)),
                claims: 0,
            });
            if slot.claims > 0 {
                slot.stop.start();
            }
            slot.stop = stop.clone();
            slot.claims += 1;
            slot.place.clone()
        };
        let claim = Claim { sessions: self.clone(), node: node.to_owned() };
        let permit = stop.or(semaphore.acquire_owned()).await?.expect("the semaphore is never closed");
        Some(Place { _permit: permit, _claim: claim })
    }

    fn has_room(&self, node: &str, nodes_max: usize) -> bool {
        let slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slots.contains_key(node) || slots.len() < nodes_max
    }
}

/// The right to be the node's session; goes back when dropped. The permit goes first, so that the next one may start.
struct Place {
    _permit: tokio::sync::OwnedSemaphorePermit,
    _claim: Claim,
}

struct Claim {
    sessions: Sessions,
    node: String,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut slots = self.sessions.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get_mut(&self.node) {
            slot.claims -= 1;
            if slot.claims == 0 {
                slots.remove(&self.node);
            }
        }
    }
}
