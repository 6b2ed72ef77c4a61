//! Byte streams of the link, as the cloud opens them.

use ::streams::{Event, OpenError, Progress, Socket, Streams};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// Sends back what comes, and ends when the cloud ends.
pub struct Echo;

impl KubeletApi for Echo {
    fn serve(&self, io: rt::BoxIo) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let (mut reader, mut writer) = tokio::io::split(io);
            drop(tokio::io::copy(&mut reader, &mut writer).await);
            drop(writer.shutdown().await);
        })
    }
}

/// The cloud's end: streams, and the messages that came.
fn drive(session: Session) -> (Streams, JoinHandle<()>, tokio::sync::mpsc::Receiver<Message>) {
    let streams = Streams::opener();
    let mut socket =
        Socket::new(session.0, Progress::default(), Some(streams.clone()), Duration::from_secs(60));
    let (tx, rx) = tokio::sync::mpsc::channel(64);
    let task = tokio::spawn(async move {
        while let Ok(event) = socket.next(true).await {
            if let Event::Message(bytes) = event {
                let message = Message::decode(&bytes).unwrap();
                if !message.route.group.is_empty() && message.header.parent_msg_id.is_empty() {
                    drop(tx.send(message).await);
                }
            }
        }
    });
    (streams, task, rx)
}

