//! WebSocket of a client to SPDY of a node (what kube-apiserver's stream translator and tunnel do).

use std::collections::BTreeSet;

use ::http::Response;
use ::http::request::Parts;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use kapi::ApiError;
use kserve::{Body, NodeAsk, Purpose};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::session::{Receiver, Sender, SessionError, open};
use super::websocket::{Handshake, Protocol, Said, Socket, Version, accept, read, write};
use super::{Node, Streams, switching, upgrade_of};
use crate::limits::{CLIENT_READY_WAIT, EXIT_STATUS_BYTES_MAX, LINGER_MAX, NODE_ANSWER_MAX, PIPE_BYTES};
use crate::spdy::Event;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// One channel of the client and its stream at the node.
#[derive(Clone, Copy, Debug)]
struct Channel {
    number: u8,
    stream: u32,
    /// The client writes to it.
    up: bool,
    /// The node writes to it.
    down: bool,
}

/// What the loops need to know.
struct Plan {
    channels: Vec<Channel>,
    version: Version,
    base64: bool,
    /// The port of each channel, for port-forwards; nothing for commands.
    ports: Vec<u16>,
}

impl Plan {
    fn is_command(&self) -> bool {
        self.ports.is_empty()
    }
}

pub(crate) async fn serve(
    streams: &Streams,
    ask: &NodeAsk,
    client: &Parts,
) -> Result<Response<Body>, ApiError> {
    let upgrade = upgrade_of(client)?;
    let handshake = Handshake::read(&client.headers, matches!(ask.purpose, Purpose::PortForward { .. }))?;
    let answer = switching(handshake.headers());
    let (version, base64) = match handshake.protocol {
        Protocol::Tunnel => {
            let node = streams.spdy(&without_ports(ask), &["portforward.k8s.io"]).await?;
            streams.spawn(async move {
                if let Ok(client) = upgrade.await {
                    tunnel(accept(client).await, node).await;
                }
            })?;
            return Ok(answer);
        }
        Protocol::Channels { version, base64 } => (version, base64),
    };
    let wanted = channels(&ask.purpose)?;
    let protocols: &[&str] = match ask.purpose {
        Purpose::PortForward { .. } => &["portforward.k8s.io"],
        _ => &["v5.channel.k8s.io", "v4.channel.k8s.io"],
    };
    let node = streams.spdy(&without_ports(ask), protocols).await?;
    let ports = match &ask.purpose {
        Purpose::PortForward { ports, .. } => ports.iter().flat_map(|port| [*port, *port]).collect(),
        _ => Vec::new(),
    };
    let mut plan = Plan { channels: Vec::new(), version, base64, ports };
    streams.spawn(async move {
        let Ok(client) = upgrade.await else { return };
        let socket = accept(client).await;
        let ready = Instant::now() + CLIENT_READY_WAIT;
        // Only now: a command starts when its streams are there, and the client has to make its own first.
        let headers: Vec<Vec<(&str, &str)>> = wanted.iter().map(Wanted::headers).collect();
        let opened = timeout(NODE_ANSWER_MAX, open(node, &headers)).await;
        match opened.unwrap_or(Err(SessionError::Closed)) {
            Ok((sender, receiver, numbers)) => {
                plan.channels = numbered(&wanted, &numbers);
                run(socket, sender, receiver, &plan, ready).await;
            }
            Err(error) => refuse(socket, &error, &plan).await,
        }
    })?;
    Ok(answer)
}

fn numbered(wanted: &[Wanted], numbers: &[u32]) -> Vec<Channel> {
    let mut channels: Vec<Channel> = wanted
        .iter()
        .zip(numbers)
        .map(|(one, stream)| Channel { number: one.number, stream: *stream, up: one.up, down: one.down })
        .collect();
    channels.sort_by_key(|channel| channel.number);
    channels
}

/// SPDY clients name ports stream by stream.
fn without_ports(ask: &NodeAsk) -> NodeAsk {
    let mut ask = ask.clone();
    if matches!(ask.purpose, Purpose::PortForward { .. }) {
        let end = ask.path.find('?').unwrap_or(ask.path.len());
        ask.path.truncate(end);
    }
    ask
}

/// A channel before its stream has a number, in the order in which streams are opened.
struct Wanted {
    number: u8,
    kind: &'static str,
    port: String,
    request: String,
    up: bool,
    down: bool,
}

