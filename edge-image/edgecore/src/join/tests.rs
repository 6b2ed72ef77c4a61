//! Joining against a join port on a real socket.

use std::sync::{Arc, Mutex};

use pki::{Ca, Csr, Key, Names, issue_token, tls::ClientAuth, verify_bearer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::credentials::{Credentials, unix_now_s};

const NODE: &str = "edge-1";

struct Port {
    ca: Ca,
    address: std::net::SocketAddr,
    /// Head of every request.
    seen: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Port {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves `/ca.crt`, and `/edge.crt` as `certify` says: status and body for (head, certificate request).
async fn serve(
    ca: Ca,
    names: &[&str],
    started_at: u64,
    certify: impl Fn(&Ca, &str, &[u8]) -> (u16, Vec<u8>) + Send + 'static,
) -> Port {
    let key = Key::generate().unwrap();
    let cert = ca.issue_server(&key, &Names::new(names.iter().copied()), started_at).unwrap();
    let tls = pki::tls::server_config(&cert, &key, ClientAuth::Requested(ca.cert_der())).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let (served, log) = (ca.clone(), seen.clone());
    let task = tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(tcp).await else { continue };
            let mut request = Vec::new();
            let (head, body) = loop {
                if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                    break (String::new(), Vec::new());
                }
                let Some(end) = request.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
                let head = String::from_utf8_lossy(&request[..end]).into_owned();
                let length = head.split("Content-Length: ").nth(1).unwrap().lines().next().unwrap();
                if request.len() >= end + 4 + length.parse::<usize>().unwrap() {
                    break (head, request[end + 4..].to_vec());
                }
            };
            let (status, answer) = match head.starts_with("GET /ca.crt ") {
                true => (200, served.cert_der().to_vec()),
                false => certify(&served, &head, &body),
            };
            log.lock().unwrap().push(head);
            let date = jiff::fmt::rfc2822::to_string(
                &jiff::Timestamp::from_second(started_at as i64).unwrap().to_zoned(jiff::tz::TimeZone::UTC),
            );
            let head = format!(
                "HTTP/1.1 {status} X\r\nKinglet-Cloud-Id: cluster.epoch\r\nDate: {}\r\nContent-Length: {}\r\n\r\n",
                date.unwrap(),
                answer.len()
            );
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(&answer).await;
            let _ = stream.shutdown().await;
        }
    });
    Port { ca, address, seen, task }
}

/// Checks the token, or takes the client's certificate for proof (the TLS layer has checked it), and signs.
fn sign(ca: &Ca, head: &str, csr: &[u8]) -> (u16, Vec<u8>) {
    if !head.starts_with("GET /edge.crt ") {
        return (404, Vec::new());
    }
    if let Some(bearer) = head.split("Authorization: Bearer ").nth(1) {
        let bearer = bearer.lines().next().unwrap();
        if let Err(error) = verify_bearer(ca, bearer, NODE, unix_now_s()) {
            return (401, error.to_string().into_bytes());
        }
    }
    (200, ca.issue_node(&Csr::parse(csr).unwrap(), NODE, unix_now_s()).unwrap())
}

async fn port() -> Port {
    let ca = Ca::create("KubeEdge", unix_now_s()).unwrap();
    serve(ca, &["127.0.0.1"], unix_now_s(), sign).await
}

fn options(port: &Port, token: &str, root: &Path) -> Options {
    Options {
        cloud: "127.0.0.1:10000".into(),
        token: token.into(),
        cert_port: port.address.port(),
        node_name: Some(NODE.into()),
        labels: BTreeMap::from([("site".into(), "hall-3".into())]),
        runtime_endpoint: Some("unix:///tmp/c.sock".into()),
        discovery_prefix: None,
        cgroup_driver: Some("systemd".into()),
        root: root.into(),
        adopt: false,
        force: false,
    }
}

fn token(ca: &Ca, ttl_s: u64, now: u64) -> String {
    issue_token(ca, ttl_s, None, now).unwrap().text
}

