//! One stream as a module holds it, and the streams of a link as its hub holds them.

use std::{
    collections::BTreeMap,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use wire::streams::{Action, Frame, Mux, Read, Refused, Settings, StreamEnd, Violation};

use crate::limits::OPEN_TIME_MAX;

/// Why a stream was not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("{0}")]
    Refused(Refused),
    #[error("{}", .0.0)]
    RefusedByPeer(StreamEnd),
    #[error("the other end did not accept it within {} s", OPEN_TIME_MAX.as_secs())]
    Timeout,
}

/// What the streams of a link hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub streams: usize,
    /// Bytes received and not read.
    pub kept_len: usize,
    /// Bytes written and not sent.
    pub queued_len: usize,
}

/// All streams of one link at one end. Clones are the same streams; they end when the link's socket is dropped.
#[derive(Clone)]
pub struct Streams(Arc<Mutex<Core>>);

struct Core {
    mux: Mux,
    waiting: BTreeMap<u32, Waiting>,
    /// The link's task, when it has nothing to send.
    link: Option<Waker>,
    ended: Option<String>,
}

/// Who waits for a stream.
#[derive(Default)]
struct Waiting {
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Streams {
    /// Of the end that opens streams: the cloud's.
    pub fn opener() -> Streams {
        Streams::new(Mux::opener(Settings::default()))
    }

    /// Of the end that accepts streams: the node's.
    pub fn acceptor() -> Streams {
        Streams::new(Mux::acceptor(Settings::default()))
    }

    fn new(mux: Mux) -> Streams {
        Streams(Arc::new(Mutex::new(Core { mux, waiting: BTreeMap::new(), link: None, ended: None })))
    }

    /// Opens a stream and waits until the other end has accepted it. Dropped while waiting, the stream is closed.
    pub async fn open(&self) -> Result<Stream, OpenError> {
        let id = {
            let mut core = self.lock();
            if let Some(reason) = &core.ended {
                return Err(OpenError::RefusedByPeer(StreamEnd(reason.clone())));
            }
            core.mux.open().map_err(OpenError::Refused)?
        };
        let stream = Stream { id, streams: self.clone() };
        self.wake_link();
        let accepted = std::future::poll_fn(|cx| {
            let mut core = self.lock();
            match core.mux.is_accepted(id) {
                Ok(true) => Poll::Ready(Ok(())),
                Ok(false) => {
                    core.waiting.entry(id).or_default().reader = Some(cx.waker().clone());
                    Poll::Pending
                }
                Err(end) => Poll::Ready(Err(OpenError::RefusedByPeer(end))),
            }
        });
        tokio::time::timeout(OPEN_TIME_MAX, accepted).await.unwrap_or(Err(OpenError::Timeout))?;
        Ok(stream)
    }

    pub fn stats(&self) -> Stats {
        let core = self.lock();
        Stats { streams: core.mux.len(), kept_len: core.mux.kept_len(), queued_len: core.mux.queued_len() }
    }

    /// Ends every stream with this reason; none can be opened any more.
    pub fn end(&self, reason: &str) {
        let mut core = self.lock();
        if core.ended.is_none() {
            core.ended = Some(reason.to_owned());
        }
        drop(core.mux.end_all(reason));
        let waiting = std::mem::take(&mut core.waiting);
        drop(core);
        waiting.into_values().for_each(Waiting::wake);
    }

    /// The next frame to send, or the task is woken when there is one.
    pub(crate) fn poll_transmit(&self, cx: &mut Context<'_>) -> Poll<Frame> {
        let mut core = self.lock();
        let Some((frame, action)) = core.mux.transmit() else {
            core.link = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let waiting = action.and_then(|action| core.woken(action));
        drop(core);
        waiting.into_iter().for_each(Waiting::wake);
        Poll::Ready(frame)
    }

    /// Takes a frame of the other end; a stream if it opened one.
    pub(crate) fn receive(&self, frame: Frame) -> Result<Option<Stream>, Violation> {
        let mut core = self.lock();
        let Some(action) = core.mux.handle(frame)? else { return Ok(None) };
        let waiting = core.woken(action);
        drop(core);
        waiting.into_iter().for_each(Waiting::wake);
        Ok(match action {
            Action::Opened(id) => Some(Stream { id, streams: self.clone() }),
            Action::Ready(_) => None,
        })
    }

    fn wake_link(&self) {
        let waker = self.lock().link.take();
        waker.into_iter().for_each(Waker::wake);
    }

    /// Held for a copy of a few kilobytes at most; no waker is called under it.
    fn lock(&self) -> MutexGuard<'_, Core> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    fn woken(&mut self, action: Action) -> Option<Waiting> {
        let (Action::Opened(id) | Action::Ready(id)) = action;
        self.waiting.remove(&id)
    }

    fn link_to_wake(&mut self) -> Option<Waker> {
        if self.mux.has_work() { self.link.take() } else { None }
    }
}

impl Waiting {
    fn wake(self) {
        self.reader.into_iter().chain(self.writer).for_each(Waker::wake);
    }
}

/// One stream. Dropped, it is reset, unless it was shut down before: then what was written still goes out.
pub struct Stream {
    id: u32,
    streams: Streams,
}

impl Stream {
    pub fn id(&self) -> u32 {
        self.id
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut core = self.streams.lock();
        match core.mux.read(self.id, buf.initialize_unfilled()) {
            Ok(Read::Bytes(len)) => {
                let link = core.link_to_wake();
                drop(core);
                link.into_iter().for_each(Waker::wake);
                buf.advance(len);
                Poll::Ready(Ok(()))
            }
            Ok(Read::End) => Poll::Ready(Ok(())),
            Ok(Read::Wait) => {
                core.waiting.entry(self.id).or_default().reader = Some(cx.waker().clone());
                Poll::Pending
            }
            Err(end) => Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, end))),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut core = self.streams.lock();
        match core.mux.write(self.id, bytes) {
            Ok(0) => {
                core.waiting.entry(self.id).or_default().writer = Some(cx.waker().clone());
                Poll::Pending
            }
            Ok(len) => {
                let link = core.link_to_wake();
                drop(core);
                link.into_iter().for_each(Waker::wake);
                Poll::Ready(Ok(len))
            }
            Err(end) => Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, end))),
        }
    }

    /// What was written leaves as the link takes it; nothing is gained by waiting.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut core = self.streams.lock();
        core.mux.finish(self.id);
        let link = core.link_to_wake();
        drop(core);
        link.into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut core = self.streams.lock();
        core.mux.close(self.id);
        core.waiting.remove(&self.id);
        let link = core.link_to_wake();
        drop(core);
        link.into_iter().for_each(Waker::wake);
    }
}
