//! The link to the nodes: WebSocket over mutual TLS, port 10000, KubeEdge's JSON messages, or the compact lane with our own edge.
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
mod lean;
mod pack;
pub mod session;
mod sessions;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rt::{BoxFuture, BoxIo, Drain, TaskGroup};
use streams::{Counted, Socket, Streams};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_tungstenite::accept_hdr_async_with_config;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use wire::headers::{
    CLOUD_ID, LANE, LANE_VERSION, LINK, NODE_ID, RESUME, STORE_ID, STREAMS, STREAMS_VERSION, parse_link,
    parse_resume,
};
use wire::lane::{End as LaneEnd, Lane};
use wire::limits::MESSAGE_BYTES_MAX;

use crate::accept::accept;
use crate::authority::{Peer, PeerError, TlsPort, node_of_certificate};
use crate::contract::{Carrier, Placements, Rank, Route, Routes};
use crate::join::now_s;
use crate::limits::{
    HUB_BUFFER_LEN, HUB_FULL_RETRY_AFTER_S, HUB_HANDSHAKE_TIME_MAX, HUB_HANDSHAKES_MAX, HUB_RETRY_AFTER_S,
    HUB_STARTS_MAX,
};
use crate::records::{NodeRecord, RecordError, Records};
use crate::refusals::RefusalLog;
use crate::revoke::Revocations;
use crate::upstream::Upstream;
pub use lean::fuzz_link_frames;
use lean::{Frames, Tls};
use pack::Packer;
use session::{End, Session};
pub use sessions::Sessions;
use sessions::{Origin, Place};

pub struct Hub {
    pub tls: TlsPort,
    pub revocations: Revocations,
    pub refusals: RefusalLog,
    pub cloud_id: String,
    pub upstream: Upstream,
    pub placements: Placements,
    pub records: Records,
    pub keepalive: Duration,
    pub write_timeout: Duration,
    pub nodes_max: usize,
    pub sessions: Sessions,
    pub routes: Routes,
    pub packer: Arc<Packer>,
    /// One permit for each session that starts.
    pub starts: Arc<Semaphore>,
}

/// The room for sessions that start.
pub fn starts() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(HUB_STARTS_MAX))
}

/// What carries a link after its upgrade.
type Carried = Frames<Tls<Counted<TcpStream>>>;

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
    /// The compact lane was agreed on.
    compact: bool,
    origin: Origin,
    /// The node's last link, and what it stored from it.
    resume: Option<(u64, Vec<u32>)>,
    refused: Option<String>,
    start: Option<tokio::sync::OwnedSemaphorePermit>,
}

/// A connection that was accepted.
struct Opened {
    peer: Peer,
    record: NodeRecord,
    socket: Socket<Carried>,
    upgrade: Upgrade,
}

/// A connection whose session can run. In a box: what a link is while it is idle is counted in bytes.
struct Begun {
    peer: Peer,
    record: NodeRecord,
    /// Until it runs.
    session: Option<Box<Session<Carried>>>,
    /// What others see of it, until it ends.
    #[expect(dead_code, reason = "held, not read")]
    hold: (Option<Route>, Place),
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
            // In a box: what a task is made of is moved through several futures, and each would keep room for it.
            if let Err(error) = group.spawn(Box::pin(link)) {
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
        // Each part in a box of its own: a link that is up keeps no room for what opening it took.
        let opened = tokio::time::timeout(HUB_HANDSHAKE_TIME_MAX, Box::pin(self.open(stream)));
        let opened = match opened.await.unwrap_or(Err(Refusal::Timeout)) {
            Ok(Some(opened)) => opened,
            Ok(None) => return,
            Err(refusal) => {
                let line = format!("connection of {address} refused: {}", rt::error_chain(&refusal));
                self.refusals.tell(&address.ip().to_string(), &line);
                return;
            }
        };
        drop(handshake);
        let begun = Box::pin(self.begin(opened, address, drain)).await;
        if let Some(begun) = begun {
            Box::pin(self.keep(begun)).await;
        }
    }

