//! WebSocket as Kubernetes' clients speak it: the handshake, and messages whose first byte names a channel.

use base64::Engine as _;
use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONNECTION, HeaderMap, HeaderValue, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use kapi::ApiError;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::limits::{PIPE_BYTES, WEBSOCKET_MESSAGE_BYTES_MAX};

pub(crate) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// How channels are written, from oldest to newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    /// Errors are plain text.
    V1,
    /// The error channel ends with a Status.
    V4,
    /// A channel can be closed alone.
    V5,
}

/// What client and server agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Channels {
        version: Version,
        base64: bool,
    },
    /// SPDY's bytes as messages.
    Tunnel,
}

const COMMANDS: &[(&str, Protocol)] = &[
    ("v5.channel.k8s.io", Protocol::Channels { version: Version::V5, base64: false }),
    ("v4.channel.k8s.io", Protocol::Channels { version: Version::V4, base64: false }),
    ("v4.base64.channel.k8s.io", Protocol::Channels { version: Version::V4, base64: true }),
    ("channel.k8s.io", Protocol::Channels { version: Version::V1, base64: false }),
    ("base64.channel.k8s.io", Protocol::Channels { version: Version::V1, base64: true }),
];
const PORTS: &[(&str, Protocol)] = &[
    ("SPDY/3.1+portforward.k8s.io", Protocol::Tunnel),
    ("v4.channel.k8s.io", Protocol::Channels { version: Version::V4, base64: false }),
    ("v4.base64.channel.k8s.io", Protocol::Channels { version: Version::V4, base64: true }),
];

/// A client's wish that can be granted.
#[derive(Debug)]
pub(crate) struct Handshake {
    pub protocol: Protocol,
    name: Option<&'static str>,
    accept: String,
}

impl Handshake {
    /// The first protocol of the client's list that is known here.
    pub fn read(headers: &HeaderMap, ports: bool) -> Result<Handshake, ApiError> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let key = text("sec-websocket-key")
            .ok_or_else(|| ApiError::bad_request("the WebSocket request has no Sec-WebSocket-Key"))?;
        if text("sec-websocket-version") != Some("13") {
            return Err(ApiError::bad_request("Sec-WebSocket-Version 13 is spoken here"));
        }
        let accept = derive_accept_key(key.as_bytes());
        let known = if ports { PORTS } else { COMMANDS };
        let asked: Vec<&str> = headers
            .get_all("sec-websocket-protocol")
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|list| list.split(','))
            .map(str::trim)
            .collect();
        if asked.is_empty() {
            let version = if ports { Version::V4 } else { Version::V1 };
            return Ok(Handshake {
                protocol: Protocol::Channels { version, base64: false },
                name: None,
                accept,
            });
        }
        let found = asked.iter().find_map(|asked| known.iter().find(|(name, _)| name == asked));
        let (name, protocol) = found.ok_or_else(|| {
            let known: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            ApiError::bad_request(format!(
                "unable to negotiate a protocol: client supports {asked:?}, server accepts {known:?}"
            ))
        })?;
        Ok(Handshake { protocol: *protocol, name: Some(name), accept })
    }

    pub fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        if let Ok(accept) = HeaderValue::from_str(&self.accept) {
            headers.insert("sec-websocket-accept", accept);
        }
        if let Some(name) = self.name {
            headers.insert("sec-websocket-protocol", HeaderValue::from_static(name));
        }
        headers
    }
}

pub(crate) async fn accept(io: Upgraded) -> Socket {
    let config = WebSocketConfig::default()
        .read_buffer_size(PIPE_BYTES)
        .write_buffer_size(PIPE_BYTES)
        .max_write_buffer_size(2 * WEBSOCKET_MESSAGE_BYTES_MAX)
        .max_message_size(Some(WEBSOCKET_MESSAGE_BYTES_MAX))
        .max_frame_size(Some(WEBSOCKET_MESSAGE_BYTES_MAX));
    WebSocketStream::from_raw_socket(TokioIo::new(io), Role::Server, Some(config)).await
}

/// What a client said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Data {
        channel: u8,
        bytes: Bytes,
    },
    /// It sends nothing more on this channel (version 5).
    Closed(u8),
    /// Pings, pongs, empty messages.
    Nothing,
    /// The end, by the client's wish or because it does not keep to the protocol.
    End,
}

