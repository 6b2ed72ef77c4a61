//! ECDSA P-256 key pairs and their two encodings.

use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
        KeyPair,
    },
};

use crate::{
    PkiError,
    der::{self, BIT_STRING, INTEGER, OCTET_STRING, OID, Reader, SEQUENCE},
    pem::{pem_decode, pem_encode},
};

/// 1.2.840.10045.2.1
pub(crate) const OID_EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
/// 1.2.840.10045.3.1.7
pub(crate) const OID_P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

const SEC1: &str = "EC PRIVATE KEY";
const PKCS8: &str = "PRIVATE KEY";

/// A private key with its public key. Debug output shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    private: [u8; 32],
    /// Uncompressed point.
    public: [u8; 65],
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    pub fn generate() -> Result<Key, PkiError> {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new());
        Key::from_pkcs8(document.map_err(|_| PkiError::Random)?.as_ref())
    }

    /// `EC PRIVATE KEY` (KubeEdge's form) or `PRIVATE KEY`; other blocks beside it are skipped.
    pub fn from_pem(text: &str) -> Result<Key, PkiError> {
        for (label, der) in pem_decode(text)? {
            match label.as_str() {
                SEC1 => return Key::from_sec1(&der),
                PKCS8 => return Key::from_pkcs8(&der),
                _ => {}
            }
        }
        Err(PkiError::Malformed { what: "the key", reason: "there is no private key in the text" })
    }

    /// As a Secret holds it: SEC1 (KubeEdge's form) or PKCS#8, either as DER or as PEM.
    pub fn from_secret(bytes: &[u8]) -> Result<Key, PkiError> {
        match std::str::from_utf8(bytes).ok().filter(|text| text.contains("-----BEGIN")) {
            Some(text) => Key::from_pem(text),
            None => Key::from_sec1(bytes).or_else(|error| Key::from_pkcs8(bytes).map_err(|_| error)),
        }
    }

    pub fn to_pem(&self) -> String {
        pem_encode(SEC1, &self.to_sec1())
    }

    /// RFC 5915, as Go writes it: the bytes that KubeEdge keeps as `cakeydata` and signs tokens with.
    pub fn to_sec1(&self) -> Vec<u8> {
        let curve = der::tlv(der::context(0), &[&der::tlv(OID, &[OID_P256])]);
        self.ec_private_key(&curve)
    }

    pub fn to_pkcs8(&self) -> Vec<u8> {
        let inner = self.ec_private_key(&[]);
        der::tlv(SEQUENCE, &[&der::integer(&[0]), &algorithm(), &der::tlv(OCTET_STRING, &[&inner])])
    }

    fn ec_private_key(&self, curve: &[u8]) -> Vec<u8> {
        let private = der::tlv(OCTET_STRING, &[&self.private]);
        let public = der::tlv(der::context(1), &[&der::bit_string(&self.public)]);
        der::tlv(SEQUENCE, &[&der::integer(&[1]), &private, curve, &public])
    }

    pub fn from_sec1(bytes: &[u8]) -> Result<Key, PkiError> {
        parse_sec1(bytes).map_err(|reason| PkiError::Malformed { what: "the key", reason })?.checked()
    }

    pub fn from_pkcs8(bytes: &[u8]) -> Result<Key, PkiError> {
        let parse = || {
            let mut outer = Reader::new(bytes);
            let mut key = outer.enter(SEQUENCE)?;
            outer.end()?;
            key.expect(INTEGER)?;
            let known = key.expect(SEQUENCE)?.raw == algorithm();
            let inner = key.expect(OCTET_STRING)?.content;
            Ok((known, inner))
        };
        match parse().map_err(|reason| PkiError::Malformed { what: "the key", reason })? {
            (true, inner) => Key::from_sec1(inner),
            (false, _) => Err(PkiError::NotP256 { what: "the key" }),
        }
    }

    /// ring compares private and public part.
    fn checked(self) -> Result<Key, PkiError> {
        self.pair(&ECDSA_P256_SHA256_ASN1_SIGNING)?;
        Ok(self)
    }

    fn pair(&self, algorithm: &'static EcdsaSigningAlgorithm) -> Result<EcdsaKeyPair, PkiError> {
        let pair = EcdsaKeyPair::from_private_key_and_public_key(
            algorithm,
            &self.private,
            &self.public,
            &SystemRandom::new(),
        );
        pair.map_err(|_| PkiError::NotP256 { what: "the key" })
    }

    /// The SubjectPublicKeyInfo.
    pub fn public_der(&self) -> Vec<u8> {
        spki(&self.public)
    }

    /// For a key-id: the uncompressed point.
    pub fn public_point(&self) -> &[u8; 65] {
        &self.public
    }

    /// DER-encoded ECDSA signature, as in certificates.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, PkiError> {
        let signature = self.pair(&ECDSA_P256_SHA256_ASN1_SIGNING)?.sign(&SystemRandom::new(), message);
        Ok(signature.map_err(|_| PkiError::Random)?.as_ref().to_vec())
    }

    /// r and s side by side, as in JWTs.
    pub(crate) fn sign_fixed(&self, message: &[u8]) -> Result<Vec<u8>, PkiError> {
        let pair = self.pair(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
        debug_assert_eq!(pair.public_key().as_ref(), self.public);
        let signature = pair.sign(&SystemRandom::new(), message);
        Ok(signature.map_err(|_| PkiError::Random)?.as_ref().to_vec())
    }
}

