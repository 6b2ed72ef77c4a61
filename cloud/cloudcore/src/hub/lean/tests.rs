//! Against rustls' and tungstenite's own ends.

use std::io;
use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use pki::tls::{Clients, chain_server_config, client_config};
use pki::{Ca, Csr, Identity, Key, Names, Validity};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{Frame, FrameHeader};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::frames::{Place, fuzz_link_frames};
use super::{Frames, Tls};

const LENGTHS: [usize; 9] = [0, 1, 125, 126, 1000, 4096, 16_384, 65_536, 300_000];

type Far = tokio_rustls::client::TlsStream<DuplexStream>;

struct Ends {
    near: Tls<DuplexStream>,
    far: Far,
}

/// A node that shows a certificate of `shown` at a server that trusts `trusted`.
async fn ends(trusted: &Ca, shown: &Ca) -> (io::Result<Tls<DuplexStream>>, io::Result<Far>) {
    let (server, node) = (Key::generate().unwrap(), Key::generate().unwrap());
    let valid = Validity::seconds(now_s(), 3600);
    let names = Names::new(["cloud"]);
    let chain = vec![trusted.issue_server(&server, &names, now_s()).unwrap()];
    let cas = [trusted.cert_der()];
    let clients = Clients { cas: &cas, required: true, admit_expired: false };
    let config = chain_server_config(&chain, &server, clients).unwrap();
    let csr = pki::new_csr(&node, &Identity::node("n")).unwrap();
    let certificate = shown.issue_node_for(&Csr::parse(&csr).unwrap(), "n", valid).unwrap();
    let client = client_config(trusted.cert_der(), Some((&certificate, &node))).unwrap();
    // Little fits between them: what is not possible at once has to wait.
    let (a, b) = tokio::io::duplex(700);
    let dial = TlsConnector::from(Arc::new(client)).connect("cloud".try_into().unwrap(), b);
    let far = async {
        let mut far = dial.await?;
        far.flush().await?;
        Ok::<_, io::Error>(far)
    };
    tokio::join!(Tls::accept(Arc::new(config), a), far)
}

fn now_s() -> u64 {
    crate::join::now_s()
}

async fn open() -> Ends {
    let ca = Ca::create("test", now_s()).unwrap();
    let (near, far) = ends(&ca, &ca).await;
    Ends { near: near.unwrap(), far: far.unwrap() }
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8).collect()
}

