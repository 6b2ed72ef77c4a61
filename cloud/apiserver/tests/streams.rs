//! kube-rs and plain HTTPS against logs, exec, attach and port-forward: over TLS to a node of the test's.
#![allow(clippy::unwrap_used)]

mod node;

use std::sync::Arc;
use std::time::Duration;

use apiserver::{Api, Options};
use futures_util::{AsyncBufReadExt, SinkExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{AttachParams, LogParams, TerminalSize};
use node::{Dialer, Node};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Fixture {
    node: Arc<Node>,
    client: kube::Client,
    pods: kube::Api<Pod>,
    drain: rt::Drain,
    _dir: tempfile::TempDir,
}

async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let node = Arc::new(Node::default());
    let options = Options { nodes: Some(Arc::new(Dialer(node.clone()))), ..Options::default() };
    let api = Api::open(&dir.path().join("api"), options).await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let path = dir.path().join("kubeconfig");
    api.write_kubeconfig(&path, &url).unwrap();
    let drain = rt::Drain::new();
    let (served, stop) = (api.clone(), drain.clone());
    tokio::spawn(async move { served.serve(listener, stop).await });
    let _ = rustls::crypto::ring::default_provider().install_default();
    let file = kube::config::Kubeconfig::read_from(&path).unwrap();
    let mut config = kube::Config::from_custom_kubeconfig(file, &Default::default()).await.unwrap();
    // What is refused here stays so.
    config.default_retry = false;
    let client = kube::Client::try_from(config).unwrap();
    let pods: kube::Api<Pod> = kube::Api::default_namespaced(client.clone());
    for (name, on, containers) in [
        ("web", node::NODE, &["c"][..]),
        ("two", node::NODE, &["endless", "quiet", "waiting", "lost", "broken"]),
        ("free", "", &["c"]),
        ("far", "mars", &["c"]),
    ] {
        let containers: Vec<_> = containers.iter().map(|name| json!({"name": name, "image": "i"})).collect();
        let pod = json!({"metadata": {"name": name}, "spec": {"nodeName": on, "containers": containers}});
        pods.create(&Default::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    }
    Fixture { node, client, pods, drain, _dir: dir }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.drain.start();
    }
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "not within ten seconds: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn open(node: &Node) -> usize {
    node.open.load(std::sync::atomic::Ordering::Relaxed)
}

