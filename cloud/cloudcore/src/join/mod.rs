//! How a node gets in: HTTPS on port 10002, as KubeEdge's edge and keadm ask for it.
//!
//! `GET /ca.crt` (DER), `GET /edge.crt` (a certificate request as body, a join token or the current certificate as proof),
//! `GET /node/{name}`, reports on tasks ([`reports`]), and of our own [`pki::TRUST_PATH`]: all CAs that are trusted. Every refusal is one line that names what and the remedy: it is what a person sees at the edge.
//!
//! Invariants
//! - Subject and usage of a certificate are written here; only the public key is taken from the request.
//! - A name that has a certificate is given again only to the node itself, or by a token made for this name.
//! - An expired certificate is good for one thing: being renewed with the same key, while the grace lasts and the Node object is
//!   there. This port alone lets it in.
//! - What was decided is on disk before it is answered.

mod reports;
mod tokens;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use pki::{Claims, Csr};
use rt::{Drain, TaskGroup};
use tokio::net::{TcpListener, TcpStream};
use wire::headers::CLOUD_ID;

use crate::accept::accept;
use crate::api::Api;
use crate::authority::{Authority, Peer, PeerError, TlsPort, fingerprint, node_of_certificate};
use crate::cluster::views::Kind;
use crate::limits::{CSR_BYTES_MAX, JOIN_CONNECTION_TIME_MAX, JOIN_CONNECTIONS_MAX, REPORT_BYTES_MAX};
use crate::records::{NodeRecord, RecordError, Records, is_node_name};
use crate::refusals::RefusalLog;
use crate::revoke::{Joining, Revocations};

pub use reports::fuzz_report;
pub use tokens::{TokenError, Tokens};

pub struct Join {
    pub tls: TlsPort,
    pub authority: Arc<Authority>,
    pub tokens: Tokens,
    pub records: Records,
    pub api: Api,
    pub cloud_id: String,
    pub revocations: Revocations,
    pub refusals: RefusalLog,
    /// For so long after its end a certificate may still be renewed.
    pub expired_grace: Duration,
}

/// An answer that is not a certificate.
#[derive(Debug)]
struct Refusal(StatusCode, String);