impl Wanted {
    fn headers(&self) -> Vec<(&str, &str)> {
        let mut headers = vec![("streamtype", self.kind)];
        if !self.port.is_empty() {
            headers.extend([("port", self.port.as_str()), ("requestid", self.request.as_str())]);
        }
        headers
    }
}

fn channels(purpose: &Purpose) -> Result<Vec<Wanted>, ApiError> {
    let command = |number, kind, up| Wanted {
        number,
        kind,
        port: String::new(),
        request: String::new(),
        up,
        down: !up,
    };
    match purpose {
        Purpose::Command { stdin, stdout, stderr, tty, .. } => {
            let all = [
                (true, command(ERROR, "error", false)),
                (*stdin, command(STDIN, "stdin", true)),
                (*stdout, command(STDOUT, "stdout", false)),
                (*stderr, command(STDERR, "stderr", false)),
                (*tty, command(RESIZE, "resize", true)),
            ];
            Ok(all.into_iter().filter_map(|(wanted, channel)| wanted.then_some(channel)).collect())
        }
        Purpose::PortForward { ports, .. } if ports.is_empty() => {
            Err(ApiError::bad_request("query parameter \"ports\" is required"))
        }
        Purpose::PortForward { ports, .. } => {
            let pair = |(at, port): (usize, &u16)| {
                let channel = |number: usize, kind, up| Wanted {
                    number: u8::try_from(number).expect("ports are few"),
                    kind,
                    port: port.to_string(),
                    request: at.to_string(),
                    up,
                    down: true,
                };
                [channel(2 * at + 1, "error", false), channel(2 * at, "data", true)]
            };
            Ok(ports.iter().enumerate().flat_map(pair).collect())
        }
        Purpose::Log { .. } | Purpose::Proxy | Purpose::PodPort(_) => {
            Err(ApiError::bad_request("it has no streams"))
        }
    }
}

type SocketSink = SplitSink<Socket, Message>;

/// The node did not take the streams.
async fn refuse(mut socket: Socket, error: &SessionError, plan: &Plan) {
    if plan.is_command()
        && let Some(status) = last_word(Vec::new(), Some(error), plan.version)
    {
        let _ = socket.send(write(ERROR, &status, plan.base64)).await;
    }
    let _ = socket.send(goodbye()).await;
}

async fn run(
    socket: Socket,
    mut sender: Sender<Node>,
    mut receiver: Receiver<Node>,
    plan: &Plan,
    ready: Instant,
) {
    let (mut sink, mut messages) = socket.split();
    if greet(&mut sink, plan).await.is_err() {
        return;
    }
    // Pings of the node are few; one that finds the queue full is asked again.
    let (pings, mut asked) = mpsc::channel(4);
    {
        let mut up = std::pin::pin!(up(&mut messages, &mut sender, &mut asked, plan));
        let mut down = std::pin::pin!(async {
            sleep_until(ready).await;
            down(&mut sink, &mut receiver, &pings, plan).await;
        });
        tokio::select! {
            // The client is gone: nobody reads what is under way.
            () = &mut up => {}
            () = &mut down => drop(timeout(LINGER_MAX, up).await),
        }
    }
    sender.close().await;
}

/// What a client waits for before it does anything: proof that the streams are there.
async fn greet(sink: &mut SocketSink, plan: &Plan) -> Result<(), tokio_tungstenite::tungstenite::Error> {
    if plan.is_command() {
        let first = plan.channels.iter().find(|channel| channel.down).map_or(ERROR, |channel| channel.number);
        return sink.send(write(first, &[], plan.base64)).await;
    }
    for (channel, port) in plan.channels.iter().zip(&plan.ports) {
        sink.send(write(channel.number, &port.to_le_bytes(), plan.base64)).await?;
    }
    Ok(())
}

