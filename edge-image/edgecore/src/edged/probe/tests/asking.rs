//! Probes by HTTP, TCP and gRPC against servers on real sockets.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::AbortHandle,
};

use crate::edged::{
    cri::{self, Cri},
    pod::{Container, Probe},
    probe::{Check, Outcome, check::Checker},
};

const SECOND: Duration = Duration::from_secs(1);
/// Longer than any of these takes; only what never answers waits for less.
const LONG: Duration = Duration::from_secs(20);

fn checker() -> Checker {
    Checker::new(Cri::new(cri::channel("/nonexistent/containerd.sock")))
}

fn check(probe: Value, ports: Value) -> Result<Check, String> {
    let probe: Probe = serde_json::from_value(probe).unwrap();
    let container: Container =
        serde_json::from_value(json!({ "name": "c", "image": "i", "ports": ports })).unwrap();
    Check::of(&probe, &container, "id", "127.0.0.1")
}

async fn ask(probe: Value) -> Outcome {
    checker().check(check(probe, json!([])).unwrap(), LONG).await
}

fn failure(text: impl Into<String>) -> Outcome {
    Outcome::Failure(text.into())
}

struct Server {
    address: SocketAddr,
    /// Heads of the requests.
    seen: Arc<Mutex<Vec<String>>>,
    task: AbortHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Answers each request with what `answer` makes of its path.
async fn serve(answer: impl Fn(&str) -> String + Send + 'static) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = seen.clone();
    let task = tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            // A TLS greeting is not waited for: a plain server sees a bad request in its first byte.
            while !request.ends_with(b"\r\n\r\n")
                && !request.starts_with(&[0x16])
                && stream.read_buf(&mut request).await.unwrap_or(0) > 0
            {}
            let head = String::from_utf8_lossy(&request).into_owned();
            let path = head.split(' ').nth(1).unwrap_or_default().to_string();
            log.lock().unwrap().push(head);
            let _ = stream.write_all(answer(&path).as_bytes()).await;
            // Some servers never close.
            if path == "/hang" {
                open.push(stream);
            }
        }
    });
    Server { address, seen, task: task.abort_handle() }
}

fn status(code: u16) -> String {
    format!("HTTP/1.1 {code} Some Reason\r\nContent-Length: 2\r\n\r\nok")
}

#[tokio::test]
async fn http_statuses() {
    let server = serve(|path| status(path.trim_start_matches('/').parse().unwrap_or(200))).await;
    let port = server.address.port();
    for code in [200, 204, 299, 304] {
        let outcome = ask(json!({ "httpGet": { "port": port, "path": format!("/{code}") } })).await;
        assert!(matches!(outcome, Outcome::Success | Outcome::Warning(_)), "{code}: {outcome:?}");
    }
    for code in [400, 404, 500, 503] {
        let outcome = ask(json!({ "httpGet": { "port": port, "path": format!("/{code}") } })).await;
        assert_eq!(outcome, failure(format!("HTTP probe failed with statuscode: {code}")));
    }
}

#[tokio::test]
async fn http_requests_are_kubelets() {
    let server = serve(|_| "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200 OK\r\n\r\n".into()).await;
    let port = server.address.port();
    let ports = json!([{ "name": "web", "containerPort": port }]);
    let get = json!({ "httpGet": { "port": "web", "path": "health z?a=b#c", "httpHeaders": [
        { "name": "Host", "value": "shop.example" }, { "name": "X-A", "value": "1" }, { "name": "X-A", "value": "2" } ] } });
    assert_eq!(checker().check(check(get, ports).unwrap(), LONG).await, Outcome::Success);
    assert_eq!(
        server.seen.lock().unwrap()[0],
        "GET /health%20z?a=b HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: kube-probe/1.32\r\nAccept: */*\r\nX-A: 1\r\nX-A: 2\r\nConnection: close\r\n\r\n"
    );
    let own = json!({ "httpGet": { "port": port, "httpHeaders": [
        { "name": "user-agent", "value": "me" }, { "name": "Accept", "value": "" } ] } });
    assert_eq!(ask(own).await, Outcome::Success);
    let plain =
        format!("GET / HTTP/1.1\r\nHost: {}\r\nuser-agent: me\r\nConnection: close\r\n\r\n", server.address);
    assert_eq!(server.seen.lock().unwrap()[1], plain);
    let smuggled =
        json!({ "httpGet": { "port": port, "httpHeaders": [{ "name": "X", "value": "a\r\nY: b" }] } });
    assert!(
        matches!(ask(smuggled).await, Outcome::Failure(text) if text.contains("invalid header field value"))
    );
}

