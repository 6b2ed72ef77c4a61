//! A cloudcore in this process with its real ports, and a scripted edge that speaks to it over real TLS and WebSocket.
#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

pub mod stock;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cloudcore::cli::Run;
use cloudcore::config::Config;
use cloudcore::{Endpoints, Running, settings, start};
use futures_util::{SinkExt, StreamExt};
use pki::{Identity, JoinToken, Key};
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Message as Frame;
use wire::Message;
use wire::lane::{End, Frames, Lane, Out, Received};

/// Longest wait for anything that is to happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Cloud {
    pub endpoints: Endpoints,
    pub api: kube::Client,
    pub nodes: Arc<dyn kserve::NodeDialer>,
    drain: rt::Drain,
    ended: tokio::task::JoinHandle<anyhow::Result<()>>,
    /// What its store is locked by. A cloudcore on a cluster has none.
    lock: std::path::PathBuf,
}

impl Cloud {
    pub async fn start(dir: &Path) -> Cloud {
        Cloud::start_with(dir, "").await
    }

    pub async fn start_with(dir: &Path, config: &str) -> Cloud {
        Cloud::start_as(dir, config, None).await
    }

    /// A replica on the cluster of this kubeconfig.
    pub async fn start_on(dir: &Path, kubeconfig: &Path) -> Cloud {
        Cloud::start_as(dir, "", Some(kubeconfig.to_owned())).await
    }

    pub async fn start_as(dir: &Path, config: &str, kubeconfig: Option<std::path::PathBuf>) -> Cloud {
        let config =
            Config::parse("test.yaml".as_ref(), if config.is_empty() { "{}" } else { config }).unwrap();
        assert_eq!(config.unknown, [], "the test's configuration");
        let run = Run {
            data_dir: Some(dir.to_owned()),
            bind_address: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            api_port: Some(0),
            hub_port: Some(0),
            join_port: Some(0),
            kubeconfig,
            ..Run::default()
        };
        let settings = settings(config.config, &run);
        let running: Running =
            start(settings).await.unwrap_or_else(|error| panic!("{}", rt::error_chain(&error)));
        let (endpoints, drain) = (running.endpoints.clone(), running.drain().clone());
        let nodes = running.nodes();
        let ended = tokio::spawn(running.wait(Duration::from_secs(10)));
        // A cloudcore on a cluster writes none.
        let kubeconfig = [dir.join("kubeconfig"), run.kubeconfig.unwrap_or_default()];
        let kubeconfig = kubeconfig.iter().find(|path| path.exists()).expect("a kubeconfig");
        let file = kube::config::Kubeconfig::read_from(kubeconfig).unwrap();
        let config = kube::Config::from_custom_kubeconfig(file, &Default::default()).await.unwrap();
        let lock = dir.join("store/lock");
        Cloud { endpoints, api: kube::Client::try_from(config).unwrap(), nodes, drain, ended, lock }
    }

