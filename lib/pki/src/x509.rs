//! Certificates and signing requests: the DER of them, read and written.

use std::net::IpAddr;

use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};

use crate::{
    Key, PkiError, Validity,
    der::{
        self, BIT_STRING, BOOLEAN, GENERALIZED_TIME, IA5_STRING, INTEGER, OCTET_STRING, OID,
        PRINTABLE_STRING, Reader, SEQUENCE, SET, UTC_TIME, UTF8_STRING,
    },
    key::public_point,
    limits::DER_LEN_MAX,
    sha256_hex, time,
};

const OID_CN: &[u8] = &[0x55, 0x04, 0x03];
const OID_O: &[u8] = &[0x55, 0x04, 0x0a];
const OID_SKI: &[u8] = &[0x55, 0x1d, 0x0e];
const OID_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const OID_SAN: &[u8] = &[0x55, 0x1d, 0x11];
const OID_BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
const OID_AKI: &[u8] = &[0x55, 0x1d, 0x23];
const OID_EKU: &[u8] = &[0x55, 0x1d, 0x25];
/// 1.2.840.10045.4.3.2, ecdsa-with-SHA256
const OID_ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
/// 1.3.6.1.5.5.7.3.1 and .2
const OID_SERVER_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
const OID_CLIENT_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02];

/// Whom a certificate names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub common_name: String,
    pub organizations: Vec<String>,
}

impl Identity {
    pub fn new(common_name: &str, organizations: &[&str]) -> Identity {
        let organizations = organizations.iter().map(|text| (*text).to_owned()).collect();
        Identity { common_name: common_name.to_owned(), organizations }
    }

    pub fn node(name: &str) -> Identity {
        Identity::new(&format!("system:node:{name}"), &["system:nodes"])
    }

    /// The node's name, if this is a node's identity.
    pub fn node_name(&self) -> Option<&str> {
        let name = self.common_name.strip_prefix("system:node:")?;
        (self.organizations.first().is_some_and(|first| first == "system:nodes") && !name.is_empty())
            .then_some(name)
    }
}

/// What a certificate says. Whether it can be trusted is decided elsewhere (`tls`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertInfo {
    pub subject: Identity,
    pub issuer: Identity,
    pub validity: Validity,
    pub ips: Vec<IpAddr>,
    pub dns_names: Vec<String>,
    pub is_ca: bool,
    pub(crate) subject_der: Vec<u8>,
    pub(crate) issuer_der: Vec<u8>,
    pub(crate) spki_der: Vec<u8>,
    pub(crate) key_id: Option<Vec<u8>>,
    pub(crate) issuer_key_id: Option<Vec<u8>>,
}

impl CertInfo {
    pub fn parse(cert_der: &[u8]) -> Result<CertInfo, PkiError> {
        parse_certificate(cert_der).map_err(|reason| PkiError::Malformed { what: "the certificate", reason })
    }

    pub fn has_key(&self, key: &Key) -> bool {
        self.spki_der == key.public_der()
    }

    /// The key of a request or of another certificate.
    pub fn has_key_of(&self, csr: &Csr) -> bool {
        self.spki_der == csr.spki_der
    }

    /// SHA-256 of the public key (SubjectPublicKeyInfo) in hex: it stays when the certificate is renewed with the same key.
    pub fn key_hash(&self) -> String {
        sha256_hex(&self.spki_der)
    }

    /// Whether that CA is named as the issuer: by name and, where both tell one, by key id. No proof, which is the signature.
    pub fn names_issuer(&self, ca: &CertInfo) -> bool {
        let ids = self.issuer_key_id.as_ref().zip(ca.key_id.as_ref());
        self.issuer_der == ca.subject_der && ids.is_none_or(|(named, own)| named == own)
    }
}

