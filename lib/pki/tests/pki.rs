//! Certificates, tokens, bundles and TLS through the public API.

mod common;

use std::os::unix::fs::PermissionsExt;

use common::handshake;
use pki::{
    Bundle, BundleError, Ca, CertInfo, Csr, Fit, Identity, JoinToken, Key, Names, PkiError, TokenError,
    issue_token, new_csr, tls, verify_bearer,
};

const DAY: u64 = 86_400;

fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs()
}

fn ca() -> Ca {
    Ca::create("KubeEdge", now()).expect("a CA")
}

/// What the join endpoint does, without the network.
fn join(ca: &Ca, node: &str) -> Bundle {
    let key = Key::generate().expect("a key");
    let csr = Csr::parse(&new_csr(&key, &Identity::node(node)).expect("a request")).expect("a good request");
    let cert_der = ca.issue_node(&csr, node, now()).expect("a certificate");
    Bundle::new(cert_der, key, ca.cert_der().to_vec())
}

#[test]
fn a_joined_node_and_its_cloud_know_each_other() {
    let (ca, node) = (ca(), "pi-1");
    let bundle = join(&ca, node);
    let key = Key::generate().unwrap();
    let names = Names::new(["127.0.0.1", "::1", "cloud.example", "127.0.0.1"]);
    let cert = ca.issue_server(&key, &names, now()).unwrap();
    let server = |clients| tls::server_config(&cert, &key, clients).unwrap();
    let client = || tls::client_config(&bundle.ca_der, Some((&bundle.cert_der, &bundle.key))).unwrap();
    let anonymous = || tls::client_config(&bundle.ca_der, None).unwrap();
    let required = tls::ClientAuth::Required(ca.cert_der());
    let requested = tls::ClientAuth::Requested(ca.cert_der());

    for name in ["127.0.0.1", "::1", "cloud.example"] {
        let identity = handshake(server(required), client(), name).unwrap().unwrap();
        assert_eq!(identity.node_name(), Some(node));
    }
    assert!(handshake(server(required), client(), "127.0.0.2").is_err(), "the server's names are checked");
    assert!(handshake(server(required), anonymous(), "::1").is_err());
    assert_eq!(handshake(server(requested), anonymous(), "::1"), Ok(None));
    assert_eq!(handshake(server(requested), client(), "::1").unwrap(), Some(Identity::node(node)));
    assert_eq!(handshake(server(tls::ClientAuth::None), tls::first_contact().unwrap(), "x"), Ok(None));

    let other = join(&self::ca(), node);
    let stranger = tls::client_config(&bundle.ca_der, Some((&other.cert_der, &other.key))).unwrap();
    assert!(handshake(server(required), stranger, "::1").is_err(), "a certificate of another CA");
    let elsewhere = tls::client_config(&other.ca_der, None).unwrap();
    assert!(handshake(server(requested), elsewhere, "::1").is_err(), "a server of another CA");

    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.cert_der().to_vec().into()).unwrap();
    let tls12 = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    assert_eq!(handshake(server(requested), tls12, "::1"), Ok(None), "stock peers may speak TLS 1.2");
}

#[test]
fn a_node_cannot_choose_what_its_certificate_says() {
    let ca = ca();
    let key = Key::generate().unwrap();
    let wish = Identity::new("system:admin", &["system:masters"]);
    let csr = Csr::parse(&new_csr(&key, &wish).unwrap()).unwrap();
    let info = CertInfo::parse(&ca.issue_node(&csr, "pi-1", now()).unwrap()).unwrap();
    assert_eq!(info.subject, Identity::node("pi-1"));
    assert!(info.has_key(&key) && !info.is_ca);
    for name in ["", "Pi", "a/b", "-a", "a.", "a b", "ä", &"a".repeat(254)] {
        let error = ca.issue_node(&csr, name, now()).unwrap_err();
        assert!(matches!(&error, PkiError::NodeName { .. }), "{name}: {error}");
    }
}

#[test]
fn requests_that_are_not_signed_by_their_key_are_refused() {
    let der = new_csr(&Key::generate().unwrap(), &Identity::node("pi-1")).unwrap();
    let mut forged = der.clone();
    let at = der.windows(4).position(|part| part == b"pi-1").unwrap();
    forged[at..at + 4].copy_from_slice(b"pi-2");
    assert!(matches!(Csr::parse(&forged), Err(PkiError::CsrSignature)));
    assert!(matches!(Csr::parse(&der[..der.len() - 1]), Err(PkiError::Malformed { .. })));
    assert!(matches!(Csr::parse(&[]), Err(PkiError::Malformed { .. })));
}

#[test]
fn a_server_certificate_is_made_anew_when_its_names_change() {
    let ca = ca();
    let key = Key::generate().unwrap();
    let old = Names::new(["10.0.0.1", "cloud"]);
    let cert = ca.issue_server(&key, &old, now()).unwrap();
    assert!(ca.server_fits(&cert, &key, &old, now()));
    assert!(ca.server_fits(&cert, &key, &Names::new(["cloud"]), now()));
    assert!(!ca.server_fits(&cert, &key, &Names::new(["10.0.0.1", "10.0.0.2"]), now()));
    assert!(!ca.server_fits(&cert, &key, &Names::new(["cloud.example"]), now()));
    assert!(!ca.server_fits(&cert, &Key::generate().unwrap(), &old, now()));
    assert!(!ca.server_fits(&cert, &key, &old, now() + 100 * 365 * DAY));
    assert!(!ca.server_fits(b"not a certificate", &key, &old, now()));
}

