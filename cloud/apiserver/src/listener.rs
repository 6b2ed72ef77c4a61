//! HTTPS: TLS with optional client certificates, HTTP/1.1 and 2.

use std::convert::Infallible;
use std::sync::Arc;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use kserve::{Identity, Server};
use pki::tls::{ClientAuth, peer_identity, server_config};
use rt::{Drain, TaskGroup};
use store::Store;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::credentials::Credentials;
use crate::limits::{
    CONNECTIONS_MAX, DRAIN_MAX, HANDSHAKE_MAX, HEADER_READ_MAX, KEEP_ALIVE_EVERY, SEND_BUFFER_BYTES,
};

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(
        "cannot set up TLS for the API; remove the API's certificate files from the data folder to make new ones"
    )]
    Tls(#[source] pki::PkiError),
}

pub(crate) async fn serve(
    server: Server<Store>,
    credentials: Arc<Credentials>,
    listener: TcpListener,
    drain: Drain,
) -> Result<(), ServeError> {
    let clients = ClientAuth::Requested(credentials.ca.cert_der());
    let mut config = server_config(&credentials.server.cert_der, &credentials.server.key, clients)
        .map_err(ServeError::Tls)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let connections = TaskGroup::new("api connection", CONNECTIONS_MAX, drain.clone());
    while let Some(accepted) = drain.or(listener.accept()).await {
        let stream = match accepted {
            Ok((stream, _)) => stream,
            // Out of file descriptors, or the peer was gone already: the next one may do better.
            Err(error) => {
                tracing::warn!("the API cannot accept a connection: {error}");
                drain.sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let (server, acceptor, drain) = (server.clone(), acceptor.clone(), drain.clone());
        if let Err(full) = connections.spawn(connection(server, acceptor, stream, drain)) {
            tracing::warn!("{full}");
        }
    }
    connections.wait(DRAIN_MAX * 2).await;
    Ok(())
}

/// One connection. What goes wrong in it is its client's business, so it is only noted for those who look.
async fn connection(
    server: Server<Store>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    drain: Drain,
) -> Result<(), Infallible> {
    // Small answers must not wait for each other.
    let _ = stream.set_nodelay(true);
    let stream = match timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!("a client's TLS handshake failed: {error}");
            return Ok(());
        }
        Err(_) => return Ok(()),
    };
    let identity = match peer_identity(stream.get_ref().1.peer_certificates()) {
        Ok(Some(peer)) => {
            let mut groups = peer.organizations;
            groups.push("system:authenticated".into());
            Identity { user: peer.common_name, groups }
        }
        _ => Identity::anonymous(),
    };
    let identity = Arc::new(identity);
    let service = hyper::service::service_fn(move |request| {
        let (server, identity) = (server.clone(), identity.clone());
        async move { Ok::<_, Infallible>(server.serve(request, &identity).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_MAX)
        .max_buf_size(SEND_BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE_EVERY)
        .max_send_buf_size(SEND_BUFFER_BYTES);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    if let Some(result) = drain.or(connection.as_mut()).await {
        if let Err(error) = result {
            tracing::debug!("a client's connection ended: {error}");
        }
        return Ok(());
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(DRAIN_MAX, connection).await;
    Ok(())
}
