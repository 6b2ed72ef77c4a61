//! The server's end of a WebSocket after its upgrade: tungstenite's, which lives only while a message is on its way.
//!
//! Invariants
//! - tungstenite's context, and its buffers with it, is given up only when it holds nothing: all bytes that it was given were whole
//!   messages and were taken from it, and all that it was to send has left.
//! - A link that closes keeps its context to the end.

use std::io::{self, ErrorKind, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use tokio_tungstenite::tungstenite::{Error, Message};
use wire::limits::MESSAGE_BYTES_MAX;

pub struct Frames<S> {
    stream: S,
    config: WebSocketConfig,
    context: Option<Box<WebSocketContext>>,
    /// Where in the peer's frames the context has read to.
    place: Place,
    /// The context has taken all that came.
    is_drained: bool,
    /// The context may hold bytes that are to be sent.
    is_unsent: bool,
    /// The stream did not take all of the last message.
    is_blocked: bool,
    is_closing: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Frames<S> {
    /// `stream`: after the answer to the upgrade, nothing read from it beyond the request.
    pub fn new(stream: S, config: WebSocketConfig) -> Frames<S> {
        Frames {
            stream,
            config,
            context: None,
            place: Place::default(),
            is_drained: true,
            is_unsent: false,
            is_blocked: false,
            is_closing: false,
        }
    }

    #[cfg(test)]
    pub(super) fn has_context(&self) -> bool {
        self.context.is_some()
    }

    fn with<T>(
        &mut self,
        cx: &mut Context<'_>,
        work: impl FnOnce(&mut WebSocketContext, &mut Now<'_, '_, S>) -> T,
    ) -> T {
        let config = self.config;
        let context =
            self.context.get_or_insert_with(|| Box::new(WebSocketContext::new(Role::Server, Some(config))));
        work(context, &mut Now { stream: &mut self.stream, place: &mut self.place, cx })
    }

    fn give_back(&mut self) {
        if self.is_drained && !self.is_unsent && !self.is_closing && self.place.is_between() {
            self.context = None;
        }
    }

    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if self.context.is_none() {
            return Poll::Ready(Ok(()));
        }
        match self.with(cx, |context, now| context.flush(now)) {
            Err(error) if would_block(&error) => Poll::Pending,
            result => {
                (self.is_unsent, self.is_blocked) = (false, false);
                self.give_back();
                Poll::Ready(result)
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for Frames<S> {
    type Item = Result<Message, Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        this.is_drained = false;
        match this.with(cx, |context, now| context.read(now)) {
            Ok(message) => {
                // Their answers wait in the context.
                this.is_unsent |= matches!(message, Message::Ping(_) | Message::Close(_));
                this.is_closing |= message.is_close();
                Poll::Ready(Some(Ok(message)))
            }
            Err(error) if would_block(&error) => {
                this.is_drained = true;
                this.give_back();
                Poll::Pending
            }
            Err(Error::ConnectionClosed | Error::AlreadyClosed) => Poll::Ready(None),
            Err(error) => {
                this.is_closing = true;
                Poll::Ready(Some(Err(error)))
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Sink<Message> for Frames<S> {
    type Error = Error;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let this = self.get_mut();
        if this.is_blocked { this.poll_sent(cx) } else { Poll::Ready(Ok(())) }
    }

    fn start_send(self: Pin<&mut Self>, message: Message) -> Result<(), Error> {
        let this = self.get_mut();
        this.is_unsent = true;
        this.is_closing |= message.is_close();
        // Whoever sends, flushes, and is woken from there.
        let mut cx = Context::from_waker(Waker::noop());
        match this.with(&mut cx, |context, now| context.write(now, message)) {
            Err(error) if would_block(&error) => {
                // It is in the context's buffer.
                this.is_blocked = true;
                Ok(())
            }
            result => result,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.get_mut().poll_sent(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let this = self.get_mut();
        if !std::mem::replace(&mut this.is_closing, true) {
            Pin::new(&mut *this).start_send(Message::Close(None))?;
        }
        this.poll_sent(cx)
    }
}

fn would_block(error: &Error) -> bool {
    matches!(error, Error::Io(error) if error.kind() == ErrorKind::WouldBlock)
}

/// The stream as tungstenite takes it: what is not possible now would block.
struct Now<'a, 'b, S> {
    stream: &'a mut S,
    place: &'a mut Place,
    cx: &'a mut Context<'b>,
}

fn now<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(ErrorKind::WouldBlock.into()),
    }
}

impl<S: AsyncRead + Unpin> Read for Now<'_, '_, S> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(bytes);
        now(Pin::new(&mut *self.stream).poll_read(self.cx, &mut buffer))?;
        self.place.pass(buffer.filled());
        Ok(buffer.filled().len())
    }
}

impl<S: AsyncWrite + Unpin> Write for Now<'_, '_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        now(Pin::new(&mut *self.stream).poll_write(self.cx, bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        now(Pin::new(&mut *self.stream).poll_flush(self.cx))
    }
}

/// Where in a sequence of frames one is, by their heads alone (RFC 6455, section 5.2).
#[derive(Debug, Default)]
pub(super) struct Place {
    head: [u8; 10],
    head_len: u8,
    /// Of the frame whose head was read.
    left: u64,
    /// A message was begun and its last frame has not come.
    is_inside: bool,
}

impl Place {
    /// No message is begun.
    pub(super) fn is_between(&self) -> bool {
        self.head_len == 0 && self.left == 0 && !self.is_inside
    }

    pub(super) fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let len = self.left.min(bytes.len() as u64);
                self.left -= len;
                bytes = &bytes[len as usize..];
                continue;
            }
            self.head[usize::from(self.head_len)] = bytes[0];
            self.head_len += 1;
            bytes = &bytes[1..];
            self.look();
        }
    }

    /// Begins the payload when the head is whole.
    fn look(&mut self) {
        let [first, second, ..] = self.head;
        let wide = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if self.head_len < 2 || self.head_len < 2 + wide {
            return;
        }
        let len = match wide {
            0 => u64::from(second & 0x7f),
            _ => self.head[2..usize::from(2 + wide)].iter().fold(0, |len, byte| len << 8 | u64::from(*byte)),
        };
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        self.left = len.saturating_add(mask);
        self.head_len = 0;
        // Pings and the like may come between the frames of a message.
        if first & 0x08 == 0 {
            self.is_inside = first & 0x80 == 0;
        }
    }
}

/// What a node sends, for random bytes: the messages are those that tungstenite gives when nothing is taken from it. The first byte says
/// in what pieces they come.
pub fn fuzz_link_frames(data: &[u8]) {
    let Some((&cut, bytes)) = data.split_first() else { return };
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX))
        .read_buffer_size(64)
        .write_buffer_size(64);
    let step = usize::from(cut) + 1;
    let mut cx = Context::from_waker(Waker::noop());
    let mut ours = Frames::new(Pieces { bytes, left: 0 }, config);
    let mut theirs =
        (WebSocketContext::new(Role::Server, Some(config)), Pieces { bytes, left: 0 }, Place::default());
    // Each turn lets one more piece through; every frame has a byte at least.
    for _ in 0..bytes.len() / step + 2 {
        ours.stream.left = step;
        theirs.1.left = step;
        loop {
            let mine = match Pin::new(&mut ours).poll_next(&mut cx) {
                Poll::Ready(Some(Ok(message))) => Some(Ok(message)),
                Poll::Ready(_) => Some(Err(())),
                Poll::Pending => None,
            };
            let (context, stream, place) = &mut theirs;
            let other = match context.read(&mut Now { stream, place, cx: &mut cx }) {
                Ok(message) => Some(Ok(message)),
                Err(error) if would_block(&error) => None,
                Err(_) => Some(Err(())),
            };
            assert_eq!(mine, other, "the messages differ");
            match mine {
                Some(Ok(_)) => {}
                Some(Err(())) => return,
                None => break,
            }
        }
    }
}

/// Gives so many bytes and then nothing, takes everything.
struct Pieces<'a> {
    bytes: &'a [u8],
    left: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let len = self.left.min(self.bytes.len()).min(buffer.remaining());
        if len == 0 && !self.bytes.is_empty() {
            return Poll::Pending;
        }
        let (now, rest) = self.bytes.split_at(len);
        buffer.put_slice(now);
        self.bytes = rest;
        self.left -= len;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
