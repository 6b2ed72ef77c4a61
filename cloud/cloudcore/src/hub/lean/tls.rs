//! The server's end of TLS over rustls' connection without buffers.
//!
//! Invariants
//! - No buffer is kept that holds nothing.
//! - `incoming` begins with the start of a record and holds no whole record after [`Tls::turn`].
//! - Nothing is encrypted while earlier records wait to be written, so `outgoing` holds one record and what the handshake adds.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, InsufficientSizeError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Read at one time; lies on the stack.
const READ_LEN: usize = 8 * 1024;
/// Encrypted at one time, the most that a record may hold.
const RECORD_LEN_MAX: usize = 16 * 1024;
/// Bytes that came and are not yet a whole handshake message (at most 64 kB) or record. More: the connection fails.
const INCOMING_LEN_MAX: usize = 96 * 1024;

pub struct Tls<S> {
    stream: S,
    connection: UnbufferedServerConnection,
    incoming: Vec<u8>,
    /// Decrypted and not read yet.
    plain: Rest,
    /// Records to be written.
    outgoing: Rest,
    end: Option<End>,
    said_goodbye: bool,
    failed: Option<rustls::Error>,
}

/// Why nothing more comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The peer said so.
    Goodbye,
    /// The connection was cut: what came may not be all.
    Cut,
}

/// Bytes of which some are gone already.
#[derive(Default)]
struct Rest {
    bytes: Vec<u8>,
    gone: usize,
}

impl Rest {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn rest(&self) -> &[u8] {
        &self.bytes[self.gone..]
    }

    fn take(&mut self, len: usize) {
        self.gone += len;
        if self.gone == self.bytes.len() {
            *self = Rest::default();
        }
    }

    /// Lets `write` put bytes at the end, with as much room as it asks for.
    fn put<E>(
        &mut self,
        mut write: impl FnMut(&mut [u8]) -> Result<usize, E>,
        needs: impl Fn(&E) -> Option<usize>,
    ) -> Result<(), E> {
        let at = self.bytes.len();
        let written = loop {
            match write(&mut self.bytes[at..]) {
                Ok(written) => break Ok(written),
                Err(error) => match needs(&error) {
                    Some(len) if at + len > self.bytes.len() => self.bytes.resize(at + len, 0),
                    _ => break Err(error),
                },
            }
        };
        self.bytes.truncate(at + written.as_ref().copied().unwrap_or(0));
        written.map(drop)
    }
}

