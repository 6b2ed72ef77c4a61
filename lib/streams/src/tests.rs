//! Two sockets with a pipe between them, through which little fits.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};
use wire::limits::{SEND_BUFFER_LEN, STREAM_WINDOW_MAX};

use super::*;

const TIMEOUT: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_secs(30);

/// An end that runs: its streams, what it sends and what comes.
struct End {
    streams: Streams,
    send: mpsc::Sender<Message>,
    messages: mpsc::Receiver<bytes::Bytes>,
    opened: mpsc::Receiver<Stream>,
    task: JoinHandle<Option<Ended>>,
}

async fn socket(
    pipe: DuplexStream,
    role: Role,
    streams: Option<Streams>,
) -> Socket<WebSocketStream<Counted<DuplexStream>>> {
    let (pipe, progress) = Counted::new(pipe);
    Socket::new(WebSocketStream::from_raw_socket(pipe, role, None).await, progress, streams, TIMEOUT)
}

async fn run(pipe: DuplexStream, role: Role, streams: Streams) -> End {
    let mut socket = socket(pipe, role, Some(streams.clone())).await;
    let (send, mut to_send) = mpsc::channel::<Message>(1);
    let (messages_tx, messages) = mpsc::channel(1000);
    let (opened_tx, opened) = mpsc::channel(100);
    let task = tokio::spawn(async move {
        loop {
            tokio::select! {
                message = to_send.recv() => match message {
                    Some(message) => socket.queue(message),
                    None => return None,
                },
                event = socket.next(true) => match event {
                    Ok(Event::Message(bytes)) => drop(messages_tx.send(bytes).await),
                    Ok(Event::Opened(stream)) => drop(opened_tx.send(stream).await),
                    Ok(Event::Heard | Event::Frames(_)) => {}
                    Err(ended) => return Some(ended),
                },
            }
        }
    });
    End { streams, send, messages, opened, task }
}

