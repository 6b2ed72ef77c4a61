//! One connection: bytes from its socket to the broker and back, in one future without buffers of its own.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use mqtt::{
    broker::{ConnectionId, Origin, slot},
    limits::CONNECT_MS_MAX,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsAcceptor;

use super::{Shared, State};

pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// TCP, TLS or a unix socket.
pub(super) type Socket = Box<dyn Stream>;

/// A place at the broker; given up when it is dropped.
pub(super) struct Exchange {
    id: ConnectionId,
    shared: Arc<Shared>,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if let Some(waker) = state.wakers.get_mut(slot(self.id)) {
            *waker = None;
        }
        state.broker.closed(self.shared.now_ms(), self.id);
        self.shared.wake(&mut state, Some(self.id));
    }
}

impl Exchange {
    pub fn new(id: ConnectionId, shared: Arc<Shared>) -> Exchange {
        Exchange { id, shared }
    }

    /// Until one side ends it. How is of no interest to the log: a client that goes away is everyday life.
    pub async fn run(self, mut socket: Socket) -> io::Result<()> {
        let _ = poll_fn(|cx| self.step(&mut socket, cx)).await;
        Ok(())
    }

    pub async fn run_tls(self, acceptor: TlsAcceptor, socket: Socket) -> io::Result<()> {
        // In a box of its own: it is large, and of no use after the handshake.
        let handshake = Box::pin(acceptor.accept(socket));
        let patience = Duration::from_millis(CONNECT_MS_MAX);
        let Ok(Ok(stream)) = tokio::time::timeout(patience, handshake).await else { return Ok(()) };
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        if let Some(certificate) = certificate
            && let Ok(info) = pki::CertInfo::parse(certificate)
        {
            let origin = Origin::Certificate(info.subject.common_name);
            self.shared.lock().broker.set_origin(self.id, origin);
        }
        self.run(Box::new(stream)).await
    }

    fn step(&self, socket: &mut Socket, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        if state.is_over {
            return Poll::Ready(Ok(()));
        }
        register(state, self.id, cx);
        let done = self.write(state, socket, cx)?.is_break();
        if done {
            self.shared.wake(state, Some(self.id));
            drop(guard);
            return Pin::new(socket).poll_shutdown(cx);
        }
        if state.broker.wants_more(self.id) {
            let State { broker, buffer: bytes, .. } = &mut *state;
            let mut buffer = ReadBuf::new(&mut bytes[..]);
            if let Poll::Ready(read) = Pin::new(&mut *socket).poll_read(cx, &mut buffer) {
                read?;
                if buffer.filled().is_empty() {
                    return Poll::Ready(Ok(()));
                }
                broker.receive(self.shared.now_ms(), self.id, buffer.filled());
                let _ = self.write(state, socket, cx)?;
                // The others first: a publisher that never stops would fill their queues before they could write.
                cx.waker().wake_by_ref();
            }
        }
        self.shared.wake(state, Some(self.id));
        Poll::Pending
    }

    /// Writes what there is; `Break` when the broker has closed the connection.
    fn write(
        &self,
        state: &mut State,
        socket: &mut Socket,
        cx: &mut Context<'_>,
    ) -> io::Result<std::ops::ControlFlow<()>> {
        let mut has_written = false;
        loop {
            let Some(output) = state.broker.output(self.id) else {
                return Ok(std::ops::ControlFlow::Break(()));
            };
            if output.is_empty() {
                break;
            }
            let Poll::Ready(written) = Pin::new(&mut *socket).poll_write(cx, output) else { break };
            let len = match written? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                len => len,
            };
            output.drain(..len);
            has_written = true;
            state.broker.wrote(self.shared.now_ms(), self.id, len);
        }
        if has_written {
            // Only TLS has something to flush, and what it cannot write now it writes with the next call.
            let _ = Pin::new(socket).poll_flush(cx)?;
        }
        Ok(std::ops::ControlFlow::Continue(()))
    }
}

fn register(state: &mut State, id: ConnectionId, cx: &Context<'_>) {
    if state.wakers.len() <= slot(id) {
        state.wakers.resize(slot(id) + 1, None);
    }
    match &mut state.wakers[slot(id)] {
        Some(waker) => waker.clone_from(cx.waker()),
        empty => *empty = Some(cx.waker().clone()),
    }
}