/// What is to be done when all records that came are read.
enum Turn<'a> {
    Nothing,
    Encrypt(&'a [u8]),
    Goodbye,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Tls<S> {
    /// Returns after the handshake; the peer has then shown what the configuration asks for.
    pub async fn accept(config: Arc<ServerConfig>, stream: S) -> io::Result<Tls<S>> {
        let connection = UnbufferedServerConnection::new(config).map_err(invalid)?;
        let mut tls = Tls {
            stream,
            connection,
            incoming: Vec::new(),
            plain: Rest::default(),
            outgoing: Rest::default(),
            end: None,
            said_goodbye: false,
            failed: None,
        };
        std::future::poll_fn(|cx| tls.poll_handshake(cx)).await?;
        Ok(tls)
    }

    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        self.connection.peer_certificates().unwrap_or_default()
    }

    /// Bytes that the buffers have room for.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.incoming.capacity() + self.plain.bytes.capacity() + self.outgoing.bytes.capacity()
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_write_out(cx))?;
            if let Some(error) = &self.failed {
                return Poll::Ready(Err(invalid(error.clone())));
            }
            if !self.connection.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_read_in(cx))?;
            if self.end.is_some() {
                return Poll::Ready(Err(io::Error::new(ErrorKind::UnexpectedEof, "tls handshake eof")));
            }
        }
    }

    /// Reads what is there and decrypts it. A failure of TLS is kept, with its alert in `outgoing`.
    fn poll_read_in(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut buffer = [std::mem::MaybeUninit::uninit(); READ_LEN];
        let mut read = ReadBuf::uninit(&mut buffer);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read))?;
        if read.filled().is_empty() {
            self.end = Some(End::Cut);
            return Poll::Ready(Ok(()));
        }
        if self.incoming.len() + read.filled().len() > INCOMING_LEN_MAX {
            return Poll::Ready(Err(io::Error::new(ErrorKind::InvalidData, "a TLS message is too long")));
        }
        self.incoming.extend_from_slice(read.filled());
        self.turn(Turn::Nothing);
        Poll::Ready(Ok(()))
    }

    /// Reads all whole records, then does what is asked for.
    fn turn(&mut self, turn: Turn<'_>) {
        while self.failed.is_none() {
            match self.step(&turn) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    self.failed = Some(error);
                    // The peer is told why; nothing more of it is looked at.
                    while self.connection.wants_write() && self.step(&Turn::Nothing).is_ok() {}
                    self.incoming.clear();
                }
            }
        }
        if self.incoming.is_empty() {
            self.incoming = Vec::new();
        }
    }

    /// False: there is nothing left to do.
    fn step(&mut self, turn: &Turn<'_>) -> Result<bool, rustls::Error> {
        let status = self.connection.process_tls_records(&mut self.incoming);
        let mut discard = status.discard;
        let outgoing = &mut self.outgoing;
        let result = match status.state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
                match traffic.next_record() {
                    Some(Ok(record)) => {
                        discard += record.discard;
                        self.plain.bytes.extend_from_slice(record.payload);
                    }
                    Some(Err(error)) => break Err(error),
                    None => break Ok(true),
                }
            },
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                let needs = |error: &EncodeError| match error {
                    EncodeError::InsufficientSize(InsufficientSizeError { required_size }) => {
                        Some(*required_size)
                    }
                    EncodeError::AlreadyEncoded => None,
                };
                let encoded = outgoing.put(|buffer| data.encode(buffer), needs);
                encoded.map(|()| true).map_err(|error| rustls::Error::General(error.to_string()))
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                // They lie in `outgoing`, which is written in order.
                data.done();
                Ok(true)
            }
            Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                let needs = |error: &EncryptError| match error {
                    EncryptError::InsufficientSize(InsufficientSizeError { required_size }) => {
                        Some(*required_size)
                    }
                    EncryptError::EncryptExhausted => None,
                };
                let written = match turn {
                    Turn::Nothing => Ok(()),
                    Turn::Encrypt(bytes) => outgoing.put(|buffer| traffic.encrypt(bytes, buffer), needs),
                    Turn::Goodbye => outgoing.put(|buffer| traffic.queue_close_notify(buffer), needs),
                };
                written.map(|()| false).map_err(|error| rustls::Error::General(error.to_string()))
            }
            Ok(ConnectionState::PeerClosed) => {
                self.end = Some(End::Goodbye);
                Ok(true)
            }
            Ok(ConnectionState::Closed | ConnectionState::BlockedHandshake) => match turn {
                Turn::Encrypt(_) => Err(rustls::Error::General("nothing can be sent any more".into())),
                Turn::Nothing | Turn::Goodbye => Ok(false),
            },
            Ok(ConnectionState::ReadEarlyData(_)) | Ok(_) => {
                Err(rustls::Error::General("a state of TLS that this server does not offer".into()))
            }
            Err(error) => Err(error),
        };
        self.incoming.drain(..discard.min(self.incoming.len()));
        result
    }

    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, self.outgoing.rest()))?;
            if written == 0 {
                return Poll::Ready(Err(ErrorKind::WriteZero.into()));
            }
            self.outgoing.take(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Tls<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.plain.is_empty() {
                let len = buffer.remaining().min(this.plain.rest().len());
                buffer.put_slice(&this.plain.rest()[..len]);
                this.plain.take(len);
                return Poll::Ready(Ok(()));
            }
            // An alert, or the answer to new keys of the peer.
            let _ = this.poll_write_out(cx)?;
            if let Some(error) = &this.failed {
                return Poll::Ready(Err(invalid(error.clone())));
            }
            match this.end {
                Some(End::Goodbye) => return Poll::Ready(Ok(())),
                Some(End::Cut) => return Poll::Ready(Err(ErrorKind::UnexpectedEof.into())),
                None => {}
            }
            ready!(this.poll_read_in(cx))?;
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Tls<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_write_out(cx))?;
        if this.said_goodbye {
            return Poll::Ready(Err(ErrorKind::BrokenPipe.into()));
        }
        let len = bytes.len().min(RECORD_LEN_MAX);
        this.turn(Turn::Encrypt(&bytes[..len]));
        if let Some(error) = &this.failed {
            return Poll::Ready(Err(invalid(error.clone())));
        }
        // What is left goes with the flush.
        let _ = this.poll_write_out(cx)?;
        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_write_out(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !std::mem::replace(&mut this.said_goodbye, true) {
            this.turn(Turn::Goodbye);
        }
        ready!(this.poll_write_out(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}
