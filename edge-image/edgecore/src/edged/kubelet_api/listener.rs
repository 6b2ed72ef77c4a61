//! The read-only port: health, pods, statistics and metrics over TCP, for a Prometheus on the node. KubeEdge's `readOnlyPort`.

use std::{io, net::SocketAddr};

use rt::{Drain, TaskGroup};
use tokio::net::TcpListener;

use super::{Access, Server, limits};

/// Serves until the drain. A port that is taken is logged and tried again: nothing else of the node depends on it.
pub async fn run(server: Server, address: SocketAddr, drain: Drain) {
    let connections = TaskGroup::new("kubelet-api", limits::CONNECTIONS_MAX, drain.child());
    while !drain.is_draining() {
        let served = drain.or(listen(&server, address, &connections)).await;
        if let Some(Err(error)) = served {
            tracing::warn!(
                "cannot serve metrics on {address} ({error}); free the port, or set readOnlyPort in modules.edged.tailoredKubeletConfig (0: off)"
            );
            drain.sleep(limits::LISTEN_RETRY).await;
        }
    }
}

async fn listen(server: &Server, address: SocketAddr, connections: &TaskGroup) -> io::Result<()> {
    serve(server, TcpListener::bind(address).await?, connections).await
}

/// Takes connections until accepting fails. One too many is closed at once.
pub(super) async fn serve(server: &Server, listener: TcpListener, connections: &TaskGroup) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let connection = server.serve_as(Box::new(stream), Access::ReadOnly);
        let drain = connections.drain().clone();
        let started = connections.spawn(async move {
            drain.or(connection).await;
            Ok::<(), io::Error>(())
        });
        if let Err(refused) = started {
            tracing::debug!("{refused}");
        }
    }
}
