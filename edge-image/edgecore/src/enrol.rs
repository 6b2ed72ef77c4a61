//! The two requests of a join, and the one of a renewal: what a node says to the join port.

use std::sync::Arc;

use pki::{Bundle, CertInfo, Identity, JoinToken, Key, PkiError, TokenError};
use rustls::ClientConfig;
use wire::headers;

use crate::{
    credentials::{FloorClock, client_config, unix_now_s},
    https::{self, HttpError, Response},
};

#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    #[error("{0}")]
    Token(TokenError),
    #[error(
        "cannot reach the cloud's join port: {0}; check the address, --certport, and that cloudcore runs"
    )]
    Unreachable(HttpError),
    #[error("TLS with the join port failed: {0}")]
    Untrusted(String),
    #[error(
        "the cloud at {server} answered {status} to GET /ca.crt ({text}); is this the join port of a cloudcore?"
    )]
    NoCa { server: String, status: u16, text: String },
    #[error("the cloud refused node {node}: {reason}")]
    Refused { node: String, reason: String },
    #[error("the cloud's certificate for this node cannot be used: {0}")]
    Certificate(String),
    #[error("the node's key cannot be made: {0}")]
    Key(PkiError),
}

/// What a node has after it was admitted.
#[derive(Debug)]
pub struct Enrolled {
    pub bundle: Bundle,
    /// Empty where the cloud does not tell its identity.
    pub cloud_id: String,
}

/// Asks `server` (the join port) for its CA, compares it with the token, and has a new key certified.
pub async fn enrol(server: &str, node: &str, token: &JoinToken) -> Result<Enrolled, EnrolError> {
    let first = pki::tls::first_contact().map_err(EnrolError::Key)?;
    // A cloud that changes its CA has two; it gives the one that the token names.
    let wanted = [(pki::CA_HASH_HEADER, token.ca_hash())];
    let answer = https::get(server, "/ca.crt", &wanted, &[], first).await.map_err(EnrolError::Unreachable)?;
    if answer.status != 200 {
        return Err(EnrolError::NoCa { server: server.into(), status: answer.status, text: answer.text() });
    }
    token.check_ca(&answer.body).map_err(EnrolError::Token)?;
    let ca = CertInfo::parse(&answer.body).map_err(|error| EnrolError::Certificate(error.to_string()))?;

    let mut tls = pki::tls::client_config(&answer.body, None).map_err(EnrolError::Key)?;
    // A board without a battery boots before the CA was made. The cloud's own clock then says what time it is; it can only
    // move ours forward, so that it cannot make an expired certificate good.
    let told = answer.header("date").and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
    let told = told.and_then(|date| u64::try_from(date.timestamp().as_second()).ok()).unwrap_or(0);
    let floor_s = if unix_now_s() < ca.validity.not_before { told.max(ca.validity.not_before) } else { 0 };
    tls.time_provider = Arc::new(FloorClock { floor_s });

    let bearer = format!("Bearer {}", token.bearer());
    let key = Key::generate().map_err(EnrolError::Key)?;
    let auth = [("NodeName", node), ("Authorization", &bearer)];
    let (cert_der, certified) = certify(server, node, &auth, &key, tls).await?;
    let bundle = Bundle::new(cert_der, key, answer.body.clone());
    let header = |response: &Response| response.header(headers::CLOUD_ID).unwrap_or_default().to_owned();
    let cloud_id = Some(header(&certified)).filter(|id| !id.is_empty()).unwrap_or_else(|| header(&answer));
    Ok(Enrolled { bundle, cloud_id })
}

/// The same request with the current certificate in place of a token. `key`: the old or a new one.
pub async fn renew(server: &str, node: &str, current: &Bundle, key: Key) -> Result<Bundle, EnrolError> {
    let tls = client_config(current).map_err(EnrolError::Key)?;
    let (cert_der, _) = certify(server, node, &[("NodeName", node)], &key, tls).await?;
    Ok(Bundle { cert_der, key, ..current.clone() })
}

/// All CAs that the cloud has, the one that signs first; `None` when it does not tell (a stock cloudcore). It is believed
/// because its server certificate is of a CA that this node trusts already.
pub async fn fetch_trust(server: &str, current: &Bundle) -> Result<Option<Vec<Vec<u8>>>, EnrolError> {
    let tls = client_config(current).map_err(EnrolError::Key)?;
    let answer = https::get(server, pki::TRUST_PATH, &[], &[], tls).await.map_err(failed)?;
    if answer.status != 200 {
        return Ok(None);
    }
    let unusable = |error: PkiError| EnrolError::Certificate(rt::error_chain(&error));
    pki::cas_from_pem(&String::from_utf8_lossy(&answer.body)).map(Some).map_err(unusable)
}

fn failed(error: HttpError) -> EnrolError {
    match error {
        HttpError::Tls { reason, .. } => EnrolError::Untrusted(reason),
        other => EnrolError::Unreachable(other),
    }
}

async fn certify(
    server: &str,
    node: &str,
    headers: &[(&str, &str)],
    key: &Key,
    tls: ClientConfig,
) -> Result<(Vec<u8>, Response), EnrolError> {
    let identity = Identity::node(node);
    let csr = pki::new_csr(key, &identity).map_err(EnrolError::Key)?;
    let answer = https::get(server, "/edge.crt", headers, &csr, tls).await.map_err(failed)?;
    if answer.status != 200 {
        let text = answer.text();
        let reason = if text.is_empty() { format!("HTTP status {}", answer.status) } else { text };
        return Err(EnrolError::Refused { node: node.into(), reason: with_remedy(reason) });
    }
    check(&answer.body, key, &identity).map_err(|reason| EnrolError::Certificate(reason.to_string()))?;
    Ok((answer.body.clone(), answer))
}

/// What we would not be let in with, or could not use, is refused here and not at the first dial.
fn check(cert_der: &[u8], key: &Key, identity: &Identity) -> Result<(), PkiError> {
    let info = CertInfo::parse(cert_der)?;
    if !info.has_key(key) {
        return Err(PkiError::KeyMismatch);
    }
    match info.subject.common_name == identity.common_name {
        true => Ok(()),
        false => Err(PkiError::Malformed { what: "the certificate", reason: "it is for another name" }),
    }
}

/// A stock cloud says what is wrong but not what to do.
fn with_remedy(reason: String) -> String {
    let lower = reason.to_lowercase();
    let has_remedy = ["cloudcore ", "make a new", "--edgenode-name"];
    if has_remedy.iter().any(|remedy| lower.contains(remedy)) {
        return reason;
    }
    let remedy = if lower.contains("expired") || lower.contains("token") {
        "make a new token with `cloudcore token`"
    } else if lower.contains("exist") || lower.contains("taken") {
        "choose another --edgenode-name, or release this one with `cloudcore node reset NAME`"
    } else {
        "look into the log of cloudcore"
    };
    format!("{reason}; {remedy}")
}