pub(crate) fn read(message: Message, version: Version, base64: bool) -> Said {
    let bytes = match message {
        Message::Binary(bytes) if !base64 => bytes,
        Message::Text(text) if base64 => {
            // The channel as a digit, the rest encoded.
            let (Some(channel @ b'0'..=b'9'), Some(rest)) = (text.as_bytes().first(), text.get(1..)) else {
                return if text.is_empty() { Said::Nothing } else { Said::End };
            };
            return match base64::engine::general_purpose::STANDARD.decode(rest) {
                Ok(bytes) => Said::Data { channel: channel - b'0', bytes: bytes.into() },
                Err(_) => Said::End,
            };
        }
        Message::Binary(_) | Message::Text(_) | Message::Close(_) => return Said::End,
        Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => return Said::Nothing,
    };
    match bytes.as_ref() {
        [] => Said::Nothing,
        [255, channel] if version >= Version::V5 => Said::Closed(*channel),
        [channel, ..] => Said::Data { channel: *channel, bytes: bytes.slice(1..) },
    }
}

pub(crate) fn write(channel: u8, data: &[u8], base64: bool) -> Message {
    if base64 {
        let mut text = String::with_capacity(1 + data.len().div_ceil(3) * 4);
        text.push(char::from(b'0' + channel % 10));
        base64::engine::general_purpose::STANDARD.encode_string(data, &mut text);
        return Message::text(text);
    }
    let mut bytes = BytesMut::with_capacity(1 + data.len());
    bytes.put_u8(channel);
    bytes.put(data);
    Message::Binary(bytes.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(protocols: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("sec-websocket-key", HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
        headers.insert("sec-websocket-version", HeaderValue::from_static("13"));
        for protocol in protocols {
            headers.append("sec-websocket-protocol", HeaderValue::from_str(protocol).unwrap());
        }
        headers
    }

    #[test]
    fn the_first_protocol_that_both_know() {
        let chosen = |protocols: &[&str], ports| {
            let handshake = Handshake::read(&asking(protocols), ports)?;
            let name = handshake
                .headers()
                .get("sec-websocket-protocol")
                .map(|name| name.to_str().unwrap().to_string());
            Ok::<_, ApiError>((handshake.protocol, name))
        };
        let v5 = Protocol::Channels { version: Version::V5, base64: false };
        let v4 = Protocol::Channels { version: Version::V4, base64: false };
        // kube-rs offers both in one header, and the same for ports.
        let both = "v5.channel.k8s.io, v4.channel.k8s.io";
        assert_eq!(chosen(&[both], false).unwrap(), (v5, Some("v5.channel.k8s.io".into())));
        assert_eq!(chosen(&[both], true).unwrap(), (v4, Some("v4.channel.k8s.io".into())));
        assert_eq!(chosen(&["x", "v4.channel.k8s.io"], false).unwrap().0, v4);
        assert_eq!(chosen(&["SPDY/3.1+portforward.k8s.io"], true).unwrap().0, Protocol::Tunnel);
        assert_eq!(
            chosen(&[], false).unwrap(),
            (Protocol::Channels { version: Version::V1, base64: false }, None)
        );
        assert_eq!(chosen(&["v9"], false).unwrap_err().code, 400);
        // RFC 6455 section 1.3.
        let accept = Handshake::read(&asking(&[]), false).unwrap().headers()["sec-websocket-accept"].clone();
        assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(Handshake::read(&HeaderMap::new(), false).unwrap_err().code, 400);
    }

    #[test]
    fn messages_name_their_channel() {
        let said =
            |bytes: &'static [u8], version| read(Message::Binary(Bytes::from_static(bytes)), version, false);
        assert_eq!(said(b"\x00ls", Version::V4), Said::Data { channel: 0, bytes: "ls".into() });
        assert_eq!(said(b"\x04", Version::V4), Said::Data { channel: 4, bytes: "".into() });
        assert_eq!(said(b"\xff\x00", Version::V5), Said::Closed(0));
        assert_eq!(said(b"\xff\x00", Version::V4), Said::Data { channel: 255, bytes: "\0".into() });
        assert_eq!(said(b"", Version::V5), Said::Nothing);
        let text = |text: &str| read(Message::text(text), Version::V4, true);
        assert_eq!(text("0bHM="), Said::Data { channel: 0, bytes: "ls".into() });
        assert_eq!(text("0!"), Said::End);
        assert_eq!(text("\u{e9}x"), Said::End);
        assert_eq!(text(""), Said::Nothing);
        assert_eq!(
            read(Message::text("0"), Version::V4, false),
            Said::End,
            "text where bytes were agreed on"
        );
        assert_eq!(write(1, b"hi", false), Message::binary(&b"\x01hi"[..]));
        assert_eq!(write(1, b"hi", true), Message::text("1aGk="));
    }
}
