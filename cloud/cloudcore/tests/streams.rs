//! Byte streams to nodes: on the link, and through the tunnel of a stock node.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{Cloud, Device, PATIENCE, pod, token};
use futures_util::{SinkExt, StreamExt};
use kserve::DialError;
use rt::BoxIo;
use serde_json::{Value, json};
use streams::{Event, Progress, Relabelled, Socket, Stream, Streams};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Message as Frame;
use tokio_tungstenite::tungstenite::protocol::frame::Frame as RawFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use wire::Message;
use wire::tunnel::{Connect, Envelope, HEADER_NODE, kind};

fn upgrade(uri: &str) -> http::request::Builder {
    http::Request::builder()
        .uri(uri)
        .header("host", "cloud")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
}

fn identity(device: &Device) -> rustls::ClientConfig {
    pki::tls::client_config(&device.ca, Some((&device.certificate, &device.key))).unwrap()
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

/// A link that takes streams; they come out here, and messages are answered by nobody.
async fn link(cloud: &Cloud, device: &Device) -> mpsc::Receiver<Stream> {
    let tls = cloud.tls("hub", identity(device)).await.unwrap();
    let request = upgrade("wss://cloud/p/n/events")
        .header("node_id", &device.node)
        .header(wire::headers::STREAMS, "1")
        .body(())
        .unwrap();
    let (ws, response) = tokio_tungstenite::client_async(request, tls).await.unwrap();
    assert_eq!(response.headers()[wire::headers::STREAMS], "1");
    let mut socket = Socket::new(ws, Progress::default(), Some(Streams::acceptor()), PATIENCE);
    let keepalive = Message::new(1, "websocket", "resource", "keepalive", "node").with_content("ping");
    socket.queue(Frame::text(keepalive.encode()));
    let (tx, rx) = mpsc::channel(64);
    tokio::spawn(async move {
        while let Ok(event) = socket.next(true).await {
            if let Event::Opened(stream) = event {
                tx.send(stream).await.unwrap();
            }
        }
    });
    rx
}

async fn dialled(cloud: &Cloud, node: &str) -> BoxIo {
    let dial = async {
        loop {
            match cloud.nodes.dial(node).await {
                Ok(io) => return io,
                Err(DialError::NotConnected(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    soon(dial).await
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_the_link_reach_the_node_and_end_with_the_session() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(dir.path()).await;
    let device = cloud.join("edge-1", &token(dir.path(), &[])).await.unwrap();
    let missing = cloud.nodes.dial("edge-1").await.err().unwrap();
    assert_eq!(missing, DialError::NotConnected("edge-1".into()));

    let mut node = link(&cloud, &device).await;
    let mut ours = dialled(&cloud, "edge-1").await;
    let mut theirs = soon(node.recv()).await.unwrap();
    ours.write_all(b"GET /").await.unwrap();
    let mut five = [0; 5];
    soon(theirs.read_exact(&mut five)).await.unwrap();
    theirs.write_all(&five).await.unwrap();
    theirs.shutdown().await.unwrap();
    drop(theirs);
    let mut back = Vec::new();
    soon(ours.read_to_end(&mut back)).await.unwrap();
    assert_eq!(back, b"GET /");

    // Another connection of the node takes over: streams of the old one end at once and say why.
    let mut open = dialled(&cloud, "edge-1").await;
    let _held = soon(node.recv()).await.unwrap();
    let mut newer = link(&cloud, &device).await;
    let error = soon(open.read_u8()).await.unwrap_err();
    assert!(error.to_string().contains("newer connection of the same node"), "{error}");
    let mut ours = dialled(&cloud, "edge-1").await;
    let mut theirs = soon(newer.recv()).await.unwrap();
    ours.write_u8(7).await.unwrap();
    assert_eq!(soon(theirs.read_u8()).await.unwrap(), 7);

    // A node that offers no streams is not reached this way.
    let mut stock = cloud.connect(&device).await.unwrap();
    stock.register().await;
    let missing = cloud.nodes.dial("edge-1").await.err().unwrap();
    assert_eq!(missing, DialError::NotConnected("edge-1".into()));
    cloud.stop().await;
}

const TUNNEL: &str = "modules: {cloudStream: {enable: true, tunnelPort: 0, streamPort: 0, tlsStreamCAFile: CA, tlsStreamCertFile: \
    CERT, tlsStreamPrivateKeyFile: KEY}}";

/// What a stock edgestream is on the wire.
struct StockEdge(WebSocketStream<Relabelled<TlsStream<TcpStream>>>);

impl StockEdge {
    async fn open(cloud: &Cloud, device: &Device, name: &str, path: &str) -> Result<StockEdge, u16> {
        let tls = cloud.tls("tunnel", identity(device)).await.unwrap();
        let request = upgrade(&format!("wss://cloud{path}"))
            .header(HEADER_NODE, name)
            .header("SessionInternalIP", "192.0.2.9")
            .body(())
            .unwrap();
        match tokio_tungstenite::client_async(request, Relabelled::new(tls)).await {
            Ok((ws, _)) => Ok(StockEdge(ws)),
            Err(tokio_tungstenite::tungstenite::Error::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    async fn send(&mut self, id: u64, kind: u64, data: &[u8]) {
        let frame = RawFrame::message(Envelope { id, kind, data }.encode(), OpCode::Data(Data::Text), true);
        self.0.send(Frame::Frame(frame)).await.unwrap();
    }

    async fn receive(&mut self) -> (u64, u64, Vec<u8>) {
        loop {
            match soon(self.0.next()).await.unwrap().unwrap() {
                Frame::Binary(bytes) => {
                    let Envelope { id, kind, data } = Envelope::decode(&bytes).unwrap();
                    return (id, kind, data.to_vec());
                }
                other => assert!(!other.is_close(), "{other}"),
            }
        }
    }
}

/// The configuration with a stream CA of its own; a client's TLS with a certificate of that CA.
fn stream_ca(dir: &Path) -> (String, rustls::ClientConfig) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let path = |name: &str| dir.join(name).display().to_string();
    let pem = |der: &[u8]| pki::pem_encode("CERTIFICATE", der);
    let ca = pki::Ca::create("StreamCA", now).unwrap();
    let key = pki::Key::generate().unwrap();
    let certificate = ca.issue_server(&key, &pki::Names::new(["127.0.0.1"]), now).unwrap();
    let client_key = pki::Key::generate().unwrap();
    let csr = pki::new_csr(&client_key, &pki::Identity::node("apiserver")).unwrap();
    let client = ca.issue_node(&pki::Csr::parse(&csr).unwrap(), "apiserver", now).unwrap();
    std::fs::write(path("ca.crt"), pem(ca.cert_der())).unwrap();
    std::fs::write(path("stream.crt"), pem(&certificate)).unwrap();
    std::fs::write(path("stream.key"), key.to_pem()).unwrap();
    let config = TUNNEL
        .replace("CA,", &format!("{},", path("ca.crt")))
        .replace("CERT,", &format!("{},", path("stream.crt")))
        .replace("KEY}", &format!("{}}}", path("stream.key")));
    (config, pki::tls::client_config(ca.cert_der(), Some((&client, &client_key))).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_nodes_tunnel_carries_logs_exec_and_metrics() {
    let (dir, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (config, client) = stream_ca(files.path());
    let cloud = Cloud::start_with(dir.path(), &config).await;
    let device = cloud.join("edge-1", &token(dir.path(), &[])).await.unwrap();
    assert_eq!(StockEdge::open(&cloud, &device, "edge-2", "/v1/kubeedge/connect").await.err(), Some(403));
    assert_eq!(StockEdge::open(&cloud, &device, "edge-1", "/elsewhere").await.err(), Some(404));
    let mut edge = StockEdge::open(&cloud, &device, "edge-1", "/v1/kubeedge/connect").await.ok().unwrap();
    edge.0.send(Frame::Ping(b"ping you".to_vec().into())).await.unwrap();

    // Logs: the node sends the body only.
    let mut io = dialled(&cloud, "edge-1").await;
    io.write_all(b"GET /containerLogs/d/p/c?follow=true HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let (id, kind_of, data) = edge.receive().await;
    assert_eq!(kind_of, kind::LOGS_CONNECT);
    let connect: Connect = serde_json::from_slice(&data).unwrap();
    assert_eq!(
        (connect.id, connect.url.target().unwrap().as_str()),
        (id, "/containerLogs/d/p/c?follow=true")
    );
    edge.send(id, kind::DATA, &[0xff; 256]).await;
    edge.send(id, kind::DATA, b"\xc3").await;
    edge.send(id, kind::REMOVE_CONNECT, b"").await;
    let mut answer = Vec::new();
    soon(io.read_to_end(&mut answer)).await.unwrap();
    let head_len = wire::tunnel::head_len(&answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
    assert_eq!(answer[head_len..], [&[0xff; 256][..], b"\xc3"].concat());

    // Exec: bytes both ways, beginning with the node's own answer.
    let mut io = dialled(&cloud, "edge-1").await;
    let request =
        b"POST /exec/d/p/c?command=sh HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\nearly";
    io.write_all(request).await.unwrap();
    let (id, kind_of, data) = edge.receive().await;
    let connect: Connect = serde_json::from_slice(&data).unwrap();
    assert_eq!((kind_of, connect.method.as_deref()), (kind::EXEC_CONNECT, Some("POST")));
    assert_eq!(edge.receive().await, (id, kind::DATA, b"early".to_vec()));
    edge.send(id, kind::DATA, b"HTTP/1.1 101 x\r\n\r\n\xfe").await;
    let mut answer = [0; 19];
    soon(io.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101 x\r\n\r\n\xfe");
    drop(io);
    assert_eq!(edge.receive().await, (id, kind::REMOVE_CONNECT, vec![]));

    // What the protocol cannot carry has an answer.
    let mut io = dialled(&cloud, "edge-1").await;
    io.write_all(b"POST /run/d/p/c HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    soon(io.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 501 ") && answer.contains("stock node"), "{answer}");

    // The stream port: an API server's kubelet client, by the pod's node, and by header for metrics.
    let mut body = pod("web", Value::Null);
    body["spec"] = json!({"nodeName": "edge-1", "containers": [{"name": "c", "image": "i"}]});
    cloud.create("/api/v1/namespaces/default/pods", body).await;
    for (request, target, kind_wanted) in [
        (
            "GET /containerLogs/default/web/c HTTP/1.1\r\nHost: x\r\n\r\n",
            "/containerLogs/default/web/c",
            kind::LOGS_CONNECT,
        ),
        (
            "GET /metrics/resource HTTP/1.1\r\nX-Forwarded-Uri: /api/v1/nodes/edge-1/proxy/metrics/resource\r\n\r\n",
            "/metrics/resource",
            kind::METRIC_CONNECT,
        ),
    ] {
        let mut tls = cloud.tls("stream", client.clone()).await.unwrap();
        tls.write_all(request.as_bytes()).await.unwrap();
        let (id, kind_of, data) = edge.receive().await;
        let connect: Connect = serde_json::from_slice(&data).unwrap();
        assert_eq!((kind_of, connect.url.target().as_deref()), (kind_wanted, Some(target)));
        edge.send(id, kind::DATA, b"line\n").await;
        edge.send(id, kind::REMOVE_CONNECT, b"").await;
        let mut answer = Vec::new();
        drop(soon(tls.read_to_end(&mut answer)).await);
        assert!(answer.ends_with(b"\r\n\r\nline\n"), "{}", String::from_utf8_lossy(&answer));
    }
    // A node's certificate opens nothing there.
    let refused = async {
        let mut tls = cloud.tls("stream", trusting_anybody(identity(&device))).await?;
        tls.write_all(b"GET /containerLogs/default/web/c HTTP/1.1\r\n\r\n").await?;
        tls.read_u8().await
    };
    assert!(soon(refused).await.is_err());

    // A newer tunnel takes over, and with the last one the way is gone.
    let newer = StockEdge::open(&cloud, &device, "edge-1", "/v1/kubeedge/connect").await.ok().unwrap();
    let (id, kind_of, _) = edge.receive().await;
    assert_eq!((id, kind_of), (0, kind::CLOSE_CONNECT));
    drop((edge, newer));
    let gone = async {
        while cloud.nodes.dial("edge-1").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(gone).await;
    cloud.stop().await;
}

/// The client does not check the server, so that the refusal is the server's.
fn trusting_anybody(mut config: rustls::ClientConfig) -> rustls::ClientConfig {
    let anybody = pki::tls::first_contact().unwrap();
    let identity = config.client_auth_cert_resolver.clone();
    config = anybody;
    config.client_auth_cert_resolver = identity;
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_stream_ca_only_the_tunnel_port_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let config = TUNNEL.replace("CA,", "/does/not/exist,");
    let cloud = Cloud::start_with(dir.path(), &config).await;
    assert!(cloud.endpoints.tunnel.is_some() && cloud.endpoints.stream.is_none());
    cloud.stop().await;
}