#[tokio::test]
async fn logs_and_the_words_of_those_that_are_not_there() {
    let f = fixture().await;
    let tail = LogParams { tail_lines: Some(5), timestamps: true, ..LogParams::default() };
    assert_eq!(f.pods.logs("web", &tail).await.unwrap(), "log of c: tailLines=5 timestamps=true\n");
    let of = |container: &str| LogParams { container: Some(container.into()), ..LogParams::default() };
    for (pod, params, code, words) in [
        (
            "two",
            LogParams::default(),
            400,
            "a container name must be specified for pod two, choose one of: [endless quiet waiting lost broken]",
        ),
        (
            "two",
            of("waiting"),
            400,
            "container \"waiting\" in pod \"two\" is waiting to start: ContainerCreating",
        ),
        ("two", of("lost"), 404, "the server could not find the requested resource ( pods/log two)"),
        ("two", of("broken"), 500, "Internal error occurred: the disk is on fire"),
        ("none", of("c"), 404, "pods \"none\" not found"),
        ("far", of("c"), 500, "error dialing backend: node mars is not connected"),
        (
            "web",
            LogParams { limit_bytes: Some(0), ..LogParams::default() },
            422,
            "PodLogOptions \"web\" is invalid: limitBytes: Invalid value: 0: must be greater than 0",
        ),
    ] {
        match f.pods.logs(pod, &params).await.unwrap_err() {
            kube::Error::Api(status) => {
                assert_eq!((status.code, status.message.contains(words)), (code, true), "{}", status.message);
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(f.pods.logs("free", &LogParams::default()).await.unwrap(), "", "on no node, no log");

    // Followed: each line as it comes; the stream to the node goes with the client.
    let follow = LogParams { follow: true, ..of("quiet") };
    let mut lines = f.pods.log_stream("two", &follow).await.unwrap().lines();
    assert_eq!(lines.try_next().await.unwrap().unwrap(), "log of quiet: follow=true");
    assert_eq!(open(&f.node), 1);
    drop(lines);
    eventually("the node's stream ends", || open(&f.node) == 0).await;
}

#[tokio::test]
async fn a_slow_reader_holds_the_node_back() {
    let f = fixture().await;
    let follow = LogParams { follow: true, container: Some("endless".into()), ..LogParams::default() };
    let mut stream = f.pods.log_stream("two", &follow).await.unwrap();
    let sent = || f.node.sent.load(std::sync::atomic::Ordering::Relaxed);
    // Reads until the node stops, which it must although nobody tells it to.
    let mut before = u64::MAX;
    while sent() != before {
        before = sent();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // What lies between: the sockets' buffers of this machine and ours.
    assert!(sent() < 16 * 1024 * 1024, "{} bytes were taken from the node that nobody read", sent());
    let mut piece = vec![0; 64 * 1024];
    let mut read = 0;
    while read < before as usize + 1024 * 1024 {
        let count = futures_util::AsyncReadExt::read(&mut stream, &mut piece).await.unwrap();
        assert!(count > 0);
        read += count;
    }
    assert!(sent() > before, "and goes on when somebody reads");
}

#[tokio::test]
async fn commands_with_input_output_and_exit_codes() {
    let f = fixture().await;
    // Input ends with the client's half close: cat ends by itself.
    let params = AttachParams::default().stdin(true).stderr(false);
    let mut cat = f.pods.exec("web", ["cat"], &params).await.unwrap();
    let (mut stdin, mut stdout) = (cat.stdin().unwrap(), cat.stdout().unwrap());
    let data: Vec<u8> = (0..300_000_u32).map(|at| (at * 7 % 251) as u8).collect();
    let sent = data.clone();
    let write = async move {
        stdin.write_all(&sent).await.unwrap();
        stdin.shutdown().await.unwrap();
        drop(stdin);
    };
    let mut read = Vec::new();
    let (_, result) = tokio::join!(write, stdout.read_to_end(&mut read));
    result.unwrap();
    assert!(read == data, "{} bytes came back of {}", read.len(), data.len());
    let status = cat.take_status().unwrap().await.unwrap();
    assert_eq!(status.status.as_deref(), Some("Success"));
    cat.join().await.unwrap();

    let params = AttachParams::default();
    let mut fails =
        f.pods.exec("web", ["sh", "-c", "echo out; echo err >&2; exit 42"], &params).await.unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    let (mut stdout, mut stderr) = (fails.stdout().unwrap(), fails.stderr().unwrap());
    let both = tokio::join!(stdout.read_to_string(&mut out), stderr.read_to_string(&mut err));
    assert!(both.0.is_ok() && both.1.is_ok());
    assert_eq!((out.as_str(), err.as_str()), ("out\n", "err\n"));
    let status = fails.take_status().unwrap().await.unwrap();
    assert_eq!(status.reason.as_deref(), Some("NonZeroExitCode"));
    assert_eq!(status.details.unwrap().causes.unwrap()[0].message.as_deref(), Some("42"));

    let mut none = f.pods.exec("web", ["no-such-program"], &params).await.unwrap();
    let status = none.take_status().unwrap().await.unwrap();
    assert!(status.message.unwrap().contains("executable file not found"));
    eventually("the node's streams end", || open(&f.node) == 0).await;
}

#[tokio::test]
async fn a_terminal_and_its_sizes_and_attach() {
    let f = fixture().await;
    let params = AttachParams::interactive_tty();
    let mut shell = f.pods.exec("web", ["sh"], &params).await.unwrap();
    let (mut stdin, mut stdout) = (shell.stdin().unwrap(), shell.stdout().unwrap());
    let mut sizes = shell.terminal_size().unwrap();
    sizes.send(TerminalSize { width: 80, height: 24 }).await.unwrap();
    let mut seen = String::new();
    let mut piece = [0; 256];
    while !seen.contains("\r\n") {
        let count = stdout.read(&mut piece).await.unwrap();
        seen.push_str(std::str::from_utf8(&piece[..count]).unwrap());
    }
    assert_eq!(seen, "{\"Width\":80,\"Height\":24}\r\n");
    stdin.write_all(b"bye\x04").await.unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "bye\x04");
    assert_eq!(shell.take_status().unwrap().await.unwrap().status.as_deref(), Some("Success"));

    let params = AttachParams::default().stdin(true).stderr(false);
    let mut attached = f.pods.attach("web", &params).await.unwrap();
    attached.stdin().unwrap().write_all(b"bye\n").await.unwrap();
    let mut heard = String::new();
    attached.stdout().unwrap().read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "attached\nbye\n");
}

#[tokio::test]
async fn ports_of_a_pod() {
    let f = fixture().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let dead = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = socket.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    let mut forward = f.pods.portforward("web", &[port, dead]).await.unwrap();
    let mut stream = forward.take_stream(port).unwrap();
    let data: Vec<u8> = (0..200_000_u32).map(|at| (at * 13 % 251) as u8).collect();
    let mut back = vec![0; data.len()];
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let (sent, got) = tokio::join!(write.write_all(&data), read.read_exact(&mut back));
    assert!(sent.is_ok() && got.is_ok() && back == data);
    let why = forward.take_error(dead).unwrap().await.unwrap();
    assert!(why.contains("refused"), "{why}");
    drop(stream);
    forward.abort();
    eventually("the node's stream ends", || open(&f.node) == 0).await;
}

#[tokio::test]
async fn a_nodes_own_paths_and_nothing_of_the_client_but_what_it_asks() {
    let f = fixture().await;
    let nodes: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(f.client.clone());
    let made = serde_json::from_value(json!({"metadata": {"name": "pi"}})).unwrap();
    nodes.create(&Default::default(), &made).await.unwrap();
    let get = |path: &str| http::Request::get(format!("/api/v1/nodes/{path}")).body(Vec::new()).unwrap();
    assert_eq!(f.client.request_text(get("pi/proxy/healthz")).await.unwrap(), "ok");
    let echo =
        http::Request::post("/api/v1/nodes/pi:10250/proxy/echo/a%2Fb?x=1").body(b"body".to_vec()).unwrap();
    assert_eq!(f.client.request_text(echo).await.unwrap(), "POST /echo/a%2Fb?x=1 None body");
    for (path, code) in [
        ("pi/proxy/none", 404),
        ("mars/proxy/healthz", 404),
        ("pi:22/proxy/healthz", 400),
        ("pi/proxyx/healthz", 404),
    ] {
        match f.client.request_text(get(path)).await.unwrap_err() {
            kube::Error::Api(status) => assert_eq!(status.code, code, "{path}"),
            other => panic!("{path}: {other}"),
        }
    }
}

/// An HTTP server as a pod may have it: says what it heard; `/moved` leads elsewhere on it, `/socket` echoes after an upgrade.
async fn server_in_a_pod(mut socket: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) {
    let mut heard = Vec::new();
    let head = loop {
        if let Some(end) = heard.windows(4).position(|four| four == b"\r\n\r\n") {
            break String::from_utf8(heard[..end].to_vec()).unwrap();
        }
        if socket.read_buf(&mut heard).await.unwrap() == 0 {
            return;
        }
    };
    let lower = head.to_lowercase();
    let length = lower
        .split("content-length: ")
        .nth(1)
        .map_or(0, |rest| rest.lines().next().unwrap().parse().unwrap());
    let mut body = heard[head.len() + 4..].to_vec();
    while body.len() < length {
        socket.read_buf(&mut body).await.unwrap();
    }
    let first = head.lines().next().unwrap();
    if first.contains("/socket") {
        assert!(lower.contains("upgrade: echo") && lower.contains("connection: upgrade"), "{head}");
        let switched = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
        socket.write_all(switched).await.unwrap();
        let (mut read, mut write) = tokio::io::split(socket);
        drop(tokio::io::copy(&mut read, &mut write).await);
        return;
    }
    let (status, more) = match first.contains("/moved") {
        true => ("302 Found", "Location: /here\r\n"),
        false => ("200 OK", "X-Of-The-Pod: 1\r\n"),
    };
    let mut kept: Vec<&str> = lower
        .lines()
        .filter(|line| {
            ["host", "cookie", "authorization", "impersonate-user", "x-forwarded-uri"]
                .iter()
                .any(|name| line.starts_with(name))
        })
        .collect();
    kept.sort_unstable();
    let text = format!("{first}\n{}\n{}", kept.join("\n"), String::from_utf8_lossy(&body));
    let answer = format!("HTTP/1.1 {status}\r\n{more}Content-Length: {}\r\n\r\n{text}", text.len());
    socket.write_all(answer.as_bytes()).await.unwrap();
    socket.flush().await.unwrap();
}

/// The port of such a server.
async fn serve_in_a_pod(tls: Option<tokio_rustls::TlsAcceptor>) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            match tls.clone() {
                Some(tls) => {
                    tokio::spawn(async move { server_in_a_pod(tls.accept(socket).await.unwrap()).await })
                }
                None => tokio::spawn(server_in_a_pod(socket)),
            };
        }
    });
    port
}