/// From the client to the node, until the client ends it.
async fn up(
    messages: &mut SplitStream<Socket>,
    sender: &mut Sender<Node>,
    pings: &mut mpsc::Receiver<u32>,
    plan: &Plan,
) {
    let mut open: Vec<Channel> = plan.channels.iter().copied().filter(|channel| channel.up).collect();
    loop {
        let message = tokio::select! {
            id = pings.recv() => match id {
                Some(id) if sender.pong(id).await.is_ok() => continue,
                _ => return,
            },
            message = messages.next() => message,
        };
        let Some(Ok(message)) = message else { return };
        let sent = match read(message, plan.version, plan.base64) {
            Said::Nothing => Ok(()),
            Said::End => return,
            Said::Data { channel, bytes } => match open.iter().find(|open| open.number == channel) {
                Some(open) => sender.data(open.stream, &bytes).await,
                None => Ok(()),
            },
            Said::Closed(channel) => match open.iter().position(|open| open.number == channel) {
                Some(at) => sender.finish(open.swap_remove(at).stream).await,
                None => Ok(()),
            },
        };
        // The node is gone; what it said last is still on its way down.
        if sent.is_err() {
            while messages.next().await.is_some_and(|message| message.is_ok()) {}
            return;
        }
    }
}

/// From the node to the client, until the node has said everything.
async fn down(sink: &mut SocketSink, receiver: &mut Receiver<Node>, pings: &mpsc::Sender<u32>, plan: &Plan) {
    let mut status = Vec::new();
    let mut open: BTreeSet<u32> =
        plan.channels.iter().filter(|channel| channel.down).map(|channel| channel.stream).collect();
    let broke = loop {
        let event = match receiver.next().await {
            Ok(Some(event)) => event,
            Ok(None) => break None,
            Err(error) => break Some(error),
        };
        match event {
            Event::Data { stream, bytes } => {
                let Some(channel) = plan.channels.iter().find(|channel| channel.stream == stream) else {
                    continue;
                };
                if plan.is_command() && channel.number == ERROR {
                    // One message with the whole of it: clients parse it so.
                    let room = EXIT_STATUS_BYTES_MAX - status.len();
                    status.extend_from_slice(&bytes[..bytes.len().min(room)]);
                } else if sink.send(write(channel.number, &bytes, plan.base64)).await.is_err() {
                    return;
                }
            }
            Event::Ended(stream) | Event::Reset { stream, .. } => {
                open.remove(&stream);
                let error = plan.channels.iter().find(|channel| channel.number == ERROR);
                let told = plan.is_command() && error.is_some_and(|channel| channel.stream == stream);
                if told || open.is_empty() {
                    break None;
                }
            }
            Event::Ping(id) => drop(pings.try_send(id)),
            Event::Accepted(_) | Event::GoAway => {}
        }
    };
    if plan.is_command()
        && let Some(status) = last_word(status, broke.as_ref(), plan.version)
        && sink.send(write(ERROR, &status, plan.base64)).await.is_err()
    {
        return;
    }
    let _ = sink.send(goodbye()).await;
}

/// How the command ended, as the client's version says it.
fn last_word(status: Vec<u8>, broke: Option<&SessionError>, version: Version) -> Option<Vec<u8>> {
    let status = if status.is_empty() {
        let why = match broke {
            Some(error) => error.to_string(),
            None => "the connection to the node ended before the command did".into(),
        };
        json!({"metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
            "message": format!("Internal error occurred: {why}")})
        .to_string()
        .into_bytes()
    } else {
        status
    };
    if version >= Version::V4 {
        return Some(status);
    }
    let status: serde_json::Value = serde_json::from_slice(&status).ok()?;
    let failed = kapi::meta::text(&status, "status") != "Success";
    failed.then(|| kapi::meta::text(&status, "message").as_bytes().to_vec())
}

/// A close without a code is an error to clients.
fn goodbye() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}

/// SPDY's bytes in messages, both ways.
async fn tunnel(socket: Socket, node: Node) {
    let (mut sink, mut messages) = socket.split();
    let (mut node_read, mut node_write) = split(node);
    let up = async {
        while let Some(Ok(message)) = messages.next().await {
            match message {
                Message::Binary(bytes) => {
                    if node_write.write_all(&bytes).await.is_err() || node_write.flush().await.is_err() {
                        return;
                    }
                }
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
                Message::Text(_) | Message::Close(_) => return,
            }
        }
    };
    let down = async {
        let mut buffer = vec![0; PIPE_BYTES];
        while let Ok(count @ 1..) = node_read.read(&mut buffer).await {
            if sink.send(Message::binary(buffer[..count].to_vec())).await.is_err() {
                return;
            }
        }
        let _ = sink.send(goodbye()).await;
    };
    let (mut up, mut down) = (std::pin::pin!(up), std::pin::pin!(down));
    tokio::select! {
        () = &mut up => {}
        () = &mut down => drop(timeout(LINGER_MAX, up).await),
    }
}
