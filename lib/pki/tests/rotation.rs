//! Two CAs at one time, and certificates that ended, through real handshakes in memory.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use pki::{
    Bundle, Ca, CertInfo, Csr, Identity, Key, Names, PkiError, Validity, cas_from_pem,
    certificate_from_secret, new_csr, pem_encode, tls,
};
use rustls::{ClientConfig, ServerConfig};

const DAY: u64 = 86_400;

fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs()
}

fn handshake(server: &ServerConfig, client: ClientConfig) -> Result<Option<Identity>, rustls::Error> {
    common::handshake(server.clone(), client, "127.0.0.1")
}

fn node(ca: &Ca, validity: Validity) -> (Vec<u8>, Key) {
    let key = Key::generate().unwrap();
    let csr = Csr::parse(&new_csr(&key, &Identity::node("pi-1")).unwrap()).unwrap();
    (ca.issue_node_for(&csr, "pi-1", validity).unwrap(), key)
}

fn server(chain: &[Vec<u8>], key: &Key, cas: &[&Ca], admit_expired: bool) -> ServerConfig {
    let cas: Vec<&[u8]> = cas.iter().map(|ca| ca.cert_der()).collect();
    tls::chain_server_config(chain, key, tls::Clients { cas: &cas, required: true, admit_expired }).unwrap()
}

#[test]
fn nodes_of_the_old_ca_and_of_the_new_one_are_served_at_one_time() {
    let old = Ca::create("KubeEdge", now()).unwrap();
    let new = old.create_successor(now()).unwrap();
    assert!(new.info().subject.common_name.starts_with("KubeEdge "), "{:?}", new.info().subject);
    let cross = old.cross_sign(&new, now()).unwrap();
    let key = Key::generate().unwrap();
    let leaf = new.issue_server(&key, &Names::new(["127.0.0.1"]), now()).unwrap();
    assert!(CertInfo::parse(&leaf).unwrap().names_issuer(new.info()));
    assert!(!CertInfo::parse(&leaf).unwrap().names_issuer(old.info()));
    let both = server(&[leaf.clone(), cross], &key, &[&new, &old], false);
    for (trusts, signer) in [(&old, &old), (&new, &old), (&old, &new), (&new, &new)] {
        let (certificate, key) = node(signer, Validity::days(now(), 1));
        let client = tls::client_config(trusts.cert_der(), Some((&certificate, &key))).unwrap();
        assert_eq!(handshake(&both, client).unwrap(), Some(Identity::node("pi-1")));
    }
    // Without the cross certificate an old node is lost, and after the change the old CA's certificates are.
    let (certificate, node_key) = node(&old, Validity::days(now(), 1));
    let client = || tls::client_config(old.cert_der(), Some((&certificate, &node_key))).unwrap();
    assert!(handshake(&server(std::slice::from_ref(&leaf), &key, &[&new, &old], false), client()).is_err());
    let trusts_new = tls::client_config(new.cert_der(), Some((&certificate, &node_key))).unwrap();
    assert!(handshake(&server(&[leaf], &key, &[&new], false), trusts_new).is_err());
}

#[test]
fn an_expired_certificate_is_let_through_only_where_that_is_asked_for() {
    let ca = Ca::create("KubeEdge", now() - 900 * DAY).unwrap();
    let other = Ca::create("KubeEdge", now() - 900 * DAY).unwrap();
    let key = Key::generate().unwrap();
    let chain = [ca.issue_server(&key, &Names::new(["127.0.0.1"]), now()).unwrap()];
    let times = |from: u64, until: u64| Validity {
        not_before: now() + from - 800 * DAY,
        not_after: now() + until - 800 * DAY,
    };
    let (expired, early) = (times(0, 799 * DAY), times(801 * DAY, 802 * DAY));
    for (signer, validity, strict, lenient) in
        [(&ca, expired, false, true), (&ca, early, false, false), (&other, expired, false, false)]
    {
        let (certificate, node_key) = node(signer, validity);
        let client = || tls::client_config(ca.cert_der(), Some((&certificate, &node_key))).unwrap();
        assert_eq!(handshake(&server(&chain, &key, &[&ca], false), client()).is_ok(), strict);
        assert_eq!(handshake(&server(&chain, &key, &[&ca], true), client()).is_ok(), lenient, "{validity:?}");
    }
    // The key still has to be proved.
    let (certificate, _) = node(&ca, expired);
    let stolen = tls::client_config(ca.cert_der(), Some((&certificate, &Key::generate().unwrap())));
    assert!(stolen.is_err() || handshake(&server(&chain, &key, &[&ca], true), stolen.unwrap()).is_err());
}

#[test]
fn lists_of_cas_and_secrets_in_all_their_forms() {
    let ca = Ca::create("KubeEdge", now()).unwrap();
    let pem = pem_encode("CERTIFICATE", ca.cert_der());
    assert_eq!(cas_from_pem(&pem.repeat(2)).unwrap().len(), 2);
    for bad in ["", "x", &pem.repeat(5), &pem_encode("CERTIFICATE", b"x")] {
        assert!(matches!(cas_from_pem(bad), Err(PkiError::Malformed { .. })), "{bad}");
    }
    for certificate in [ca.cert_der(), pem.as_bytes()] {
        assert_eq!(certificate_from_secret(certificate).unwrap(), ca.cert_der());
        for key in [ca.key().to_sec1(), ca.key().to_pkcs8(), ca.key().to_pem().into_bytes()] {
            assert_eq!(Ca::from_secret(certificate, &key).unwrap().hash(), ca.hash());
        }
    }
    let (certificate, key) = node(&ca, Validity::days(now(), 1));
    let bundle = Bundle {
        more_cas: vec![ca.cert_der().to_vec()],
        ..Bundle::new(certificate, key, ca.cert_der().to_vec())
    };
    assert_eq!(Bundle::from_pem(&bundle.to_pem()).unwrap(), bundle);
    let many = Bundle { more_cas: vec![ca.cert_der().to_vec(); 4], ..bundle };
    assert!(Bundle::from_pem(&many.to_pem()).is_err());
}