#[test]
fn a_token_brings_a_node_in_and_each_wrong_one_says_why() {
    let ca = ca();
    let now = now();
    let token = issue_token(&ca, DAY, None, now).unwrap();
    let joining: JoinToken = format!(" {}\n", token.text).parse().unwrap();
    joining.check_ca(ca.cert_der()).unwrap();
    assert_eq!(verify_bearer(&ca, joining.bearer(), "pi-1", now), Ok(token.claims.clone()));

    let other = self::ca();
    let wrong_ca = joining.check_ca(other.cert_der()).unwrap_err().to_string();
    assert!(
        wrong_ca.contains(&ca.hash())
            && wrong_ca.contains(&other.hash())
            && wrong_ca.contains("`cloudcore token`")
    );
    assert_eq!(verify_bearer(&other, joining.bearer(), "pi-1", now), Err(TokenError::BadSignature));
    let expired = verify_bearer(&ca, joining.bearer(), "pi-1", now + DAY + 1).unwrap_err();
    assert_eq!(expired, TokenError::Expired { expired_at: now + DAY });
    assert!(expired.to_string().ends_with(" UTC; make a new one with `cloudcore token`"), "{expired}");

    let bound = issue_token(&ca, DAY, Some("pi-1"), now).unwrap();
    let bound: JoinToken = bound.text.parse().unwrap();
    assert!(verify_bearer(&ca, bound.bearer(), "pi-1", now).is_ok());
    let wrong = verify_bearer(&ca, bound.bearer(), "pi-2", now).unwrap_err();
    assert!(
        wrong.to_string().ends_with("make one for this node with `cloudcore token --node pi-2`"),
        "{wrong}"
    );

    let hash = "a".repeat(64);
    for text in
        ["", "a.b.c", "a.b.c.d", &format!("{hash}.b.c"), &format!("{hash}..c.d"), &format!("{hash}.b.c.d e")]
    {
        let error = text.parse::<JoinToken>().unwrap_err();
        assert!(matches!(error, TokenError::Malformed { .. }), "{text}: {error}");
    }
    for bearer in ["", "a", "a.b.c", &format!("{}x", joining.bearer()), &joining.bearer()[1..]] {
        assert!(verify_bearer(&ca, bearer, "pi-1", now).is_err(), "{bearer}");
    }
}

#[test]
fn a_token_may_not_choose_its_algorithm() {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as B64};
    let ca = ca();
    let claims = B64.encode(format!(r#"{{"exp":{}}}"#, now() + DAY));
    for header in [r#"{"alg":"none"}"#, r#"{"alg":"RS256"}"#, r#"{"typ":"JWT"}"#] {
        let token = format!("{}.{claims}.{}", B64.encode(header), B64.encode(""));
        assert!(matches!(verify_bearer(&ca, &token, "pi-1", now()), Err(TokenError::Malformed { .. })));
    }
}

#[test]
fn service_account_tokens_are_signed_and_verified() {
    let key = Key::generate().unwrap();
    let token = pki::sign_es256(&key, br#"{"sub":"default"}"#).unwrap();
    assert_eq!(pki::verify_es256(&key, &token).unwrap(), br#"{"sub":"default"}"#);
    assert_eq!(pki::verify_es256(&Key::generate().unwrap(), &token), None);
    assert_eq!(pki::verify_es256(&key, &token[..token.len() - 2]), None);
}

#[test]
fn a_bundle_is_replaced_whole_and_each_fault_names_its_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("edge.pem");
    let now = now();
    assert!(matches!(Bundle::load(&path), Err(BundleError::Missing { .. })));
    let ca = ca();
    let (first, second) = (join(&ca, "pi-1"), join(&ca, "pi-1"));
    first.store(&path).unwrap();
    second.store(&path).unwrap();
    assert_eq!(Bundle::load(&path).unwrap(), second);
    let previous = dir.path().join("edge.pem.previous");
    assert_eq!(Bundle::load(&previous).unwrap(), first);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let info = second.check("system:node:pi-1", now).unwrap();
    assert_eq!(info.validity.fit(now), Fit::Valid);
    let text = |error: BundleError| error.to_string();
    assert_eq!(
        text(second.check("system:node:pi-2", now).unwrap_err()),
        r#"the certificate is for "system:node:pi-1", not for "system:node:pi-2"; join again under this name"#
    );
    let expired = text(second.check("system:node:pi-1", now + 366 * DAY).unwrap_err());
    assert!(expired.ends_with("; join again with a new token"), "{expired}");
    let early = text(second.check("system:node:pi-1", 0).unwrap_err());
    assert!(
        early.ends_with("the clock says 1970-01-01 00:00:00 UTC; set the clock or wait for a time server"),
        "{early}"
    );
    second
        .check("system:node:pi-1", now - DAY)
        .expect("certificates are backdated for clocks that are behind");

    let pem = second.to_pem();
    let mixed = Bundle { key: first.key.clone(), ..second.clone() };
    std::fs::write(&path, mixed.to_pem()).unwrap();
    assert!(matches!(Bundle::load(&path), Err(BundleError::KeyMismatch { .. })));
    for text in ["", &pem[..pem.len() / 2], &pem[..pem.len() - 3], &pem.replace("MII", "M!I")] {
        std::fs::write(&path, text).unwrap();
        let error = Bundle::load(&path).unwrap_err();
        let named = error.to_string().contains("restore") && error.to_string().contains("edge.pem.previous");
        assert!(matches!(error, BundleError::Damaged { .. }) && named, "{error}");
    }
}

#[test]
fn a_ca_survives_being_stored() {
    let ca = ca();
    let again = Ca::from_pem(&ca.to_pem()).unwrap();
    assert_eq!((again.hash(), again.key()), (ca.hash(), ca.key()));
    let mixed = Ca::new(ca.cert_der().to_vec(), Key::generate().unwrap());
    assert!(matches!(mixed, Err(PkiError::KeyMismatch)));
}
