//! Keys, certificates, join tokens and TLS settings of both ends, compatible with KubeEdge's.
//!
//! Not here: sockets, HTTP, who may do what. All keys are ECDSA P-256, all signatures SHA-256; randomness and arithmetic are
//! ring's, verification of peers is rustls' webpki. What we write ourselves is only the DER around them (`der`, `x509`;
//! why: docs/decisions/certificates.md).
//!
//! Invariants
//! - A node's certificate takes only the public key from the request; subject and usages are written here.
//! - An expired client certificate is let through only by a server that asks for it ([`tls::Clients::admit_expired`]).
//! - Verification of a peer is never off, with two exceptions: [`tls::first_contact`], for a file that is then checked against
//!   the token's hash, and [`tls::for_probes`], which only asks a pod on this node whether it answers.
//! - Times are Unix seconds and handed in; nothing here reads a clock.
//!
//! Start at [`Ca`] (cloud), [`JoinToken`] (both), [`Bundle`] (edge), [`tls`].

mod bundle;
mod ca;
mod der;
mod error;
mod jwt;
mod key;
pub mod limits;
mod pem;
mod time;
pub mod tls;
mod token;
mod x509;

pub use bundle::{Bundle, BundleError, previous};
pub use ca::{Ca, Names, cas_from_pem, certificate_from_secret, fuzz_cas};
pub use error::PkiError;
pub use jwt::{sign_es256, verify_es256};
pub use key::Key;
pub use pem::{pem_decode, pem_encode};
pub use time::{Fit, Validity, format_utc};
pub use token::{Claims, JoinToken, NewToken, TokenError, issue_plain_token, issue_token, verify_bearer};
pub use x509::{CertInfo, Csr, Identity, NewCert, fuzz_certificate, fuzz_csr, new_csr};

/// Where the join port tells a node all CAs that it may trust (PEM, the one that signs first). The answer is as trustworthy as the
/// server's certificate, so that a change of the CA reaches every node that trusts the one before.
pub const TRUST_PATH: &str = "/kinglet/ca.pem";

/// Request header of `GET /ca.crt`: the hash in the token. While two CAs are trusted, the one of the token is given.
pub const CA_HASH_HEADER: &str = "Kinglet-Ca-Hash";

/// SHA-256 in lower-case hex: how KubeEdge's tokens name a CA.
pub fn sha256_hex(data: &[u8]) -> String {
    hex::encode(ring::digest::digest(&ring::digest::SHA256, data))
}
