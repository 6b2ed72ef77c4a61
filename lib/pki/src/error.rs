/// Why keys and certificates cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("{what} is malformed: {reason}")]
    Malformed { what: &'static str, reason: &'static str },
    #[error(
        "{what} is not an ECDSA P-256 key; make a new one with `openssl ecparam -name prime256v1 -genkey`"
    )]
    NotP256 { what: &'static str },
    #[error("the certificate signing request is not signed with its own key")]
    CsrSignature,
    #[error("{name:?} is not a node name; use lower-case letters, digits, `-` and `.`, at most 253")]
    NodeName { name: String },
    #[error("certificate and key do not belong together")]
    KeyMismatch,
    #[error("the system's random number generator failed")]
    Random,
    #[error("TLS cannot be set up with these certificates")]
    Tls(#[source] rustls::Error),
}