/// The cloud's and the edge's end of a pipe that holds so many bytes each way.
async fn ends(pipe_len: usize) -> (End, End) {
    let (a, b) = tokio::io::duplex(pipe_len);
    (run(a, Role::Server, Streams::opener()).await, run(b, Role::Client, Streams::acceptor()).await)
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

#[tokio::test]
async fn a_reader_that_stalls_costs_its_window_and_holds_up_nobody() {
    const LEN: usize = 100 << 20;
    let (cloud, mut edge) = ends(64 * 1024).await;
    let mut reader = soon(cloud.streams.open()).await.unwrap();
    let mut other = soon(cloud.streams.open()).await.unwrap();
    let mut writer = soon(edge.opened.recv()).await.unwrap();
    let mut echo = soon(edge.opened.recv()).await.unwrap();
    let write = tokio::spawn(async move {
        let chunk: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8).collect();
        for _ in 0..LEN / chunk.len() {
            writer.write_all(&chunk).await.unwrap();
        }
        writer.shutdown().await.unwrap();
    });
    // Until the window is full at one end and the buffer at the other.
    let full = async {
        while edge.streams.stats().queued_len < SEND_BUFFER_LEN
            || cloud.streams.stats().kept_len < STREAM_WINDOW_MAX as usize
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    soon(full).await;
    let mut messages = cloud.messages;
    for n in 0..100u32 {
        soon(edge.send.send(Message::text(n.to_string()))).await.unwrap();
        assert_eq!(soon(messages.recv()).await.unwrap(), n.to_string());
        // Another stream goes on as well.
        soon(other.write_all(&n.to_le_bytes())).await.unwrap();
        let mut back = [0; 4];
        soon(echo.read_exact(&mut back)).await.unwrap();
        assert_eq!(back, n.to_le_bytes());
    }
    let (kept, queued) = (cloud.streams.stats().kept_len, edge.streams.stats().queued_len);
    assert_eq!((kept, queued), (STREAM_WINDOW_MAX as usize, SEND_BUFFER_LEN));

    let (mut total, mut buffer) = (0usize, vec![0; 1 << 16]);
    loop {
        let len = soon(reader.read(&mut buffer)).await.unwrap();
        if len == 0 {
            break;
        }
        assert_eq!(buffer[0], ((total % (1 << 20)) % 251) as u8);
        total += len;
        assert!(cloud.streams.stats().kept_len <= 2 * STREAM_WINDOW_MAX as usize);
    }
    assert_eq!(total, LEN);
    soon(write).await.unwrap();
}

/// The uplink is slow and full of stream data: what a message waits for is a frame and what the pipe holds.
#[tokio::test]
async fn messages_overtake_data_on_a_saturated_link() {
    const PIPE_LEN: usize = 1024;
    let (a, b) = tokio::io::duplex(PIPE_LEN);
    let edge_streams = Streams::acceptor();
    let mut edge = run(b, Role::Client, edge_streams.clone()).await;
    let cloud_streams = Streams::opener();
    let mut cloud = socket(a, Role::Server, Some(cloud_streams.clone())).await;
    let open = tokio::spawn({
        let streams = cloud_streams.clone();
        async move {
            let mut open = Vec::new();
            for _ in 0..8 {
                open.push(streams.open().await.unwrap());
            }
            open
        }
    });
    let mut writers = Vec::new();
    while writers.len() < 8 {
        tokio::select! {
            event = cloud.next(true) => drop(event.unwrap()),
            stream = edge.opened.recv() => {
                let mut stream = stream.unwrap();
                writers.push(tokio::spawn(async move { while stream.write_all(&[7; 4096]).await.is_ok() {} }));
            }
        }
    }
    while !open.is_finished() {
        drop(tokio::time::timeout(Duration::from_millis(1), cloud.next(true)).await);
    }
    let mut open = open.await.unwrap();
    let mut drain = vec![0; 1 << 20];
    for n in 0..50 {
        // All streams are full to the brim, the pipe as well.
        while edge_streams.stats().queued_len < 8 * SEND_BUFFER_LEN {
            tokio::task::yield_now().await;
        }
        edge.send.send(Message::text(n.to_string())).await.unwrap();
        tokio::task::yield_now().await;
        let mut before = 0;
        loop {
            let kept = cloud_streams.stats().kept_len;
            match soon(cloud.next(true)).await.unwrap() {
                Event::Message(bytes) => break assert_eq!(bytes, n.to_string()),
                _ => before += cloud_streams.stats().kept_len - kept,
            }
        }
        assert!(
            before <= wire::limits::STREAM_CHUNK_LEN + PIPE_LEN,
            "message {n} came after {before} bytes of data"
        );
        // Room for the next round.
        for stream in &mut open {
            while cloud_streams.stats().kept_len > 0 {
                match tokio::time::timeout(Duration::from_millis(1), stream.read(&mut drain)).await {
                    Ok(read) => assert!(read.unwrap() > 0),
                    Err(_) => break,
                }
            }
        }
    }
    drop((open, cloud));
    for writer in writers {
        soon(writer).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_link_is_stuck_when_no_byte_moves_and_not_before() {
    let (mut far, near) = tokio::io::duplex(512);
    let edge = run(near, Role::Client, Streams::acceptor()).await;
    edge.send.send(Message::binary(vec![1; 10_000])).await.unwrap();
    // 40 seconds for one message, at a byte rate that a bad uplink has: alive.
    let mut some = vec![0; 300];
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        far.read_exact(&mut some).await.unwrap();
        assert!(!edge.task.is_finished());
    }
    let since = tokio::time::Instant::now();
    let ended = edge.task.await.unwrap();
    assert!(matches!(ended, Some(Ended::Stuck(TIMEOUT))), "{ended:?}");
    assert!(since.elapsed() >= TIMEOUT - Duration::from_secs(1) && since.elapsed() < TIMEOUT * 2);
}

#[tokio::test]
async fn what_ends_ends_everywhere() {
    // The other end goes away: reads, writes and opens end.
    let (cloud, mut edge) = ends(1024).await;
    let mut stream = soon(cloud.streams.open()).await.unwrap();
    let mut served = soon(edge.opened.recv()).await.unwrap();
    edge.task.abort();
    assert_eq!(soon(stream.read_u8()).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(stream.write_u8(1).await.unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    assert_eq!(
        soon(served.read_u8()).await.unwrap_err().to_string(),
        "the stream was ended: the link between cloud and node has ended"
    );
    assert!(matches!(soon(cloud.streams.open()).await, Err(OpenError::RefusedByPeer(_))));

    // Whoever waits for the acceptance goes away: the place is free again.
    let (a, _silent) = tokio::io::duplex(1024);
    let cloud = run(a, Role::Server, Streams::opener()).await;
    let waiting = tokio::spawn({
        let streams = cloud.streams.clone();
        async move { streams.open().await.map(drop) }
    });
    while cloud.streams.stats().streams == 0 {
        tokio::task::yield_now().await;
    }
    waiting.abort();
    drop(waiting.await);
    assert_eq!(cloud.streams.stats().streams, 0);
}

#[tokio::test]
async fn a_peer_that_breaks_the_rules_loses_the_link() {
    for (frame, wanted) in [(vec![0x14, 0, 1, 9], "rules"), (vec![0x12, 0], "cannot be read")] {
        let (a, b) = tokio::io::duplex(1024);
        let edge = run(b, Role::Client, Streams::acceptor()).await;
        let mut cloud = socket(a, Role::Server, None).await;
        cloud.queue(Message::binary(frame));
        drop(soon(cloud.next(true)).await);
        let ended = soon(edge.task).await.unwrap().unwrap();
        assert!(ended.to_string().contains(wanted), "{ended}");
    }
}

mod tunnel;