    /// Waits for the node's place and for what belongs on it. `None`: cloudcore stops.
    async fn begin(&self, opened: Box<Opened>, address: SocketAddr, drain: Drain) -> Option<Box<Begun>> {
        let Opened { peer, record, socket, mut upgrade } = *opened;
        let node = peer.node.clone();
        let stop = drain.child();
        let origin = std::mem::take(&mut upgrade.origin);
        let link = origin.link;
        let place = self.sessions.take_over(&node, origin, stop.clone()).await?;
        let desired = self.placements.subscribe(&node).await?;
        let streams = socket.streams().cloned();
        let way = streams.map(|streams| self.routes.add(&node, Rank::Link, Arc::new(streams)));
        let lane = if upgrade.compact {
            let compress = Some(self.packer.clone() as Arc<dyn wire::lane::Compress>);
            Lane::compact(link, LaneEnd::Cloud { node: node.clone(), compress })
        } else {
            Lane::json()
        };
        let generation = record.generation;
        let parked = self.sessions.unpark(&node).filter(|parked| {
            let is_last = upgrade.resume.as_ref().is_some_and(|(last, _)| *last == parked.link);
            lane.is_compact() && is_last && parked.generation == generation
        });
        let lane_name = if lane.is_compact() { "compact lane" } else { "JSON" };
        let resumed = if parked.is_some() { ", resumed" } else { "" };
        tracing::info!("node {node} connected from {address} ({lane_name}{resumed})");
        let session = Box::new(Session {
            node,
            generation,
            socket,
            lane,
            link,
            resume: parked.map(|parked| (parked, upgrade.resume.map(|(_, seqs)| seqs).unwrap_or_default())),
            start: upgrade.start.take(),
            sessions: self.sessions.clone(),
            nodes_max: self.nodes_max,
            upstream: self.upstream.clone(),
            records: self.records.clone(),
            desired,
            keepalive: self.keepalive,
            stop,
            drain,
        });
        Some(Box::new(Begun { peer, record, session: Some(session), hold: (way, place) }))
    }

    /// Runs the session until it ends or must.
    async fn keep(&self, mut begun: Box<Begun>) {
        let Some(session) = begun.session.take() else { return };
        let stop = session.stop.clone();
        let mut run = Box::pin(session.run());
        let Begun { peer, record, .. } = &*begun;
        let end = tokio::select! {
            end = &mut run => end,
            () = self.records.superseded(&peer.node, record) => {
                stop.start();
                run.await
            }
            () = self.upstream.place_kubelet(&peer.node) => unreachable!("it never resolves"),
            refusal = self.revocations.refused(peer) => {
                return tracing::warn!("link of node {} ended: {refusal}", peer.node);
            }
        };
        let node = peer.node.clone();
        drop(begun);
        match end {
            End::Records(_) => tracing::error!("link of node {} ended: {}", node, rt::error_chain(&end)),
            end => tracing::info!("link of node {} ended: {}", node, rt::error_chain(&end)),
        }
    }