#[tokio::test]
async fn streams_are_served_beside_messages_and_end_with_the_link() {
    let (mut cloud, mut node) = (Cloud::new().await, Node::new());
    cloud.streams = true;
    node.start(&cloud);
    let session = cloud.accept().await;
    assert!(cloud.headers.lock().unwrap().contains(&("kinglet-streams".into(), "1".into())));
    let (streams, link, mut messages) = drive(session);

    let mut stream = streams.open().await.unwrap();
    let data: Vec<u8> = (0..300_000u32).map(|n| (n / 7) as u8).collect();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let write = async {
        writer.write_all(&data).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    let (_, read) = tokio::join!(write, reader.read_to_end(&mut back));
    read.unwrap();
    assert!(back == data, "{} bytes came back", back.len());
    node.handle.send(Message::new(1, "edged", "meta", "update", "default/x/y"));
    assert_eq!(messages.recv().await.unwrap().route.resource, "default/x/y");

    // The link breaks: both ends of an open stream end.
    stream = streams.open().await.unwrap();
    stream.write_all(b"x").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
    link.abort();
    let ended = tokio::time::timeout(Duration::from_secs(10), stream.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionReset, "{ended}");
    cloud.accept().await;
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused_with_a_reason() {
    let (mut cloud, mut node) = (Cloud::new().await, Node::new());
    cloud.streams = true;
    node.start(&cloud);
    let (streams, _link, _messages) = drive(cloud.accept().await);
    let mut open = Vec::new();
    let refused = loop {
        match streams.open().await {
            Ok(stream) => open.push(stream),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(&refused, OpenError::Refused(why) if why.to_string().contains("bytes of the link")),
        "{refused}"
    );
    assert!(open.len() > 40, "{}", open.len());
    open.pop();
    streams.open().await.expect("what was closed makes room");
}

/// A stock cloud sends no header back: what looks like a frame is a message that cannot be read.
#[tokio::test]
async fn without_the_clouds_header_there_are_no_streams() {
    let (cloud, mut node) = (Cloud::new().await, Node::new());
    node.start(&cloud);
    let mut session = cloud.accept().await;
    let open = wire::streams::Frame::Open { id: 1, window: 1000 };
    session.send_frame(Frame::Binary(open.encode().into())).await;
    session.send(&Message::new(1, "cloudhub", "resource", "ping", "x")).await;
    assert_eq!(session.receive().await.content.get(), "\"ack\"");
}

/// A log that never ends, or ends after so many bytes.
struct Log(usize);

impl KubeletApi for Log {
    fn serve(&self, mut io: rt::BoxIo) -> BoxFuture<'static, ()> {
        let len = self.0;
        Box::pin(async move {
            let line = [b'x'; 1 << 16];
            for _ in 0..len / line.len() {
                if io.write_all(&line).await.is_err() {
                    return;
                }
            }
            drop(io.shutdown().await);
        })
    }
}

/// The uplink takes 400 kB/s and logs want it all: keepalives still come in time, and nobody calls the link dead. The heartbeat is 75
/// times as fast as in life, and so is the silence after which either end gives up.
#[tokio::test]
async fn keepalives_come_in_time_on_a_saturated_uplink() {
    const HEARTBEAT: Duration = Duration::from_millis(200);
    let mut cloud = Cloud::with_receive_buffer(Some(4096)).await;
    cloud.streams = true;
    let mut node = Node::new();
    (node.heartbeat, node.kubelet) = (HEARTBEAT, Arc::new(Log(usize::MAX)));
    node.start(&cloud);
    let streams = Streams::opener();
    let session = cloud.accept().await;
    let mut socket =
        Socket::new(session.0, Progress::default(), Some(streams.clone()), Duration::from_secs(60));
    let readers = (0..4).map(|_| {
        let streams = streams.clone();
        tokio::spawn(async move {
            let mut stream = streams.open().await.unwrap();
            let (mut total, mut buffer) = (0, vec![0; 1 << 16]);
            while let Ok(len @ 1..) = stream.read(&mut buffer).await {
                total += len;
            }
            total
        })
    });
    let readers: Vec<_> = readers.collect();
    let (mut beats, mut late) = (0, Duration::ZERO);
    let mut last = tokio::time::Instant::now();
    while beats < 20 {
        let event = tokio::time::timeout(Duration::from_secs(10), socket.next(true)).await;
        match event.expect("the link is alive").expect("and stays so") {
            Event::Message(bytes) => {
                assert_eq!(Message::decode(&bytes).unwrap().route.operation, "keepalive");
                late = late.max(last.elapsed().saturating_sub(HEARTBEAT));
                last = tokio::time::Instant::now();
                beats += 1;
            }
            // One frame or so of 8 kB.
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    drop(socket);
    let mut total = 0;
    for reader in readers {
        total += reader.await.unwrap();
    }
    assert!(total > 500_000, "the uplink was busy: {total} bytes");
    assert!(late < HEARTBEAT * 2, "the latest keepalive came {late:?} after its time");
}

/// Nobody reads a log of 100 MB: the node keeps a window's worth of it, goes on, and delivers all of it in the end.
#[tokio::test]
async fn a_log_that_nobody_reads_costs_the_node_its_buffers() {
    const LEN: usize = 100 << 20;
    let mut cloud = Cloud::new().await;
    cloud.streams = true;
    let mut node = Node::new();
    node.kubelet = Arc::new(Log(LEN));
    node.start(&cloud);
    let (streams, _link, mut messages) = drive(cloud.accept().await);
    let mut stream = streams.open().await.unwrap();
    let full = wire::limits::STREAM_WINDOW_MAX as usize;
    let stalled = async {
        while streams.stats().kept_len < full {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), stalled).await.expect("the window fills");
    let before = rss_kb();
    for n in 0..100 {
        node.handle.send(Message::new(1, "edged", "meta", "update", &format!("default/x/{n}")));
        let message = tokio::time::timeout(Duration::from_secs(10), messages.recv()).await.unwrap().unwrap();
        assert_eq!(message.route.resource, format!("default/x/{n}"));
    }
    assert_eq!(streams.stats().kept_len, full);
    let mut total = 0;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match tokio::time::timeout(Duration::from_secs(10), stream.read(&mut buffer)).await.unwrap().unwrap()
        {
            0 => break,
            len => total += len,
        }
    }
    assert_eq!(total, LEN);
    // Far below the log's length and far above what other tests take meanwhile.
    let grown = rss_kb().saturating_sub(before);
    assert!(grown < 50 * 1024, "{grown} kB for a log of 100 MB");
}

fn rss_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
