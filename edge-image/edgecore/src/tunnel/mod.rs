//! KubeEdge's EdgeStream: a second connection to the cloud for logs, exec, attach and metrics, for a cloud whose link carries no
//! streams.
//!
//! Source: reference kubeedge-wire.md section 8.4; KubeEdge v1.23.1, `edge/pkg/edgestream`. The protocol is `wire::tunnel`, its
//! driver `streams::Tunnel`; here are the dial, and who answers. A stock node asks its own kubelet's port; here the kubelet API is
//! asked directly.
//!
//! Invariants: dialled only while the link is up without streams and the Node is there; a connection ends with the tunnel. Unlike a stock node, this one
//! checks whose certificate the cloud has.
//!
//! Start at [`run`].

mod dial;
#[cfg(test)]
mod tests;

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use rt::{Drain, TaskGroup};
use streams::{
    Outgoing, Tunnel, TunnelEnded, TunnelEvent, WebSocket,
    limits::{TUNNEL_CONNECTIONS_MAX, TUNNEL_PING_TIME, TUNNEL_PIPE_LEN},
};
use tokio::{sync::watch, time::Instant};
use wire::tunnel::{Connect, kind};

pub use dial::DialError;

use crate::{
    config::Config,
    contract::KubeletApi,
    credentials::Credentials,
    limits::{LINK_CLOSE_TIME_MAX, TUNNEL_FIRST_SIGN_TIME, TUNNEL_REDIAL_TIME, TUNNEL_REDIAL_TIME_MAX},
};

#[derive(Clone, Debug)]
pub struct Settings {
    /// `host:port`.
    pub server: String,
    pub node: String,
    pub credentials: Credentials,
    pub handshake_timeout: Duration,
    pub write_timeout: Duration,
    /// A tunnel on which nothing came for so long is dialled anew.
    pub silence_max: Duration,
}

impl Settings {
    /// `None`: switched off.
    pub fn new(cfg: &Config) -> Option<Settings> {
        let stream = &cfg.modules.edge_stream;
        let seconds = |seconds: u32| Duration::from_secs(u64::from(seconds.max(1)));
        stream.enable.then(|| Settings {
            server: stream.server.clone(),
            node: cfg.node_name(),
            credentials: Credentials::new(&cfg.modules.edge_hub),
            handshake_timeout: seconds(stream.handshake_timeout),
            write_timeout: seconds(stream.write_deadline),
            // The cloud answers every ping.
            silence_max: seconds(stream.read_deadline).max(3 * TUNNEL_PING_TIME),
        })
    }
}

/// As [`run`], and opens the tunnel anew when the node gets another certificate.
pub async fn run_with_certificates(
    settings: Settings,
    kubelet: Arc<dyn KubeletApi>,
    carries_streams: watch::Receiver<Option<bool>>,
    registered: watch::Receiver<bool>,
    mut certificates: watch::Receiver<u64>,
    drain: Drain,
) {
    loop {
        let round = drain.child();
        let (carries, registered) = (carries_streams.clone(), registered.clone());
        let tunnel = run(settings.clone(), kubelet.clone(), carries, registered, round.clone());
        tokio::pin!(tunnel);
        tokio::select! {
            () = &mut tunnel => return,
            Ok(()) = certificates.changed() => round.start(),
        }
        tunnel.await;
    }
}

/// Keeps a tunnel open while the link is up and carries no streams (`carries_streams`). Runs until the drain.
pub async fn run(
    settings: Settings,
    kubelet: Arc<dyn KubeletApi>,
    mut carries_streams: watch::Receiver<Option<bool>>,
    mut registered: watch::Receiver<bool>,
    drain: Drain,
) {
    let mut last = String::new();
    let mut backoff = rt::Backoff::new(TUNNEL_REDIAL_TIME, TUNNEL_REDIAL_TIME_MAX);
    loop {
        let wanted = carries_streams.wait_for(|carries| *carries == Some(false));
        let Some(Ok(_)) = drain.or(wanted).await else { return };
        // A cloud writes the tunnel's port into the Node before it serves the tunnel, and tries again only every 20 s.
        let Some(Ok(_)) = drain.or(registered.wait_for(|registered| *registered)).await else { return };
        let Some(dialled) = drain.or(dial::dial(&settings)).await else { return };
        let why = match dialled {
            Ok(tunnel) => {
                tracing::info!(target: "tunnel", "the tunnel to {} is open", settings.server);
                last.clear();
                backoff.reset();
                let session = Session {
                    tunnel,
                    kubelet: kubelet.clone(),
                    serving: TaskGroup::new("tunnel connection", TUNNEL_CONNECTIONS_MAX, drain.clone()),
                };
                session.run(&mut carries_streams, settings.silence_max, &drain).await
            }
            Err(error) => Some(rt::error_chain(&error)),
        };
        let Some(why) = why else { continue };
        if why != last {
            tracing::warn!(target: "tunnel", "no tunnel to {}: {why}", settings.server);
            last = why;
        }
        if !drain.sleep(backoff.random_delay()).await {
            return;
        }
    }
}

