//! One connection of a client: moves bytes between a socket and [`mqtt::client::Client`], one step at a time.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use mqtt::client::{Client, ClientError};
use rt::BoxIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::endpoint::Endpoint;
use crate::credentials::server_name;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);
const START_GRACE: Duration = Duration::from_secs(5);
const READ_BYTES: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub(super) enum SocketError {
    #[error("{0}")]
    Io(io::Error),
    #[error("TLS failed: {0}")]
    Tls(io::Error),
    #[error("the broker closed the connection")]
    Closed,
    #[error(transparent)]
    Client(#[from] ClientError),
}

pub(super) struct Socket {
    stream: BoxIo,
    buffer: Box<[u8]>,
    started: Instant,
}

impl Socket {
    pub async fn open(
        endpoint: &Endpoint,
        client: &mut Client,
        started: Instant,
    ) -> Result<Socket, SocketError> {
        let connect = tokio::time::timeout(CONNECT_TIMEOUT, Socket::connect(endpoint)).await;
        let stream = connect.unwrap_or_else(|_| Err(SocketError::Io(io::ErrorKind::TimedOut.into())))?;
        client.opened(started.elapsed().as_millis() as u64);
        Ok(Socket { stream, buffer: vec![0; READ_BYTES].into(), started })
    }

    async fn connect(endpoint: &Endpoint) -> Result<BoxIo, SocketError> {
        let stream = TcpStream::connect(&endpoint.address).await.map_err(SocketError::Io)?;
        let _ = stream.set_nodelay(true);
        let Some(config) = &endpoint.tls else { return Ok(Box::new(stream)) };
        let name = server_name(&endpoint.address)
            .ok_or_else(|| SocketError::Tls(io::ErrorKind::InvalidInput.into()))?;
        let tls = TlsConnector::from(Arc::clone(config)).connect(name, stream);
        Ok(Box::new(tls.await.map_err(SocketError::Tls)?))
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// How long a message may wait for the first reader of its topic: modules subscribe soon after the start.
    pub fn grace(&self) -> Duration {
        START_GRACE.saturating_sub(self.started.elapsed())
    }

    /// Writes what the client has for the broker.
    pub async fn flush(&mut self, client: &mut Client) -> Result<(), SocketError> {
        if client.output().is_empty() {
            return Ok(());
        }
        // Taken before the await: a write that is cancelled half-way would be repeated otherwise. Cancelling ends the connection.
        let output = std::mem::take(client.output());
        let write = async {
            self.stream.write_all(&output).await?;
            // TLS may hold back the end of it.
            self.stream.flush().await
        };
        let write = tokio::time::timeout(WRITE_TIMEOUT, write).await;
        write.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(SocketError::Io)?;
        client.wrote(self.now_ms());
        Ok(())
    }

    /// Waits until bytes came or the client's deadline passed. Safe to drop.
    pub async fn wait(&mut self, client: &mut Client) -> Result<(), SocketError> {
        let now_ms = self.now_ms();
        let pause = client
            .deadline_ms()
            .map_or(Duration::from_secs(3600), |at| Duration::from_millis(at.saturating_sub(now_ms)));
        match tokio::time::timeout(pause, self.stream.read(&mut self.buffer)).await {
            Err(_) => {
                client.tick(self.now_ms())?;
                Ok(())
            }
            Ok(Ok(0)) => Err(SocketError::Closed),
            Ok(Ok(len)) => {
                client.receive(&self.buffer[..len]);
                Ok(())
            }
            Ok(Err(error)) => Err(SocketError::Io(error)),
        }
    }
}

/// Says once per outage that a broker cannot be reached.
pub(super) struct Outage {
    endpoint: String,
    said: bool,
}

impl Outage {
    pub fn new(endpoint: &Endpoint) -> Outage {
        Outage { endpoint: endpoint.address.clone(), said: false }
    }

    pub fn failed(&mut self, error: &SocketError) {
        if !self.said {
            tracing::warn!(
                "MQTT broker at {} cannot be used: {error}; start it, or correct modules.eventBus",
                self.endpoint
            );
            self.said = true;
        }
    }

    pub fn over(&mut self) {
        if std::mem::take(&mut self.said) {
            tracing::info!("MQTT broker at {} is back", self.endpoint);
        }
    }
}