fn parse_certificate(cert_der: &[u8]) -> Result<CertInfo, &'static str> {
    if cert_der.len() > DER_LEN_MAX {
        return Err("it is too long");
    }
    let mut outer = Reader::new(cert_der);
    let mut certificate = outer.enter(SEQUENCE)?;
    outer.end()?;
    let mut tbs = certificate.enter(SEQUENCE)?;
    certificate.expect(SEQUENCE)?;
    certificate.expect(BIT_STRING)?;
    tbs.optional(der::context(0))?;
    tbs.expect(INTEGER)?;
    tbs.expect(SEQUENCE)?;
    let issuer = tbs.expect(SEQUENCE)?;
    let (issuer_der, issuer) = (issuer.raw.to_vec(), parse_name(issuer.content)?);
    let mut times = tbs.enter(SEQUENCE)?;
    let validity =
        Validity { not_before: time::decode(times.element()?)?, not_after: time::decode(times.element()?)? };
    let subject = tbs.expect(SEQUENCE)?;
    let spki_der = tbs.expect(SEQUENCE)?.raw.to_vec();
    tbs.optional(der::implicit(1))?;
    tbs.optional(der::implicit(2))?;
    let (subject_der, subject) = (subject.raw.to_vec(), parse_name(subject.content)?);
    let mut info = CertInfo {
        subject,
        issuer,
        validity,
        ips: Vec::new(),
        dns_names: Vec::new(),
        is_ca: false,
        subject_der,
        issuer_der,
        spki_der,
        key_id: None,
        issuer_key_id: None,
    };
    if let Some(extensions) = tbs.optional(der::context(3))? {
        let mut extensions = Reader::new(extensions.content).enter(SEQUENCE)?;
        while !extensions.is_empty() {
            parse_extension(extensions.enter(SEQUENCE)?, &mut info)?;
        }
    }
    Ok(info)
}

fn parse_extension(mut extension: Reader<'_>, info: &mut CertInfo) -> Result<(), &'static str> {
    let oid = extension.expect(OID)?.content;
    extension.optional(BOOLEAN)?;
    let mut value = Reader::new(extension.expect(OCTET_STRING)?.content);
    match oid {
        OID_SAN => {
            let mut names = value.enter(SEQUENCE)?;
            while !names.is_empty() {
                let name = names.element()?;
                match (name.tag, name.content.len()) {
                    (0x82, _) => info.dns_names.push(text(name.content)?),
                    (0x87, 4) => {
                        info.ips.push(<[u8; 4]>::try_from(name.content).map_err(|_| "an address")?.into())
                    }
                    (0x87, 16) => {
                        info.ips.push(<[u8; 16]>::try_from(name.content).map_err(|_| "an address")?.into())
                    }
                    _ => {}
                }
            }
        }
        OID_BASIC_CONSTRAINTS => {
            let flag = value.enter(SEQUENCE)?.optional(BOOLEAN)?;
            info.is_ca = flag.is_some_and(|flag| flag.content == [0xff]);
        }
        OID_SKI => info.key_id = Some(value.expect(OCTET_STRING)?.content.to_vec()),
        OID_AKI => {
            let id = value.enter(SEQUENCE)?.optional(der::implicit(0))?;
            info.issuer_key_id = id.map(|id| id.content.to_vec());
        }
        _ => {}
    }
    Ok(())
}

fn parse_name(content: &[u8]) -> Result<Identity, &'static str> {
    let mut identity = Identity::default();
    let mut sets = Reader::new(content);
    while !sets.is_empty() {
        let mut set = sets.enter(SET)?;
        while !set.is_empty() {
            let mut attribute = set.enter(SEQUENCE)?;
            let (oid, value) = (attribute.expect(OID)?.content, attribute.element()?);
            let known = matches!(value.tag, UTF8_STRING | PRINTABLE_STRING | IA5_STRING);
            match oid {
                OID_CN if known => identity.common_name = text(value.content)?,
                OID_O if known => identity.organizations.push(text(value.content)?),
                OID_CN | OID_O => return Err("a name has an unusual string type"),
                _ => {}
            }
        }
    }
    Ok(identity)
}

fn text(bytes: &[u8]) -> Result<String, &'static str> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| "a text is not UTF-8")
}

/// A signing request whose signature was checked. Its subject is what the peer would like to be, no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Csr {
    pub subject: Identity,
    pub(crate) spki_der: Vec<u8>,
}

