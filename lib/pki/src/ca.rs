//! A certificate authority: the cloud has one for its nodes and another one for API clients.

use std::net::IpAddr;

use ring::rand::{SecureRandom, SystemRandom};

use crate::{
    CertInfo, Csr, Identity, Key, PkiError, Validity,
    limits::{CA_DAYS, CAS_MAX, NODE_CERT_DAYS, NODE_NAME_LEN_MAX, SERVER_LEFT_DAYS_MIN},
    pem::{CERTIFICATE, pem_decode, pem_encode},
    sha256_hex,
    x509::{IssuerName, NewCert, new_certificate},
};

/// What a server is reached by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub ips: Vec<IpAddr>,
    pub dns_names: Vec<String>,
}

impl Names {
    /// Each text is an address or a host name; ports are not stripped.
    pub fn new<'a>(texts: impl IntoIterator<Item = &'a str>) -> Names {
        let mut names = Names::default();
        for text in texts {
            match text.parse() {
                Ok(ip) if !names.ips.contains(&ip) => names.ips.push(ip),
                Ok(_) => {}
                Err(_) if names.dns_names.iter().all(|name| name != text) => {
                    names.dns_names.push(text.to_owned())
                }
                Err(_) => {}
            }
        }
        names
    }
}

#[derive(Clone, Debug)]
pub struct Ca {
    key: Key,
    cert_der: Vec<u8>,
    info: CertInfo,
}

impl Ca {
    /// KubeEdge's own is named `KubeEdge`.
    pub fn create(common_name: &str, now: u64) -> Result<Ca, PkiError> {
        Ca::create_with(common_name, Key::generate()?, now)
    }

    fn create_with(common_name: &str, key: Key, now: u64) -> Result<Ca, PkiError> {
        let cert = NewCert {
            serial: &1024u16.to_be_bytes(),
            subject: &Identity::new(common_name, &[]),
            spki_der: &key.public_der(),
            validity: Validity::days(now, CA_DAYS),
            is_ca: true,
            server: true,
            client: true,
            ips: &[],
            dns_names: &[],
        };
        let cert_der = new_certificate(&cert, None, &key)?;
        Ca::new(cert_der, key)
    }

    /// The CA that is to take this one's place. Its name differs, so that nobody has to try which of the two signed.
    pub fn create_successor(&self, now: u64) -> Result<Ca, PkiError> {
        let key = Key::generate()?;
        let mark = &sha256_hex(&key.public_der())[..8];
        let name = self.info.subject.common_name.split(' ').next().unwrap_or_default();
        Ca::create_with(&format!("{name} {mark}"), key, now)
    }

    /// A certificate of `other`, signed by this CA: with it, who trusts only this CA accepts what `other` signs. It ends with
    /// this CA.
    pub fn cross_sign(&self, other: &Ca, now: u64) -> Result<Vec<u8>, PkiError> {
        let Validity { not_before, not_after } = Validity::days(now, CA_DAYS);
        self.issue(&NewCert {
            serial: &serial()?,
            subject: &other.info.subject,
            spki_der: &other.info.spki_der,
            validity: Validity { not_before, not_after: not_after.min(self.info.validity.not_after) },
            is_ca: true,
            server: true,
            client: true,
            ips: &[],
            dns_names: &[],
        })
    }

    /// An existing one from a Secret: certificate and key as DER (KubeEdge's form) or PEM.
    pub fn from_secret(certificate: &[u8], key: &[u8]) -> Result<Ca, PkiError> {
        Ca::new(certificate_from_secret(certificate)?, Key::from_secret(key)?)
    }

    /// An existing one, for example from KubeEdge's Secret `casecret` (`cadata` and, as SEC1, `cakeydata`).
    pub fn new(cert_der: Vec<u8>, key: Key) -> Result<Ca, PkiError> {
        let info = CertInfo::parse(&cert_der)?;
        match info.has_key(&key) {
            true => Ok(Ca { key, cert_der, info }),
            false => Err(PkiError::KeyMismatch),
        }
    }

    pub fn cert_der(&self) -> &[u8] {
        &self.cert_der
    }

    pub fn cert_pem(&self) -> String {
        pem_encode(CERTIFICATE, &self.cert_der)
    }

    pub fn info(&self) -> &CertInfo {
        &self.info
    }

    pub fn key(&self) -> &Key {
        &self.key
    }

    /// How join tokens name this CA.
    pub fn hash(&self) -> String {
        sha256_hex(&self.cert_der)
    }

    /// A server certificate, named as KubeEdge's.
    pub fn issue_server(&self, key: &Key, names: &Names, now: u64) -> Result<Vec<u8>, PkiError> {
        self.issue(&NewCert {
            serial: &serial()?,
            subject: &Identity::new("KubeEdge", &["KubeEdge"]),
            spki_der: &key.public_der(),
            validity: Validity::days(now, CA_DAYS - 1),
            is_ca: false,
            server: true,
            client: false,
            ips: &names.ips,
            dns_names: &names.dns_names,
        })
    }

