//! An HTTP GET for probes and hooks: one request on a connection of its own, of the answer only the head.
//!
//! By hand and not by a client library: a probe needs a status and perhaps a `Location`, and an idle node's memory is what its
//! probes leave. Rules of kubelet's prober: any status from 200 to 399 is success, redirects are followed to the same host only.

use std::{sync::Arc, time::Duration};

use rustls::ClientConfig;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout_at},
};

use super::{
    Outcome,
    check::{connect, join, system_text},
};
use crate::edged::limits;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub tls: bool,
    /// A name or an address.
    pub host: String,
    pub port: u16,
    /// With its query.
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub user_agent: &'static str,
}

/// The head of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub location: Option<String>,
    /// What of the body came with the head.
    pub body: String,
}

impl Answer {
    pub fn outcome(&self) -> Outcome {
        match self.status {
            200..300 => Outcome::Success,
            300..400 => Outcome::Warning(format!("Probe terminated redirects, Response body: {}", self.body)),
            // Not the body: it may hold what must not stand in an event.
            status => Outcome::Failure(format!("HTTP probe failed with statuscode: {status}")),
        }
    }

    fn redirect(&self) -> Option<&str> {
        self.location.as_deref().filter(|_| matches!(self.status, 301 | 302 | 303 | 307 | 308))
    }
}

/// What a plain server says to a TLS greeting, in Go's words.
pub const PLAIN_ANSWER: &str = "http: server gave HTTP response to HTTPS client";

/// Asks, and follows redirects to the same host. The error is Go's text for what went wrong.
pub async fn get(
    request: &Request,
    time: Duration,
    tls: Option<Arc<ClientConfig>>,
) -> Result<Answer, String> {
    let deadline = Instant::now() + time;
    let mut request = request.clone();
    for _ in 0..limits::PROBE_REDIRECTS_MAX {
        let told = |text: String| format!("Get {:?}: {text}", url(&request));
        let answer = exchange(&request, deadline, tls.clone()).await.map_err(told)?;
        let Some(next) = answer.redirect().and_then(|location| follow(&request, location)) else {
            return Ok(answer);
        };
        if !next.host.eq_ignore_ascii_case(&request.host) {
            return Ok(answer);
        }
        request = next;
    }
    Err(format!("Get {:?}: stopped after {} redirects", url(&request), limits::PROBE_REDIRECTS_MAX))
}

async fn exchange(
    request: &Request,
    deadline: Instant,
    tls: Option<Arc<ClientConfig>>,
) -> Result<Answer, String> {
    let text = render(request)?;
    let tcp =
        connect(&request.host, request.port, deadline.saturating_duration_since(Instant::now())).await?;
    let late = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
    let peer = join(&request.host, request.port);
    let work = async {
        if !request.tls {
            return talk(tcp, &text, &peer).await;
        }
        let config = tls.ok_or_else(|| "tls: this build has no TLS provider".to_string())?;
        let name = request.host.trim_matches(['[', ']']).to_string();
        let name = name.try_into().map_err(|_| format!("tls: {:?} is not a server name", request.host))?;
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await;
        talk(stream.map_err(|error| tls_text(&error))?, &text, &peer).await
    };
    timeout_at(deadline, work).await.unwrap_or_else(|_| Err(late.into()))
}

fn tls_text(error: &std::io::Error) -> String {
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) => {
            PLAIN_ANSWER.into()
        }
        Some(cause) => format!("tls: {cause}"),
        None => format!("tls: {}", system_text(error)),
    }
}

async fn talk<S: AsyncReadExt + AsyncWriteExt + Unpin>(
    mut stream: S,
    text: &str,
    peer: &str,
) -> Result<Answer, String> {
    let told =
        |verb: &str, error: &std::io::Error| format!("{verb} tcp {peer}: {verb}: {}", system_text(error));
    stream.write_all(text.as_bytes()).await.map_err(|error| told("write", &error))?;
    stream.flush().await.map_err(|error| told("write", &error))?;
    let mut head = Vec::with_capacity(1024);
    loop {
        let len = stream.read_buf(&mut head).await;
        match parse_head(&head)? {
            Some(answer) => return Ok(answer),
            None if head.len() >= limits::PROBE_HEAD_BYTES_MAX => {
                let bytes = limits::PROBE_HEAD_BYTES_MAX;
                return Err(format!("server response headers exceeded {bytes} bytes; aborted"));
            }
            None => {}
        }
        match len {
            Ok(0) if head.is_empty() => return Err("EOF".into()),
            Ok(0) => return Err("unexpected EOF".into()),
            Ok(_) => {}
            Err(error) => return Err(told("read", &error)),
        }
    }
}

