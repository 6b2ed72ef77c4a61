//! rustls settings of both ends. The provider is ring's, handed in explicitly; TLS 1.3 and, for stock peers, 1.2.

use std::sync::Arc;

use rustls::{
    CertificateError, CipherSuite, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore,
    ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, PrivateSec1KeyDer, ServerName, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use crate::{CertInfo, Identity, Key, PkiError};

/// Whether a server asks its clients for a certificate.
#[derive(Clone, Copy, Debug)]
pub enum ClientAuth<'a> {
    None,
    /// A client may have one; if it shows one, it must be of this CA (DER).
    Requested(&'a [u8]),
    Required(&'a [u8]),
}

/// ring's algorithms, ChaCha20 first where the processor has no AES instructions (Raspberry Pi up to 4).
pub fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    if !has_aes() {
        let chacha = |suite: CipherSuite| format!("{suite:?}").contains("CHACHA20");
        provider.cipher_suites.sort_by_key(|suite| !chacha(suite.suite()));
    }
    Arc::new(provider)
}

fn has_aes() -> bool {
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(not(any(target_arch = "aarch64", target_arch = "x86_64")))]
    return false;
}

/// A server with one certificate. Set `alpn_protocols` on the result where needed.
pub fn server_config(cert_der: &[u8], key: &Key, clients: ClientAuth<'_>) -> Result<ServerConfig, PkiError> {
    let provider = provider();
    let verifier = |ca: &[u8]| {
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider.clone());
        Ok::<_, PkiError>(builder)
    };
    let failed = |_| PkiError::Malformed { what: "the client CA", reason: "it has no usable certificate" };
    let clients: Arc<dyn ClientCertVerifier> = match clients {
        ClientAuth::None => WebPkiClientVerifier::no_client_auth(),
        ClientAuth::Requested(ca) => verifier(ca)?.allow_unauthenticated().build().map_err(failed)?,
        ClientAuth::Required(ca) => verifier(ca)?.build().map_err(failed)?,
    };
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(PkiError::Tls)?.with_client_cert_verifier(clients);
    config.with_single_cert(chain(cert_der), private(key)).map_err(PkiError::Tls)
}

/// What a server of nodes shows and whom it takes. All DER.
#[derive(Clone, Copy, Debug)]
pub struct Clients<'a> {
    /// Certificates of these CAs.
    pub cas: &'a [&'a [u8]],
    /// Without a certificate there is no connection.
    pub required: bool,
    /// A certificate that is good but for its age is let through. The caller must look at its times and decide what such a peer
    /// may do.
    pub admit_expired: bool,
}

/// A server with a chain: its own certificate first, then what leads to CAs that older clients trust.
pub fn chain_server_config(
    chain: &[Vec<u8>],
    key: &Key,
    clients: Clients<'_>,
) -> Result<ServerConfig, PkiError> {
    let provider = provider();
    let builder = WebPkiClientVerifier::builder_with_provider(
        Arc::new(all_roots(clients.cas.iter().copied())?),
        provider.clone(),
    );
    let builder = if clients.required { builder } else { builder.allow_unauthenticated() };
    let failed = |_| PkiError::Malformed { what: "the client CA", reason: "it has no usable certificate" };
    let verifier = builder.build().map_err(failed)?;
    let verifier = if clients.admit_expired { Arc::new(ExpiredToo(verifier)) } else { verifier };
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(PkiError::Tls)?.with_client_cert_verifier(verifier);
    let chain = chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let mut config = config.with_single_cert(chain, private(key)).map_err(PkiError::Tls)?;
    // Nodes resume no sessions, and a resumed one would not ask again for a certificate that may have been revoked.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(config)
}

/// A client that trusts only servers of this CA (DER), and shows a certificate if it has one.
pub fn client_config(ca_der: &[u8], identity: Option<(&[u8], &Key)>) -> Result<ClientConfig, PkiError> {
    client_config_of([ca_der].into_iter(), identity)
}

/// As [`client_config`], with several CAs.
pub fn client_config_of<'a>(
    cas: impl Iterator<Item = &'a [u8]>,
    identity: Option<(&[u8], &Key)>,
) -> Result<ClientConfig, PkiError> {
    let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let config = config.map_err(PkiError::Tls)?.with_root_certificates(all_roots(cas)?);
    match identity {
        Some((cert_der, key)) => {
            config.with_client_auth_cert(chain(cert_der), private(key)).map_err(PkiError::Tls)
        }
        None => Ok(config.with_no_client_auth()),
    }
}

/// Only for fetching `/ca.crt`, when the CA is not known yet: any server is talked to, so nothing secret may be sent, and
/// what comes back must be checked with `JoinToken::check_ca` before it is used. (A stock cloudcore does not send its CA in the
/// handshake, so it cannot be checked earlier.)
pub fn first_contact() -> Result<ClientConfig, PkiError> {
    let provider = provider();
    let config = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let config = config.map_err(PkiError::Tls)?.dangerous();
    Ok(config.with_custom_certificate_verifier(Arc::new(AnyServer(provider))).with_no_client_auth())
}

/// For HTTPS probes and hooks of a node's own pods: whoever answers is talked to. A kubelet does the same (the documentation of
/// probes: "the kubelet sends an HTTPS request skipping the certificate verification"), since a container's certificate is for the
/// name of a service and what is asked is an address.
pub fn for_probes() -> Result<ClientConfig, PkiError> {
    first_contact()
}

/// Whom a peer's certificates (`peer_certificates()`) name. They were verified in the handshake.
pub fn peer_identity(certificates: Option<&[CertificateDer<'_>]>) -> Result<Option<Identity>, PkiError> {
    let first = certificates.and_then(|certificates| certificates.first());
    first.map(|first| CertInfo::parse(first).map(|info| info.subject)).transpose()
}

fn roots(ca_der: &[u8]) -> Result<RootCertStore, PkiError> {
    all_roots([ca_der].into_iter())
}

fn all_roots<'a>(cas: impl Iterator<Item = &'a [u8]>) -> Result<RootCertStore, PkiError> {
    let mut roots = RootCertStore::empty();
    for ca in cas {
        roots.add(CertificateDer::from(ca.to_vec())).map_err(PkiError::Tls)?;
    }
    Ok(roots)
}

fn chain(cert_der: &[u8]) -> Vec<CertificateDer<'static>> {
    vec![CertificateDer::from(cert_der.to_vec())]
}

fn private(key: &Key) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Sec1(PrivateSec1KeyDer::from(key.to_sec1()))
}

/// Judges an expired certificate as of its last second; everything else is the inner verifier's.
#[derive(Debug)]
struct ExpiredToo(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for ExpiredToo {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.0.verify_client_cert(certificate, intermediates, now);
        let is_expired = matches!(
            verified,
            Err(rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. }
            ))
        );
        match CertInfo::parse(certificate).ok().map(|info| info.validity.not_after) {
            Some(end) if is_expired && end < now.as_secs() => {
                let then = UnixTime::since_unix_epoch(std::time::Duration::from_secs(end));
                self.0.verify_client_cert(certificate, intermediates, then)
            }
            _ => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        None
    }
}
