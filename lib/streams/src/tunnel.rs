//! KubeEdge's tunnel at either end: connections that share one WebSocket without flow control of their own.
//!
//! The protocol is `wire::tunnel`. Each connection has a pipe whose other end its owner reads and writes as a byte stream. The
//! protocol has no windows: while one connection's owner takes nothing, the tunnel is not read and TCP holds the peer back, as with
//! stock peers; after [`BLOCKED_TIME_MAX`] that connection is ended, so that the others go on.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    time::Instant,
};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::frame::{
        Frame as RawFrame,
        coding::{Data, OpCode},
    },
};
use wire::tunnel::{Envelope, EnvelopeError, PING, Relabel, head_len, kind};

use crate::{
    Ended, Event, Socket, WebSocket,
    limits::{BLOCKED_TIME_MAX, HEAD_LEN_MAX, TUNNEL_CHUNK_LEN, TUNNEL_CONNECTIONS_MAX},
};

/// A socket whose WebSocket calls text binary when it is read; belongs between TLS and the WebSocket, from the first byte on.
#[derive(Debug)]
pub struct Relabelled<S> {
    inner: S,
    relabel: Relabel,
}

impl<S> Relabelled<S> {
    pub fn new(inner: S) -> Relabelled<S> {
        Relabelled { inner, relabel: Relabel::connection() }
    }