#[tokio::test]
async fn a_token_becomes_a_certificate_and_a_configuration() {
    let (port, dir) = (port().await, tempfile::tempdir().unwrap());
    let options = options(&port, &token(&port.ca, 60, unix_now_s()), dir.path());
    let joined = join(&options).await.unwrap();
    assert_eq!((joined.node.as_str(), joined.cloud_id.as_str()), (NODE, "cluster.epoch"));

    let loaded = Config::load(&joined.config).unwrap();
    assert_eq!(loaded.unknown, vec![]);
    let cfg = loaded.config;
    assert_eq!(cfg.node_name(), NODE);
    assert_eq!(cfg.kinglet.cloud_id, "cluster.epoch");
    assert_eq!(cfg.modules.edge_hub.websocket.server, "127.0.0.1:10000");
    assert_eq!(cfg.modules.event_bus.mqtt_mode, 0);
    assert_eq!(cfg.modules.edged.node_labels["site"], "hall-3");
    assert_eq!(cfg.modules.edged.tailored_kubelet_config.cgroup_driver, "systemd");
    assert!(cfg.store_dir().starts_with(dir.path()) && cfg.kinglet.run_dir.starts_with(dir.path()));
    assert!(!fs::read_to_string(&joined.config).unwrap().contains(&options.token), "the token is not kept");

    let credentials = Credentials::new(&cfg.modules.edge_hub);
    assert!(credentials.is_bundle());
    let bundle = credentials.load().unwrap();
    bundle.check(&format!("system:node:{NODE}"), unix_now_s()).unwrap();
    let heads = port.seen.lock().unwrap().clone();
    assert!(heads[1].contains("\r\nNodeName: edge-1\r\n") && heads[1].starts_with("GET /edge.crt HTTP/1.1"));

    let again = join(&options).await.unwrap_err().to_string();
    assert!(again.contains("has joined 127.0.0.1:10000 already") && again.contains("--adopt"), "{again}");
    join(&Options { adopt: true, ..options }).await.unwrap();
}

#[tokio::test]
async fn renewal_shows_the_current_certificate_and_no_token() {
    let (port, dir) = (port().await, tempfile::tempdir().unwrap());
    let options = options(&port, &token(&port.ca, 60, unix_now_s()), dir.path());
    let cfg = Config::load(&join(&options).await.unwrap().config).unwrap().config;
    let current = Credentials::new(&cfg.modules.edge_hub).load().unwrap();
    let server = cfg.modules.edge_hub.http_server.strip_prefix("https://").unwrap().to_owned();
    let renewed = crate::enrol::renew(&server, NODE, &current, Key::generate().unwrap()).await.unwrap();
    assert_ne!(renewed.cert_der, current.cert_der);
    assert!(!port.seen.lock().unwrap().last().unwrap().contains("Authorization"));
}

#[tokio::test]
async fn a_certificate_that_is_due_is_renewed_on_disk() {
    let (port, dir) = (port().await, tempfile::tempdir().unwrap());
    let options = options(&port, &token(&port.ca, 60, unix_now_s()), dir.path());
    let cfg = Config::load(&join(&options).await.unwrap().config).unwrap().config;
    let credentials = Credentials::new(&cfg.modules.edge_hub);
    let rotate = crate::hub::RotateConfig {
        credentials: credentials.clone(),
        server: port.address.to_string(),
        node: NODE.into(),
        renews: true,
        look_every: std::time::Duration::from_secs(1800),
    };
    let first = credentials.load().unwrap();
    let now = unix_now_s();
    assert!(!crate::hub::rotate::renew_if_due(&rotate, 70, now).await.unwrap(), "a fresh one stays");
    assert_eq!(credentials.load().unwrap(), first);
    let validity = pki::CertInfo::parse(&first.cert_der).unwrap().validity;
    let late = validity.not_before + (validity.not_after - validity.not_before) / 10 * 8;
    assert!(crate::hub::rotate::renew_if_due(&rotate, 70, late).await.unwrap());
    let second = credentials.load().unwrap();
    assert!(second.cert_der != first.cert_der && second.key != first.key && second.ca_der == first.ca_der);
    let gone = crate::hub::RotateConfig { server: "127.0.0.1:1".into(), ..rotate };
    assert!(crate::hub::rotate::renew_if_due(&gone, 0, late).await.is_err());
    assert_eq!(credentials.load().unwrap(), second, "a failure leaves what was there");
}

