//! The stream port: kubelet requests of an API server, for whichever node they are, by TLS with a client certificate.
//!
//! One request per connection: the next one may be for another node.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kserve::NodeDialer;
use rt::{Drain, TaskGroup};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use wire::tunnel::head_len;

use super::session::error;
use crate::accept::accept;
use crate::api::Api;
use crate::contract::Routes;
use crate::limits::{HUB_HANDSHAKE_TIME_MAX, STREAM_SERVER_CONNECTIONS_MAX};

#[derive(Debug, thiserror::Error)]
pub enum StreamServerError {
    #[error(
        "cannot read {0}; make it with KubeEdge's certgen.sh, or set modules.cloudStream.enable to false"
    )]
    Read(PathBuf, #[source] rustls::pki_types::pem::Error),
    #[error("{0} cannot be used for modules.cloudStream")]
    Unusable(PathBuf, #[source] Box<dyn std::error::Error + Send + Sync>),
}

/// TLS of the stream port: `ca` signs the certificates of clients that may reach every container of every node.
pub fn stream_tls(ca: &Path, cert: &Path, key: &Path) -> Result<TlsAcceptor, StreamServerError> {
    let read = |path: &Path| {
        let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        all.map_err(|error| StreamServerError::Read(path.into(), error))
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in read(ca)? {
        roots.add(certificate).map_err(|error| StreamServerError::Unusable(ca.into(), error.into()))?;
    }
    let provider = pki::tls::provider();
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
    let clients = clients.map_err(|error| StreamServerError::Unusable(ca.into(), error.into()))?;
    let unusable = |error: rustls::Error| StreamServerError::Unusable(cert.into(), error.into());
    let private =
        PrivateKeyDer::from_pem_file(key).map_err(|error| StreamServerError::Read(key.into(), error))?;
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_client_cert_verifier(clients)
        .with_single_cert(read(cert)?, private)
        .map_err(unusable)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

pub struct StreamServer {
    pub tls: TlsAcceptor,
    pub api: Api,
    pub routes: Routes,
}

#[derive(Deserialize)]
struct PodView {
    spec: PodSpecView,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PodSpecView {
    node_name: String,
}

impl StreamServer {
    pub async fn serve(self: Arc<Self>, listener: TcpListener, drain: Drain) {
        let group = TaskGroup::new("stream port", STREAM_SERVER_CONNECTIONS_MAX, drain.clone());
        while let Some((stream, address)) = accept(&listener, &drain, "the stream port").await {
            let (server, drain) = (self.clone(), drain.clone());
            let connection = async move {
                // What goes wrong on a connection is for its client to say.
                if let Some(Err(error)) = drain.or(server.connection(stream)).await {
                    tracing::debug!("connection of {address} to the stream port: {error}");
                }
                Ok::<(), std::convert::Infallible>(())
            };
            if let Err(error) = group.spawn(connection) {
                tracing::warn!("connection of {address} to the stream port refused: {error}");
            }
        }
        group.wait(Duration::from_secs(5)).await;
    }

    async fn connection(&self, stream: TcpStream) -> std::io::Result<()> {
        drop(stream.set_nodelay(true));
        let opened = tokio::time::timeout(HUB_HANDSHAKE_TIME_MAX, async {
            let mut tls = self.tls.accept(stream).await?;
            let mut head = Vec::new();
            while head_len(&head).is_none() {
                if head.len() > streams::limits::HEAD_LEN_MAX || tls.read_buf(&mut head).await? == 0 {
                    return Err(std::io::Error::from(std::io::ErrorKind::InvalidData));
                }
            }
            Ok((tls, head))
        });
        let (mut tls, head) = opened.await.map_err(|_| std::io::ErrorKind::TimedOut)??;
        match self.reach(&head).await {
            Ok(mut node) => {
                node.write_all(&closing(&head)).await?;
                copy_bidirectional(&mut tls, &mut node).await?;
                Ok(())
            }
            Err((status, why)) => {
                tls.write_all(&error(status, &why)).await?;
                tls.shutdown().await
            }
        }
    }

    async fn reach(&self, head: &[u8]) -> Result<rt::BoxIo, (u16, String)> {
        let (_, connect) = wire::tunnel::connect(0, head).map_err(|why| (400, why.to_owned()))?;
        let header = |name: &str| Some(connect.header.as_ref()?.get(name)?.as_ref()?.first()?.as_str());
        let parts: Vec<&str> = connect.url.path.split('/').skip(1).collect();
        let node = match parts[..] {
            ["containerLogs" | "exec" | "attach" | "portForward", namespace, pod, ..] => {
                let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}");
                let body = self.api.get(&path).await.map_err(|error| (502, error.line()))?;
                let pod: PodView = serde_json::from_slice(&body).map_err(|e| (502, e.to_string()))?;
                pod.spec.node_name
            }
            ["stats" | "metrics", ..] => {
                let uri = header("X-Forwarded-Uri").unwrap_or_default();
                let node = uri.strip_prefix("/api/v1/nodes/").and_then(|rest| rest.split('/').next());
                let node = node.filter(|node| !node.is_empty());
                node.ok_or((400, "X-Forwarded-Uri does not name the node".to_owned()))?.to_owned()
            }
            _ => return Err((404, format!("{} is not served", connect.url.path))),
        };
        self.routes.dial(&node).await.map_err(|error| (502, error.to_string()))
    }
}

/// The request with `Connection: close`, unless it is to be upgraded.
fn closing(head: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(head);
    let Some((first, rest)) = text.split_once("\r\n") else { return head.to_vec() };
    let is_connection = |line: &str| {
        line.split_once(':').is_some_and(|(name, _)| name.trim().eq_ignore_ascii_case("connection"))
    };
    if rest.lines().any(|line| is_connection(line) && line.to_ascii_lowercase().contains("upgrade")) {
        return head.to_vec();
    }
    let kept: String = rest.split_inclusive("\r\n").filter(|line| !is_connection(line)).collect();
    format!("{first}\r\nConnection: close\r\n{kept}").into_bytes()
}