#[tokio::test]
async fn redirects_are_followed_to_the_same_host_only() {
    let to = |place: &str| format!("HTTP/1.1 302 Found\r\nlocation: {place}\r\n\r\nbody");
    let server = serve(move |path| match path {
        "/a" => to("/b/c?q"),
        "/b/c?q" => to("d"),
        "/b/d" => status(500),
        "/away" => to("http://192.0.2.1/"),
        "/loop" => to("/loop"),
        _ => status(200),
    })
    .await;
    let port = server.address.port();
    let get = |path: &str| ask(json!({ "httpGet": { "port": port, "path": path } }));
    assert_eq!(get("/a").await, failure("HTTP probe failed with statuscode: 500"));
    let away = get("/away").await;
    assert_eq!(away, Outcome::Warning("Probe terminated redirects, Response body: body".into()));
    assert_eq!(away.event(crate::edged::probe::Kind::Readiness).unwrap().0, "ProbeWarning");
    assert!(
        matches!(get("/loop").await, Outcome::Failure(text) if text.contains("stopped after 10 redirects"))
    );
}

#[tokio::test]
async fn servers_that_do_not_behave() {
    let server = serve(|path| match path {
        "/hang" => String::new(),
        "/silent" => String::new(),
        "/half" => "HTTP/1.1 200 OK\r\nContent-Le".into(),
        "/long" => format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(100_000)),
        _ => "SSH-2.0-OpenSSH_9.2\r\n".into(),
    })
    .await;
    let port = server.address.port();
    let url = |path: &str| format!("Get \"http://127.0.0.1:{port}{path}\": ");
    let get = |path: &str| check(json!({ "httpGet": { "port": port, "path": path } }), json!([])).unwrap();
    let hung = checker().check(get("/hang"), Duration::from_millis(200)).await;
    let late = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
    assert_eq!(hung, failure(url("/hang") + late));
    assert_eq!(checker().check(get("/silent"), LONG).await, failure(url("/silent") + "EOF"));
    assert_eq!(checker().check(get("/half"), LONG).await, failure(url("/half") + "unexpected EOF"));
    let long = checker().check(get("/long"), LONG).await;
    assert!(matches!(&long, Outcome::Failure(text) if text.contains("headers exceeded")), "{long:?}");
    let ssh = checker().check(get("/"), LONG).await;
    assert!(matches!(&ssh, Outcome::Failure(text) if text.contains("malformed HTTP response")), "{ssh:?}");
}

#[tokio::test]
async fn https_with_any_certificate_and_plain_servers_told_apart() {
    let ca = pki::Ca::create("test", 1_700_000_000).unwrap();
    let key = pki::Key::generate().unwrap();
    let cert = ca.issue_server(&key, &pki::Names::new(["elsewhere.example"]), 1_700_000_000).unwrap();
    let tls = pki::tls::server_config(&cert, &key, pki::tls::ClientAuth::None).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(tcp).await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") && stream.read_buf(&mut request).await.unwrap() > 0 {}
        stream.write_all(status(200).as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
    });
    assert_eq!(ask(json!({ "httpGet": { "port": port, "scheme": "HTTPS" } })).await, Outcome::Success);
    task.await.unwrap();

    let plain = serve(|_| status(400)).await;
    let outcome = ask(json!({ "httpGet": { "port": plain.address.port(), "scheme": "HTTPS" } })).await;
    let port = plain.address.port();
    assert_eq!(
        outcome,
        failure(format!(
            "Get \"https://127.0.0.1:{port}/\": http: server gave HTTP response to HTTPS client"
        ))
    );
}