#[tokio::test]
async fn bytes_pass_both_ways_and_leave_no_buffer() {
    let Ends { mut near, mut far } = open().await;
    assert_eq!(near.peer_certificates().len(), 1);
    for len in LENGTHS {
        let sent = bytes(len);
        let mut got = vec![0; len];
        let write = async {
            far.write_all(&sent).await.unwrap();
            far.flush().await.unwrap();
        };
        let (_, read) = tokio::join!(write, near.read_exact(&mut got));
        read.unwrap();
        assert!(got == sent, "{len} up");
        let write = async {
            near.write_all(&sent).await.unwrap();
            near.flush().await.unwrap();
        };
        got.fill(0);
        let (_, read) = tokio::join!(write, far.read_exact(&mut got));
        read.unwrap();
        assert!(got == sent, "{len} down");
        assert_eq!(near.held(), 0, "after {len}");
        // The client changes its keys; the server follows.
        far.get_mut().1.refresh_traffic_keys().unwrap();
    }
    // The peer's goodbye is an end, and ours is one for it.
    let (ended, rest) = tokio::join!(far.shutdown(), async { near.read(&mut [0; 8]).await });
    ended.unwrap();
    assert_eq!(rest.unwrap(), 0);
    near.shutdown().await.unwrap();
    assert_eq!(far.read(&mut [0; 8]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_cut_connection_is_not_an_end_that_was_told() {
    let Ends { mut near, far } = open().await;
    drop(far.into_inner());
    let error = near.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn a_stranger_is_told_why_it_is_not_let_in() {
    let (ours, theirs) = (Ca::create("test", now_s()).unwrap(), Ca::create("test", now_s()).unwrap());
    let (near, far) = ends(&ours, &theirs).await;
    let error = near.err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    // With TLS 1.3 the client has finished before the server looks: it reads the alert afterwards.
    let said = match far {
        Err(error) => error.to_string(),
        Ok(mut far) => far.read(&mut [0; 8]).await.unwrap_err().to_string(),
    };
    assert!(said.contains("alert"), "{said}");
}

#[tokio::test]
async fn what_is_no_tls_ends_the_handshake() {
    for first in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[22, 3, 1, 0x40, 0, 1, 0, 0xff], &[0; 600]] {
        let ca = Ca::create("test", now_s()).unwrap();
        let key = Key::generate().unwrap();
        let names = Names::new(["cloud"]);
        let chain = vec![ca.issue_server(&key, &names, now_s()).unwrap()];
        let cas = [ca.cert_der()];
        let clients = Clients { cas: &cas, required: true, admit_expired: false };
        let config = Arc::new(chain_server_config(&chain, &key, clients).unwrap());
        let (a, mut b) = tokio::io::duplex(4096);
        b.write_all(first).await.unwrap();
        b.shutdown().await.unwrap();
        assert!(Tls::accept(config, a).await.is_err(), "{first:?}");
    }
}

#[tokio::test]
async fn messages_pass_both_ways_and_an_idle_link_has_no_context() {
    let Ends { near, far } = open().await;
    let mut near = Frames::new(near, WebSocketConfig::default().read_buffer_size(256).write_buffer_size(256));
    let mut far = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
    for len in LENGTHS {
        let text = "x".repeat(len);
        let (sent, got) = tokio::join!(far.send(Message::text(text.clone())), near.next());
        sent.unwrap();
        assert!(got.unwrap().unwrap() == Message::text(text.clone()), "{len} up");
        let (sent, got) = tokio::join!(near.send(Message::binary(bytes(len))), far.next());
        sent.unwrap();
        assert!(got.unwrap().unwrap() == Message::binary(bytes(len)), "{len} down");
        assert!(is_idle(&mut near).await, "after {len}");
    }
    // In pieces, with a ping between them, as a stock edge sends what is long.
    let piece = |n: usize, last: bool| {
        let code = if n == 0 { Data::Text } else { Data::Continue };
        Message::Frame(Frame::message("abc".as_bytes().to_vec(), OpCode::Data(code), last))
    };
    far.send(piece(0, false)).await.unwrap();
    assert!(!is_idle(&mut near).await, "half a message must not be forgotten");
    far.send(Message::Ping("beat".into())).await.unwrap();
    assert!(matches!(near.next().await, Some(Ok(Message::Ping(_)))));
    near.flush().await.unwrap();
    far.send(piece(1, true)).await.unwrap();
    assert_eq!(near.next().await.unwrap().unwrap(), Message::text("abcabc"));
    assert!(matches!(far.next().await, Some(Ok(Message::Pong(_)))));
    assert!(is_idle(&mut near).await);
    // The end, from the far side.
    far.send(Message::Close(None)).await.unwrap();
    assert!(matches!(near.next().await, Some(Ok(Message::Close(_)))));
    // A server that has answered a goodbye is done.
    assert!(near.flush().await.is_err());
    assert!(near.next().await.is_none());
    assert!(matches!(far.next().await, Some(Ok(Message::Close(_)))));
}

/// Nothing comes within a turn, and nothing is held then.
async fn is_idle(near: &mut Frames<Tls<DuplexStream>>) -> bool {
    let came = tokio::time::timeout(std::time::Duration::from_millis(1), near.next()).await;
    assert!(came.is_err(), "{came:?}");
    !near.has_context()
}

#[test]
fn the_place_between_messages_is_found_however_they_are_cut() {
    let mut seed = 7_u64;
    let mut next = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % below
    };
    for _ in 0..300 {
        let (mut wire, mut between) = (Vec::new(), vec![0]);
        for _ in 0..next(6) {
            let pieces = 1 + next(3);
            for piece in 0..pieces {
                if next(4) == 0 {
                    frame(&mut wire, OpCode::Control(Control::Ping), true, next(20) as usize);
                    // A ping before the first piece of a message lies between two messages.
                    if piece == 0 {
                        between.push(wire.len());
                    }
                }
                let code = if piece == 0 { Data::Binary } else { Data::Continue };
                let len = [0, 5, 125, 126, 300, 66_000][next(6) as usize];
                frame(&mut wire, OpCode::Data(code), piece + 1 == pieces, len);
            }
            between.push(wire.len());
        }
        let (mut place, mut at) = (Place::default(), 0);
        while at < wire.len() {
            let most = if next(2) == 0 { 4 } else { 5000 };
            let step = (1 + next(most) as usize).min(wire.len() - at);
            place.pass(&wire[at..at + step]);
            at += step;
            assert_eq!(place.is_between(), between.contains(&at), "at {at} of {between:?}");
        }
    }
}

fn frame(wire: &mut Vec<u8>, opcode: OpCode, is_final: bool, len: usize) {
    let header = FrameHeader { is_final, opcode, mask: Some([1, 2, 3, 4]), ..FrameHeader::default() };
    Frame::from_payload(header, bytes(len).into()).format(wire).unwrap();
}

#[test]
fn any_bytes_give_the_messages_that_they_give_without_our_care() {
    let mut seed = 99_u64;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for round in 0..2_000 {
        let mut wire = Vec::new();
        for n in 0..next() % 5 {
            let code = if n == 1 { Data::Continue } else { Data::Text };
            frame(&mut wire, OpCode::Data(code), next() % 3 > 0, (next() % 200) as usize);
        }
        for _ in 0..round % 4 {
            if !wire.is_empty() {
                let at = (next() % wire.len() as u64) as usize;
                wire[at] = next() as u8;
            }
        }
        wire.insert(0, next() as u8);
        fuzz_link_frames(&wire);
    }
}