/// One tunnel while it is open.
pub(crate) struct Session<W> {
    pub tunnel: Tunnel<W>,
    pub kubelet: Arc<dyn KubeletApi>,
    pub serving: TaskGroup,
}

impl<W: WebSocket> Session<W> {
    /// Runs to the tunnel's end; why it broke, or `None` when it is not needed any more.
    pub async fn run(
        mut self,
        carries_streams: &mut watch::Receiver<Option<bool>>,
        silence_max: Duration,
        drain: &Drain,
    ) -> Option<String> {
        // Before it serves a tunnel a stock cloud may try for two minutes to write the Node (`updateNodeKubeletEndpoint`). A second
        // dial meanwhile would take the first one's place, and lose it when the first one is found closed.
        let (usual, mut silence_max) = (silence_max, silence_max.max(TUNNEL_FIRST_SIGN_TIME));
        let mut heard = Instant::now();
        let mut beat_at = heard;
        loop {
            tokio::select! {
                () = drain.wait() => break,
                Ok(_) = carries_streams.wait_for(|carries| *carries == Some(true)) => break,
                event = self.tunnel.next() => {
                    (heard, silence_max) = (Instant::now(), usual);
                    match event {
                        Ok(TunnelEvent::Connect { id, kind, data }) => self.connect(id, kind, &data),
                        Ok(TunnelEvent::Request { .. } | TunnelEvent::Heard) => {}
                        Err(TunnelEnded::Refused(why)) => return Some(format!("the cloud closed it: {why}")),
                        Err(error) => return Some(rt::error_chain(&error)),
                    }
                }
                () = tokio::time::sleep_until(beat_at) => {
                    if heard.elapsed() > silence_max {
                        return Some(format!("the cloud was silent for {} s", heard.elapsed().as_secs()));
                    }
                    self.tunnel.ping();
                    self.tunnel.expire_blocked();
                    beat_at = Instant::now() + TUNNEL_PING_TIME;
                }
            }
        }
        self.tunnel.close("the node ended the tunnel", LINK_CLOSE_TIME_MAX).await;
        None
    }

    /// A request of the cloud to the kubelet API. What cannot be served is over at once.
    fn connect(&mut self, id: u64, kind: u64, data: &Bytes) {
        let serve = match kind {
            kind::LOGS_CONNECT | kind::METRIC_CONNECT => request(data, "1.0"),
            // The answer to the upgrade travels as data, and then whatever the two sides speak.
            kind::EXEC_CONNECT | kind::ATTACH_CONNECT => request(data, "1.1"),
            other => Err(format!("kind {other} is not known")),
        };
        let serve = serve.and_then(|request| match self.tunnel.has_room() {
            true => Ok(request),
            false => Err(format!("{TUNNEL_CONNECTIONS_MAX} connections are open")),
        });
        let request = match serve {
            Ok(request) => request,
            Err(why) => {
                tracing::warn!(target: "tunnel", "connection {id} of the cloud is refused: {why}");
                return self.tunnel.remove(id);
            }
        };
        let is_raw = matches!(kind, kind::EXEC_CONNECT | kind::ATTACH_CONNECT);
        let outgoing = if is_raw { Outgoing::Raw } else { Outgoing::Body(Vec::new()) };
        let (ours, theirs) = tokio::io::duplex(TUNNEL_PIPE_LEN);
        self.tunnel.add(id, ours, outgoing, request);
        let serving = self.kubelet.serve(Box::new(theirs));
        let task = async move {
            serving.await;
            Ok::<(), Infallible>(())
        };
        if let Err(error) = self.serving.spawn(task) {
            tracing::warn!(target: "tunnel", "connection {id} of the cloud is refused: {error}");
            self.tunnel.remove(id);
        }
    }
}

/// The kubelet's answer to HTTP/1.0 has no chunks and ends with its connection, which is what the tunnel carries of it.
fn request(data: &[u8], version: &str) -> Result<Vec<u8>, String> {
    let connect: Connect = serde_json::from_slice(data).map_err(|error| error.to_string())?;
    connect.request(version).ok_or_else(|| "it is no HTTP request".into())
}