#[tokio::test]
async fn servers_in_pods() {
    let f = fixture().await;
    let port = serve_in_a_pod(None).await;
    let base = format!("/api/v1/namespaces/default/pods/web:{port}/proxy");
    let post = http::Request::post(format!("{base}/a%2Fb//c?x=1&y=%20")).header("cookie", "c=1");
    let post = post.header("impersonate-user", "kate").header("impersonate-group", "system:masters");
    assert_eq!(
        f.client.request_text(post.body(b"body".to_vec()).unwrap()).await.unwrap(),
        format!(
            "POST /a%2Fb//c?x=1&y=%20 HTTP/1.1\ncookie: c=1\nhost: localhost:{port}\nx-forwarded-uri: {}\nbody",
            format!("{base}/a%2fb//c").to_lowercase()
        )
    );
    let get = |path: String| http::Request::get(path).body(kube::client::Body::empty()).unwrap();
    let answer = f.client.send(get(format!("{base}/"))).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers()["x-of-the-pod"].to_str().unwrap()), (200, "1"));
    let moved = f.client.send(get(format!("{base}/moved"))).await.unwrap();
    assert_eq!(
        (moved.status().as_u16(), moved.headers()["location"].to_str().unwrap()),
        (302, &*format!("{base}/here"))
    );
    let root = f.client.send(get(format!("{base}?x=1"))).await.unwrap();
    assert_eq!(
        (root.status().as_u16(), root.headers()["location"].to_str().unwrap()),
        (301, &*format!("{base}/?x=1"))
    );
    drop((answer, moved, root));
    eventually("the node's streams end", || open(&f.node) == 0).await;
}