#[tokio::test]
async fn every_way_to_fail_is_one_line_with_its_remedy_and_writes_nothing() {
    let (port, dir) = (port().await, tempfile::tempdir().unwrap());
    let now = unix_now_s();
    let good = token(&port.ca, 60, now);
    let other_ca = Ca::create("KubeEdge", now).unwrap();
    let forged = format!("{}.{}", port.ca.hash(), token(&other_ca, 60, now).split_once('.').unwrap().1);
    let base = options(&port, &good, dir.path());
    let with = |token: &str| Options { token: token.into(), ..base.clone() };
    let expired = token(&port.ca, 60, now - 3600);
    for (options, wanted) in [
        (with("nonsense"), "malformed"),
        (with(&forged), "not signed by this cloud"),
        (with(&expired), "expired at"),
        (with(&token(&other_ca, 60, now)), "another cloud"),
        (Options { cloud: "127.0.0.1".into(), ..base.clone() }, "is not HOST:PORT"),
        (Options { cloud: "host/x:1".into(), ..base.clone() }, "is not HOST:PORT"),
        (Options { node_name: Some("Line_3".into()), ..base.clone() }, "--edgenode-name"),
        (Options { cert_port: 1, ..base.clone() }, "check the address, --certport"),
    ] {
        let error = join(&options).await.unwrap_err();
        let line = rt::error_chain(&error);
        assert!(line.contains(wanted) && !line.contains('\n'), "{wanted}: {line}");
        assert!(line.contains(';') || line.contains(':'), "{line} has no remedy");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{wanted}: something was written");
    }
}

#[tokio::test]
async fn a_taken_name_and_a_stock_clouds_texts_get_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    for (text, wanted) in [
        ("node edge-1 is taken; use another --edgenode-name", "use another --edgenode-name"),
        ("node edge-1 already exists", "cloudcore node reset"),
        ("token is expired", "`cloudcore token`"),
        ("", "HTTP status 409"),
    ] {
        let ca = Ca::create("KubeEdge", unix_now_s()).unwrap();
        let port = serve(ca, &["127.0.0.1"], unix_now_s(), move |_, _, _| (409, text.into())).await;
        let line = join(&options(&port, &token(&port.ca, 60, unix_now_s()), dir.path()))
            .await
            .unwrap_err()
            .to_string();
        assert!(line.contains("refused node edge-1") && line.contains(wanted), "{line}");
    }
}

#[tokio::test]
async fn certificates_that_cannot_be_used_are_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let foreign = |ca: &Ca, _: &str, _: &[u8]| {
        let csr = pki::new_csr(&Key::generate().unwrap(), &pki::Identity::node(NODE)).unwrap();
        (200, ca.issue_node(&Csr::parse(&csr).unwrap(), NODE, unix_now_s()).unwrap())
    };
    let renamed = |ca: &Ca, _: &str, csr: &[u8]| {
        (200, ca.issue_node(&Csr::parse(csr).unwrap(), "another", unix_now_s()).unwrap())
    };
    let garbage = |_: &Ca, _: &str, _: &[u8]| (200, b"hello".to_vec());
    type Certify = Box<dyn Fn(&Ca, &str, &[u8]) -> (u16, Vec<u8>) + Send>;
    let cases: [Certify; 3] = [Box::new(foreign), Box::new(renamed), Box::new(garbage)];
    for certify in cases {
        let ca = Ca::create("KubeEdge", unix_now_s()).unwrap();
        let port = serve(ca, &["127.0.0.1"], unix_now_s(), certify).await;
        let line = join(&options(&port, &token(&port.ca, 60, unix_now_s()), dir.path()))
            .await
            .unwrap_err()
            .to_string();
        assert!(line.contains("certificate for this node cannot be used"), "{line}");
    }
    let ca = Ca::create("KubeEdge", unix_now_s()).unwrap();
    let port = serve(ca, &["cloud.example"], unix_now_s(), sign).await;
    let line =
        join(&options(&port, &token(&port.ca, 60, unix_now_s()), dir.path())).await.unwrap_err().to_string();
    assert!(line.contains("--advertise-address"), "a server certificate for another name: {line}");
}

