//! Certificates over their whole life, over real sockets: revoked, expired, of two CAs, and of no use at all.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{Cloud, Device, PATIENCE, command, token};
use pki::{Ca, CertInfo, Csr, Identity, Key, NewCert, Validity};

const DAY: u64 = 86_400;

fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

fn csr(key: &Key, node: &str) -> Vec<u8> {
    pki::new_csr(key, &Identity::node(node)).unwrap()
}

/// Runs a command of the built program; its output.
fn must(dir: &Path, arguments: &[&str]) -> String {
    let output = command(dir, arguments);
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {text}");
    text
}

/// The CA that this cloud signs with.
fn ca_of(dir: &Path) -> Ca {
    Ca::from_pem(&std::fs::read_to_string(dir.join("pki/nodes-ca.pem")).unwrap()).unwrap()
}

/// A renewal as the node with this certificate asks for it. `Err`: what TLS says.
async fn renew(cloud: &Cloud, device: &Device, key: &Key) -> Result<(u16, Vec<u8>), String> {
    let config = pki::tls::client_config(&device.ca, Some((&device.certificate, &device.key))).unwrap();
    // TLS 1.3: the refusal of a certificate comes after the handshake, and looks like an answer that is cut.
    cloud.tls("join", config.clone()).await.map_err(|error| error.to_string())?;
    let request = [("NodeName", device.node.as_str())];
    let request = cloud.try_join_request(config, "GET", "/edge.crt", &request, &csr(key, &device.node)).await;
    let (status, _, body) = request.ok_or("the connection was closed")?;
    Ok((status, body))
}

fn text(body: &[u8]) -> String {
    String::from_utf8_lossy(body).into_owned()
}

