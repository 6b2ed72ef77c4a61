//! Certificate, key and CA of one end in one file, so that a power cut never leaves a certificate without its key.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    CertInfo, Fit, Key, PkiError,
    ca::Ca,
    format_utc,
    limits::{CAS_MAX, PEM_LEN_MAX},
    pem::{CERTIFICATE, pem_decode, pem_encode},
};

#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("{path} does not exist; this node has not joined a cloud yet")]
    Missing { path: PathBuf },
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is damaged; restore {path}.previous, or remove it and join again")]
    Damaged {
        path: PathBuf,
        #[source]
        source: PkiError,
    },
    #[error(
        "{path}: the key does not belong to the certificate; restore {path}.previous, or remove it and join again"
    )]
    KeyMismatch { path: PathBuf },
    #[error("the certificate cannot be used; join again")]
    Malformed(#[source] PkiError),
    #[error("the certificate is for {found:?}, not for {expected:?}; join again under this name")]
    WrongName { expected: String, found: String },
    #[error("the certificate expired at {}; join again with a new token", format_utc(*.not_after))]
    Expired { not_after: u64 },
    #[error("the certificate is valid from {}, the clock says {}; set the clock or wait for a time server", format_utc(*.not_before), format_utc(*.now))]
    NotYetValid { not_before: u64, now: u64 },
    #[error(transparent)]
    Write(rt::FileError),
}

/// All DER; one certificate, no intermediates (a stock cloudcore accepts none).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    pub cert_der: Vec<u8>,
    pub key: Key,
    /// The CA that signs now.
    pub ca_der: Vec<u8>,
    /// CAs that are trusted beside it while one takes the place of another.
    pub more_cas: Vec<Vec<u8>>,
}

impl Bundle {
    /// With one CA.
    pub fn new(cert_der: Vec<u8>, key: Key, ca_der: Vec<u8>) -> Bundle {
        Bundle { cert_der, key, ca_der, more_cas: Vec::new() }
    }

    /// The CAs whose servers are trusted.
    pub fn cas(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(self.ca_der.as_slice()).chain(self.more_cas.iter().map(Vec::as_slice))
    }

    /// PEM in the order certificate, key, CAs.
    pub fn to_pem(&self) -> String {
        let mut text = pem_encode(CERTIFICATE, &self.cert_der);
        text.push_str(&self.key.to_pem());
        self.cas().for_each(|ca| text.push_str(&pem_encode(CERTIFICATE, ca)));
        text
    }

    pub fn from_pem(text: &str) -> Result<Bundle, PkiError> {
        let key = Key::from_pem(text)?;
        let blocks = pem_decode(text)?.into_iter();
        let mut certificates = blocks.filter(|(label, _)| label == CERTIFICATE).map(|(_, der)| der);
        let first = certificates.next().zip(certificates.next());
        let more_cas: Vec<Vec<u8>> = certificates.collect();
        match first {
            Some((cert_der, ca_der)) if more_cas.len() < CAS_MAX => {
                Ok(Bundle { cert_der, key, ca_der, more_cas })
            }
            _ => Err(PkiError::Malformed {
                what: "the certificate bundle",
                reason: "it must have the certificate itself and those of one to four CAs",
            }),
        }
    }

    /// Reads a bundle and checks that its parts belong together. Times and name: [`Bundle::check`].
    pub fn load(path: &Path) -> Result<Bundle, BundleError> {
        let damaged = |source| BundleError::Damaged { path: path.to_owned(), source };
        let text = match fs::metadata(path).map(|metadata| metadata.len()) {
            Ok(len) if len > PEM_LEN_MAX as u64 => {
                return Err(damaged(PkiError::Malformed {
                    what: "the certificate bundle",
                    reason: "it is too long",
                }));
            }
            Ok(_) => fs::read_to_string(path),
            Err(error) => Err(error),
        };
        let text = text.map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => BundleError::Missing { path: path.to_owned() },
            std::io::ErrorKind::InvalidData => {
                damaged(PkiError::Malformed { what: "the certificate bundle", reason: "it is not text" })
            }
            _ => BundleError::Read { path: path.to_owned(), source },
        })?;
        let bundle = Bundle::from_pem(&text).map_err(damaged)?;
        bundle.cas().try_for_each(|ca| CertInfo::parse(ca).map(|_| ())).map_err(damaged)?;
        match CertInfo::parse(&bundle.cert_der).map_err(damaged)?.has_key(&bundle.key) {
            true => Ok(bundle),
            false => Err(BundleError::KeyMismatch { path: path.to_owned() }),
        }
    }

    /// Replaces the file atomically (mode 0600); what was there before is kept as `<path>.previous`.
    pub fn store(&self, path: &Path) -> Result<(), BundleError> {
        // A second store of the same must not push the one before out.
        if let Ok(old) = fs::read(path)
            && old != self.to_pem().as_bytes()
        {
            rt::atomic_write_private(&previous(path), &old).map_err(BundleError::Write)?;
        }
        rt::atomic_write_private(path, self.to_pem().as_bytes()).map_err(BundleError::Write)
    }

    /// Whether it can be used now, under this common name.
    pub fn check(&self, common_name: &str, now: u64) -> Result<CertInfo, BundleError> {
        let info = CertInfo::parse(&self.cert_der).map_err(BundleError::Malformed)?;
        if info.subject.common_name != common_name {
            let (expected, found) = (common_name.to_owned(), info.subject.common_name);
            return Err(BundleError::WrongName { expected, found });
        }
        match info.validity.fit(now) {
            Fit::Valid => Ok(info),
            Fit::NotYet { not_before } => Err(BundleError::NotYetValid { not_before, now }),
            Fit::Expired { not_after } => Err(BundleError::Expired { not_after }),
        }
    }
}

/// Where the bundle before the last change is.
pub fn previous(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".previous");
    name.into()
}

impl Ca {
    /// Certificate and key as PEM, for a file.
    pub fn to_pem(&self) -> String {
        let mut text = self.cert_pem();
        text.push_str(&self.key().to_pem());
        text
    }

    pub fn from_pem(text: &str) -> Result<Ca, PkiError> {
        let key = Key::from_pem(text)?;
        let cert = pem_decode(text)?.into_iter().find(|(label, _)| label == CERTIFICATE);
        let (_, cert_der) =
            cert.ok_or(PkiError::Malformed { what: "the CA", reason: "there is no certificate" })?;
        Ca::new(cert_der, key)
    }
}
