//! Decoders of what comes from files and peers: any bytes give a value or an error, never a panic. Seeded, so that a failure
//! repeats; the mutations start from good inputs, so that they get deep.

use pki::{
    Bundle, Ca, CertInfo, Csr, Identity, JoinToken, Key, Names, issue_token, new_csr, pem_decode,
    verify_bearer,
};

const NOW: u64 = 1_800_000_000;

struct Rng(u64);

impl Rng {
    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, end: usize) -> usize {
        self.number() as usize % end.max(1)
    }

    fn mutate(&mut self, good: &[u8]) -> Vec<u8> {
        let mut bytes = good.to_vec();
        for _ in 0..1 + self.below(4) {
            let at = self.below(bytes.len());
            match (self.below(6), bytes.get(at).copied()) {
                (0, _) => bytes.truncate(at),
                (1, Some(byte)) => bytes.insert(at, byte),
                (2, Some(_)) => drop(bytes.remove(at)),
                (3, Some(byte)) => bytes[at] = byte ^ (1 << self.below(8)),
                (4, Some(_)) => bytes[at] = [0, 0x7f, 0x80, 0x81, 0x84, 0xff][self.below(6)],
                _ => bytes.insert(at.min(bytes.len()), self.number() as u8),
            }
        }
        bytes
    }
}

fn survives(good: &[u8], rounds: usize, decode: impl Fn(&[u8])) {
    let mut rng = Rng(good.len() as u64);
    decode(good);
    for _ in 0..rounds {
        decode(&rng.mutate(good));
        let random: Vec<u8> = (0..rng.below(80)).map(|_| rng.number() as u8).collect();
        decode(&random);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn certificates_requests_and_keys() {
    let ca = Ca::create("KubeEdge", NOW).unwrap();
    let key = Key::generate().unwrap();
    let names = Names::new(["10.0.0.1", "::1", "cloud.example"]);
    survives(&ca.issue_server(&key, &names, NOW).unwrap(), 30_000, |bytes| drop(CertInfo::parse(bytes)));
    survives(&new_csr(&key, &Identity::node("pi-1")).unwrap(), 3_000, |bytes| drop(Csr::parse(bytes)));
    survives(&key.to_sec1(), 3_000, |bytes| drop(Key::from_sec1(bytes)));
    survives(&key.to_pkcs8(), 3_000, |bytes| drop(Key::from_pkcs8(bytes)));
    survives(ca.to_pem().as_bytes(), 1_000, pki::fuzz_cas);
    let mut secret = vec![ca.cert_der().len() as u8];
    secret.extend_from_slice(ca.cert_der());
    secret.extend(key.to_sec1());
    survives(&secret, 3_000, pki::fuzz_cas);
    pki::fuzz_certificate(&[]);
    pki::fuzz_csr(&[]);
}

#[test]
fn texts_and_tokens() {
    let ca = Ca::create("KubeEdge", NOW).unwrap();
    let key = Key::generate().unwrap();
    let csr = Csr::parse(&new_csr(&key, &Identity::node("pi-1")).unwrap()).unwrap();
    let cert_der = ca.issue_node(&csr, "pi-1", NOW).unwrap();
    let bundle = Bundle::new(cert_der, key, ca.cert_der().to_vec());
    survives(bundle.to_pem().as_bytes(), 500, |bytes| drop(Bundle::from_pem(&text(bytes))));
    survives(bundle.to_pem().as_bytes(), 3_000, |bytes| drop(pem_decode(&text(bytes))));
    let token = issue_token(&ca, 60, Some("pi-1"), NOW).unwrap();
    survives(token.text.as_bytes(), 5_000, |bytes| drop(text(bytes).parse::<JoinToken>()));
    let joining: JoinToken = token.text.parse().unwrap();
    // A changed token is never good, except where the change is none.
    survives(joining.bearer().as_bytes(), 5_000, |bytes| {
        let changed = text(bytes);
        let good = verify_bearer(&ca, &changed, "pi-1", NOW).is_ok();
        assert_eq!(good, changed == joining.bearer(), "{changed}");
    });
}