/// The same device with another certificate of the cloud's CA.
fn with_validity(dir: &Path, device: &Device, validity: Validity) -> Device {
    let csr = Csr::parse(&csr(&device.key, &device.node)).unwrap();
    let certificate = ca_of(dir).issue_node_for(&csr, &device.node, validity).unwrap();
    Device { certificate, ..device.clone() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_is_out_at_once_and_for_good_until_it_is_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let cloud =
        Cloud::start_with(dir.path(), "modules: {cloudStream: {enable: true, tunnelPort: 0, streamPort: 0}}")
            .await;
    let device = cloud.join("edge-1", &token(dir.path(), &[])).await.unwrap();
    let other = cloud.join("edge-2", &token(dir.path(), &[])).await.unwrap();
    let link = cloud.connect(&device).await.unwrap();
    let other_link = cloud.connect(&other).await.unwrap();
    let told = must(dir.path(), &["revoke", "edge-1", "--reason", "stolen"]);
    assert!(told.contains("node edge-1 is revoked") && told.contains("1 key(s) of it are known"), "{told}");
    tokio::time::timeout(Duration::from_secs(5), link.ended()).await.expect("the session ends at once");

    let refused = async |cloud: &Cloud| {
        let (status, line) = cloud.connect(&device).await.err().expect("the hub refuses");
        assert!(
            status == 403 && line.contains("edge-1 was revoked (stolen)")
                || line.contains("key of this certificate was revoked"),
            "{status} {line}"
        );
        let (status, body) = renew(cloud, &device, &Key::generate().unwrap()).await.unwrap();
        assert!(status == 403 && text(&body).contains("revoked"), "{status} {}", text(&body));
        let Err((status, line)) = cloud.open_tunnel(&device).await else { panic!("the tunnel port accepts") };
        assert!(status == 403 && line.contains("revoked"), "{status} {line}");
        // The key comes in under no other name, and nobody under this one with a token for all.
        for (node, key, wanted) in [
            ("edge-3", &device.key, "revoked with node edge-1"),
            ("edge-1", &Key::generate().unwrap(), "edge-1 was revoked"),
        ] {
            let (status, line) =
                cloud.join_with_key(node, &token(dir.path(), &[]), key.clone()).await.err().unwrap();
            assert!(status == 403 && line.contains(wanted), "{status} {line}");
        }
    };
    refused(&cloud).await;
    drop(other_link);
    assert!(cloud.connect(&other).await.is_ok(), "others are let in");
    assert!(must(dir.path(), &["revoke", "--list"]).contains("edge-1  revoked 20"));
    cloud.stop().await;
    // After a restart, and a certificate of the same key and name that nobody has seen.
    let cloud =
        Cloud::start_with(dir.path(), "modules: {cloudStream: {enable: true, tunnelPort: 0, streamPort: 0}}")
            .await;
    refused(&cloud).await;
    let renamed = with_validity(dir.path(), &device, Validity::days(now(), 9));
    assert_eq!(cloud.connect(&renamed).await.err().map(|(status, _)| status), Some(403));

    // Another device takes the name with a token made for it; the old one stays out.
    let second = cloud.join("edge-1", &token(dir.path(), &["--node", "edge-1"])).await.unwrap();
    drop(cloud.connect(&second).await.expect("admitted beside the revocation"));
    let key = Key::generate().unwrap();
    let (status, certificate) = renew(&cloud, &second, &key).await.unwrap();
    assert_eq!(status, 200, "{}", text(&certificate));
    let renewed = Device { certificate, key, ..second.clone() };
    drop(cloud.connect(&renewed).await.expect("its next key too"));
    refused(&cloud).await;
    assert!(must(dir.path(), &["revoke", "--list"]).contains("joined again since (2 key(s))"));
    // Revoked once more, nothing of it is good.
    must(dir.path(), &["revoke", "edge-1"]);
    cloud.until_refused(&renewed).await;
    cloud.until_refused(&second).await;
    assert!(must(dir.path(), &["unrevoke", "edge-1"]).contains("accepted"));
    cloud.until_accepted(&renewed).await;
    assert!(must(dir.path(), &["unrevoke", "edge-1"]).contains("was not revoked"));
    cloud.stop().await;
    // The commands work without a running cloudcore, too.
    must(dir.path(), &["revoke", "edge-2"]);
    let cloud = Cloud::start(dir.path()).await;
    assert_eq!(cloud.connect(&other).await.err().map(|(status, _)| status), Some(403));
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_refuses_the_old_key_everywhere_and_leaves_the_name_free() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let device = cloud.join("edge-1", &token(dir.path(), &[])).await.unwrap();
    let link = cloud.connect(&device).await.unwrap();
    must(dir.path(), &["node", "reset", "edge-1"]);
    tokio::time::timeout(Duration::from_secs(5), link.ended()).await.expect("the session ends at once");
    let (status, line) =
        cloud.join_with_key("edge-7", &token(dir.path(), &[]), device.key.clone()).await.err().unwrap();
    assert!(status == 403 && line.contains("revoked with node edge-1"), "{status} {line}");
    let next = cloud.join("edge-1", &token(dir.path(), &[])).await.expect("any token will do");
    drop(cloud.connect(&next).await.unwrap());
    assert_eq!(cloud.connect(&device).await.err().map(|(status, _)| status), Some(403));
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_renewed_within_the_grace_with_its_own_key_and_nowhere_else_let_in() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    // A node of an earlier cloudcore with this CA, so that this one has no record of its certificates.
    let key = Key::generate().unwrap();
    let ca = ca_of(dir.path()).cert_der().to_vec();
    let device = Device { node: "edge-1".into(), ca, certificate: Vec::new(), key, store_id: String::new() };
    let node = serde_json::json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "edge-1"}});
    let ended = |days: u64| Validity { not_before: now() - 25 * 3600, not_after: now() - days * DAY - 60 };
    let expired = with_validity(dir.path(), &device, ended(0));
    // The CA is from a moment ago: older ones cannot be of it. The grace is counted from the certificate's own end.
    let (status, body) = renew(&cloud, &expired, &device.key).await.unwrap();
    assert!(status == 401 && text(&body).contains("its Node object was deleted"), "{status} {}", text(&body));
    cloud.create("/api/v1/nodes", node).await;
    let (status, body) = renew(&cloud, &expired, &Key::generate().unwrap()).await.unwrap();
    assert!(status == 401 && text(&body).contains("only its own key"), "{status} {}", text(&body));
    assert!(cloud.try_connect(&expired).await.is_none(), "the hub never takes it");
    let (status, certificate) = renew(&cloud, &expired, &device.key).await.unwrap();
    assert_eq!(status, 200, "{}", text(&certificate));
    let renewed = Device { certificate, ..device.clone() };
    drop(cloud.connect(&renewed).await.unwrap());
    must(dir.path(), &["revoke", "edge-1"]);
    cloud.until_refused(&renewed).await;
    let (status, body) = renew(&cloud, &expired, &device.key).await.unwrap();
    assert!(status == 403 && text(&body).contains("revoked"), "{status} {}", text(&body));
    cloud.stop().await;

    let cloud = Cloud::start_with(dir.path(), "kinglet: {expiredGraceSeconds: 30}").await;
    must(dir.path(), &["unrevoke", "edge-1"]);
    let wait = async {
        loop {
            let (status, body) = renew(&cloud, &expired, &device.key).await.unwrap();
            match status {
                403 => tokio::time::sleep(Duration::from_millis(50)).await,
                _ => return (status, body),
            }
        }
    };
    let (status, body) = tokio::time::timeout(PATIENCE, wait).await.unwrap();
    let line = text(&body);
    assert!(
        status == 401 && line.contains("longer ago") && line.contains("cloudcore token --node edge-1"),
        "{status} {line}"
    );
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ca_changes_while_nodes_are_here_away_and_new() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let before = token(dir.path(), &[]);
    let mut here = cloud.join("here", &before).await.unwrap();
    let mut away = cloud.join("away", &before).await.unwrap();
    // Ours say which store they have, a stock edge does not.
    (here.store_id, away.store_id) = ("a".into(), "b".into());
    let stock = cloud.join("stock-1", &before).await.unwrap();
    let link = cloud.connect(&here).await.unwrap();
    drop(cloud.connect(&stock).await.unwrap());
    let old = ca_of(dir.path());
    assert!(!command(dir.path(), &["ca", "finish"]).status.success(), "nothing to finish");
    must(dir.path(), &["ca", "rotate"]);
    let new = ca_of(dir.path());
    assert_ne!(new.hash(), old.hash());
    assert!(!command(dir.path(), &["ca", "rotate"]).status.success(), "one at a time");
    // The running cloudcore shows it: what it signs now is of the new CA, and both trust what they meet.
    let renewed = cloud.until_signed_by(&here, &new).await;
    assert_eq!(renewed.ca, old.cert_der(), "a node that knows the old CA alone");
    cloud.until_signed_by(&stock, &new).await;
    drop(link);
    drop(cloud.connect(&renewed).await.expect("new certificate, old trust"));
    let trust = cloud.trust(&away).await;
    assert_eq!(trust, [new.cert_der(), old.cert_der()], "told to who trusts the old one");
    let learned = Device { ca: new.cert_der().to_vec(), ..renewed.clone() };
    drop(cloud.connect(&learned).await.expect("new certificate, new trust"));
    drop(cloud.connect(&away).await.expect("old certificate, old trust"));
    // A token from before is good, since the node names its CA; a new one is for the new CA.
    drop(cloud.connect(&cloud.join("late", &before).await.unwrap()).await.unwrap());
    let fresh = cloud.join("fresh", &token(dir.path(), &[])).await.unwrap();
    assert_eq!(fresh.ca, new.cert_der());
    drop(cloud.connect(&fresh).await.unwrap());

    let status = must(dir.path(), &["ca", "status"]);
    assert!(
        status.contains("without a certificate of the CA that signs now: away\n")
            && !status.contains("here,"),
        "{status}"
    );
    assert!(status.contains("and no other: stock-1. Put the new CA"), "{status}");
    let refused = command(dir.path(), &["ca", "finish"]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stdout).contains("away"));
    cloud.stop().await;
    // Also after a restart in the middle.
    let cloud = Cloud::start(dir.path()).await;
    drop(cloud.connect(&learned).await.unwrap());
    drop(cloud.connect(&away).await.unwrap());
    must(dir.path(), &["ca", "finish", "--force"]);
    // Who was away the whole time must join again, and can.
    let wait = async {
        while cloud.try_connect(&away).await.is_some() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the old CA is trusted no longer");
    drop(cloud.connect(&learned).await.unwrap());
    assert_eq!(cloud.trust(&learned).await, [new.cert_der()]);
    let again = cloud.join("away", &token(dir.path(), &["--node", "away"])).await.unwrap();
    drop(cloud.connect(&again).await.unwrap());
    cloud.stop().await;
}

