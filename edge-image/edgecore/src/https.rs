//! One HTTP/1.1 request over TLS on its own connection: all that the join port needs. A client library would be the larger
//! half of this program's network code.

use std::sync::Arc;

use rustls::ClientConfig;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use crate::{
    credentials::server_name,
    limits::{JOIN_ANSWER_BYTES_MAX, JOIN_TIMEOUT},
    tls_fault,
};

#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("{0:?} is not an address; write HOST:PORT")]
    Address(String),
    #[error("cannot connect to {server}: {reason}")]
    Connect { server: String, reason: String },
    #[error("TLS with {server} failed: {reason}")]
    Tls { server: String, reason: String },
    #[error("{server} broke the connection: {reason}")]
    Io { server: String, reason: String },
    #[error("{server} did not answer within {} s", JOIN_TIMEOUT.as_secs())]
    Timeout { server: String },
    #[error("the answer of {server} is not HTTP: {reason}")]
    Malformed { server: String, reason: &'static str },
}

#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        let name = name.to_ascii_lowercase();
        self.headers.iter().find(|(have, _)| *have == name).map(|(_, value)| value.as_str())
    }

    /// The body as one line of text for a message.
    pub fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect()
    }
}

/// `headers` must be free of line breaks; names and values here come from checked names and tokens.
pub async fn get(
    server: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    tls: ClientConfig,
) -> Result<Response, HttpError> {
    let exchange = exchange(server, path, headers, body, tls);
    let timeout = || HttpError::Timeout { server: server.into() };
    tokio::time::timeout(JOIN_TIMEOUT, exchange).await.unwrap_or_else(|_| Err(timeout()))
}

async fn exchange(
    server: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    tls: ClientConfig,
) -> Result<Response, HttpError> {
    let name = server_name(server).ok_or_else(|| HttpError::Address(server.into()))?;
    let mut head = format!(
        "GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        debug_assert!(!value.contains(['\r', '\n']), "{name}");
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");

    let tcp = TcpStream::connect(server)
        .await
        .map_err(|error| HttpError::Connect { server: server.into(), reason: error.to_string() })?;
    let mut stream = TlsConnector::from(Arc::new(tls))
        .connect(name, tcp)
        .await
        .map_err(|error| HttpError::Tls { server: server.into(), reason: tls_fault::explain(&error) })?;
    // What a TLS 1.3 server thinks of our certificate arrives with the first bytes we read.
    let broken = |error: std::io::Error| match tls_fault::is_tls(&error) {
        true => HttpError::Tls { server: server.into(), reason: tls_fault::explain(&error) },
        false => HttpError::Io { server: server.into(), reason: error.to_string() },
    };
    stream.write_all(head.as_bytes()).await.map_err(broken)?;
    stream.write_all(body).await.map_err(broken)?;
    stream.flush().await.map_err(broken)?;

    let mut answer = Vec::new();
    let mut limited = stream.take(JOIN_ANSWER_BYTES_MAX as u64 + 1);
    loop {
        match limited.read_buf(&mut answer).await {
            Ok(0) => break,
            // Servers may end without TLS's goodbye; what counts is whether the answer is whole.
            Err(_) if parse(&answer).is_ok() => break,
            Err(error) => return Err(broken(error)),
            // `Connection: close` is a wish; with a length we need not wait for the end.
            Ok(_) if has_all_of_its_length(&answer) => break,
            Ok(_) => {}
        }
    }
    parse(&answer).map_err(|reason| HttpError::Malformed { server: server.into(), reason })
}

struct Head<'a> {
    status: u16,
    headers: Vec<(String, String)>,
    rest: &'a [u8],
}

impl Head<'_> {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    fn length(&self) -> Option<usize> {
        self.header("content-length")?.parse().ok()
    }
}

fn has_all_of_its_length(answer: &[u8]) -> bool {
    parse_head(answer).is_ok_and(|head| head.length().is_some_and(|length| head.rest.len() >= length))
}

