//! Exec, attach and port-forward: asks the runtime for a streaming URL, passes the upgrade request on, and then bytes both ways.
//! The runtime's streaming server speaks SPDY/3.1 and WebSocket itself, so this knows neither.

use std::{io, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use rt::BoxIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tonic::Code;

use super::{
    Node,
    body::{Answer, Body, text},
    containers::tty_of,
    http::Afterwards,
    limits,
    route::{Query, Target},
};
use crate::edged::cri::{
    CriError, messages as cri,
    streaming::{AttachRequest, ExecRequest, PortForwardRequest},
};

/// What the peer wants to be connected to, from the query.
struct Streams {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Streams {
    /// `None`: nothing at all, which a kubelet refuses.
    fn parse(query: &Query) -> Option<Streams> {
        let (stdin, stdout, stderr) = (query.is_set("input"), query.is_set("output"), query.is_set("error"));
        let tty = query.is_set("tty");
        // A terminal has one output.
        (stdin || stdout || stderr).then_some(Streams { stdin, stdout, stderr: stderr && !tty, tty })
    }
}

pub async fn exec(
    node: Arc<Node>,
    request: Request<Incoming>,
    target: Target,
    query: &Query,
    afterwards: Afterwards,
) -> Answer {
    let Some(streams) = Streams::parse(query) else { return no_streams() };
    let url = async {
        let container = container(&node, &target).await?;
        let Streams { stdin, stdout, stderr, tty } = streams;
        let cmd = query.all("command").map(str::to_string).collect();
        let exec = ExecRequest { container_id: container.id, cmd, tty, stdin, stdout, stderr };
        node.cri.exec(exec).await.map_err(|error| refused(&error))
    };
    match url.await {
        Ok(url) => connect(request, &url, afterwards).await,
        Err(answer) => answer,
    }
}

pub async fn attach(
    node: Arc<Node>,
    request: Request<Incoming>,
    target: Target,
    query: &Query,
    afterwards: Afterwards,
) -> Answer {
    let Some(streams) = Streams::parse(query) else { return no_streams() };
    let url = async {
        let container = container(&node, &target).await?;
        // Whether there is a terminal was decided when the container was made, not by who attaches.
        let tty = node.pod(&target).and_then(|pod| tty_of(&pod, &target.container)).unwrap_or(streams.tty);
        let attach = AttachRequest {
            container_id: container.id,
            stdin: streams.stdin,
            tty,
            stdout: streams.stdout,
            stderr: streams.stderr && !tty,
        };
        node.cri.attach(attach).await.map_err(|error| refused(&error))
    };
    match url.await {
        Ok(url) => connect(request, &url, afterwards).await,
        Err(answer) => answer,
    }
}

pub async fn port_forward(
    node: Arc<Node>,
    request: Request<Incoming>,
    target: Target,
    query: &Query,
    afterwards: Afterwards,
) -> Answer {
    // Only WebSocket clients name ports here; SPDY names one per stream.
    let ports: Result<Vec<i32>, String> = query
        .all("port")
        .chain(query.all("ports"))
        .flat_map(|list| list.split(','))
        .map(|port| match port.parse::<u16>() {
            Ok(port) if port > 0 => Ok(i32::from(port)),
            _ => Err(format!("invalid port {port:?}: it must be between 1 and 65535")),
        })
        .collect();
    let port = match ports {
        Ok(ports) => ports,
        Err(why) => return text(StatusCode::BAD_REQUEST, why),
    };
    let url = async {
        let sandbox = node.ready_sandbox(&target).await.map_err(|error| refused(&error))?;
        let sandbox = sandbox.ok_or_else(|| match node.pod(&target) {
            Some(_) => text(
                StatusCode::BAD_REQUEST,
                format!(
                    "unable to forward port because pod is not running: {}_{}",
                    target.pod, target.namespace
                ),
            ),
            None => no_pod(),
        })?;
        let forward = PortForwardRequest { pod_sandbox_id: sandbox.id, port };
        node.cri.port_forward(forward).await.map_err(|error| refused(&error))
    };
    match url.await {
        Ok(url) => connect(request, &url, afterwards).await,
        Err(answer) => answer,
    }
}

async fn container(node: &Node, target: &Target) -> Result<cri::Container, Answer> {
    match node.running(target).await {
        Ok(Some(container)) => Ok(container),
        Ok(None) => {
            let any = Target { container: String::new(), ..target.clone() };
            let known = node.pod(target).is_some() || node.list(&any).await.is_ok_and(|all| !all.is_empty());
            Err(match known {
                true => text(StatusCode::NOT_FOUND, format!("container not found ({:?})", target.container)),
                false => no_pod(),
            })
        }
        Err(error) => Err(refused(&error)),
    }
}

fn no_pod() -> Answer {
    text(StatusCode::NOT_FOUND, "pod does not exist")
}

fn no_streams() -> Answer {
    text(StatusCode::BAD_REQUEST, "you must specify at least 1 of stdin, stdout, stderr")
}

fn refused(error: &CriError) -> Answer {
    let status = match error.code {
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unavailable | Code::DeadlineExceeded => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    text(status, error.to_string())
}

/// Passes the request on to the runtime's streaming server, and what follows its answer.
async fn connect(mut request: Request<Incoming>, url: &str, afterwards: Afterwards) -> Answer {
    let unreachable = |why: String| {
        text(StatusCode::BAD_GATEWAY, format!("the container runtime's streaming server at {url} {why}"))
    };
    let Ok(url_parsed) = url.parse::<Uri>() else { return unreachable("has no address".into()) };
    let Some(authority) = url_parsed.authority() else { return unreachable("has no address".into()) };
    let path = url_parsed.path_and_query().map_or("/", |path| path.as_str());
    let opened = timeout(limits::STREAM_CONNECT, TcpStream::connect(authority.as_str())).await;
    let mut server = match opened {
        Ok(Ok(server)) => server,
        Ok(Err(error)) => return unreachable(format!("cannot be reached ({error})")),
        Err(_) => return unreachable("does not answer".into()),
    };
    // Keystrokes are small and should not wait for each other.
    let _ = server.set_nodelay(true);
    let head = request_head(request.method(), path, authority.as_str(), request.headers());
    let exchange = async {
        server.write_all(&head).await?;
        read_answer(&mut server).await
    };
    let answer = match timeout(limits::STREAM_ANSWER, exchange).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return unreachable(format!("broke the connection ({error})")),
        Err(_) => return unreachable("does not answer".into()),
    };
    if answer.status == StatusCode::SWITCHING_PROTOCOLS {
        let client = hyper::upgrade::on(&mut request);
        let pipe = Box::pin(pipe(client, server, answer.rest));
        *afterwards.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(pipe);
        let mut upgraded = Answer::new(Body::Whole(None));
        *upgraded.status_mut() = answer.status;
        *upgraded.headers_mut() = answer.headers;
        return upgraded;
    }
    text(answer.status, String::from_utf8_lossy(&answer.rest))
}

/// Only what the upgrade is made of: the peer's other headers are not the runtime's business.
fn request_head(method: &Method, path: &str, host: &str, headers: &HeaderMap) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n").into_bytes();
    for (name, value) in headers {
        let text = name.as_str();
        let passed = name == header::CONNECTION
            || name == header::UPGRADE
            || text.starts_with("x-stream-protocol-version")
            || text.starts_with("sec-websocket-");
        if passed {
            head.extend_from_slice(text.as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(value.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
    }
    if method == Method::POST {
        head.extend_from_slice(b"Content-Length: 0\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}

struct StreamAnswer {
    status: StatusCode,
    headers: HeaderMap,
    /// Behind the head: the first bytes of the new protocol, or the text of a refusal.
    rest: Vec<u8>,
}

async fn read_answer(server: &mut TcpStream) -> io::Result<StreamAnswer> {
    let invalid = |why| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut bytes = Vec::new();
    loop {
        if bytes.len() >= limits::STREAM_ANSWER_BYTES_MAX {
            return Err(invalid("its answer is too long"));
        }
        if server.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let (status, headers) = parse_head(&bytes[..end]).ok_or_else(|| invalid("its answer is not HTTP"))?;
        let mut rest = bytes.split_off(end + 4);
        if status != StatusCode::SWITCHING_PROTOCOLS {
            let length =
                headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
            let length = length.unwrap_or(rest.len()).min(limits::STREAM_ANSWER_BYTES_MAX);
            while rest.len() < length && server.read_buf(&mut rest).await? > 0 {}
            rest.truncate(length);
        }
        return Ok(StreamAnswer { status, headers, rest });
    }
}

fn parse_head(head: &[u8]) -> Option<(StatusCode, HeaderMap)> {
    let mut lines = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let first = std::str::from_utf8(lines.next()?).ok()?;
    let status = first.strip_prefix("HTTP/1.")?.split(' ').nth(1)?;
    let mut headers = HeaderMap::new();
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(line[..colon].trim_ascii()).ok()?;
        headers.append(name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?);
    }
    Some((StatusCode::from_bytes(status.as_bytes()).ok()?, headers))
}

/// Until both sides have ended, or one and the other has had its time: a process that never ends must not hold the connection
/// of a peer that left.
async fn pipe(client: OnUpgrade, server: TcpStream, first: Vec<u8>) {
    let client = match client.await {
        Ok(client) => Box::new(TokioIo::new(client)) as BoxIo,
        Err(error) => return tracing::debug!("an upgrade failed: {error}"),
    };
    let (mut client_rx, mut client_tx) = tokio::io::split(client);
    let (mut server_rx, mut server_tx) = server.into_split();
    let up = async {
        let _ = tokio::io::copy(&mut client_rx, &mut server_tx).await;
        let _ = server_tx.shutdown().await;
    };
    let down = async {
        if client_tx.write_all(&first).await.is_ok() {
            let _ = tokio::io::copy(&mut server_rx, &mut client_tx).await;
        }
        let _ = client_tx.shutdown().await;
    };
    tokio::pin!(up, down);
    tokio::select! {
        () = &mut up => drop(timeout(limits::STREAM_HALF_CLOSED, down).await),
        () = &mut down => drop(timeout(limits::STREAM_HALF_CLOSED, up).await),
    }
}

/// Entry for a fuzzer: any bytes are the head of an answer, or not.
pub(super) fn fuzz_answer(data: &[u8]) {
    let _ = parse_head(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_upgrade_is_passed_on() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer secret"),
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
            ("x-stream-protocol-version", "channel.k8s.io"),
            ("host", "node"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let head = request_head(&Method::POST, "/exec/T", "127.0.0.1:9", &headers);
        assert_eq!(
            String::from_utf8(head).unwrap(),
            "POST /exec/T HTTP/1.1\r\nHost: 127.0.0.1:9\r\nconnection: Upgrade\r\nupgrade: SPDY/3.1\r\n\
             x-stream-protocol-version: v4.channel.k8s.io\r\nx-stream-protocol-version: channel.k8s.io\r\n\
             Content-Length: 0\r\n\r\n"
        );
    }

    #[test]
    fn heads_of_answers() {
        let (status, headers) =
            parse_head(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: SPDY/3.1\r\nX:  a b ").unwrap();
        assert_eq!(
            (status.as_u16(), &headers["upgrade"], &headers["x"]),
            (101, &"SPDY/3.1".parse().unwrap(), &"a b".parse().unwrap())
        );
        for bad in [
            "",
            "HTTP/1.1",
            "HTTP/2 200 OK",
            "HTTP/1.1 2000 x",
            "HTTP/1.1 200 OK\r\nno colon",
            "HTTP/1.1 200 OK\r\n: x",
        ] {
            assert!(parse_head(bad.as_bytes()).is_none(), "{bad}");
        }
        let mut random = wire::link::Backoff::new(u64::MAX / 2, u64::MAX / 2, 3);
        for _ in 0..3_000 {
            let mut bytes = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: SPDY/3.1\r\nX: y".to_vec();
            let at = random.next_ms() as usize % bytes.len();
            bytes[at] = random.next_ms() as u8;
            bytes.truncate(1 + random.next_ms() as usize % bytes.len());
            fuzz_answer(&bytes);
        }
    }
}