/// The board boots in the past: for us the cloud's certificates begin in the future.
#[tokio::test]
async fn a_clock_in_the_past_does_not_stop_a_join() {
    let (dir, future) = (tempfile::tempdir().unwrap(), unix_now_s() + 400 * 86_400);
    let ca = Ca::create("KubeEdge", future).unwrap();
    let port = serve(ca, &["127.0.0.1"], future, move |ca, _, csr| {
        (200, ca.issue_node(&Csr::parse(csr).unwrap(), NODE, future).unwrap())
    })
    .await;
    join(&options(&port, &token(&port.ca, 60, future), dir.path())).await.unwrap();
}

#[test]
fn names_labels_and_addresses() {
    for good in ["a", "line3", "kinglet-0a1b2c3d", "a.b-c"] {
        assert!(is_node_name(good), "{good}");
    }
    for bad in ["", "A", "a_b", "-a", "a-", "a..b", "a/b", "a\nb"] {
        assert!(!is_node_name(bad), "{bad:?}");
    }
    assert_eq!(
        parse_labels("a=b, c=").unwrap(),
        BTreeMap::from([("a".into(), "b".into()), ("c".into(), "".into())])
    );
    assert!(parse_labels("a").is_err() && parse_labels("=b").is_err());
    assert_eq!(split_address("[2001:db8::1]:10000"), Some(("[2001:db8::1]", 10000)));
    assert_eq!(split_address("a:1"), Some(("a", 1)));
    for bad in ["a", ":1", "a:x", "a:b:1", "[]:1", "a:99999"] {
        assert_eq!(split_address(bad), None, "{bad}");
    }
}

#[test]
fn a_node_alone_has_a_configuration_without_a_cloud_and_keeps_what_it_had() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        cloud: String::new(),
        token: String::new(),
        cert_port: 10002,
        node_name: Some("greenhouse".into()),
        labels: BTreeMap::new(),
        runtime_endpoint: None,
        cgroup_driver: None,
        discovery_prefix: Some("homeassistant".into()),
        root: dir.path().into(),
        adopt: false,
        force: false,
    };
    let path = alone(&options).unwrap();
    let read = || Config::load(&path).unwrap();
    assert!(read().unknown.is_empty());
    let cfg = read().config;
    assert!(!cfg.modules.edge_hub.enable);
    assert_eq!(cfg.node_name(), "greenhouse");
    assert_eq!(cfg.modules.device_twin.discovery_prefix, "homeassistant");
    assert_eq!(cfg.modules.device_twin.device_folder, dir.path().join("etc/kinglet/devices"));
    alone(&Options { node_name: None, discovery_prefix: None, ..options.clone() }).unwrap();
    let cfg = read().config;
    assert_eq!(
        (cfg.node_name().as_str(), cfg.modules.device_twin.discovery_prefix.as_str()),
        ("greenhouse", "homeassistant")
    );
    let error = alone(&Options { node_name: Some("a b".into()), ..options.clone() }).unwrap_err();
    assert!(error.to_string().contains("cannot be a node's name"), "{error}");

    let pem = dir.path().join("etc/kubeedge/certs/node.pem");
    let mut cfg = read().config;
    cfg.modules.edge_hub.tls_cert_file = pem.clone();
    cfg.modules.edge_hub.websocket.server = "c:10000".into();
    fs::create_dir_all(pem.parent().unwrap()).unwrap();
    fs::write(&pem, "x").unwrap();
    fs::write(&path, render(&cfg)).unwrap();
    assert!(
        alone(&options).unwrap_err().to_string().contains("has joined c:10000"),
        "a joined node stays one"
    );
}
