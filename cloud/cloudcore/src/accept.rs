//! Taking connections, the same at every port of cloudcore.

use std::{net::SocketAddr, time::Duration};

use rt::Drain;
use tokio::net::{TcpListener, TcpStream};

/// The next connection; `None` once the drain has begun. A failure (out of file descriptors, the peer was gone already) is waited
/// out: the next one may do better. `port` names it in the log.
pub async fn accept(listener: &TcpListener, drain: &Drain, port: &str) -> Option<(TcpStream, SocketAddr)> {
    loop {
        match drain.or(listener.accept()).await? {
            Ok(accepted) => return Some(accepted),
            Err(error) => {
                tracing::warn!("a connection to {port} could not be accepted: {error}");
                drain.sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
