//! Join tokens: KubeEdge's form `<sha256 of the CA>.<JWT>`, with claims of our own that a stock peer ignores.

use serde::{Deserialize, Serialize};

use crate::{
    Ca, PkiError,
    ca::check_node_name,
    format_utc,
    jwt::{self, JwtError},
    limits::TOKEN_LEN_MAX,
    sha256_hex,
};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the join token is malformed ({reason}); copy the whole line that `cloudcore token` printed")]
    Malformed { reason: &'static str },
    #[error(
        "the join token is for another cloud: it names a CA with hash {expected}, but this cloud's CA has {found}; \
         check the address, or make a new token with `cloudcore token` on this cloud"
    )]
    WrongCa { expected: String, found: String },
    #[error("the join token is not signed by this cloud; make a new one with `cloudcore token`")]
    BadSignature,
    #[error("the join token expired at {}; make a new one with `cloudcore token`", format_utc(*.expired_at))]
    Expired { expired_at: u64 },
    #[error(
        "the join token is for node {expected}, not for {found}; make one for this node with `cloudcore token --node {found}`"
    )]
    WrongNode { expected: String, found: String },
}

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Unix seconds.
    pub exp: u64,
    /// Names the token where its uses are counted. Absent in tokens of a stock cloudcore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jti: Option<String>,
    /// The only node it is good for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// A token as it is handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewToken {
    pub text: String,
    pub claims: Claims,
}

/// Makes a token: `ttl_s` seconds from `now`, for any node or for one.
pub fn issue_token(ca: &Ca, ttl_s: u64, node: Option<&str>, now: u64) -> Result<NewToken, PkiError> {
    node.map_or(Ok(()), check_node_name)?;
    let mut id = [0; 12];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut id)
        .map_err(|_| PkiError::Random)?;
    sign(
        ca,
        Claims { exp: now.saturating_add(ttl_s), jti: Some(hex::encode(id)), node: node.map(str::to_owned) },
    )
}

/// A token as KubeEdge keeps it in its Secret `tokensecret`: for any node, uses are not counted.
pub fn issue_plain_token(ca: &Ca, ttl_s: u64, now: u64) -> Result<NewToken, PkiError> {
    sign(ca, Claims { exp: now.saturating_add(ttl_s), jti: None, node: None })
}

fn sign(ca: &Ca, claims: Claims) -> Result<NewToken, PkiError> {
    let json = serde_json::to_vec(&claims).expect("claims are plain texts and numbers");
    let text = format!("{}.{}", ca.hash(), jwt::sign_hs256(&ca.key().to_sec1(), &json));
    Ok(NewToken { text, claims })
}

/// Checks the bearer (the JWT part) that a node presents. The caller counts uses by `jti`.
pub fn verify_bearer(ca: &Ca, bearer: &str, node: &str, now: u64) -> Result<Claims, TokenError> {
    let malformed = |reason| TokenError::Malformed { reason };
    if bearer.len() > TOKEN_LEN_MAX {
        return Err(malformed("it is too long"));
    }
    let claims = jwt::verify_hs256(&ca.key().to_sec1(), bearer).map_err(|error| match error {
        JwtError::Malformed => malformed("it is not a signed token"),
        JwtError::Signature => TokenError::BadSignature,
    })?;
    let claims: Claims =
        serde_json::from_slice(&claims).map_err(|_| malformed("it does not say when it expires"))?;
    if now > claims.exp {
        return Err(TokenError::Expired { expired_at: claims.exp });
    }
    match &claims.node {
        Some(expected) if expected != node => {
            Err(TokenError::WrongNode { expected: expected.clone(), found: node.to_owned() })
        }
        _ => Ok(claims),
    }
}

/// A token as a node got it. Its signature can be checked only by the cloud.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinToken {
    ca_hash: String,
    bearer: String,
}

impl std::str::FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<JoinToken, TokenError> {
        let malformed = |reason| TokenError::Malformed { reason };
        let text = text.trim();
        if text.len() > TOKEN_LEN_MAX {
            return Err(malformed("it is too long"));
        }
        let parts: Vec<&str> = text.split('.').collect();
        let &[hash, header, claims, signature] = &parts[..] else {
            return Err(malformed("it must have four parts with dots between them"));
        };
        if hash.len() != 64 || !hash.bytes().all(|c| c.is_ascii_hexdigit()) {
            return Err(malformed("its first part must be 64 hex digits"));
        }
        let plain = |part: &str| {
            !part.is_empty() && part.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_'))
        };
        if ![header, claims, signature].into_iter().all(plain) {
            return Err(malformed("a part is empty or has characters that do not belong there"));
        }
        Ok(JoinToken { ca_hash: hash.to_ascii_lowercase(), bearer: format!("{header}.{claims}.{signature}") })
    }
}

impl JoinToken {
    /// Whether a downloaded CA (DER) is the one that the token names.
    pub fn check_ca(&self, ca_der: &[u8]) -> Result<(), TokenError> {
        let found = sha256_hex(ca_der);
        match found == self.ca_hash {
            true => Ok(()),
            false => Err(TokenError::WrongCa { expected: self.ca_hash.clone(), found }),
        }
    }

    pub fn ca_hash(&self) -> &str {
        &self.ca_hash
    }

    /// For the header `Authorization: Bearer ...`.
    pub fn bearer(&self) -> &str {
        &self.bearer
    }
}