#[tokio::test]
async fn tcp_opens_or_not() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let probe = json!({ "tcpSocket": { "port": port } });
    assert_eq!(ask(probe.clone()).await, Outcome::Success);
    drop(listener);
    let refused = format!("dial tcp 127.0.0.1:{port}: connect: connection refused");
    assert_eq!(ask(probe).await, failure(refused.clone()));
    let http = ask(json!({ "httpGet": { "port": port, "path": "/x" } })).await;
    assert_eq!(http, failure(format!("Get \"http://127.0.0.1:{port}/x\": {refused}")));
    let grpc = ask(json!({ "grpc": { "port": port } })).await;
    assert_eq!(grpc, failure(format!("error: failed to connect service at \"127.0.0.1:{port}\": {refused}")));
}

#[test]
fn what_cannot_be_asked_is_an_error() {
    let named = check(json!({ "tcpSocket": { "port": "web" } }), json!([]));
    assert_eq!(named, Err("strconv.Atoi: parsing \"web\": invalid syntax".into()));
    assert!(check(json!({ "tcpSocket": { "port": "8080" } }), json!([])).is_ok());
    assert_eq!(check(json!({ "httpGet": { "port": 0 } }), json!([])), Err("invalid port number: 0".into()));
    assert!(check(json!({}), json!([])).is_err());
}

/// A gRPC server of one method: answers with this status code and message, or never.
async fn serve_grpc(answer: Option<(&'static str, Vec<u8>)>) -> Server {
    use http_body_util::{BodyExt, Full};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = seen.clone();
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (answer, log) = (answer.clone(), log.clone());
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let (answer, log) = (answer.clone(), log.clone());
                async move {
                    let path = request.uri().path().to_string();
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    log.lock().unwrap().push(format!("{path} {}", body.escape_ascii()));
                    let Some((code, message)) = answer else { return std::future::pending().await };
                    let mut frame = vec![0, 0, 0, 0, message.len() as u8];
                    frame.extend(&message);
                    let frame = if code == "0" { frame } else { Vec::new() };
                    let mut trailers = http::HeaderMap::new();
                    trailers.insert("grpc-status", code.parse().unwrap());
                    trailers.insert("grpc-message", "a reason".parse().unwrap());
                    let body = Full::new(bytes::Bytes::from(frame))
                        .with_trailers(std::future::ready(Some(Ok(trailers))));
                    let response = http::Response::builder().header("content-type", "application/grpc");
                    Ok::<_, std::convert::Infallible>(response.body(body).unwrap())
                }
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            let executor = hyper_util::rt::TokioExecutor::new();
            let connection = hyper::server::conn::http2::Builder::new(executor).serve_connection(io, service);
            tokio::spawn(connection);
        }
    });
    Server { address, seen, task: task.abort_handle() }
}

#[tokio::test]
async fn grpc_health() {
    let asked = |server: &Server, service: &str| {
        ask(json!({ "grpc": { "port": server.address.port(), "service": service } }))
    };
    let serving = serve_grpc(Some(("0", vec![8, 1]))).await;
    assert_eq!(asked(&serving, "db").await, Outcome::Success);
    assert_eq!(
        serving.seen.lock().unwrap()[0],
        "/grpc.health.v1.Health/Check \\x00\\x00\\x00\\x00\\x04\\n\\x02db"
    );
    let not = serve_grpc(Some(("0", vec![8, 2]))).await;
    assert_eq!(asked(&not, "").await, failure("service unhealthy (responded with \"NOT_SERVING\")"));
    let unknown = serve_grpc(Some(("5", vec![]))).await;
    let outcome = asked(&unknown, "x").await;
    assert_eq!(
        outcome,
        failure("error: health rpc probe failed: rpc error: code = NotFound desc = a reason")
    );
    let none = serve_grpc(Some(("12", vec![]))).await;
    assert!(
        matches!(asked(&none, "").await, Outcome::Failure(text) if text.contains("does not implement the grpc health protocol"))
    );
    let silent = serve_grpc(None).await;
    let check = check(json!({ "grpc": { "port": silent.address.port() } }), json!([])).unwrap();
    let outcome = checker().check(check, SECOND).await;
    assert_eq!(outcome, failure("timeout: health rpc did not complete within 1s"));
}

#[tokio::test]
async fn an_exec_without_a_runtime_says_nothing_about_the_container() {
    let outcome = ask(json!({ "exec": { "command": ["true"] } })).await;
    assert!(
        matches!(&outcome, Outcome::Errored(text) if text.starts_with("rpc error: code = Unavailable")),
        "{outcome:?}"
    );
}
