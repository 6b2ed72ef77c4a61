//! KubeEdge's EdgeStream and CloudStream: a second connection of the node on which logs, exec, attach and metrics travel.
//!
//! Source: reference kubeedge-wire.md section 8.4; KubeEdge v1.23.1, `pkg/stream`. Our own two ends need it only when one of them
//! is a stock one: then the link carries no streams ([`crate::streams`]).
//!
//! Not here: the HTTP that is carried, sockets.

mod relabel;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::limits::TUNNEL_DATA_LEN_MAX;
pub use relabel::Relabel;

/// What the node dials on the tunnel port.
pub const PATH: &str = "/v1/kubeedge/connect";
/// Header of that request: the node's name. Must be the one in the client certificate.
pub const HEADER_NODE: &str = "SessionHostNameOverride";
/// Header of that request: an address of the node; by which a stock cloud finds the node for metrics.
pub const HEADER_IP: &str = "SessionInternalIP";
/// What a stock node's pings carry.
pub const PING: &[u8] = b"ping you";

/// Kinds of messages.
pub mod kind {
    pub const LOGS_CONNECT: u64 = 0;
    pub const EXEC_CONNECT: u64 = 1;
    pub const METRIC_CONNECT: u64 = 2;
    pub const DATA: u64 = 3;
    /// This connection is over.
    pub const REMOVE_CONNECT: u64 = 4;
    /// The tunnel is over; the data says why.
    pub const CLOSE_CONNECT: u64 = 5;
    pub const ATTACH_CONNECT: u64 = 6;
}

/// One WebSocket message, which is sent as text although it holds any bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    pub id: u64,
    pub kind: u64,
    pub data: &'a [u8],
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    #[error("the message ends before its connection and kind")]
    Short,
    #[error("a number in the message is too large")]
    Number,
    #[error("a message with {0} bytes is over the limit of {TUNNEL_DATA_LEN_MAX}")]
    Data(usize),
}

impl<'a> Envelope<'a> {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(20 + self.data.len());
        for mut number in [self.id, self.kind] {
            while number >= 0x80 {
                out.push(number as u8 | 0x80);
                number >>= 7;
            }
            out.push(number as u8);
        }
        out.extend_from_slice(self.data);
        out
    }

    pub fn decode(message: &'a [u8]) -> Result<Envelope<'a>, EnvelopeError> {
        let mut rest = message;
        let (id, kind) = (uvarint(&mut rest)?, uvarint(&mut rest)?);
        match rest.len() > TUNNEL_DATA_LEN_MAX {
            true => Err(EnvelopeError::Data(rest.len())),
            false => Ok(Envelope { id, kind, data: rest }),
        }
    }
}

/// As Go's `binary.ReadUvarint`: at most ten bytes.
fn uvarint(rest: &mut &[u8]) -> Result<u64, EnvelopeError> {
    let mut number = 0u128;
    for place in 0..10 {
        let (byte, tail) = rest.split_first().ok_or(EnvelopeError::Short)?;
        *rest = tail;
        number |= u128::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return u64::try_from(number).map_err(|_| EnvelopeError::Number);
        }
    }
    Err(EnvelopeError::Number)
}

/// Body of the connect messages: the request that the node is to make to its own kubelet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connect {
    #[serde(rename = "MessID", default)]
    pub id: u64,
    pub url: Url,
    /// `null` in Go for none.
    #[serde(default)]
    pub header: Option<BTreeMap<String, Option<Vec<String>>>>,
    /// Only of exec and attach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
}

/// Go's `url.URL`, field by field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Url {
    pub scheme: String,
    pub opaque: String,
    /// Go's `*Userinfo`, whose fields are not exported: `null` or `{}`.
    pub user: Option<BTreeMap<String, String>>,
    pub host: String,
    /// Without percent signs.
    pub path: String,
    /// As it came, when it is not what Go would make of `path`.
    pub raw_path: String,
    pub omit_host: bool,
    pub force_query: bool,
    pub raw_query: String,
    pub fragment: String,
    pub raw_fragment: String,
}

impl Url {
    /// Of a request target (`/exec/ns/pod/c?command=ls`), on the kubelet's own port as stock peers name it.
    pub fn from_target(target: &str) -> Url {
        let (raw, query) = target.split_once('?').unwrap_or((target, ""));
        let path = unescape(raw);
        let raw_path = if escape(&path) == raw { String::new() } else { raw.to_owned() };
        Url {
            scheme: "http".into(),
            host: "127.0.0.1:10350".into(),
            path,
            raw_path,
            raw_query: query.into(),
            ..Url::default()
        }
    }

    /// The request target; `None` if it could not stand in a request line.
    pub fn target(&self) -> Option<String> {
        let mut target = if self.raw_path.is_empty() { escape(&self.path) } else { self.raw_path.clone() };
        if !self.raw_query.is_empty() {
            target.push('?');
            target.push_str(&self.raw_query);
        }
        let fits = target.starts_with('/') && target.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then_some(target)
    }
}

