//! Two tunnels with a pipe between them: what our two ends do with each other.

use wire::tunnel::{Connect, Relabel, kind};

use super::*;
use crate::{Outgoing, Relabelled, Tunnel, TunnelEvent, limits::TUNNEL_PIPE_LEN};

type Pipe = WebSocketStream<Relabelled<Counted<DuplexStream>>>;

async fn tunnel(pipe: DuplexStream, role: Role) -> Tunnel<Pipe> {
    let (pipe, progress) = Counted::new(pipe);
    let ws = WebSocketStream::from_raw_socket(Relabelled::frames(pipe), role, None).await;
    Tunnel::new(Socket::new(ws, progress, None, TIMEOUT))
}

/// Requests go in at the cloud's end; at the edge's end they come out as the streams that the kubelet API serves.
async fn ends(pipe_len: usize) -> (mpsc::Sender<DuplexStream>, mpsc::Receiver<DuplexStream>) {
    let (a, b) = tokio::io::duplex(pipe_len);
    let (mut cloud, mut edge) = (tunnel(a, Role::Server).await, tunnel(b, Role::Client).await);
    let (dial, mut dialled) = mpsc::channel(8);
    tokio::spawn(async move {
        let mut id = 0;
        loop {
            tokio::select! {
                Some(pipe) = dialled.recv() => {
                    id += 1;
                    cloud.add(id, pipe, Outgoing::Request(Vec::new()), Vec::new());
                }
                event = cloud.next() => match event {
                    Ok(TunnelEvent::Request { id, head }) => {
                        let (kind, connect) = wire::tunnel::connect(id, &head).unwrap();
                        let first: &[u8] = if kind == kind::LOGS_CONNECT { b"HTTP/1.1 200 OK\r\n\r\n" } else { b"" };
                        cloud.connect(id, kind, &serde_json::to_vec(&connect).unwrap(), first);
                    }
                    Ok(_) => {}
                    Err(_) => return,
                },
            }
        }
    });
    let (served_tx, served) = mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok(event) = edge.next().await {
            let TunnelEvent::Connect { id, kind, data } = event else { continue };
            let connect: Connect = serde_json::from_slice(&data).unwrap();
            let is_raw = kind != kind::LOGS_CONNECT;
            let (version, outgoing) =
                if is_raw { ("1.1", Outgoing::Raw) } else { ("1.0", Outgoing::Body(Vec::new())) };
            let (ours, theirs) = tokio::io::duplex(TUNNEL_PIPE_LEN);
            edge.add(id, ours, outgoing, connect.request(version).unwrap());
            served_tx.send(theirs).await.unwrap();
        }
    });
    (dial, served)
}

