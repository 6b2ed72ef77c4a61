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