/// What does not belong here, at every port. `None` of the expected texts: TLS itself refuses.
#[tokio::test(flavor = "multi_thread")]
async fn bad_certificates_are_refused_at_every_port() {
    let dir = tempfile::tempdir().unwrap();
    let cloud =
        Cloud::start_with(dir.path(), "modules: {cloudStream: {enable: true, tunnelPort: 0, streamPort: 0}}")
            .await;
    let good = cloud.join("edge-1", &token(dir.path(), &[])).await.unwrap();
    let ca = ca_of(dir.path());
    let other = Ca::create("KubeEdge", now()).unwrap();
    let middle = Ca::create("Middle", now()).unwrap();
    let under_middle = ca.cross_sign(&middle, now()).unwrap();
    let node = Identity::node("edge-1");
    let spki = good.key.public_der();
    let plain = NewCert {
        serial: &[7],
        subject: &node,
        spki_der: &spki,
        validity: Validity::days(now(), 9),
        is_ca: false,
        server: false,
        client: true,
        ips: &[],
        dns_names: &[],
    };
    let stranger = Identity::new("system:node:", &["system:nodes"]);
    let admin = Identity::new("kubernetes-admin", &["system:masters"]);
    let no_group = Identity::new("system:node:edge-1", &["somebody"]);
    let from = now() + 3600;
    let rows: Vec<(&str, Vec<u8>)> = vec![
        (
            "expired",
            ca.issue(&NewCert { validity: Validity { not_before: 1, not_after: now() - 60 * DAY }, ..plain })
                .unwrap(),
        ),
        (
            "not yet valid",
            ca.issue(&NewCert { validity: Validity { not_before: from, not_after: from + DAY }, ..plain })
                .unwrap(),
        ),
        ("another CA of the same name", other.issue(&plain).unwrap()),
        ("a server's", ca.issue(&NewCert { client: false, server: true, ..plain }).unwrap()),
        ("no node's", ca.issue(&NewCert { subject: &admin, ..plain }).unwrap()),
        ("an empty name", ca.issue(&NewCert { subject: &stranger, ..plain }).unwrap()),
        ("another group", ca.issue(&NewCert { subject: &no_group, ..plain }).unwrap()),
        ("a CA's own", ca.issue(&NewCert { is_ca: true, ..plain }).unwrap()),
        ("under an intermediate that is not shown", middle.issue(&plain).unwrap()),
    ];
    for (what, certificate) in &rows {
        let bad = Device { certificate: certificate.clone(), ..good.clone() };
        assert!(cloud.try_connect(&bad).await.is_none(), "{what}: the hub");
        assert!(cloud.try_tunnel(&bad).await.is_none(), "{what}: the tunnel port");
        // The join port answers who has an expired one, or one that names no node, with the reason; TLS closes on the others.
        if let Ok((status, body)) = renew(&cloud, &bad, &bad.key).await {
            assert!(matches!(status, 401 | 403), "{what}: {status} {}", text(&body));
            assert_eq!(text(&body).trim_end().lines().count(), 1, "{what}");
        }
    }
    // A chain: the CA did sign the intermediate, which none of ours ever does; a name is all it brings.
    let bad = Device { certificate: middle.issue(&plain).unwrap(), ..good.clone() };
    assert!(!cloud.accepts_chain(&bad, &under_middle).await, "only what the CA itself signed for a node");
    // A name that the certificate does not have.
    let second = cloud.join("edge-2", &token(dir.path(), &[])).await.unwrap();
    let liar = Device { node: "edge-1".into(), ..second };
    let (status, line) = cloud.connect(&liar).await.err().unwrap();
    assert!(status == 403 && line.contains("the certificate is of node \"edge-2\""), "{status} {line}");
    drop(cloud.connect(&good).await.expect("nothing of this harmed the good one"));
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn short_lives_and_keys_of_other_kinds() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start_with(dir.path(), "kinglet: {edgeCertSeconds: 240}").await;
    let device = cloud.join("edge-1", &token(dir.path(), &[])).await.unwrap();
    let validity = CertInfo::parse(&device.certificate).unwrap().validity;
    assert_eq!(validity.not_after - validity.not_before, 250);
    let openssl = |arguments: &str| {
        let output =
            std::process::Command::new("openssl").args(arguments.split(' ')).current_dir(dir.path()).output();
        assert!(output.unwrap().status.success(), "openssl {arguments}");
    };
    for new_key in ["rsa:2048", "ec -pkeyopt ec_paramgen_curve:secp384r1", "ed25519"] {
        openssl(&format!(
            "req -new -newkey {new_key} -nodes -keyout odd.key -subj /O=system:nodes/CN=system:node:edge-9 -outform DER -out odd.csr"
        ));
        let token: pki::JoinToken = token(dir.path(), &[]).parse().unwrap();
        let bearer = format!("Bearer {}", token.bearer());
        let headers = [("NodeName", "edge-9"), ("Authorization", bearer.as_str())];
        let body = std::fs::read(dir.path().join("odd.csr")).unwrap();
        let (status, _, answer) =
            cloud.join_request(pki::tls::first_contact().unwrap(), "GET", "/edge.crt", &headers, &body).await;
        assert!(
            status == 400 && text(&answer).contains("is not an ECDSA P-256 key"),
            "{status} {}",
            text(&answer)
        );
    }
    cloud.stop().await;
}
