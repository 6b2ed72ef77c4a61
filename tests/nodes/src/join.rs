//! Joining as a node does: the CA by its hash in the token, then a certificate for a key of one's own.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use pki::{Identity, JoinToken, Key};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

const ANSWER_LEN_MAX: u64 = 64 * 1024;

/// The join port, and the CA that the token names.
pub struct Authority {
    server: String,
    ca_der: Vec<u8>,
    bearer: String,
    tls: Arc<ClientConfig>,
}

impl Authority {
    pub async fn ask(server: &str, token: &str) -> Result<Authority> {
        let token: JoinToken = token.parse().map_err(|error| anyhow::anyhow!("{error}"))?;
        let first = Arc::new(pki::tls::first_contact()?);
        let ca_der = get(server, "/ca.crt", "", &[], first).await?;
        token.check_ca(&ca_der)?;
        let tls = Arc::new(pki::tls::client_config(&ca_der, None)?);
        let bearer = token.bearer().to_owned();
        Ok(Authority { server: server.into(), ca_der, bearer, tls })
    }

    /// The TLS of the node's link.
    pub async fn join(&self, node: &str) -> Result<Arc<ClientConfig>> {
        let key = Key::generate()?;
        let csr = pki::new_csr(&key, &Identity::node(node))?;
        let headers = format!("NodeName: {node}\r\nAuthorization: Bearer {}\r\n", self.bearer);
        let certificate = get(&self.server, "/edge.crt", &headers, &csr, self.tls.clone()).await?;
        Ok(Arc::new(pki::tls::client_config(&self.ca_der, Some((&certificate, &key)))?))
    }
}

pub fn host(server: &str) -> Result<ServerName<'static>> {
    let (host, _) = server.rsplit_once(':').with_context(|| format!("{server:?} is not HOST:PORT"))?;
    Ok(ServerName::try_from(host.to_owned())?)
}

/// One request on its own connection; the body of a 200.
async fn get(
    server: &str,
    path: &str,
    headers: &str,
    body: &[u8],
    tls: Arc<ClientConfig>,
) -> Result<Vec<u8>> {
    let tcp = TcpStream::connect(server).await.with_context(|| format!("connect to {server}"))?;
    let mut stream = TlsConnector::from(tls).connect(host(server)?, tcp).await?;
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_LEN_MAX).read_to_end(&mut answer).await?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").context("no HTTP answer")?;
    let body = answer.split_off(end + 4);
    let status = String::from_utf8_lossy(&answer[..end]).lines().next().unwrap_or_default().to_owned();
    ensure!(!body.is_empty(), "{server}{path}: {status}");
    if !status.contains(" 200 ") {
        bail!("{server}{path}: {status}: {}", String::from_utf8_lossy(&body).trim());
    }
    Ok(body)
}