impl Csr {
    /// From DER, as KubeEdge sends it.
    pub fn parse(csr_der: &[u8]) -> Result<Csr, PkiError> {
        let malformed = |reason| PkiError::Malformed { what: "the certificate signing request", reason };
        let parts = split_csr(csr_der).map_err(malformed)?;
        let point = public_point(parts.spki_der).map_err(malformed)?;
        let point = point.ok_or(PkiError::NotP256 { what: "the key in the certificate signing request" })?;
        let verified =
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point).verify(parts.signed, parts.signature);
        verified.map_err(|_| PkiError::CsrSignature)?;
        Ok(Csr { subject: parts.subject, spki_der: parts.spki_der.to_vec() })
    }

    /// As [`CertInfo::key_hash`].
    pub fn key_hash(&self) -> String {
        sha256_hex(&self.spki_der)
    }
}

struct CsrParts<'a> {
    signed: &'a [u8],
    signature: &'a [u8],
    subject: Identity,
    spki_der: &'a [u8],
}

fn split_csr(csr_der: &[u8]) -> Result<CsrParts<'_>, &'static str> {
    if csr_der.len() > DER_LEN_MAX {
        return Err("it is too long");
    }
    let mut outer = Reader::new(csr_der);
    let mut csr = outer.enter(SEQUENCE)?;
    outer.end()?;
    let signed = csr.expect(SEQUENCE)?;
    csr.expect(SEQUENCE)?;
    let signature =
        csr.expect(BIT_STRING)?.content.strip_prefix(&[0]).ok_or("the signature is not whole bytes")?;
    let mut info = Reader::new(signed.content);
    info.expect(INTEGER)?;
    let subject = parse_name(info.expect(SEQUENCE)?.content)?;
    Ok(CsrParts { signed: signed.raw, signature, subject, spki_der: info.expect(SEQUENCE)?.raw })
}

/// A request (DER) for a node's certificate, as an edge sends it.
pub fn new_csr(key: &Key, identity: &Identity) -> Result<Vec<u8>, PkiError> {
    let info = der::tlv(
        SEQUENCE,
        &[&der::integer(&[0]), &name(identity), &key.public_der(), &der::tlv(der::context(0), &[])],
    );
    signed(&info, key)
}

/// What a certificate says, besides its issuer.
#[derive(Clone, Copy, Debug)]
pub struct NewCert<'a> {
    /// Big-endian.
    pub serial: &'a [u8],
    pub subject: &'a Identity,
    /// The public key, as [`Key::public_der`] gives it.
    pub spki_der: &'a [u8],
    pub validity: Validity,
    pub is_ca: bool,
    pub server: bool,
    pub client: bool,
    pub ips: &'a [IpAddr],
    pub dns_names: &'a [String],
}

/// Who signs: the raw name, so that an imported CA's encoding is kept, and the key id if it has one.
pub(crate) struct IssuerName<'a> {
    pub name_der: &'a [u8],
    pub key_id: Option<&'a [u8]>,
}

/// A certificate (DER). Without an issuer it is self-signed.
pub(crate) fn new_certificate(
    cert: &NewCert<'_>,
    issuer: Option<&IssuerName<'_>>,
    key: &Key,
) -> Result<Vec<u8>, PkiError> {
    let subject = name(cert.subject);
    let validity = [time::encode(cert.validity.not_before), time::encode(cert.validity.not_after)];
    debug_assert!(validity.iter().all(|time| [UTC_TIME, GENERALIZED_TIME].contains(&time[0])));
    let tbs = der::tlv(
        SEQUENCE,
        &[
            &der::tlv(der::context(0), &[&der::integer(&[2])]),
            &der::integer(cert.serial),
            &signature_algorithm(),
            issuer.map_or(&subject, |issuer| issuer.name_der),
            &der::tlv(SEQUENCE, &[&validity[0], &validity[1]]),
            &subject,
            cert.spki_der,
            &der::tlv(der::context(3), &[&extensions(cert, issuer)]),
        ],
    );
    signed(&tbs, key)
}