/// Reads a head that may not be whole yet (`None`). Interim answers (1xx) are passed over.
pub fn parse_head(bytes: &[u8]) -> Result<Option<Answer>, String> {
    let mut rest = bytes;
    loop {
        let mut headers = [httparse::EMPTY_HEADER; limits::PROBE_HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let len = match response.parse(rest) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => {
                let line: String = rest
                    .split(|b| *b == b'\n')
                    .next()
                    .unwrap_or_default()
                    .escape_ascii()
                    .take(80)
                    .map(char::from)
                    .collect();
                return Err(format!(
                    "net/http: HTTP/1.x transport connection broken: malformed HTTP response \"{line}\" ({error})"
                ));
            }
        };
        let status = response.code.unwrap_or_default();
        if (100..200).contains(&status) && status != 101 {
            rest = &rest[len..];
            continue;
        }
        let location = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("location"));
        let location = location.and_then(|header| std::str::from_utf8(header.value).ok()).map(str::to_string);
        let body = super::check::shown(&rest[len..], limits::PROBE_TEXT_BYTES_MAX);
        return Ok(Some(Answer { status, location, body }));
    }
}

fn scheme(tls: bool) -> &'static str {
    if tls { "https" } else { "http" }
}

fn url(request: &Request) -> String {
    format!("{}://{}{}", scheme(request.tls), join(&request.host, request.port), target(&request.path))
}

/// A path as it may stand in a request line: with a slash first, nothing in it that would end it, no fragment.
fn target(path: &str) -> String {
    let path = path.split('#').next().unwrap_or_default();
    let mut target = String::with_capacity(path.len() + 1);
    if !path.starts_with('/') {
        target.push('/');
    }
    for byte in path.bytes() {
        match byte {
            b'!'..=b'~' if !b"\"<>\\^`{|}".contains(&byte) => target.push(byte.into()),
            _ => target.push_str(&format!("%{byte:02X}")),
        }
    }
    target
}

fn render(request: &Request) -> Result<String, String> {
    let named = |name: &str| request.headers.iter().find(|(have, _)| have.eq_ignore_ascii_case(name));
    let host = match named("host") {
        Some((_, value)) if !value.is_empty() => value.clone(),
        _ => join(&request.host, request.port),
    };
    let mut text = format!("GET {} HTTP/1.1\r\nHost: {host}\r\n", target(&request.path));
    if named("user-agent").is_none() {
        text.push_str(&format!("User-Agent: {}\r\n", request.user_agent));
    }
    if named("accept").is_none() {
        text.push_str("Accept: */*\r\n");
    }
    for (name, value) in &request.headers {
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || !name.bytes().all(token) {
            return Err(format!("net/http: invalid header field name {name:?}"));
        }
        if value.bytes().any(|b| b < b' ' && b != b'\t' || b == 0x7f) {
            return Err(format!("net/http: invalid header field value for {name:?}"));
        }
        let left_out = ["host", "connection", "content-length", "transfer-encoding"];
        let empty = value.is_empty()
            && (name.eq_ignore_ascii_case("accept") || name.eq_ignore_ascii_case("user-agent"));
        if !empty && !left_out.iter().any(|no| name.eq_ignore_ascii_case(no)) {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    text.push_str("Connection: close\r\n\r\n");
    Ok(text)
}

/// Where a redirect leads; `None` when that cannot be told, and the redirect is the answer.
pub fn follow(request: &Request, location: &str) -> Option<Request> {
    let absolute = |text: &str, tls: bool| {
        let uri: ::http::Uri = text.parse().ok()?;
        let host = uri.host()?.to_string();
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_string();
        // Another authority: the Host that was set is not for it.
        let headers = request.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("host")).cloned();
        Some(Request { tls, host, port, path, headers: headers.collect(), ..request.clone() })
    };
    let lower = location.get(..8).unwrap_or(location).to_ascii_lowercase();
    if lower.starts_with("http://") {
        return absolute(location, false);
    }
    if lower.starts_with("https://") {
        return absolute(location, true);
    }
    if location.starts_with("//") {
        return absolute(&format!("{}:{location}", scheme(request.tls)), request.tls);
    }
    if location.is_empty() || location.split(['/', '?', '#']).next().is_some_and(|part| part.contains(':')) {
        return None;
    }
    let path = request.path.split(['?', '#']).next().unwrap_or_default();
    let path = match location.chars().next() {
        Some('/') => location.to_string(),
        Some('?') => format!("{path}{location}"),
        _ => format!("{}/{location}", path.rsplit_once('/').map_or("", |(folder, _)| folder)),
    };
    Some(Request { path, ..request.clone() })
}