impl Connect {
    /// The request as HTTP/1 text. `version`: `1.0` for an answer without chunks that ends with its connection, `1.1` for one that
    /// may be upgraded. `None`: something in it cannot stand in a request.
    pub fn request(&self, version: &str) -> Option<Vec<u8>> {
        let method = self.method.as_deref().unwrap_or("GET");
        if method.is_empty() || !method.bytes().all(|byte| byte.is_ascii_uppercase()) {
            return None;
        }
        let mut text = format!("{method} {} HTTP/{version}\r\nHost: {}\r\n", self.url.target()?, "127.0.0.1");
        let plain = version == "1.0";
        for (name, values) in self.header.iter().flatten() {
            let is_hop = ["host", "content-length", "transfer-encoding", "expect"]
                .iter()
                .chain(if plain { ["connection", "accept-encoding"].as_slice() } else { &[] }.iter())
                .any(|hop| name.eq_ignore_ascii_case(hop));
            if is_hop {
                continue;
            }
            let is_name =
                !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
            for value in values.iter().flatten() {
                if !is_name || value.bytes().any(|byte| byte < b' ' && byte != b'\t' || byte == 0x7f) {
                    return None;
                }
                text.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        text.push_str("\r\n");
        Some(text.into_bytes())
    }
}

/// Where the head of an HTTP message ends, the empty line included.
pub fn head_len(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// A request whose head has come: which kind of connection it needs and what the node is to be told. `Err`: why it is no request.
pub fn connect(id: u64, head: &[u8]) -> Result<(u64, Connect), &'static str> {
    let head = std::str::from_utf8(head).map_err(|_| "its head is not text")?;
    let mut lines = head.split("\r\n");
    let mut line = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some("HTTP/1.1" | "HTTP/1.0"), None) =
        (line.next(), line.next(), line.next(), line.next())
    else {
        return Err("its first line is not HTTP/1");
    };
    if !target.starts_with('/') {
        return Err("its target is not a path");
    }
    let mut header: BTreeMap<String, Option<Vec<String>>> = BTreeMap::new();
    for line in lines.take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').ok_or("a header has no colon")?;
        let name = canonical(name);
        if name != "Host" {
            header.entry(name).or_default().get_or_insert_default().push(value.trim().to_owned());
        }
    }
    let url = Url::from_target(target);
    let kind = match url.path.split('/').nth(1).unwrap_or_default() {
        "containerLogs" => kind::LOGS_CONNECT,
        "attach" => kind::ATTACH_CONNECT,
        // A node makes a raw connection for any path of this kind.
        "exec" => kind::EXEC_CONNECT,
        _ if header.contains_key("Upgrade") => kind::EXEC_CONNECT,
        _ if method == "GET" => kind::METRIC_CONNECT,
        _ => return Err("only GET and upgraded connections pass the tunnel of a stock node"),
    };
    let is_raw = matches!(kind, kind::EXEC_CONNECT | kind::ATTACH_CONNECT);
    let method = is_raw.then(|| method.to_owned());
    Ok((kind, Connect { id, url, header: Some(header), method }))
}

/// A header's name as Go writes it: `X-Stream-Protocol-Version`.
fn canonical(name: &str) -> String {
    let mut upper = true;
    let letters = name.trim().chars().map(|letter| {
        let letter = if upper { letter.to_ascii_uppercase() } else { letter.to_ascii_lowercase() };
        upper = letter == '-';
        letter
    });
    letters.collect()
}

/// As Go's `URL.EscapedPath` does it.
fn escape(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte.is_ascii_alphanumeric() || b"-_.~/$&+,:;=@".contains(&byte) {
            true => out.push(byte as char),
            false => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn unescape(path: &str) -> String {
    let (mut out, mut rest) = (Vec::with_capacity(path.len()), path.as_bytes());
    while let Some((byte, tail)) = rest.split_first() {
        let code = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let code = code.filter(|_| *byte == b'%').and_then(|hex| u8::from_str_radix(hex, 16).ok());
        out.push(code.unwrap_or(*byte));
        rest = if code.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Any bytes as a message, as the body of a connect message, as a request's head and as a socket's bytes; for fuzzing.
pub fn fuzz_tunnel(data: &[u8]) {
    if let Ok(envelope) = Envelope::decode(data) {
        assert_eq!(Envelope::decode(&envelope.encode()), Ok(envelope));
    }
    if let Ok(connect) = serde_json::from_slice::<Connect>(data) {
        for version in ["1.0", "1.1"] {
            if let Some(request) = connect.request(version) {
                assert_eq!(head_len(&request), Some(request.len()), "one request and no more");
            }
        }
    }
    drop(connect(1, data));
    let (mut whole, mut pieces) = (data.to_vec(), data.to_vec());
    Relabel::frames().feed(&mut whole);
    let mut relabel = Relabel::frames();
    let step = 1 + data.first().map_or(0, |byte| usize::from(byte % 7));
    pieces.chunks_mut(step).for_each(|piece| relabel.feed(piece));
    assert_eq!(whole, pieces);
}
