//! What we write, openssl reads, and the other way round. Needs the `openssl` program (Debian: package openssl, which
//! ca-certificates brings along).

use std::{
    path::Path,
    process::{Command, Stdio},
};

use pki::{Ca, CertInfo, Csr, Identity, Key, Names, PkiError, new_csr, pem_decode, pem_encode};

struct OpenSsl(tempfile::TempDir);

impl OpenSsl {
    fn new() -> OpenSsl {
        OpenSsl(tempfile::tempdir().expect("a temporary folder"))
    }

    fn dir(&self) -> &Path {
        self.0.path()
    }

    fn file(&self, name: &str, content: &str) {
        std::fs::write(self.dir().join(name), content).expect("a temporary file");
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir().join(name)).expect("openssl wrote it")
    }

    /// Standard output and error, with a mark if it failed.
    fn run(&self, args: &str) -> String {
        let command = Command::new("openssl")
            .args(args.split(' '))
            .current_dir(self.dir())
            .stdin(Stdio::null())
            .output();
        let output = command.expect("the program openssl is needed for this test: apt-get install openssl");
        let text = [output.stdout, output.stderr].concat();
        format!("{}{}", if output.status.success() { "" } else { "FAILED: " }, String::from_utf8_lossy(&text))
    }

    fn must(&self, args: &str) -> String {
        let text = self.run(args);
        assert!(!text.starts_with("FAILED"), "openssl {args}: {text}");
        text
    }
}

fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs()
}

fn has(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.contains(line), "{line:?} is missing in {text}");
    }
}

fn der(pem: &str) -> Vec<u8> {
    pem_decode(pem).expect("PEM").remove(0).1
}

#[test]
fn openssl_reads_and_verifies_what_we_issue() {
    let openssl = OpenSsl::new();
    let ca = Ca::create("KubeEdge", now()).unwrap();
    openssl.file("ca.pem", &ca.cert_pem());
    let text = openssl.must("x509 -in ca.pem -noout -text");
    has(
        &text,
        &[
            "Version: 3 (0x2)",
            "Serial Number: 1024 (0x400)",
            "Signature Algorithm: ecdsa-with-SHA256",
            "Issuer: CN = KubeEdge\n",
            "Subject: CN = KubeEdge\n",
            "ASN1 OID: prime256v1",
            "X509v3 Key Usage: critical\n                Digital Signature, Key Encipherment, Certificate Sign\n",
            "TLS Web Server Authentication, TLS Web Client Authentication",
            "X509v3 Basic Constraints: critical\n                CA:TRUE\n",
        ],
    );
    openssl.file("ca.key", &ca.key().to_pem());
    has(&openssl.must("ec -in ca.key -noout -check"), &["EC Key valid."]);
    openssl.file("pkcs8.key", &pem_encode("PRIVATE KEY", &ca.key().to_pkcs8()));
    has(&openssl.must("pkey -in pkcs8.key -noout -check"), &["Key is valid"]);

    let key = Key::generate().unwrap();
    let csr = new_csr(&key, &Identity::node("pi-1")).unwrap();
    openssl.file("node.csr", &pem_encode("CERTIFICATE REQUEST", &csr));
    let text = openssl.must("req -in node.csr -noout -verify -text");
    has(&text, &["verify OK", "Subject: O = system:nodes, CN = system:node:pi-1\n"]);

    let node = ca.issue_node(&Csr::parse(&csr).unwrap(), "pi-1", now()).unwrap();
    openssl.file("node.pem", &pem_encode("CERTIFICATE", &node));
    has(&openssl.must("verify -x509_strict -CAfile ca.pem -purpose sslclient node.pem"), &["node.pem: OK"]);
    has(
        &openssl.run("verify -CAfile ca.pem -purpose sslserver node.pem"),
        &["FAILED", "unsuitable certificate purpose"],
    );
    let text = openssl.must("x509 -in node.pem -noout -text");
    has(
        &text,
        &[
            "Subject: O = system:nodes, CN = system:node:pi-1\n",
            "CA:FALSE",
            "TLS Web Client Authentication\n",
        ],
    );

    let names = Names::new(["192.168.1.7", "fd00::7", "cloud.example"]);
    let server = ca.issue_server(&Key::generate().unwrap(), &names, now()).unwrap();
    openssl.file("server.pem", &pem_encode("CERTIFICATE", &server));
    for check in ["-verify_ip 192.168.1.7", "-verify_ip fd00::7", "-verify_hostname cloud.example"] {
        has(
            &openssl
                .must(&format!("verify -x509_strict -CAfile ca.pem -purpose sslserver {check} server.pem")),
            &[": OK"],
        );
    }
    has(
        &openssl.run("verify -CAfile ca.pem -verify_ip 192.168.1.8 server.pem"),
        &["FAILED", "IP address mismatch"],
    );
    has(&openssl.must("x509 -in server.pem -noout -subject"), &["O = KubeEdge, CN = KubeEdge"]);
}