    /// Whether a stored server certificate can go on: ours, for this key, with all these names, and not about to expire.
    pub fn server_fits(&self, cert_der: &[u8], key: &Key, names: &Names, now: u64) -> bool {
        CertInfo::parse(cert_der).is_ok_and(|info| {
            info.names_issuer(&self.info)
                && info.has_key(key)
                && names.ips.iter().all(|ip| info.ips.contains(ip))
                && names.dns_names.iter().all(|name| info.dns_names.contains(name))
                && info.validity.not_before <= now
                && info.validity.not_after > now + SERVER_LEFT_DAYS_MIN * 86_400
        })
    }

    /// A node's client certificate, as long as KubeEdge's usual one. Only the public key is taken from the request.
    pub fn issue_node(&self, csr: &Csr, node: &str, now: u64) -> Result<Vec<u8>, PkiError> {
        self.issue_node_for(csr, node, Validity::days(now, NODE_CERT_DAYS))
    }

    /// As [`Ca::issue_node`], with the times given.
    pub fn issue_node_for(&self, csr: &Csr, node: &str, validity: Validity) -> Result<Vec<u8>, PkiError> {
        check_node_name(node)?;
        self.issue_client_for(&csr.spki_der, &Identity::node(node), validity)
    }

    /// A client certificate for a user of the API; its organizations are the user's groups.
    pub fn issue_client(
        &self,
        key: &Key,
        user: &str,
        groups: &[&str],
        days: u64,
        now: u64,
    ) -> Result<Vec<u8>, PkiError> {
        self.issue_client_for(&key.public_der(), &Identity::new(user, groups), Validity::days(now, days))
    }

    fn issue_client_for(
        &self,
        spki_der: &[u8],
        subject: &Identity,
        validity: Validity,
    ) -> Result<Vec<u8>, PkiError> {
        self.issue(&NewCert {
            serial: &serial()?,
            subject,
            spki_der,
            validity,
            is_ca: false,
            server: false,
            client: true,
            ips: &[],
            dns_names: &[],
        })
    }

    /// Any certificate. The other functions say what nodes, servers and users get; who calls this decides that itself.
    pub fn issue(&self, cert: &NewCert<'_>) -> Result<Vec<u8>, PkiError> {
        let issuer = IssuerName { name_der: &self.info.subject_der, key_id: self.info.key_id.as_deref() };
        new_certificate(cert, Some(&issuer), &self.key)
    }
}

/// A certificate as a Secret holds it: DER (KubeEdge's form) or PEM.
pub fn certificate_from_secret(bytes: &[u8]) -> Result<Vec<u8>, PkiError> {
    match std::str::from_utf8(bytes).ok().filter(|text| text.contains("-----BEGIN")) {
        Some(text) => cas_from_pem(text).map(|mut all| all.swap_remove(0)),
        None => CertInfo::parse(bytes).map(|_| bytes.to_vec()),
    }
}

/// The certificates of a PEM text, in order: at least one, at most [`CAS_MAX`], each of them readable.
pub fn cas_from_pem(text: &str) -> Result<Vec<Vec<u8>>, PkiError> {
    let malformed = |reason| PkiError::Malformed { what: "the list of CAs", reason };
    let blocks = pem_decode(text)?.into_iter().filter(|(label, _)| label == CERTIFICATE);
    let found: Vec<Vec<u8>> = blocks.map(|(_, der)| der).collect();
    match found.len() {
        0 => return Err(malformed("there is no certificate in it")),
        1..=CAS_MAX => {}
        _ => return Err(malformed("it has too many certificates")),
    }
    found.iter().try_for_each(|der| CertInfo::parse(der).map(|_| ()))?;
    Ok(found)
}

/// Fuzz entry: any bytes are a CA, a list of CAs or an error.
pub fn fuzz_cas(data: &[u8]) {
    let split = data.first().map_or(0, |at| usize::from(*at).min(data.len()));
    let _ = Ca::from_secret(&data[..split], &data[split..]);
    let _ = certificate_from_secret(data);
    let _ = cas_from_pem(&String::from_utf8_lossy(data));
}

/// Names that are safe in paths, topics and certificates: Kubernetes' rule for node names.
pub(crate) fn check_node_name(name: &str) -> Result<(), PkiError> {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let good = name.len() <= NODE_NAME_LEN_MAX
        && edge(name.chars().next())
        && edge(name.chars().last())
        && name.chars().all(|c| edge(Some(c)) || c == '-' || c == '.');
    match good {
        true => Ok(()),
        false => Err(PkiError::NodeName { name: name.chars().take(NODE_NAME_LEN_MAX).collect() }),
    }
}

fn serial() -> Result<[u8; 16], PkiError> {
    let mut serial = [0; 16];
    SystemRandom::new().fill(&mut serial).map_err(|_| PkiError::Random)?;
    // Positive and of full length.
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}