    /// For a connection whose HTTP heads have passed.
    pub fn frames(inner: S) -> Relabelled<S> {
        Relabelled { inner, relabel: Relabel::frames() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Relabelled<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.relabel.feed(&mut buf.filled_mut()[before..]);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Relabelled<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// What to make of the bytes that the owner of a connection writes.
#[derive(Debug)]
pub enum Outgoing {
    /// They travel as they are.
    Raw,
    /// They begin with the head of an HTTP answer, which does not travel.
    Body(Vec<u8>),
    /// They begin with the head of an HTTP request, which [`TunnelEvent::Request`] brings.
    Request(Vec<u8>),
}

pub enum TunnelEvent {
    /// The peer wants a connection: `kind` says of what sort, `data` holds its description.
    Connect { id: u64, kind: u64, data: Bytes },
    /// A connection that was added with [`Outgoing::Request`] has its request's head. Nothing more of it is read before
    /// [`Tunnel::connect`].
    Request { id: u64, head: Vec<u8> },
    /// Any sign of life.
    Heard,
}

#[derive(Debug, thiserror::Error)]
pub enum TunnelEnded {
    #[error("the tunnel ended")]
    Link(#[source] Ended),
    #[error("a message of the other end cannot be read")]
    Envelope(#[source] EnvelopeError),
    #[error("the other end closed the tunnel: {0}")]
    Refused(String),
}

struct Connection {
    pipe: DuplexStream,
    /// Came for the owner and was not taken yet.
    incoming: Bytes,
    blocked_since: Option<Instant>,
    outgoing: Outgoing,
    /// The request was told; the answer to it decides.
    is_waiting: bool,
}

/// One tunnel at one end.
pub struct Tunnel<W> {
    socket: Socket<W>,
    connections: BTreeMap<u64, Connection>,
}

impl<W: WebSocket> Tunnel<W> {
    /// `socket` without streams, over a [`Relabelled`] one.
    pub fn new(socket: Socket<W>) -> Tunnel<W> {
        Tunnel { socket, connections: BTreeMap::new() }
    }

    pub fn len(&self) -> usize {
        self.connections.len()
    }

    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    pub fn has_room(&self) -> bool {
        self.connections.len() < TUNNEL_CONNECTIONS_MAX
    }

    /// A connection whose owner holds the other end of `pipe` and gets `first` before anything else.
    pub fn add(&mut self, id: u64, pipe: DuplexStream, outgoing: Outgoing, first: Vec<u8>) {
        let connection =
            Connection { pipe, incoming: first.into(), blocked_since: None, outgoing, is_waiting: false };
        self.connections.insert(id, connection);
    }

    /// The answer to [`TunnelEvent::Request`]: asks the peer for the connection. The owner gets `first` before anything else.
    pub fn connect(&mut self, id: u64, kind: u64, data: &[u8], first: &'static [u8]) {
        self.send(id, kind, data);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.incoming = Bytes::from_static(first);
        connection.is_waiting = false;
        if let Outgoing::Request(rest) = std::mem::replace(&mut connection.outgoing, Outgoing::Raw)
            && !rest.is_empty()
        {
            self.send(id, kind::DATA, &rest);
        }
    }

    /// Ends a connection at this end; its owner still gets `last`, if it takes it at once.
    pub fn refuse(&mut self, id: u64, last: &[u8]) {
        if let Some(mut connection) = self.connections.remove(&id) {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            drop(Pin::new(&mut connection.pipe).poll_write(&mut cx, last));
        }
    }

    /// Tells the peer that a connection is over.
    pub fn remove(&mut self, id: u64) {
        self.connections.remove(&id);
        self.send(id, kind::REMOVE_CONNECT, &[]);
    }

    /// A sign of life as stock nodes send it.
    pub fn ping(&mut self) {
        self.socket.queue(Message::Ping(Bytes::from_static(PING)));
    }

    /// Ends connections whose owners have taken nothing for too long. To be called every few seconds.
    pub fn expire_blocked(&mut self) {
        let now = Instant::now();
        let is_blocked = |connection: &Connection| {
            connection.blocked_since.is_some_and(|since| now - since > BLOCKED_TIME_MAX)
        };
        let blocked: Vec<u64> =
            self.connections.iter().filter(|(_, c)| is_blocked(c)).map(|(id, _)| *id).collect();
        blocked.into_iter().for_each(|id| self.remove(id));
    }

    /// Says why to the peer and closes the tunnel.
    pub async fn close(mut self, reason: &str, timeout: std::time::Duration) {
        self.send(0, kind::CLOSE_CONNECT, reason.as_bytes());
        self.socket.close(reason, timeout).await;
    }

    /// Moves bytes until something is to be decided. Dropped, it loses nothing.
    pub async fn next(&mut self) -> Result<TunnelEvent, TunnelEnded> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<TunnelEvent, TunnelEnded>> {
        loop {
            self.deliver(cx);
            let was_idle = self.socket.is_idle();
            if was_idle && let Some(event) = self.collect(cx) {
                return Poll::Ready(Ok(event));
            }
            // Nothing was taken, so that every owner wakes us when it writes.
            let all_asked = was_idle && self.socket.is_idle();
            let may_read = self.connections.values().all(|connection| connection.incoming.is_empty());
            match self.socket.poll_next(cx, may_read) {
                Poll::Ready(Ok(Event::Message(message))) => match self.message(message)? {
                    Some(event) => return Poll::Ready(Ok(event)),
                    None => continue,
                },
                Poll::Ready(Ok(Event::Heard | Event::Opened(_) | Event::Frames(_))) => {
                    return Poll::Ready(Ok(TunnelEvent::Heard));
                }
                Poll::Ready(Err(ended)) => return Poll::Ready(Err(TunnelEnded::Link(ended))),
                // The socket wakes us as long as it is not idle.
                Poll::Pending if all_asked || !self.socket.is_idle() => return Poll::Pending,
                Poll::Pending => {}
            }
        }
    }

    /// Hands what came to the owners.
    fn deliver(&mut self, cx: &mut Context<'_>) {
        let mut gone = Vec::new();
        for (id, connection) in &mut self.connections {
            while !connection.incoming.is_empty() {
                match Pin::new(&mut connection.pipe).poll_write(cx, &connection.incoming) {
                    Poll::Ready(Ok(len)) => {
                        drop(connection.incoming.split_to(len));
                        connection.blocked_since = None;
                    }
                    Poll::Ready(Err(_)) => {
                        gone.push(*id);
                        break;
                    }
                    Poll::Pending => {
                        connection.blocked_since.get_or_insert_with(Instant::now);
                        break;
                    }
                }
            }
        }
        gone.into_iter().for_each(|id| self.remove(id));
    }

    /// Takes a piece from each owner; the socket is idle.
    fn collect(&mut self, cx: &mut Context<'_>) -> Option<TunnelEvent> {
        let mut buffer = [0; TUNNEL_CHUNK_LEN];
        for id in self.connections.keys().copied().collect::<Vec<_>>() {
            // What only completed a head was not sent: its owner is asked again, so that it wakes us.
            let mut is_first = true;
            while is_first || self.socket.is_idle() {
                is_first = false;
                let Some(connection) = self.connections.get_mut(&id).filter(|c| !c.is_waiting) else { break };
                let mut read = ReadBuf::new(&mut buffer);
                match Pin::new(&mut connection.pipe).poll_read(cx, &mut read) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(())) if !read.filled().is_empty() => {}
                    Poll::Ready(_) => {
                        let never_began = matches!(connection.outgoing, Outgoing::Request(_));
                        match never_began {
                            true => drop(self.connections.remove(&id)),
                            false => self.remove(id),
                        }
                        break;
                    }
                }
                if let Some(event) = self.collected(id, read.filled()) {
                    return Some(event);
                }
            }
        }
        None
    }

    fn collected(&mut self, id: u64, bytes: &[u8]) -> Option<TunnelEvent> {
        let connection = self.connections.get_mut(&id)?;
        let head = match &mut connection.outgoing {
            Outgoing::Raw => {
                self.send(id, kind::DATA, bytes);
                return None;
            }
            Outgoing::Body(head) | Outgoing::Request(head) => head,
        };
        head.extend_from_slice(bytes);
        let Some(len) = head_len(head) else {
            if head.len() > HEAD_LEN_MAX {
                self.remove(id);
            }
            return None;
        };
        let rest = head.split_off(len);
        let head = std::mem::replace(head, rest.clone());
        if matches!(connection.outgoing, Outgoing::Request(_)) {
            connection.is_waiting = true;
            return Some(TunnelEvent::Request { id, head });
        }
        connection.outgoing = Outgoing::Raw;
        if !rest.is_empty() {
            self.send(id, kind::DATA, &rest);
        }
        None
    }

    fn message(&mut self, message: Bytes) -> Result<Option<TunnelEvent>, TunnelEnded> {
        let envelope = Envelope::decode(&message).map_err(TunnelEnded::Envelope)?;
        let Envelope { id, kind, data } = envelope;
        let data = message.slice_ref(data);
        match kind {
            kind::DATA => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.incoming = data;
                }
                Ok(None)
            }
            kind::REMOVE_CONNECT => {
                self.connections.remove(&id);
                Ok(None)
            }
            kind::CLOSE_CONNECT => {
                let reason: String = String::from_utf8_lossy(&data).chars().take(300).collect();
                Err(TunnelEnded::Refused(reason))
            }
            kind => Ok(Some(TunnelEvent::Connect { id, kind, data })),
        }
    }

    fn send(&mut self, id: u64, kind: u64, data: &[u8]) {
        let bytes = Envelope { id, kind, data }.encode();
        // Stock peers take text only.
        self.socket.queue(Message::Frame(RawFrame::message(bytes, OpCode::Data(Data::Text), true)));
    }
}
