//! A scripted cloud on a real WebSocket with mutual TLS, with the manners of a stock one.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{SinkExt, StreamExt};
use pki::{Bundle, Ca, Identity, Key, Names, tls::ClientAuth};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::{
        Message as Frame,
        handshake::server::{ErrorResponse, Request, Response},
        protocol::frame::{
            Frame as RawFrame,
            coding::{Data, OpCode},
        },
    },
};
use wire::Message;

use crate::credentials::unix_now_s;

/// Longer than anything here takes; a test that runs into it fails.
const PATIENCE: Duration = Duration::from_secs(10);

pub struct Cloud {
    pub ca: Ca,
    listener: TcpListener,
    acceptor: TlsAcceptor,
    /// Told in the upgrade's answer when not empty.
    pub cloud_id: String,
    /// Accept byte streams.
    pub streams: bool,
    /// Accept the compact lane.
    pub lane: bool,
    /// Refuse with this status, and say to come back after a second.
    pub refuses: Option<u16>,
    /// Headers of the last upgrade.
    pub headers: Arc<Mutex<Vec<(String, String)>>>,
}

fn roots(ca: &Ca) -> Vec<rustls::pki_types::TrustAnchor<'static>> {
    let mut store = rustls::RootCertStore::empty();
    store.add(ca.cert_der().to_vec().into()).unwrap();
    store.roots
}

pub struct Session(pub WebSocketStream<TlsStream<TcpStream>>);

impl Cloud {
    pub async fn new() -> Cloud {
        Cloud::with_receive_buffer(None).await
    }

    /// Speaks TLS 1.2 with the suite of a stock cloud, and nothing else.
    pub async fn with_tls_1_2() -> Cloud {
        let mut cloud = Cloud::new().await;
        let key = Key::generate().unwrap();
        let cert = cloud.ca.issue_server(&key, &Names::new(["127.0.0.1"]), unix_now_s()).unwrap();
        let mut config =
            pki::tls::server_config(&cert, &key, ClientAuth::Required(cloud.ca.cert_der())).unwrap();
        let mut provider = (*pki::tls::provider()).clone();
        provider.cipher_suites =
            vec![rustls::crypto::ring::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256];
        let old = rustls::ServerConfig::builder_with_provider(std::sync::Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap();
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            std::sync::Arc::new(rustls::RootCertStore { roots: roots(&cloud.ca) }),
            pki::tls::provider(),
        )
        .build()
        .unwrap();
        let resolver = config.cert_resolver.clone();
        config = old.with_client_cert_verifier(verifier).with_cert_resolver(resolver);
        cloud.acceptor = TlsAcceptor::from(Arc::new(config));
        cloud
    }

    /// `receive_len`: how many bytes the network holds for a cloud that does not read.
    pub async fn with_receive_buffer(receive_len: Option<u32>) -> Cloud {
        let ca = Ca::create("KubeEdge", unix_now_s()).unwrap();
        let key = Key::generate().unwrap();
        let cert = ca.issue_server(&key, &Names::new(["127.0.0.1"]), unix_now_s()).unwrap();
        let config = pki::tls::server_config(&cert, &key, ClientAuth::Required(ca.cert_der())).unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        if let Some(len) = receive_len {
            socket.set_recv_buffer_size(len).unwrap();
        }
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener: TcpListener = socket.listen(16).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Cloud {
            ca,
            listener,
            acceptor,
            cloud_id: String::new(),
            streams: false,
            lane: false,
            refuses: None,
            headers: Arc::default(),
        }
    }

