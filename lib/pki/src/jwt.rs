//! JSON web tokens: HS256 for joining, ES256 for service accounts.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    hmac,
    signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey},
};

use crate::{Key, PkiError};

/// What is wrong with a token, before its claims are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JwtError {
    Malformed,
    Signature,
}

fn base64url(data: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(data)
}

pub(crate) fn sign_hs256(secret: &[u8], claims_json: &[u8]) -> String {
    let signed = format!("{}.{}", base64url(br#"{"alg":"HS256","typ":"JWT"}"#), base64url(claims_json));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
    format!("{signed}.{}", base64url(tag.as_ref()))
}

/// The claims, if the signature is right.
pub(crate) fn verify_hs256(secret: &[u8], token: &str) -> Result<Vec<u8>, JwtError> {
    let (signed, claims, signature) = split(token, "HS256").ok_or(JwtError::Malformed)?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    hmac::verify(&key, signed.as_bytes(), &signature).map_err(|_| JwtError::Signature)?;
    Ok(claims)
}

/// A token signed with a service-account key; `kid` is the key's id in the header.
pub fn sign_es256(key: &Key, claims_json: &[u8]) -> Result<String, PkiError> {
    let signed = format!("{}.{}", base64url(br#"{"alg":"ES256","typ":"JWT"}"#), base64url(claims_json));
    Ok(format!("{signed}.{}", base64url(&key.sign_fixed(signed.as_bytes())?)))
}

/// The claims (JSON) of a token that this key signed; None for any other text.
pub fn verify_es256(key: &Key, token: &str) -> Option<Vec<u8>> {
    let (signed, claims, signature) = split(token, "ES256")?;
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.public_point());
    public.verify(signed.as_bytes(), &signature).ok().map(|()| claims)
}

/// What is signed, the claims, the signature. The algorithm must be the expected one: the token does not choose.
fn split<'a>(token: &'a str, algorithm: &str) -> Option<(&'a str, Vec<u8>, Vec<u8>)> {
    #[derive(serde::Deserialize)]
    struct Header {
        alg: String,
    }
    let (signed, signature) = token.rsplit_once('.')?;
    let (header, claims) = signed.split_once('.')?;
    let decode = |text| URL_SAFE_NO_PAD.decode(text).ok();
    let header: Header = serde_json::from_slice(&decode(header)?).ok()?;
    let parts = (signed, decode(claims)?, decode(signature)?);
    (header.alg == algorithm).then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7515, appendix A.1.
    #[test]
    fn the_published_hs256_example_is_accepted() {
        let key = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
        let secret = URL_SAFE_NO_PAD.decode(key).unwrap();
        let token = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.\
            eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.\
            dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        assert!(verify_hs256(&secret, token).unwrap().starts_with(br#"{"iss":"joe","#));
        assert_eq!(verify_hs256(&secret[1..], token), Err(JwtError::Signature));
    }
}