fn algorithm() -> Vec<u8> {
    der::tlv(SEQUENCE, &[&der::tlv(OID, &[OID_EC_PUBLIC_KEY]), &der::tlv(OID, &[OID_P256])])
}

fn spki(public: &[u8]) -> Vec<u8> {
    der::tlv(SEQUENCE, &[&algorithm(), &der::bit_string(public)])
}

/// The point of a SubjectPublicKeyInfo, if it is a P-256 key.
pub(crate) fn public_point(spki: &[u8]) -> Result<Option<&[u8]>, &'static str> {
    let mut reader = Reader::new(spki).enter(SEQUENCE)?;
    let known = reader.expect(SEQUENCE)?.raw == algorithm();
    let bits = reader.expect(BIT_STRING)?.content;
    Ok(bits.strip_prefix(&[0]).filter(|point| known && point.len() == 65 && point[0] == 4))
}

fn parse_sec1(bytes: &[u8]) -> Result<Key, &'static str> {
    let mut outer = Reader::new(bytes);
    let mut key = outer.enter(SEQUENCE)?;
    outer.end()?;
    key.expect(INTEGER)?;
    let private =
        key.expect(OCTET_STRING)?.content.try_into().map_err(|_| "the private part is not 32 bytes long")?;
    key.optional(der::context(0))?;
    let public = key.optional(der::context(1))?.ok_or("the public part is missing")?;
    let public = Reader::new(public.content).expect(BIT_STRING)?.content;
    let public = public.strip_prefix(&[0]).and_then(|public| public.try_into().ok());
    Ok(Key { private, public: public.ok_or("the public part is not a P-256 point")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_encodings_are_read_as_written() {
        let key = Key::generate().unwrap();
        assert_eq!(Key::from_sec1(&key.to_sec1()).unwrap(), key);
        assert_eq!(Key::from_pkcs8(&key.to_pkcs8()).unwrap(), key);
        assert_eq!(Key::from_pem(&key.to_pem()).unwrap(), key);
        assert_eq!(Key::from_pem(&pem_encode(PKCS8, &key.to_pkcs8())).unwrap(), key);
        assert_eq!(key.to_sec1().len(), 121, "the fixed length that Go and openssl write");
    }

    #[test]
    fn wrong_keys_are_refused() {
        let key = Key::generate().unwrap();
        let swapped = Key { private: Key::generate().unwrap().private, ..key.clone() };
        assert!(matches!(Key::from_sec1(&swapped.to_sec1()), Err(PkiError::NotP256 { .. })));
        assert!(matches!(Key::from_pem("nothing"), Err(PkiError::Malformed { .. })));
        let sec1 = key.to_sec1();
        for len in 0..sec1.len() {
            assert!(Key::from_sec1(&sec1[..len]).is_err());
        }
    }
}