impl Join {
    /// Answers until the drain.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, drain: Drain) {
        let group = TaskGroup::new("join connection", JOIN_CONNECTIONS_MAX, drain.clone());
        while let Some((stream, address)) = accept(&listener, &drain, "the join port").await {
            let (join, connection_drain) = (self.clone(), drain.clone());
            let connection = async move {
                let talk =
                    tokio::time::timeout(JOIN_CONNECTION_TIME_MAX, join.connection(stream, address.ip()));
                connection_drain.or(talk).await;
                Ok::<(), Infallible>(())
            };
            if let Err(error) = group.spawn(connection) {
                tracing::warn!("a connection to the join port was refused: {error}");
            }
        }
        group.wait(Duration::from_secs(2)).await;
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, address: IpAddr) {
        let tls = match self.tls.accept(stream).await {
            Ok(tls) => tls,
            Err(error) => {
                // Also what a scanner does; a node's certificate that is refused stands here too.
                let line = format!("TLS of {address} with the join port failed: {error}");
                return self.refusals.tell(&address.to_string(), &line);
            }
        };
        let certificates = tls.get_ref().1.peer_certificates().unwrap_or_default();
        let peer = Arc::new(certificates.first().map(|certificate| node_of_certificate(certificate)));
        let service = service_fn(move |request| {
            let (join, peer) = (self.clone(), peer.clone());
            async move { Ok::<_, Infallible>(join.answer(request, peer.as_ref().as_ref(), address).await) }
        });
        let served =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service).await;
        if let Err(error) = served {
            tracing::debug!("a join connection ended: {error}");
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        peer: Option<&Result<Peer, PeerError>>,
        address: IpAddr,
    ) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        let answered = match (request.method(), path.as_str()) {
            (&Method::GET, "/ca.crt") => Ok(self.ca(&request)),
            (&Method::GET, pki::TRUST_PATH) => Ok(self.authority.material().trust_pem().into()),
            (&Method::GET, "/edge.crt") => self.certificate(request, peer).await,
            (&Method::GET, path) if path.starts_with("/node/") => self.node(&path["/node/".len()..]).await,
            (&Method::POST, path) if reports::parse(path).is_some() => self.report(request, path, peer).await,
            (method, path) => Err(Refusal(
                StatusCode::NOT_FOUND,
                format!("cloudcore's join port does not serve {method} {path}"),
            )),
        };
        let mut response = match answered {
            Ok(body) => Response::new(Full::new(body)),
            Err(Refusal(status, reason)) => {
                let who = match peer {
                    Some(Ok(peer)) => peer.node.clone(),
                    _ => address.to_string(),
                };
                self.refusals.tell(&who, &format!("{path} refused to {who}: {reason}"));
                let mut response = Response::new(Full::new(Bytes::from(format!("{reason}\n"))));
                *response.status_mut() = status;
                response
            }
        };
        response.headers_mut().insert(CLOUD_ID, self.cloud_id.parse().expect("an identity is header text"));
        response
    }

    /// The CA that signs, or the one of the token that the node says it has.
    fn ca(&self, request: &Request<Incoming>) -> Bytes {
        let hash = request.headers().get(pki::CA_HASH_HEADER).and_then(|hash| hash.to_str().ok());
        Bytes::copy_from_slice(self.authority.material().by_hash(hash.unwrap_or_default()).cert_der())
    }

    /// KubeEdge's keadm joins only when this is 404. A Node object without a certificate was made beforehand and is taken over.
    async fn node(&self, name: &str) -> Result<Bytes, Refusal> {
        let record = self.records.node(name).await.map_err(|error| match error {
            RecordError::Name(_) => Refusal(StatusCode::BAD_REQUEST, error.to_string()),
            error => internal(name, &error),
        })?;
        match self.api.get(&Kind::Node.path("", name)).await {
            Ok(_) if record.has_certificate() => Ok(Bytes::from(format!("node {name} exists\n"))),
            Err(error) if !error.is_not_found() => {
                Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, error.line()))
            }
            _ => Err(Refusal(StatusCode::NOT_FOUND, format!("the name {name} is free"))),
        }
    }

    async fn report(
        &self,
        request: Request<Incoming>,
        path: &str,
        peer: Option<&Result<Peer, PeerError>>,
    ) -> Result<Bytes, Refusal> {
        let report = reports::parse(path).expect("it was told by its path");
        // An expired certificate, which this port lets in, is good for being renewed and nothing else.
        let peer =
            peer.and_then(|peer| peer.as_ref().ok()).filter(|peer| matches!(self.expired(peer), Ok(None)));
        peer.map_or(Ok(()), |peer| self.revocations.check(peer)).map_err(revoked)?;
        let body = Limited::new(request.into_body(), REPORT_BYTES_MAX).collect().await;
        let body = body.map_err(|_| {
            let reason = format!("the report is larger than {REPORT_BYTES_MAX} bytes or broke off");
            Refusal(StatusCode::PAYLOAD_TOO_LARGE, reason)
        })?;
        reports::take(&report, peer.map(|peer| peer.node.as_str()), &body.to_bytes())?;
        Ok(Bytes::from_static(b"ok"))
    }

    async fn certificate(
        &self,
        request: Request<Incoming>,
        peer: Option<&Result<Peer, PeerError>>,
    ) -> Result<Bytes, Refusal> {
        let text = |name: &str| {
            request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        let (node, authorization) = (text("NodeName"), text(header::AUTHORIZATION.as_str()));
        if !is_node_name(&node) {
            let reason = format!(
                "{node:?} is not a node name: use lower case letters, digits, '-' and '.' (--edgenode-name)"
            );
            return Err(Refusal(StatusCode::BAD_REQUEST, reason));
        }
        let body = Limited::new(request.into_body(), CSR_BYTES_MAX).collect().await;
        let body = body.map_err(|_| {
            let reason = format!("the certificate request is larger than {CSR_BYTES_MAX} bytes or broke off");
            Refusal(StatusCode::PAYLOAD_TOO_LARGE, reason)
        })?;
        let csr = Csr::parse(&body.to_bytes());
        let csr = || {
            csr.as_ref().map_err(|error| {
                let why = rt::error_chain(error);
                let reason = format!("the certificate request of node {node} cannot be signed: {why}");
                Refusal(StatusCode::BAD_REQUEST, reason)
            })
        };
        match peer {
            Some(Ok(peer)) => self.renew(&node, peer, csr()?).await,
            Some(Err(error)) => {
                let reason = format!(
                    "the certificate that came with the request cannot be used: {}; join again with a new token",
                    rt::error_chain(error)
                );
                Err(Refusal(StatusCode::FORBIDDEN, reason))
            }
            None => {
                let bearer = authorization.strip_prefix("Bearer ").unwrap_or_default();
                let claims = self
                    .tokens
                    .check(&self.authority.material(), bearer, &node, now_s())
                    .map_err(token_refused)?;
                self.admit(&node, &claims, csr()?).await
            }
        }
    }

    async fn renew(&self, node: &str, peer: &Peer, csr: &Csr) -> Result<Bytes, Refusal> {
        if peer.node != node {
            let reason =
                format!("the certificate is of node {}, which cannot ask for one of node {node}", peer.node);
            return Err(Refusal(StatusCode::FORBIDDEN, reason));
        }
        self.revocations.check(peer).map_err(revoked)?;
        if let Some(ended) = self.expired(peer)? {
            self.renew_expired(peer, csr, ended).await?;
        }
        let key = csr.key_hash();
        self.revocations.joining(node, &key, true).map_err(revoked)?;
        if self.revocations.has_entry(node) {
            self.readmit(node, &key).await?;
        }
        let (signed, ca) = self.sign(node, csr)?;
        let renewed = self.records.update(node, |record| {
            let valid = record.accepts(&peer.fingerprint);
            if valid {
                record.rotate(&peer.fingerprint, fingerprint(&signed));
                record.has_key(&peer.key);
                record.has_key(&key);
                record.signed_by.clone_from(&ca);
            }
            valid
        });
        if !renewed.await.map_err(|error| internal(node, &error))? {
            let reason = format!(
                "the certificate of node {node} was replaced or revoked; join again with a new token (`cloudcore token`)"
            );
            return Err(Refusal(StatusCode::UNAUTHORIZED, reason));
        }
        tracing::info!("node {node} has renewed its certificate");
        Ok(Bytes::from(signed))
    }

    /// When the certificate ended, if it did; a refusal when it is not valid yet.
    fn expired(&self, peer: &Peer) -> Result<Option<u64>, Refusal> {
        match peer.clone().current(now_s()) {
            Ok(_) => Ok(None),
            Err(PeerError::Expired { at, .. }) => Ok(Some(at)),
            Err(error) => Err(Refusal(StatusCode::FORBIDDEN, rt::error_chain(&error))),
        }
    }

    /// What an expired certificate must have beside what every other must: not too old, the same key, and a node that is still wanted.
    async fn renew_expired(&self, peer: &Peer, csr: &Csr, ended: u64) -> Result<(), Refusal> {
        let refused = |why: String| {
            let node = &peer.node;
            let reason = format!(
                "the certificate of node {node} expired at {}, and {why}; join again with a new token (`cloudcore token --node {node}`)",
                pki::format_utc(ended)
            );
            Refusal(StatusCode::UNAUTHORIZED, reason)
        };
        if now_s() > ended.saturating_add(self.expired_grace.as_secs()) {
            let days = self.expired_grace.as_secs() / 86_400;
            return Err(refused(format!(
                "that is longer ago than it may be renewed after ({days} days, kinglet.expiredGraceSeconds)"
            )));
        }
        if !peer.info.has_key_of(csr) {
            return Err(refused("only its own key can be certified again".into()));
        }
        match self.api.get(&Kind::Node.path("", &peer.node)).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Err(refused("its Node object was deleted".into())),
            Err(error) => Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, error.line())),
        }
    }

    async fn admit(&self, node: &str, claims: &Claims, csr: &Csr) -> Result<Bytes, Refusal> {
        let token_id = claims.jti.clone().unwrap_or_default();
        let made_for_node = claims.node.as_deref() == Some(node);
        let key = csr.key_hash();
        let joining = self.revocations.joining(node, &key, made_for_node).map_err(revoked)?;
        let (signed, ca) = self.sign(node, csr)?;
        let may_have = |record: &NodeRecord| made_for_node || !record.is_taken_for(&token_id);
        let mut admitted = may_have(&self.records.node(node).await.map_err(|error| internal(node, &error))?);
        if admitted {
            // Counted before it is given: a token never admits more nodes than it may.
            self.tokens.count_use(claims, node).await.map_err(token_refused)?;
            let update = self.records.update(node, |record| {
                let free = may_have(record);
                if free {
                    record.admit(fingerprint(&signed), &token_id);
                    record.has_key(&key);
                    record.signed_by.clone_from(&ca);
                    record.joined_under.clone_from(&ca);
                }
                free
            });
            admitted = update.await.map_err(|error| internal(node, &error))?;
        }
        if !admitted {
            let reason = format!(
                "the node name {node} is taken: a device with this name has a certificate. If this device replaces it, run \
                 `cloudcore node reset {node}` on the cloud and join again; else join under another name (--edgenode-name)"
            );
            return Err(Refusal(StatusCode::CONFLICT, reason));
        }
        if joining == Joining::Readmit {
            self.readmit(node, &key).await?;
        }
        tracing::info!("node {node} has joined");
        Ok(Bytes::from(signed))
    }

    async fn readmit(&self, node: &str, key: &str) -> Result<(), Refusal> {
        self.revocations.admit(node, key).await.map_err(|error| {
            let reason = format!(
                "the new key of node {node} cannot be recorded: {}; try again",
                rt::error_chain(&error)
            );
            Refusal(StatusCode::INTERNAL_SERVER_ERROR, reason)
        })
    }

    /// The certificate, and which CA signed it. The request must be for the name that is asked for; everything but its key is written
    /// anew all the same.
    fn sign(&self, node: &str, csr: &Csr) -> Result<(Vec<u8>, String), Refusal> {
        let (named, wanted) = (&csr.subject.common_name, pki::Identity::node(node).common_name);
        if *named != wanted {
            let reason = format!(
                "the certificate request of node {node} is for {named:?}; it must be for {wanted:?}, the name in NodeName"
            );
            return Err(Refusal(StatusCode::FORBIDDEN, reason));
        }
        let signed = self.authority.sign_node(csr, node, now_s()).map_err(|error| {
            let reason = format!(
                "the certificate request of node {node} cannot be signed: {}",
                rt::error_chain(&error)
            );
            Refusal(StatusCode::BAD_REQUEST, reason)
        })?;
        Ok((signed, self.authority.material().active.hash()))
    }
}

fn revoked(refusal: crate::revoke::Refusal) -> Refusal {
    let status = StatusCode::from_u16(refusal.status()).expect("a constant");
    Refusal(status, refusal.to_string())
}

fn token_refused(error: TokenError) -> Refusal {
    let status = match error.is_internal() {
        true => StatusCode::INTERNAL_SERVER_ERROR,
        false => StatusCode::UNAUTHORIZED,
    };
    Refusal(status, rt::error_chain(&error))
}

fn internal(node: &str, error: &RecordError) -> Refusal {
    let reason = format!(
        "node {node} cannot be recorded on the cloud: {}; look at cloudcore's disk, or at the cluster's API",
        rt::error_chain(error)
    );
    Refusal(StatusCode::INTERNAL_SERVER_ERROR, reason)
}

pub fn now_s() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0)
}
