//! The link's WebSocket: messages first, streams when there is room.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Sink, Stream as Incoming};
use tokio::time::{Instant, Sleep, sleep};
use tokio_tungstenite::tungstenite::{self, Message};
use wire::{
    frames::{STREAM_KINDS, first_kind},
    streams::{Frame, FrameError, Violation},
};

use crate::{
    Progress, Stream, Streams,
    limits::{FRAMES_PER_TURN, MESSAGES_BYTES_MAX, MESSAGES_LEN_MAX},
};

/// What came.
pub enum Event {
    /// A message of the peer, text or (on a link without streams and compact lane) binary.
    Message(Bytes),
    /// Frames of the compact lane.
    Frames(Bytes),
    /// Any other sign of life.
    Heard,
    /// The peer opened a stream.
    Opened(Stream),
}

/// Why the link is over.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    #[error("the other end closed the link")]
    Closed,
    #[error("the link broke")]
    Broken(#[source] tungstenite::Error),
    #[error("the other end took nothing for {} s", .0.as_secs())]
    Stuck(Duration),
    #[error("a frame of the other end cannot be read")]
    Frame(#[source] FrameError),
    #[error("the other end broke the rules of streams")]
    Violation(#[source] Violation),
}

/// What carries messages: a `WebSocketStream`, or what an end has in its place.
pub trait WebSocket:
    Incoming<Item = Result<Message, tungstenite::Error>> + Sink<Message, Error = tungstenite::Error> + Unpin
{
}

impl<W> WebSocket for W where
    W: Incoming<Item = Result<Message, tungstenite::Error>>
        + Sink<Message, Error = tungstenite::Error>
        + Unpin
{
}

/// A WebSocket that is read and written in one place, neither of which waits for the other.
pub struct Socket<W> {
    ws: W,
    streams: Option<Streams>,
    /// Binary messages that are not of streams belong to the compact lane.
    has_lane: bool,
    messages: VecDeque<Message>,
    messages_len: usize,
    /// The WebSocket or TLS may hold bytes that the kernel has not taken.
    unflushed: bool,
    progress: Progress,
    written: u64,
    write_timeout: Duration,
    stuck_at: Pin<Box<Sleep>>,
}

impl<W: WebSocket> Socket<W> {
    /// `progress`: of the socket below TLS. `streams`: `None` when the peer takes none; binary frames are then messages.
    pub fn new(ws: W, progress: Progress, streams: Option<Streams>, write_timeout: Duration) -> Socket<W> {
        Socket {
            ws,
            streams,
            has_lane: false,
            messages: VecDeque::new(),
            messages_len: 0,
            unflushed: false,
            written: progress.written(),
            progress,
            write_timeout,
            stuck_at: Box::pin(sleep(write_timeout)),
        }
    }

    /// Both ends have agreed on the compact lane.
    pub fn with_lane(mut self, has_lane: bool) -> Socket<W> {
        self.has_lane = has_lane;
        self
    }

    pub fn streams(&self) -> Option<&Streams> {
        self.streams.as_ref()
    }

    /// Queues a message; [`Socket::next`] sends it before any stream's data. Ask [`Socket::has_room`] before making more.
    pub fn queue(&mut self, message: Message) {
        self.messages_len += message.len();
        self.messages.push_back(message);
    }

    /// False: messages wait already, and whoever makes them should wait as well.
    pub fn has_room(&self) -> bool {
        self.messages.len() < MESSAGES_LEN_MAX && self.messages_len < MESSAGES_BYTES_MAX
    }

    /// Everything that was queued is with the kernel.
    pub fn is_idle(&self) -> bool {
        !self.unflushed && self.messages.is_empty()
    }

    /// Sends what there is and waits for what comes. `may_read` false: only sends. Dropped, it loses nothing.
    pub async fn next(&mut self, may_read: bool) -> Result<Event, Ended> {
        poll_fn(|cx| self.poll_next(cx, may_read)).await
    }

    /// Sends the messages that wait and a closing frame, for at most `timeout`, and ends all streams with this reason.
    pub async fn close(&mut self, reason: &str, timeout: Duration) {
        self.end_streams(reason);
        self.queue(Message::Close(None));
        let flushed = poll_fn(|cx| match self.drive(cx) {
            Ok(()) if self.unflushed || !self.messages.is_empty() => Poll::Pending,
            _ => Poll::Ready(()),
        });
        // The peer may be gone; that is no concern of a link that ends.
        drop(tokio::time::timeout(timeout, flushed).await);
    }

    fn end_streams(&mut self, reason: &str) {
        if let Some(streams) = self.streams.take() {
            streams.end(reason);
        }
    }

    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>, may_read: bool) -> Poll<Result<Event, Ended>> {
        let mut frames = 0;
        loop {
            self.drive(cx)?;
            if !may_read {
                return Poll::Pending;
            }
            let message = match Pin::new(&mut self.ws).poll_next(cx) {
                Poll::Ready(Some(Ok(message))) => message,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(broken(error))),
                Poll::Ready(None) => return Poll::Ready(Err(Ended::Closed)),
                Poll::Pending if frames > 0 => return Poll::Ready(Ok(Event::Heard)),
                Poll::Pending => return Poll::Pending,
            };
            let event = match (message, &self.streams) {
                (Message::Text(text), _) => Event::Message(text.into()),
                (Message::Binary(bytes), streams)
                    if self.has_lane && !(streams.is_some() && is_stream(&bytes)) =>
                {
                    Event::Frames(bytes)
                }
                (Message::Binary(bytes), None) => Event::Message(bytes),
                (Message::Binary(bytes), Some(streams)) => {
                    let frame = Frame::decode(&bytes).map_err(Ended::Frame)?;
                    match streams.receive(frame).map_err(Ended::Violation)? {
                        Some(stream) => Event::Opened(stream),
                        None if frames + 1 < FRAMES_PER_TURN => {
                            frames += 1;
                            continue;
                        }
                        None => Event::Heard,
                    }
                }
                (Message::Close(_), _) => return Poll::Ready(Err(Ended::Closed)),
                (Message::Ping(_) | Message::Pong(_) | Message::Frame(_), _) => {
                    // The library has queued the pong.
                    self.note_unflushed();
                    Event::Heard
                }
            };
            return Poll::Ready(Ok(event));
        }
    }

    /// Writes until the socket takes no more or nothing is left.
    fn drive(&mut self, cx: &mut Context<'_>) -> Result<(), Ended> {
        loop {
            if self.unflushed {
                match Pin::new(&mut self.ws).poll_flush(cx).map_err(broken)? {
                    Poll::Ready(()) => self.unflushed = false,
                    Poll::Pending => return self.check_stuck(cx),
                }
            }
            // Everything before is with the kernel: now is the time to decide what goes next.
            if !self.messages.is_empty() {
                self.feed_messages(cx)?;
                continue;
            }
            let Some(streams) = &self.streams else { return Ok(()) };
            let Poll::Ready(frame) = streams.poll_transmit(cx) else { return Ok(()) };
            self.send(Message::Binary(frame.encode().into()))?;
        }
    }

    fn feed_messages(&mut self, cx: &mut Context<'_>) -> Result<(), Ended> {
        while !self.messages.is_empty() {
            match Pin::new(&mut self.ws).poll_ready(cx).map_err(broken)? {
                Poll::Ready(()) => {}
                Poll::Pending => break,
            }
            let Some(message) = self.messages.pop_front() else { break };
            self.messages_len -= message.len();
            self.send(message)?;
        }
        Ok(())
    }

    fn send(&mut self, message: Message) -> Result<(), Ended> {
        self.note_unflushed();
        Pin::new(&mut self.ws).start_send(message).map_err(broken)
    }

    fn note_unflushed(&mut self) {
        if !self.unflushed {
            self.unflushed = true;
            self.written = self.progress.written();
            self.stuck_at.as_mut().reset(Instant::now() + self.write_timeout);
        }
    }

    fn check_stuck(&mut self, cx: &mut Context<'_>) -> Result<(), Ended> {
        let written = self.progress.written();
        if written != self.written {
            self.written = written;
            self.stuck_at.as_mut().reset(Instant::now() + self.write_timeout);
        }
        match self.stuck_at.as_mut().poll(cx) {
            Poll::Ready(()) => Err(Ended::Stuck(self.write_timeout)),
            Poll::Pending => Ok(()),
        }
    }
}

impl<W> Drop for Socket<W> {
    fn drop(&mut self) {
        if let Some(streams) = &self.streams {
            streams.end("the link between cloud and node has ended");
        }
    }
}

fn is_stream(bytes: &[u8]) -> bool {
    first_kind(bytes).is_some_and(|kind| STREAM_KINDS.contains(&kind))
}

fn broken(error: tungstenite::Error) -> Ended {
    match error {
        tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => Ended::Closed,
        error => Ended::Broken(error),
    }
}