    pub async fn stop(self) {
        self.drain.start();
        self.ended.await.unwrap().unwrap();
        // In one process the store is free only when the last connection is dropped.
        let free = async {
            while let Ok(lock) = std::fs::File::open(&self.lock)
                && lock.try_lock().is_err()
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        drop(self.api);
        tokio::time::timeout(PATIENCE, free).await.expect("the data directory stays in use");
    }

    /// A request to the API as an administrator would make it. `Err`: the status object.
    pub async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value, Value> {
        let content_type =
            if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = http::Request::builder().method(method).uri(path).header("content-type", content_type);
        let request =
            request.body(body.map(|body| body.to_string()).unwrap_or_default().into_bytes().into()).unwrap();
        let response = self.api.send(request).await.unwrap();
        let status = response.status();
        let bytes = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
        let value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        if status.is_success() { Ok(value) } else { Err(value) }
    }

    pub async fn get(&self, path: &str) -> Option<Value> {
        self.call("GET", path, None).await.ok()
    }

    pub async fn create(&self, path: &str, body: Value) -> Value {
        self.call("POST", path, Some(body)).await.unwrap_or_else(|status| panic!("POST {path}: {status}"))
    }

    /// Asks until `seen` has something to give.
    pub async fn until<T>(&self, path: &str, seen: impl Fn(&Value) -> Option<T>) -> T {
        let last = std::cell::RefCell::new(None);
        let wait = async {
            loop {
                let value = self.get(path).await;
                if let Some(found) = value.as_ref().and_then(&seen) {
                    return found;
                }
                *last.borrow_mut() = value;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, wait).await;
        waited.unwrap_or_else(|_| panic!("{path} did not get there; last seen: {:?}", last.borrow()))
    }

    pub async fn until_gone(&self, path: &str) {
        let wait = async {
            while self.get(path).await.is_some() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{path} is still there"));
    }

    pub async fn tls(
        &self,
        port: &str,
        config: rustls::ClientConfig,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let address = match port {
            "hub" => &self.endpoints.hub,
            "tunnel" => self.endpoints.tunnel.as_ref().expect("the tunnel port is open"),
            "stream" => self.endpoints.stream.as_ref().expect("the stream port is open"),
            _ => &self.endpoints.join,
        };
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::from(IpAddr::V4(Ipv4Addr::LOCALHOST));
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// One request to the join port; status, headers as text, body.
    pub async fn join_request(
        &self,
        config: rustls::ClientConfig,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> (u16, String, Vec<u8>) {
        self.try_join_request(config, method, path, headers, body).await.expect("an HTTP answer")
    }

    /// `None`: the connection was closed before an answer.
    pub async fn try_join_request(
        &self,
        config: rustls::ClientConfig,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Option<(u16, String, Vec<u8>)> {
        let mut stream = self.tls("join", config).await.ok()?;
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: cloud\r\nConnection: close\r\nContent-Length: {}\r\n",
            body.len()
        );
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        drop(stream.write_all(head.as_bytes()).await);
        // The other end may refuse a body before it has read all of it.
        drop(stream.write_all(body).await);
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer).await);
        let split = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&answer[..split]).into_owned();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line");
        Some((status, head, answer[split + 4..].to_vec()))
    }

    /// The whole join as an edge does it.
    pub async fn join(&self, node: &str, token: &str) -> Result<Device, (u16, String)> {
        self.join_with_key(node, token, Key::generate().unwrap()).await
    }

    pub async fn join_with_key(&self, node: &str, token: &str, key: Key) -> Result<Device, (u16, String)> {
        let token: JoinToken = token.parse().unwrap();
        let wanted = [(pki::CA_HASH_HEADER, token.ca_hash())];
        let (status, _, ca) =
            self.join_request(pki::tls::first_contact().unwrap(), "GET", "/ca.crt", &wanted, b"").await;
        assert_eq!(status, 200);
        token.check_ca(&ca).unwrap();
        let csr = pki::new_csr(&key, &Identity::node(node)).unwrap();
        let bearer = format!("Bearer {}", token.bearer());
        let headers = [("NodeName", node), ("Authorization", &bearer)];
        let config = pki::tls::client_config(&ca, None).unwrap();
        let (status, _, body) = self.join_request(config, "GET", "/edge.crt", &headers, &csr).await;
        if status != 200 {
            return Err((status, String::from_utf8_lossy(&body).into_owned()));
        }
        Ok(Device { node: node.into(), ca, certificate: body, key, store_id: String::new() })
    }

    /// Opens the link. `Err`: the HTTP status and text of the refusal.
    pub async fn connect(&self, device: &Device) -> Result<Edge, (u16, String)> {
        self.connect_with(device, &[]).await
    }

    /// As our own edge does it. `link` and `before`: numbers of this link and of the one dialled before; `resume`: as the header says.
    pub async fn connect_compact(
        &self,
        device: &Device,
        (link, before): (u64, u64),
        resume: &str,
    ) -> Result<Edge, (u16, String)> {
        let numbers = wire::headers::render_link(link, before);
        let headers =
            [(wire::headers::LANE, "1"), (wire::headers::LINK, &numbers), (wire::headers::RESUME, resume)];
        let mut edge = self.connect_with(device, &headers).await?;
        assert_eq!(edge.accepted_lane, "1");
        edge.lane = Lane::compact(link, End::Edge);
        Ok(edge)
    }

    async fn connect_with(&self, device: &Device, headers: &[(&str, &str)]) -> Result<Edge, (u16, String)> {
        let config = pki::tls::client_config(&device.ca, Some((&device.certificate, &device.key))).unwrap();
        let dialled = self.dial_with(config, device, headers).await;
        dialled.unwrap_or_else(|error| panic!("the link does not open: {error}"))
    }

    /// `None`: refused, by TLS or by an answer.
    pub async fn try_connect(&self, device: &Device) -> Option<Edge> {
        self.dial(device).await.ok()?.ok()
    }

    async fn dial(&self, device: &Device) -> Result<Result<Edge, (u16, String)>, String> {
        let config = pki::tls::client_config(&device.ca, Some((&device.certificate, &device.key))).unwrap();
        self.dial_with(config, device, &[]).await
    }

    async fn dial_with(
        &self,
        config: rustls::ClientConfig,
        device: &Device,
        headers: &[(&str, &str)],
    ) -> Result<Result<Edge, (u16, String)>, String> {
        let stream = self.tls("hub", config).await.map_err(|error| error.to_string())?;
        let request = http::Request::builder()
            .uri(format!("wss://cloud/e632aba927ea4ac2b575ec1603d56f10/{}/events", device.node))
            .header("host", "cloud")
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("node_id", &device.node)
            .header("project_id", "e632aba927ea4ac2b575ec1603d56f10")
            .header("ConnectionUse", "msg");
        let mut request = match device.store_id.is_empty() {
            true => request,
            false => request.header(wire::headers::STORE_ID, &device.store_id),
        };
        for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
            request = request.header(*name, *value);
        }
        match tokio_tungstenite::client_async(request.body(()).unwrap(), stream).await {
            Ok((ws, response)) => {
                let header = |name: &str| {
                    response
                        .headers()
                        .get(name)
                        .map_or_else(String::new, |value| value.to_str().unwrap().into())
                };
                Ok(Ok(Edge {
                    node: device.node.clone(),
                    ws,
                    cloud_id: header(wire::headers::CLOUD_ID),
                    accepted_lane: header(wire::headers::LANE),
                    lane: Lane::json(),
                    others: Vec::new(),
                    unread: VecDeque::new(),
                    waiting: VecDeque::new(),
                    acks: true,
                    acks_answers: false,
                }))
            }
            Err(tokio_tungstenite::tungstenite::Error::Http(response)) => {
                let body = response.body().clone().unwrap_or_default();
                Ok(Err((response.status().as_u16(), String::from_utf8_lossy(&body).into_owned())))
            }
            Err(error) => Err(error.to_string()),
        }
    }

    pub async fn until_refused(&self, device: &Device) {
        let wait = async {
            while self.try_connect(device).await.is_some() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the node is let in still");
    }

    pub async fn until_accepted(&self, device: &Device) {
        let wait = async {
            while self.try_connect(device).await.is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the node is not let in");
    }

    /// Renews until the certificate is of this CA.
    pub async fn until_signed_by(&self, device: &Device, ca: &pki::Ca) -> Device {
        let wait = async {
            loop {
                let config =
                    pki::tls::client_config(&device.ca, Some((&device.certificate, &device.key))).unwrap();
                let key = Key::generate().unwrap();
                let csr = pki::new_csr(&key, &Identity::node(&device.node)).unwrap();
                let headers = [("NodeName", device.node.as_str())];
                let (status, _, certificate) =
                    self.join_request(config, "GET", "/edge.crt", &headers, &csr).await;
                assert_eq!(status, 200, "{}", String::from_utf8_lossy(&certificate));
                if pki::CertInfo::parse(&certificate).unwrap().names_issuer(ca.info()) {
                    return Device { certificate, key, ..device.clone() };
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the new CA does not sign")
    }

    /// The CAs that the cloud tells the node.
    pub async fn trust(&self, device: &Device) -> Vec<Vec<u8>> {
        let config = pki::tls::client_config(&device.ca, None).unwrap();
        let (status, _, body) = self.join_request(config, "GET", pki::TRUST_PATH, &[], b"").await;
        assert_eq!(status, 200);
        pki::cas_from_pem(&String::from_utf8(body).unwrap()).unwrap()
    }

    /// Opens a tunnel as EdgeStream does. `Err`: the HTTP status and text of the refusal.
    pub async fn open_tunnel(
        &self,
        device: &Device,
    ) -> Result<WebSocketStream<TlsStream<TcpStream>>, (u16, String)> {
        self.dial_tunnel(device).await.expect("an HTTP answer")
    }

    /// `None`: refused, by TLS or by an answer.
    pub async fn try_tunnel(&self, device: &Device) -> Option<WebSocketStream<TlsStream<TcpStream>>> {
        self.dial_tunnel(device).await?.ok()
    }

    async fn dial_tunnel(
        &self,
        device: &Device,
    ) -> Option<Result<WebSocketStream<TlsStream<TcpStream>>, (u16, String)>> {
        let config = pki::tls::client_config(&device.ca, Some((&device.certificate, &device.key))).unwrap();
        let stream = self.tls("tunnel", config).await.ok()?;
        let request = http::Request::builder()
            .uri(format!("wss://cloud{}", wire::tunnel::PATH))
            .header("host", "cloud")
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header(wire::tunnel::HEADER_NODE, &device.node);
        match tokio_tungstenite::client_async(request.body(()).unwrap(), stream).await {
            Ok((ws, _)) => Some(Ok(ws)),
            Err(tokio_tungstenite::tungstenite::Error::Http(response)) => {
                let body = response.body().clone().unwrap_or_default();
                Some(Err((response.status().as_u16(), String::from_utf8_lossy(&body).into_owned())))
            }
            Err(_) => None,
        }
    }

    /// Whether the hub takes a node that shows a chain of certificates.
    pub async fn accepts_chain(&self, device: &Device, more: &[u8]) -> bool {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(device.ca.clone().into()).unwrap();
        let chain = vec![device.certificate.clone().into(), more.to_vec().into()];
        let key = rustls::pki_types::PrivateSec1KeyDer::from(device.key.to_sec1());
        let config = rustls::ClientConfig::builder_with_provider(pki::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key.into())
            .unwrap();
        matches!(self.dial_with(config, device, &[]).await, Ok(Ok(_)))
    }
}

/// Makes a token as `cloudcore token` does, with the built program.
pub fn token(dir: &Path, more: &[&str]) -> String {
    let output = command(dir, &[&["token"], more].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

pub fn command(dir: &Path, arguments: &[&str]) -> std::process::Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_cloudcore"));
    command.args(arguments).arg("--data-dir").arg(dir).output().unwrap()
}

/// What a joined device has on its disk.
#[derive(Clone)]
pub struct Device {
    pub node: String,
    pub ca: Vec<u8>,
    pub certificate: Vec<u8>,
    pub key: Key,
    pub store_id: String,
}

pub struct Edge {
    pub node: String,
    pub cloud_id: String,
    /// What the cloud's answer says of the compact lane.
    pub accepted_lane: String,
    pub lane: Lane,
    /// What came on the compact lane beside messages.
    pub others: Vec<Received>,
    ws: WebSocketStream<TlsStream<TcpStream>>,
    /// Came together with one that was read.
    unread: VecDeque<Message>,
    /// Received and not asked for yet.
    waiting: VecDeque<Message>,
    /// Acknowledge object pushes when they are read.
    pub acks: bool,
    /// Acknowledge answers too, as KubeEdge's edge does.
    pub acks_answers: bool,
}

impl Edge {
    pub async fn send(&mut self, message: &Message) {
        self.lane.push(message);
        while let Some(out) = self.lane.take() {
            let frame = match out {
                Out::Text(text) => Frame::text(text),
                Out::Binary(bytes) => Frame::binary(bytes),
            };
            self.ws.send(frame).await.unwrap();
        }
    }

    pub async fn send_frame(&mut self, frame: Frame) {
        self.ws.send(frame).await.unwrap();
    }

    pub async fn try_send(&mut self, frame: Frame) -> bool {
        self.ws.send(frame).await.is_ok()
    }

    pub async fn keepalive(&mut self) {
        let message = Message::new(1, "websocket", "resource", "keepalive", "node").with_content("ping");
        self.send(&message).await;
    }

    /// The next message, or `None` when the cloud ended the link.
    async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.unread.pop_front() {
                let is_push = message.header.parent_msg_id.is_empty() && message.route.group == "resource";
                let is_answer = self.acks_answers && message.route.group == "resource";
                if (is_push && self.acks) || (is_answer && !is_push) {
                    self.send(&message.ack(1)).await;
                }
                return Some(message);
            }
            match tokio::time::timeout(PATIENCE, self.ws.next()).await.expect("the cloud stays silent") {
                Some(Ok(frame @ (Frame::Text(_) | Frame::Binary(_)))) => {
                    let bytes = frame.into_data();
                    let frames = match self.lane.is_compact() {
                        true => Frames::Binary(&bytes),
                        false => Frames::Json(&bytes),
                    };
                    for received in self.lane.receive(frames).unwrap() {
                        match received {
                            Received::Message(message) => self.unread.push_back(*message),
                            other => self.others.push(other),
                        }
                    }
                }
                Some(Ok(Frame::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }

    /// The next message that fits; others are kept for later.
    pub async fn receive(&mut self, what: &str, fits: impl Fn(&Message) -> bool) -> Message {
        if let Some(at) = self.waiting.iter().position(&fits) {
            return self.waiting.remove(at).unwrap();
        }
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while tokio::time::Instant::now() < deadline {
            let message = self.next().await.unwrap_or_else(|| panic!("the link ended before {what} came"));
            if fits(&message) {
                return message;
            }
            self.waiting.push_back(message);
        }
        let seen: Vec<String> =
            self.waiting.iter().map(|m| format!("{} {}", m.route.operation, m.route.resource)).collect();
        panic!("{what} did not come; came: {seen:?}")
    }

    pub async fn pushed(&mut self, operation: &str, resource: &str) -> Message {
        let fits = |m: &Message| {
            m.route.operation == operation
                && m.route.resource == resource
                && m.header.parent_msg_id.is_empty()
        };
        self.receive(&format!("push {operation} {resource}"), fits).await
    }

    /// Waits until the cloud ends the link.
    pub async fn ended(mut self) -> Vec<Message> {
        while let Some(message) = self.next().await {
            self.waiting.push_back(message);
        }
        self.waiting.into()
    }

    /// As [`Edge::ended`], on a link that is never written to again: a WebSocket that is read answers pings and closes.
    pub async fn ended_without_an_answer(self) {
        let tcp = self.ws.get_ref().get_ref().0;
        // Readable, with nothing to read: the other end has closed.
        while !tcp.peek(&mut [0]).await.is_ok_and(|read| read == 0) {
            let _ = tcp.try_read(&mut [0; 4096]);
        }
    }

    /// All that comes until the answer to a request that is sent last.
    pub async fn drain(&mut self) -> Vec<String> {
        let node = self.node.clone();
        self.ask("query", &format!("null/node/{node}"), &Value::Null).await;
        self.waiting.drain(..).map(|m| format!("{} {}", m.route.operation, m.route.resource)).collect()
    }

    /// A request as edged makes it, and its answer.
    pub async fn ask(&mut self, operation: &str, resource: &str, content: &Value) -> Message {
        let message = Message::new(1, "edged", "meta", operation, resource).with_content(content);
        self.send(&message).await;
        let id = message.header.msg_id;
        self.receive(&format!("the answer to {operation} {resource}"), |m| m.header.parent_msg_id == id).await
    }

    /// The object of a `{Object, Err}` answer.
    pub async fn ask_object(&mut self, operation: &str, resource: &str, content: &Value) -> Value {
        let answer: Value = self.ask(operation, resource, content).await.content_as().unwrap();
        assert_eq!(answer["Err"], Value::Null, "{operation} {resource}");
        answer["Object"].clone()
    }

    /// Registers as a ready node with a lease.
    pub async fn register(&mut self) {
        let node = self.node.clone();
        let labels = json!({"kubernetes.io/os": "linux", "kubernetes.io/hostname": node, "node-role.kubernetes.io/edge": ""});
        let content = json!({"metadata": {"name": node, "creationTimestamp": null, "labels": labels}, "spec": {},
            "status": {"capacity": {"cpu": "1", "memory": "460000Ki", "pods": "110"},
                       "allocatable": {"cpu": "1", "memory": "460000Ki", "pods": "110"}}});
        let answer: Value =
            self.ask("insert", &format!("null/node/{node}"), &content).await.content_as().unwrap();
        let taken_over = answer["Err"]["ErrStatus"]["reason"] == "AlreadyExists";
        assert!(taken_over || answer["Err"].is_null(), "{answer}");
        self.status("True").await;
        self.renew("2026-01-01T00:00:00.000001Z").await;
    }

    /// As KubeEdge's edge does it: the patch is JSON inside a JSON string.
    pub async fn status(&mut self, ready: &str) {
        let node = self.node.clone();
        let patch = json!({"status": {"$setElementOrder/conditions": [{"type": "Ready"}], "conditions": [{"type": "Ready",
            "status": ready, "reason": "EdgeReady", "message": "", "lastHeartbeatTime": "2026-01-01T00:00:00Z",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}], "allocatable": {"pods": "110"}}});
        let patch = Value::from(patch.to_string());
        let object = self.ask_object("patch", &format!("null/nodepatch/{node}"), &patch).await;
        assert_eq!(object["metadata"]["name"], Value::from(node));
    }

    pub async fn renew(&mut self, time: &str) {
        let resource = format!("kube-node-lease/lease/{}", self.node);
        let found: Value = self.ask("query", &resource, &Value::Null).await.content_as().unwrap();
        let spec = json!({"holderIdentity": self.node, "leaseDurationSeconds": 40, "renewTime": time});
        if found["Err"].is_null() {
            let mut lease = found["Object"].clone();
            lease["spec"] = spec;
            self.ask_object("update", &resource, &lease).await;
        } else {
            assert_eq!(found["Err"]["ErrStatus"]["reason"], "NotFound");
            let lease =
                json!({"metadata": {"name": self.node, "namespace": "kube-node-lease"}, "spec": spec});
            self.ask_object("insert", &resource, &lease).await;
        }
    }
}

pub fn pod(name: &str, node_selector: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
           "spec": {"nodeSelector": node_selector, "containers": [{"name": "c", "image": "docker.io/kinglet/hello:1"}]}})
}