    /// `None`: refused with an HTTP answer that says why.
    #[expect(clippy::result_large_err, reason = "the signature of the check is tungstenite's")]
    async fn open(&self, stream: TcpStream) -> Result<Option<Box<Opened>>, Refusal> {
        // A failure costs latency only.
        drop(streams::tune(&stream));
        let (stream, progress) = Counted::new(stream);
        let tls = Tls::accept(self.tls.config(), stream).await.map_err(Refusal::Tls)?;
        let certificate = tls.peer_certificates().first().ok_or(Refusal::Certificate(PeerError::None))?;
        let peer = node_of_certificate(certificate).and_then(|peer| peer.current(now_s()));
        let peer = peer.map_err(Refusal::Certificate)?;
        let record = self.records.node(&peer.node).await.map_err(Refusal::Records)?;
        let mut upgrade = Upgrade::default();
        let check = |request: &Request, response: Response| {
            self.check(request, response, &peer, &record, &mut upgrade)
        };
        let limits = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX))
            .read_buffer_size(HUB_BUFFER_LEN)
            .write_buffer_size(HUB_BUFFER_LEN);
        let ws = accept_hdr_async_with_config(tls, check, Some(limits)).await;
        if let Some(reason) = upgrade.refused {
            self.refusals.tell(&peer.node, &format!("connection of node {} refused: {reason}", peer.node));
            return Ok(None);
        }
        let ws = ws.map_err(Refusal::WebSocket)?;
        let session = self.records.new_session();
        let record = self.records.update(&peer.node, |record| {
            record.has_key(&peer.key);
            if record.connect_store(&upgrade.store_id) {
                tracing::info!("node {} has a new store: everything is sent to it again", peer.node);
            }
            record.session.clone_from(&session);
            record.clone()
        });
        let record = record.await;
        let streams = upgrade.streams.then(Streams::opener);
        let ws = Frames::new(ws.into_inner(), limits);
        let socket = Socket::new(ws, progress, streams, self.write_timeout).with_lane(upgrade.compact);
        let record = record.map_err(Refusal::Records)?;
        Ok(Some(Box::new(Opened { peer, record, socket, upgrade })))
    }

    #[expect(clippy::result_large_err, reason = "the signature is tungstenite's")]
    fn check(
        &self,
        request: &Request,
        mut response: Response,
        peer: &Peer,
        record: &NodeRecord,
        upgrade: &mut Upgrade,
    ) -> Result<Response, ErrorResponse> {
        let node = peer.node.as_str();
        let header = |name: &str| {
            request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
        };
        let store_id: String = header(STORE_ID).chars().take(64).collect();
        let link = (header(LANE) == LANE_VERSION).then(|| parse_link(header(LINK))).flatten();
        let (link, before) = link.unwrap_or_default();
        let origin = Origin { store_id: store_id.clone(), link, before };
        let mut retry_after_s = None;
        let reason = if header(NODE_ID) != node {
            Some((
                403,
                format!(
                    "node_id is {:?}, but the certificate is of node {node:?}; join again under the name you want",
                    header(NODE_ID)
                ),
            ))
        } else if let Err(refusal) = self.revocations.check(peer) {
            Some((refusal.status(), refusal.to_string()))
        } else if !record.accepts(&peer.fingerprint) {
            Some((
                403,
                format!(
                    "the certificate of node {node} was replaced or revoked; join again with a new token (`cloudcore token`)"
                ),
            ))
        } else if let Some(why) = self.sessions.rival(node, &origin) {
            retry_after_s = Some(HUB_FULL_RETRY_AFTER_S);
            Some((409, why))
        } else if !self.sessions.has_room(node, self.nodes_max) {
            retry_after_s = Some(HUB_FULL_RETRY_AFTER_S);
            Some((
                503,
                format!("{} nodes are connected, the limit (cloudHub.nodeLimit) is reached", self.nodes_max),
            ))
        } else {
            upgrade.start = self.starts.clone().try_acquire_owned().ok();
            upgrade.start.is_none().then(|| {
                retry_after_s = Some(HUB_RETRY_AFTER_S);
                (503, format!("{HUB_STARTS_MAX} other nodes are just connecting"))
            })
        };
        if let Some((status, reason)) = reason {
            let mut refusal = ErrorResponse::new(Some(format!("{reason}\n")));
            *refusal.status_mut() = http::StatusCode::from_u16(status).expect("a constant");
            if let Some(seconds) = retry_after_s {
                refusal.headers_mut().insert(http::header::RETRY_AFTER, seconds.into());
            }
            upgrade.refused = Some(reason);
            return Err(refusal);
        }
        upgrade.store_id = store_id;
        // A link without a number cannot be told from another one.
        if origin.link != 0 {
            upgrade.compact = true;
            upgrade.resume = parse_resume(header(RESUME));
            response.headers_mut().insert(LANE, http::HeaderValue::from_static(LANE_VERSION));
        }
        upgrade.origin = origin;
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
