//! One connection of a client: moves bytes between a socket and [`mqtt::client::Client`], one step at a time.

use std::{
    io,
    time::{Duration, Instant},
};

use mqtt::client::{Client, ClientError};
use tokio::{io::AsyncWriteExt, net::TcpStream};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);
const READ_BYTES: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub(super) enum SocketError {
    #[error("{0}")]
    Io(io::Error),
    #[error("the broker closed the connection")]
    Closed,
    #[error(transparent)]
    Client(#[from] ClientError),
}

pub(super) struct Socket {
    stream: TcpStream,
    started: Instant,
}

impl Socket {
    pub async fn open(endpoint: &str, client: &mut Client, started: Instant) -> Result<Socket, SocketError> {
        let connect = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(endpoint)).await;
        let stream =
            connect.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(SocketError::Io)?;
        let _ = stream.set_nodelay(true);
        client.opened(started.elapsed().as_millis() as u64);
        Ok(Socket { stream, started })
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Writes what the client has for the broker.
    pub async fn flush(&mut self, client: &mut Client) -> Result<(), SocketError> {
        if client.output().is_empty() {
            return Ok(());
        }
        // Taken before the await: a write that is cancelled half-way would be repeated otherwise. Cancelling ends the connection.
        let output = std::mem::take(client.output());
        let write = tokio::time::timeout(WRITE_TIMEOUT, self.stream.write_all(&output)).await;
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
        match tokio::time::timeout(pause, self.stream.readable()).await {
            Err(_) => {
                client.tick(self.now_ms())?;
                Ok(())
            }
            Ok(ready) => {
                ready.map_err(SocketError::Io)?;
                let mut buffer = [0; READ_BYTES];
                match self.stream.try_read(&mut buffer) {
                    Ok(0) => Err(SocketError::Closed),
                    Ok(len) => {
                        client.receive(&buffer[..len]);
                        Ok(())
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
                    Err(error) => Err(SocketError::Io(error)),
                }
            }
        }
    }
}

/// Says once per outage that a broker cannot be reached.
pub(super) struct Outage {
    endpoint: String,
    said: bool,
}

impl Outage {
    pub fn new(endpoint: &str) -> Outage {
        Outage { endpoint: endpoint.to_owned(), said: false }
    }

    pub fn text(&self, error: &SocketError) -> String {
        format!(
            "MQTT broker at {} cannot be used: {error}; start it, or correct modules.eventBus",
            self.endpoint
        )
    }

    pub fn failed(&mut self, error: &SocketError) {
        if !self.said {
            tracing::warn!("{}", self.text(error));
            self.said = true;
        }
    }

    pub fn over(&mut self) {
        if std::mem::take(&mut self.said) {
            tracing::info!("MQTT broker at {} is back", self.endpoint);
        }
    }
}