#[tokio::test]
async fn a_server_in_a_pod_with_tls_and_one_that_is_not_there() {
    let f = fixture().await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let ca = pki::Ca::create("test", now).unwrap();
    let key = pki::Key::generate().unwrap();
    let certificate = ca.issue_server(&key, &pki::Names::new(["elsewhere"]), now).unwrap();
    let config = pki::tls::server_config(&certificate, &key, pki::tls::ClientAuth::None).unwrap();
    let port = serve_in_a_pod(Some(Arc::new(config).into())).await;
    let dead = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let get = |pod: String| {
        http::Request::get(format!("/api/v1/namespaces/default/pods/{pod}/proxy/x")).body(Vec::new()).unwrap()
    };
    let said = f.client.request_text(get(format!("https:web:{port}"))).await.unwrap();
    assert!(said.starts_with("GET /x HTTP/1.1\n"), "{said}");
    for (pod, code, words) in [
        (format!("web:{dead}"), 503, "error trying to reach service: an error occurred forwarding"),
        (format!("https:web:{dead}"), 503, "refused"),
        ("free:80".into(), 400, "pod free does not have a host assigned"),
        ("far:80".into(), 500, "node mars is not connected"),
        ("none:80".into(), 404, "pods \"none\" not found"),
        ("web:http".into(), 400, "a port is a number"),
    ] {
        match f.client.request_text(get(pod.clone())).await.unwrap_err() {
            kube::Error::Api(status) => {
                assert_eq!(
                    (status.code, status.message.contains(words)),
                    (code, true),
                    "{pod}: {}",
                    status.message
                );
            }
            other => panic!("{pod}: {other}"),
        }
    }
    eventually("the node's streams end", || open(&f.node) == 0).await;
}

#[tokio::test]
async fn a_changed_protocol_to_a_server_in_a_pod() {
    let f = fixture().await;
    let port = serve_in_a_pod(None).await;
    let path = format!("/api/v1/namespaces/default/pods/web:{port}/proxy/socket");
    let request = http::Request::get(path).header("connection", "Upgrade").header("upgrade", "echo");
    let answer = f.client.send(request.body(kube::client::Body::empty()).unwrap()).await.unwrap();
    assert_eq!(answer.status().as_u16(), 101);
    let mut io = hyper_util::rt::TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
    let mut back = [0; 5];
    io.write_all(b"hello").await.unwrap();
    io.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"hello");
    drop(io);
    eventually("the node's streams end", || open(&f.node) == 0).await;
}

#[tokio::test]
async fn what_cannot_be_upgraded_is_told_so() {
    let f = fixture().await;
    let refused =
        async |request: http::Request<Vec<u8>>| match f.client.request_text(request).await.unwrap_err() {
            kube::Error::Api(status) => (status.code, status.message.clone()),
            other => panic!("{other}"),
        };
    let base = "/api/v1/namespaces/default/pods";
    let plain =
        http::Request::post(format!("{base}/web/exec?command=ls&stdout=true")).body(Vec::new()).unwrap();
    assert_eq!(refused(plain).await, (400, "Upgrade request required".into()));
    let free = http::Request::post(format!("{base}/free/portforward")).body(Vec::new()).unwrap();
    assert_eq!(refused(free).await, (400, "pod free does not have a host assigned".into()));
    let log = http::Request::post(format!("{base}/web/log")).body(Vec::new()).unwrap();
    assert_eq!(refused(log).await.0, 405);
}