    /// Of the last upgrade's request; empty when it was not there.
    pub fn header(&self, name: &str) -> String {
        let headers = self.headers.lock().unwrap();
        headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.clone()).unwrap_or_default()
    }

    pub fn address(&self) -> String {
        self.listener.local_addr().unwrap().to_string()
    }

    /// Writes the bundle of a node that this cloud admitted.
    pub fn admit(&self, node: &str, path: &Path) {
        let key = Key::generate().unwrap();
        let csr = pki::new_csr(&key, &Identity::node(node)).unwrap();
        let cert_der = self.ca.issue_node(&pki::Csr::parse(&csr).unwrap(), node, unix_now_s()).unwrap();
        Bundle::new(cert_der, key, self.ca.cert_der().to_vec()).store(path).unwrap();
    }

    /// The next link, after its first keepalive.
    pub async fn accept(&self) -> Session {
        let mut session = self.accept_silent().await.expect("a link that is accepted");
        let keepalive = session.receive_any().await;
        assert_eq!(keepalive.route.operation, "keepalive", "a stock cloud waits for it");
        session
    }

    pub async fn accept_silent(&self) -> Option<Session> {
        let accept = async {
            let (tcp, _) = self.listener.accept().await.unwrap();
            let tls = self.acceptor.accept(tcp).await.ok()?;
            let headers = self.headers.clone();
            // The library's type; its error is a whole response.
            #[allow(clippy::result_large_err)]
            let callback = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
                let all = request.headers().iter();
                let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
                *headers.lock().unwrap() =
                    all.map(|(name, value)| (name.to_string(), text(value.as_bytes()))).collect();
                if let Some(status) = self.refuses {
                    let mut refusal = ErrorResponse::new(Some("not now\n".into()));
                    *refusal.status_mut() = status.try_into().unwrap();
                    refusal.headers_mut().insert("retry-after", "1".parse().unwrap());
                    return Err(refusal);
                }
                if !self.cloud_id.is_empty() {
                    let id = self.cloud_id.parse().unwrap();
                    response.headers_mut().insert(wire::headers::CLOUD_ID, id);
                }
                if self.streams {
                    response.headers_mut().insert(wire::headers::STREAMS, "1".parse().unwrap());
                }
                if self.lane {
                    response.headers_mut().insert(wire::headers::LANE, "1".parse().unwrap());
                }
                Ok(response)
            };
            Some(Session(accept_hdr_async(tls, callback).await.ok()?))
        };
        tokio::time::timeout(PATIENCE, accept).await.expect("somebody dials")
    }
}

impl Session {
    pub async fn send(&mut self, message: &Message) {
        self.0.send(Frame::Text(message.encode().into())).await.unwrap();
    }

    pub async fn send_frame(&mut self, frame: Frame) {
        self.0.send(frame).await.unwrap();
    }

    /// As Go's library does with messages above its buffer: a text frame and continuations.
    pub async fn send_in_pieces(&mut self, message: &Message, piece_len: usize) {
        let text = message.encode().into_bytes();
        let pieces: Vec<&[u8]> = text.chunks(piece_len).collect();
        for (n, piece) in pieces.iter().enumerate() {
            let opcode = OpCode::Data(if n == 0 { Data::Text } else { Data::Continue });
            let frame = RawFrame::message(piece.to_vec(), opcode, n + 1 == pieces.len());
            self.0.send(Frame::Frame(frame)).await.unwrap();
        }
    }

    /// The next message but keepalives.
    pub async fn receive(&mut self) -> Message {
        loop {
            let message = self.receive_any().await;
            if message.route.operation != "keepalive" {
                return message;
            }
        }
    }

    async fn receive_any(&mut self) -> Message {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.0.next()).await.expect("a message in time");
            match next.expect("an open link").unwrap() {
                Frame::Text(text) => {
                    assert!(text.ends_with('\n'), "as Go's encoder writes it");
                    return Message::decode(text.as_bytes()).unwrap();
                }
                Frame::Binary(_) => panic!("KubeEdge sends text"),
                _ => {}
            }
        }
    }

    /// True when the link ends without another message.
    pub async fn ends(mut self) -> bool {
        let end = async {
            while let Some(Ok(frame)) = self.0.next().await {
                if let Frame::Text(_) = frame {
                    return false;
                }
            }
            true
        };
        tokio::time::timeout(PATIENCE, end).await.unwrap_or(false)
    }
}
