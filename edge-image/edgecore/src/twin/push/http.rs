//! POST over HTTP/1.1, with or without TLS, on a connection that is kept.

use std::{sync::Arc, time::Duration};

use rustls::ClientConfig;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use crate::{
    credentials::server_name,
    https::{Response, is_whole, parse},
    limits::PUSH_ANSWER_BYTES_MAX,
};

/// `http://` or `https://`, host, port and path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Url {
    pub tls: bool,
    /// `HOST:PORT`, an IPv6 address in brackets.
    pub server: String,
    /// With its query; begins with a slash.
    pub path: String,
}

impl Url {
    /// Without a scheme it is http.
    pub fn parse(text: &str) -> Result<Url, String> {
        let (tls, rest) = match text.split_once("://") {
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            Some((scheme, _)) => return Err(format!("{scheme:?} is not http or https")),
            None => (false, text),
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let allowed = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
        if authority.is_empty() || authority.contains('@') || !allowed(text) {
            return Err(format!("{text:?} is not a URL: write http://HOST:PORT/PATH"));
        }
        let after_brackets = authority.rsplit_once(']').map_or(authority, |(_, rest)| rest);
        let server = match after_brackets.rsplit_once(':') {
            Some((_, port)) if port.parse::<u16>().is_ok_and(|port| port > 0) => authority.to_owned(),
            Some(_) => return Err(format!("{text:?} has no valid port")),
            None => format!("{authority}:{}", if tls { 443 } else { 80 }),
        };
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(Url { tls, server, path: format!("{slash}{path}") })
    }
}

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    #[error("cannot connect to {server}: {reason}")]
    Connect { server: String, reason: String },
    #[error("{server} broke the connection: {reason}")]
    Broken { server: String, reason: String },
    #[error("{server} did not answer within {} s", .timeout.as_secs())]
    Timeout { server: String, timeout: Duration },
    #[error("{server} is https: {reason}")]
    Tls { server: String, reason: String },
}

pub struct Client {
    tls: Option<Arc<ClientConfig>>,
    stream: Option<rt::BoxIo>,
}

impl Client {
    /// `tls`: for https; without it https is refused.
    pub fn new(tls: Option<Arc<ClientConfig>>) -> Client {
        Client { tls, stream: None }
    }

    /// `headers` are whole lines. A connection that the server closed meanwhile is opened again, once.
    pub async fn post(
        &mut self,
        url: &Url,
        path: &str,
        headers: &str,
        body: &[u8],
        timeout: Duration,
    ) -> Result<Response, PostError> {
        let attempt = async {
            let was_open = self.stream.is_some();
            match self.exchange(url, path, headers, body).await {
                Err(PostError::Broken { .. }) if was_open => self.exchange(url, path, headers, body).await,
                result => result,
            }
        };
        let result = tokio::time::timeout(timeout, attempt).await;
        let result =
            result.unwrap_or_else(|_| Err(PostError::Timeout { server: url.server.clone(), timeout }));
        if result.is_err() {
            self.stream = None;
        }
        result
    }

    async fn exchange(
        &mut self,
        url: &Url,
        path: &str,
        headers: &str,
        body: &[u8],
    ) -> Result<Response, PostError> {
        // Not put back before the answer is whole: an exchange that is dropped half-way ends its connection.
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => Client::connect(self.tls.clone(), url).await?,
        };
        let broken = |reason: String| PostError::Broken { server: url.server.clone(), reason };
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n{headers}\r\n",
            url.server,
            body.len()
        );
        let mut request = head.into_bytes();
        request.extend_from_slice(body);
        stream.write_all(&request).await.map_err(|error| broken(error.to_string()))?;
        stream.flush().await.map_err(|error| broken(error.to_string()))?;
        let mut answer = Vec::new();
        let ended = loop {
            if is_whole(&answer) {
                break false;
            }
            if answer.len() > PUSH_ANSWER_BYTES_MAX {
                return Err(broken("its answer is too long".into()));
            }
            match stream.read_buf(&mut answer).await {
                Ok(0) if answer.is_empty() => return Err(broken("it closed it".into())),
                Ok(0) => break true,
                Ok(_) => {}
                Err(error) => return Err(broken(error.to_string())),
            }
        };
        let response = parse(&answer).map_err(|reason| broken(reason.to_owned()))?;
        let closes = response.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        if !ended && !closes {
            self.stream = Some(stream);
        }
        Ok(response)
    }

    async fn connect(tls: Option<Arc<ClientConfig>>, url: &Url) -> Result<rt::BoxIo, PostError> {
        let server = || url.server.clone();
        let tcp = TcpStream::connect(&url.server)
            .await
            .map_err(|error| PostError::Connect { server: server(), reason: error.to_string() })?;
        let _ = tcp.set_nodelay(true);
        if !url.tls {
            return Ok(Box::new(tcp));
        }
        let fault = |reason: String| PostError::Tls { server: server(), reason };
        let tls = tls.ok_or_else(|| {
            fault(
                "there are no certificate authorities to check it with; set kinglet.devices.pushCAFile"
                    .into(),
            )
        })?;
        let name = server_name(&url.server).ok_or_else(|| fault("its name is not a host's".into()))?;
        let stream = TlsConnector::from(tls).connect(name, tcp).await;
        Ok(Box::new(stream.map_err(|error| fault(crate::tls_fault::explain(&error)))?))
    }
}
