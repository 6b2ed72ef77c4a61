//! The tunnel as a stock cloud uses it: messages built by hand on a WebSocket that checks no text.

use std::sync::{Arc, Mutex};

use futures_util::{SinkExt, StreamExt};
use streams::{Counted, Relabelled, Socket};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{
            Role,
            frame::{
                Frame,
                coding::{Data, OpCode},
            },
        },
    },
};
use wire::tunnel::{Envelope, Url};

use super::*;
use crate::contract::BoxFuture;

const PATIENCE: Duration = Duration::from_secs(10);

/// Answers logs with bytes that are no text, and upgrades everything else to an echo.
#[derive(Default)]
struct Kubelet {
    requests: Arc<Mutex<Vec<String>>>,
}

impl KubeletApi for Kubelet {
    fn serve(&self, mut io: rt::BoxIo) -> BoxFuture<'static, ()> {
        let requests = self.requests.clone();
        Box::pin(async move {
            let mut head = Vec::new();
            while wire::tunnel::head_len(&head).is_none() {
                head.push(io.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let is_logs = head.contains("HTTP/1.0");
            requests.lock().unwrap().push(head);
            if is_logs {
                let _ = io.write_all(b"HTTP/1.0 200 OK\r\nA: b\r\n\r\n").await;
                for n in 0..=255u8 {
                    let _ = io.write_all(&[n; 100]).await;
                }
                return;
            }
            let _ = io.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").await;
            let (mut reader, mut writer) = tokio::io::split(io);
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
        })
    }
}

struct Cloud {
    ws: WebSocketStream<Relabelled<DuplexStream>>,
    requests: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<Option<String>>,
    carries: watch::Sender<Option<bool>>,
}

async fn start() -> Cloud {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let (theirs, progress) = Counted::new(theirs);
    let edge = WebSocketStream::from_raw_socket(Relabelled::frames(theirs), Role::Client, None).await;
    let kubelet = Arc::new(Kubelet::default());
    let requests = kubelet.requests.clone();
    let session = Session {
        tunnel: Tunnel::new(Socket::new(edge, progress, None, PATIENCE)),
        kubelet,
        serving: TaskGroup::new("test", 64, Drain::new()),
    };
    let (carries, mut carries_rx) = watch::channel(Some(false));
    let task =
        tokio::spawn(
            async move { session.run(&mut carries_rx, Duration::from_secs(60), &Drain::new()).await },
        );
    let ws = WebSocketStream::from_raw_socket(Relabelled::frames(ours), Role::Server, None).await;
    Cloud { ws, requests, task, carries }
}

impl Cloud {
    async fn send(&mut self, id: u64, kind: u64, data: &[u8]) {
        let bytes = Envelope { id, kind, data }.encode();
        let frame = Frame::message(bytes, OpCode::Data(Data::Text), true);
        self.ws.send(Message::Frame(frame)).await.unwrap();
    }

    async fn connect(&mut self, id: u64, kind: u64, target: &str, method: Option<&str>) {
        let header = [("Upgrade".to_owned(), Some(vec!["SPDY/3.1".to_owned()]))].into();
        let method = method.map(str::to_owned);
        let connect = Connect { id, url: Url::from_target(target), header: Some(header), method };
        self.send(id, kind, &serde_json::to_vec(&connect).unwrap()).await;
    }

    async fn receive(&mut self) -> (u64, u64, Vec<u8>) {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.ws.next()).await.expect("in time");
            match message.expect("an open tunnel").unwrap() {
                Message::Binary(bytes) => {
                    let Envelope { id, kind, data } = Envelope::decode(&bytes).unwrap();
                    return (id, kind, data.to_vec());
                }
                Message::Ping(data) => assert_eq!(&data[..], b"ping you"),
                other => panic!("{other:?}"),
            }
        }
    }

    /// The data of a connection up to its end.
    async fn body(&mut self, id: u64) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            match self.receive().await {
                (found, kind::DATA, data) if found == id => body.extend(data),
                (found, kind::REMOVE_CONNECT, _) if found == id => return body,
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn logs_come_without_the_head_and_exec_as_it_is() {
    let mut cloud = start().await;
    cloud.connect(1, kind::LOGS_CONNECT, "/containerLogs/default/web/c?follow=true", None).await;
    let body = cloud.body(1).await;
    let wanted: Vec<u8> = (0..=255u8).flat_map(|n| [n; 100]).collect();
    assert!(body == wanted, "{} bytes", body.len());

    cloud.connect(2, kind::EXEC_CONNECT, "/exec/default/web/c?command=sh", Some("POST")).await;
    let (_, _, answer) = cloud.receive().await;
    assert!(answer.starts_with(b"HTTP/1.1 101 "));
    for n in 0..3u8 {
        cloud.send(2, kind::DATA, &[0xff, n]).await;
        assert_eq!(cloud.receive().await, (2, kind::DATA, vec![0xff, n]));
    }
    cloud.send(2, kind::REMOVE_CONNECT, &[]).await;
    // Its end is the kubelet API's end of the stream; then the id is free and another one is served.
    cloud.connect(3, kind::ATTACH_CONNECT, "/attach/default/web/c", Some("GET")).await;
    assert!(cloud.receive().await.2.starts_with(b"HTTP/1.1 101 "));
    let requests = cloud.requests.lock().unwrap().clone();
    assert!(
        requests[0].starts_with("GET /containerLogs/default/web/c?follow=true HTTP/1.0\r\n"),
        "{requests:?}"
    );
    assert!(requests[1].starts_with("POST /exec/default/web/c?command=sh HTTP/1.1\r\n"));
    assert!(requests[1].contains("Upgrade: SPDY/3.1\r\n"));
}

#[tokio::test]
async fn what_cannot_be_served_is_over_at_once() {
    let mut cloud = start().await;
    cloud.send(1, kind::LOGS_CONNECT, b"not json").await;
    assert_eq!(cloud.receive().await, (1, kind::REMOVE_CONNECT, vec![]));
    cloud.send(2, 99, b"{}").await;
    assert_eq!(cloud.receive().await, (2, kind::REMOVE_CONNECT, vec![]));
    for id in 10..10 + TUNNEL_CONNECTIONS_MAX as u64 {
        cloud.connect(id, kind::EXEC_CONNECT, "/exec/a/b/c", Some("POST")).await;
        cloud.receive().await;
    }
    cloud.connect(500, kind::EXEC_CONNECT, "/exec/a/b/c", Some("POST")).await;
    assert_eq!(cloud.receive().await, (500, kind::REMOVE_CONNECT, vec![]));
    // Unknown connections are no error.
    cloud.send(9999, kind::DATA, b"x").await;
    cloud.send(10, kind::DATA, b"still here").await;
    assert_eq!(cloud.receive().await, (10, kind::DATA, b"still here".to_vec()));

    cloud.send(0, kind::CLOSE_CONNECT, b"failed to Update KubeletEndpoint Port").await;
    let why = tokio::time::timeout(PATIENCE, cloud.task).await.unwrap().unwrap();
    assert_eq!(why.as_deref(), Some("the cloud closed it: failed to Update KubeletEndpoint Port"));
}

#[tokio::test]
async fn a_link_that_carries_streams_ends_the_tunnel() {
    let cloud = start().await;
    cloud.carries.send_replace(None);
    cloud.carries.send_replace(Some(true));
    let why = tokio::time::timeout(PATIENCE, cloud.task).await.unwrap().unwrap();
    assert_eq!(why, None);
}