fn extensions(cert: &NewCert<'_>, issuer: Option<&IssuerName<'_>>) -> Vec<u8> {
    let extension = |oid: &[u8], critical: bool, value: &[u8]| {
        let critical: &[u8] = if critical { &[BOOLEAN, 1, 0xff] } else { &[] };
        der::tlv(SEQUENCE, &[&der::tlv(OID, &[oid]), critical, &der::tlv(OCTET_STRING, &[value])])
    };
    // Bits from the left: digitalSignature 0, keyEncipherment 2, keyCertSign 5; before them the number of unused bits.
    let usage: &[u8] =
        if cert.is_ca { &[BIT_STRING, 2, 2, 0b1010_0100] } else { &[BIT_STRING, 2, 5, 0b1010_0000] };
    let mut out = extension(OID_KEY_USAGE, true, usage);
    let purposes = [(cert.server, OID_SERVER_AUTH), (cert.client, OID_CLIENT_AUTH)];
    let purposes: Vec<u8> =
        purposes.iter().filter(|(wanted, _)| *wanted).flat_map(|(_, oid)| der::tlv(OID, &[oid])).collect();
    if !purposes.is_empty() {
        out.extend(extension(OID_EKU, false, &der::tlv(SEQUENCE, &[&purposes])));
    }
    let constraints: &[u8] = if cert.is_ca { &[BOOLEAN, 1, 0xff] } else { &[] };
    out.extend(extension(OID_BASIC_CONSTRAINTS, true, &der::tlv(SEQUENCE, &[constraints])));
    out.extend(extension(OID_SKI, false, &der::tlv(OCTET_STRING, &[&key_id(cert.spki_der)])));
    if let Some(id) = issuer.and_then(|issuer| issuer.key_id) {
        out.extend(extension(OID_AKI, false, &der::tlv(SEQUENCE, &[&der::tlv(der::implicit(0), &[id])])));
    }
    let mut names = Vec::new();
    for name in cert.dns_names {
        names.extend(der::tlv(der::implicit(2), &[name.as_bytes()]));
    }
    for ip in cert.ips {
        names.extend(match ip {
            IpAddr::V4(ip) => der::tlv(der::implicit(7), &[&ip.octets()]),
            IpAddr::V6(ip) => der::tlv(der::implicit(7), &[&ip.octets()]),
        });
    }
    if !names.is_empty() {
        out.extend(extension(OID_SAN, false, &der::tlv(SEQUENCE, &[&names])));
    }
    der::tlv(SEQUENCE, &[&out])
}

/// RFC 7093, method 1: the first 20 bytes of SHA-256 over the key.
fn key_id(spki_der: &[u8]) -> Vec<u8> {
    ring::digest::digest(&ring::digest::SHA256, spki_der).as_ref()[..20].to_vec()
}

fn name(identity: &Identity) -> Vec<u8> {
    let attribute = |oid: &[u8], value: &str| {
        let pair = der::tlv(SEQUENCE, &[&der::tlv(OID, &[oid]), &der::tlv(UTF8_STRING, &[value.as_bytes()])]);
        der::tlv(SET, &[&pair])
    };
    let mut sets: Vec<u8> = identity.organizations.iter().flat_map(|text| attribute(OID_O, text)).collect();
    sets.extend(attribute(OID_CN, &identity.common_name));
    der::tlv(SEQUENCE, &[&sets])
}

fn signature_algorithm() -> Vec<u8> {
    der::tlv(SEQUENCE, &[&der::tlv(OID, &[OID_ECDSA_SHA256])])
}

fn signed(content: &[u8], key: &Key) -> Result<Vec<u8>, PkiError> {
    let signature = der::bit_string(&key.sign(content)?);
    Ok(der::tlv(SEQUENCE, &[content, &signature_algorithm(), &signature]))
}

/// Fuzz entry: any bytes are a certificate or an error.
pub fn fuzz_certificate(data: &[u8]) {
    let _ = CertInfo::parse(data);
}

/// Fuzz entry: any bytes are a request or an error.
pub fn fuzz_csr(data: &[u8]) {
    let _ = Csr::parse(data);
}