async fn head(io: &mut DuplexStream) -> String {
    let mut head = Vec::new();
    while wire::tunnel::head_len(&head).is_none() {
        head.push(soon(io.read_u8()).await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn a_long_log_passes_whole_and_an_exec_both_ways() {
    let (dial, mut served) = ends(10_000).await;
    let (mut ours, theirs) = tokio::io::duplex(TUNNEL_PIPE_LEN);
    dial.send(theirs).await.unwrap();
    ours.write_all(b"GET /containerLogs/d/p/c HTTP/1.1\r\n\r\n").await.unwrap();
    let mut log = soon(served.recv()).await.unwrap();
    assert!(head(&mut log).await.starts_with("GET /containerLogs/d/p/c HTTP/1.0\r\n"));
    let write = tokio::spawn(async move {
        log.write_all(b"HTTP/1.0 200 OK\r\nA: b\r\n\r\n").await.unwrap();
        for n in 0..4096u32 {
            log.write_all(&[(n % 251) as u8; 1024]).await.unwrap();
        }
    });
    let mut answer = Vec::new();
    soon(ours.read_to_end(&mut answer)).await.unwrap();
    write.await.unwrap();
    let body = answer.strip_prefix(b"HTTP/1.1 200 OK\r\n\r\n").expect("the head that the cloud made");
    assert_eq!(body.len(), 4 << 20);
    assert!(body.chunks(1024).enumerate().all(|(n, chunk)| chunk.iter().all(|b| *b == (n % 251) as u8)));

    let (mut ours, theirs) = tokio::io::duplex(TUNNEL_PIPE_LEN);
    dial.send(theirs).await.unwrap();
    ours.write_all(b"POST /exec/d/p/c HTTP/1.1\r\nUpgrade: SPDY/3.1\r\n\r\n").await.unwrap();
    let mut exec = soon(served.recv()).await.unwrap();
    assert!(head(&mut exec).await.contains("Upgrade: SPDY/3.1"));
    exec.write_all(b"HTTP/1.1 101 x\r\n\r\n").await.unwrap();
    head(&mut ours).await;
    // Much in both directions at once.
    let data: Vec<u8> = (0..1_000_000u32).map(|n| (n / 3) as u8).collect();
    let (mut exec_reader, mut exec_writer) = tokio::io::split(exec);
    tokio::spawn(async move { drop(tokio::io::copy(&mut exec_reader, &mut exec_writer).await) });
    let (mut reader, mut writer) = tokio::io::split(ours);
    let sent = data.clone();
    tokio::spawn(async move {
        writer.write_all(&sent).await.unwrap();
        std::future::pending::<()>().await
    });
    let mut back = vec![0; data.len()];
    soon(reader.read_exact(&mut back)).await.unwrap();
    assert!(back == data);
}

#[tokio::test(start_paused = true)]
async fn what_comes_in_pieces_goes_on_at_once() {
    let (dial, mut served) = ends(10_000).await;
    let (mut ours, theirs) = tokio::io::duplex(TUNNEL_PIPE_LEN);
    dial.send(theirs).await.unwrap();
    // Between two pieces everything that can happen does; nothing else wakes the tunnel.
    let pause = || tokio::time::sleep(Duration::from_millis(1));
    for piece in [b"GET /containerLogs/d/p/c".as_slice(), b" HTTP/1.1\r\n", b"\r\n"] {
        ours.write_all(piece).await.unwrap();
        pause().await;
    }
    let mut log = soon(served.recv()).await.unwrap();
    head(&mut log).await;
    for piece in [b"HTTP/1.0 200 OK\r\n".as_slice(), b"\r\n", b"line"] {
        log.write_all(piece).await.unwrap();
        pause().await;
    }
    let mut answer = [0; 23];
    soon(ours.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK\r\n\r\nline");
}

#[tokio::test(start_paused = true)]
async fn who_takes_nothing_holds_up_the_others_for_a_bounded_time() {
    let (a, b) = tokio::io::duplex(100_000);
    let (mut cloud, mut edge) = (tunnel(a, Role::Server).await, tunnel(b, Role::Client).await);
    // Its owner at the edge never reads.
    let (ours, _stalled) = tokio::io::duplex(10);
    edge.add(1, ours, Outgoing::Raw, Vec::new());
    let (ours, mut other) = tokio::io::duplex(1000);
    edge.add(2, ours, Outgoing::Raw, Vec::new());
    for id in [1, 2] {
        let (ours, mut owner) = tokio::io::duplex(1000);
        cloud.add(id, ours, Outgoing::Raw, Vec::new());
        owner.write_all(&[id as u8; 100]).await.unwrap();
        // Kept open: a connection whose owner has gone is over.
        tokio::spawn(async move {
            let _owner = owner;
            std::future::pending::<()>().await
        });
    }
    tokio::spawn(async move { while cloud.next().await.is_ok() {} });
    tokio::spawn(async move {
        loop {
            match tokio::time::timeout(Duration::from_secs(5), edge.next()).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => return,
                Err(_) => edge.expire_blocked(),
            }
        }
    });
    let since = tokio::time::Instant::now();
    let mut bytes = [0; 100];
    other.read_exact(&mut bytes).await.unwrap();
    assert_eq!(bytes, [2; 100]);
    assert!(
        since.elapsed() < crate::limits::BLOCKED_TIME_MAX + Duration::from_secs(10),
        "{:?}",
        since.elapsed()
    );
}

#[test]
fn the_socket_below_the_websocket_changes_nothing_else() {
    let mut bytes = b"\x82\x03abc".to_vec();
    Relabel::frames().feed(&mut bytes);
    assert_eq!(bytes, b"\x82\x03abc");
}