/// On a connection that goes on: the answer has ended, as its head says. One without a length has no end but the connection's.
pub(crate) fn is_whole(answer: &[u8]) -> bool {
    let Ok(head) = parse_head(answer) else { return false };
    let chunked = head.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
    match head.status {
        204 | 304 => true,
        _ if chunked => unchunk(head.rest).is_ok(),
        _ => has_all_of_its_length(answer),
    }
}

fn parse_head(answer: &[u8]) -> Result<Head<'_>, &'static str> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").ok_or("its head does not end")?;
    let head = std::str::from_utf8(&answer[..end]).map_err(|_| "its head is not text")?;
    let mut lines = head.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let mut words = status_line.split(' ');
    let is_http = words.next().is_some_and(|version| version.starts_with("HTTP/1."));
    let status = words.next().and_then(|status| status.parse().ok()).filter(|_| is_http);
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Ok(Head {
        status: status.ok_or("it does not begin with a status line")?,
        headers,
        rest: &answer[end + 4..],
    })
}

pub(crate) fn parse(answer: &[u8]) -> Result<Response, &'static str> {
    if answer.len() > JOIN_ANSWER_BYTES_MAX {
        return Err("it is longer than any answer of a join port");
    }
    let head = parse_head(answer)?;
    let chunked = head.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
    let body = match head.length() {
        _ if chunked => unchunk(head.rest)?,
        Some(length) => head.rest.get(..length).ok_or("it is cut off")?.to_vec(),
        None => head.rest.to_vec(),
    };
    Ok(Response { status: head.status, headers: head.headers, body })
}

fn unchunk(mut rest: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|two| two == b"\r\n").ok_or("it is cut off")?;
        let line = std::str::from_utf8(&rest[..end]).map_err(|_| "a chunk has no length")?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let length = usize::from_str_radix(digits, 16).map_err(|_| "a chunk has no length")?;
        rest = &rest[end + 2..];
        if length == 0 {
            return Ok(body);
        }
        body.extend(rest.get(..length).ok_or("it is cut off")?);
        rest = rest.get(length + 2..).ok_or("it is cut off")?;
    }
}

/// Any bytes are an answer or an error. For random bytes.
pub fn fuzz_response(data: &[u8]) {
    let _ = parse(data);
    let _ = has_all_of_its_length(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(text: &str) -> Result<Vec<u8>, &'static str> {
        parse(text.as_bytes()).map(|response| response.body)
    }

    #[test]
    fn three_ways_to_end_a_body() {
        assert_eq!(body("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc").unwrap(), b"ab");
        assert_eq!(body("HTTP/1.1 200 OK\r\n\r\nabc").unwrap(), b"abc");
        let chunked =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
        assert_eq!(body(chunked).unwrap(), b"abcde");
        for cut in [
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
            &chunked[..60],
            "HTTP/1.1 200",
            "SSH-2.0\r\n\r\n",
        ] {
            assert!(body(cut).is_err(), "{cut}");
        }
        let response =
            parse(b"HTTP/1.1 401 Unauthorized\r\nKinglet-Cloud-Id: a.b\r\n\r\nno\nentry\n").unwrap();
        assert_eq!((response.status, response.header("kinglet-cloud-id")), (401, Some("a.b")));
        assert_eq!(response.text(), "no entry");
    }

    #[test]
    fn damaged_answers_do_not_panic() {
        let whole =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
        let mut random = wire::link::Backoff::new(u64::MAX / 2, u64::MAX / 2, 11);
        for _ in 0..20_000 {
            let mut bytes = whole.to_vec();
            for _ in 0..=random.next_ms() % 3 {
                let at = random.next_ms() as usize % bytes.len();
                match random.next_ms() % 3 {
                    0 => bytes[at] = random.next_ms() as u8,
                    1 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, b'f'),
                }
            }
            fuzz_response(&bytes);
        }
    }
}