#[test]
fn an_imported_ca_keeps_its_name_as_it_is_encoded() {
    let openssl = OpenSsl::new();
    openssl.must("ecparam -name prime256v1 -genkey -out ca.key");
    // -nameopt shows strings; openssl encodes C as PrintableString and, by this option, the rest as well.
    openssl.file(
        "ca.cnf",
        "[req]\ndistinguished_name=dn\nstring_mask=default\nprompt=no\n[dn]\nC=CN\nO=Some Org\nCN=KubeEdge\n[v3]\nbasicConstraints=critical,CA:TRUE\n",
    );
    openssl.must("req -x509 -new -key ca.key -config ca.cnf -extensions v3 -days 3 -out ca.pem");
    let ca = Ca::from_pem(&format!("{}{}", openssl.read("ca.pem"), openssl.read("ca.key"))).unwrap();
    let cert = ca.issue_client(&Key::generate().unwrap(), "admin", &["system:masters"], 1, now()).unwrap();
    openssl.file("admin.pem", &pem_encode("CERTIFICATE", &cert));
    has(&openssl.must("verify -CAfile ca.pem -purpose sslclient admin.pem"), &["admin.pem: OK"]);
    let info = CertInfo::parse(&cert).unwrap();
    assert_eq!(
        (info.issuer, info.subject),
        (Identity::new("KubeEdge", &["Some Org"]), Identity::new("admin", &["system:masters"]))
    );
}

#[test]
fn requests_made_by_openssl_are_read_and_other_keys_are_refused() {
    let openssl = OpenSsl::new();
    let subject = "/C=CN/O=system:nodes/L=Hangzhou/ST=Zhejiang/CN=system:node:pi-1";
    openssl.must(&format!(
        "req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout k -out csr -subj {subject}"
    ));
    assert_eq!(Csr::parse(&der(&openssl.read("csr"))).unwrap().subject, Identity::node("pi-1"));
    Key::from_pem(&openssl.read("k")).unwrap();

    for newkey in ["rsa:2048", "ec -pkeyopt ec_paramgen_curve:secp384r1", "ed25519"] {
        openssl.must(&format!("req -new -newkey {newkey} -nodes -keyout k2 -out csr2 -subj {subject}"));
        let refused = Csr::parse(&der(&openssl.read("csr2"))).unwrap_err();
        assert!(matches!(refused, PkiError::NotP256 { .. }), "{newkey}: {refused}");
        let refused = Key::from_pem(&openssl.read("k2")).unwrap_err();
        assert!(matches!(refused, PkiError::NotP256 { .. }), "{newkey}: {refused}");
    }
    openssl.must(&format!("req -x509 -newkey rsa:2048 -nodes -keyout k3 -out cert3 -days 9 -subj {subject} -addext subjectAltName=DNS:a,IP:10.0.0.1,email:x@y"));
    let info = CertInfo::parse(&der(&openssl.read("cert3"))).unwrap();
    assert_eq!((info.dns_names, info.ips), (vec!["a".to_owned()], vec![[10, 0, 0, 1].into()]));
    assert!(info.validity.not_after > now() + 8 * 86_400 && info.validity.not_after < now() + 10 * 86_400);
}
