//! One node's tunnel while it is open.
//!
//! Whoever dials the node writes an HTTP request and reads its answer. A stock node is told the request; of logs and metrics it
//! sends the body only, so the head of the answer is made here; of exec and attach it sends everything.

use std::time::Duration;

use rt::Drain;
use streams::limits::TUNNEL_PING_TIME;
use streams::{Outgoing, Tunnel, TunnelEnded, TunnelEvent, WebSocket};
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::time::Instant;
use wire::tunnel::kind;

use crate::limits::TUNNEL_SILENCE_MAX;

/// The body ends with the connection, since the node does not say how long it is.
const TEXT: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n";
const METRICS: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\n\r\n";
const JSON: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n";

/// Runs to the tunnel's end; why it ended.
pub async fn run<W: WebSocket>(
    mut tunnel: Tunnel<W>,
    mut dialled: mpsc::Receiver<DuplexStream>,
    stop: &Drain,
) -> String {
    let mut next_id = 0;
    let mut heard = Instant::now();
    let mut look_at = heard + TUNNEL_PING_TIME;
    loop {
        tokio::select! {
            () = stop.wait() => break,
            Some(pipe) = dialled.recv() => {
                next_id += 1;
                let has_room = tunnel.has_room();
                tunnel.add(next_id, pipe, Outgoing::Request(Vec::new()), Vec::new());
                if !has_room {
                    tunnel.refuse(next_id, &error(503, "the node's tunnel carries its most connections already; close one"));
                }
            }
            event = tunnel.next() => {
                heard = Instant::now();
                match event {
                    Ok(TunnelEvent::Request { id, head }) => request(&mut tunnel, id, &head),
                    // A node asks for nothing on its tunnel.
                    Ok(TunnelEvent::Connect { .. } | TunnelEvent::Heard) => {}
                    Err(TunnelEnded::Refused(why)) => return format!("the node closed it: {why}"),
                    Err(error) => return rt::error_chain(&error),
                }
            }
            () = tokio::time::sleep_until(look_at) => {
                if heard.elapsed() > TUNNEL_SILENCE_MAX {
                    return format!("nothing was heard for {} s", heard.elapsed().as_secs());
                }
                tunnel.expire_blocked();
                look_at = Instant::now() + TUNNEL_PING_TIME;
            }
        }
    }
    tunnel.close("a newer tunnel took over, or cloudcore stops", Duration::from_secs(1)).await;
    "a newer tunnel took over, or cloudcore stops".into()
}

fn request<W: WebSocket>(tunnel: &mut Tunnel<W>, id: u64, head: &[u8]) {
    match wire::tunnel::connect(id, head) {
        Ok((kind, connect)) => {
            let first: &[u8] = match kind {
                kind::LOGS_CONNECT => TEXT,
                kind::METRIC_CONNECT if connect.url.path.starts_with("/metrics") => METRICS,
                kind::METRIC_CONNECT => JSON,
                _ => b"",
            };
            let data = serde_json::to_vec(&connect).expect("a request serialises without error");
            tunnel.connect(id, kind, &data, first);
        }
        Err(why) => {
            tunnel.refuse(id, &error(501, &format!("the request does not pass the node's tunnel: {why}")))
        }
    }
}

/// An HTTP answer that ends the connection.
pub(super) fn error(status: u16, text: &str) -> Vec<u8> {
    let reason = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let head = format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}\n",
        reason.unwrap_or_default(),
        text.len() + 1
    );
    head.into_bytes()
}
