//! exec, attach and port-forward of the test's node.

use std::collections::HashMap;
use std::pin::Pin;
use std::process::Stdio;

use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::sync::mpsc;

use super::spdy::{Stream, Writer, serve};
use super::{Body, text};

type Served = Pin<Box<dyn Future<Output = ()> + Send>>;
type Handler = Box<dyn FnOnce(Writer, mpsc::Receiver<Stream>) -> Served + Send>;

/// The newest first that containerd's server knows.
const PROTOCOLS: &[&str] = &["v4.channel.k8s.io", "v3.channel.k8s.io", "portforward.k8s.io"];

pub fn upgrade(mut request: Request<Incoming>, handler: Handler) -> Response<Body> {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    if header("upgrade") != Some("SPDY/3.1")
        || !header("connection").is_some_and(|text| text.eq_ignore_ascii_case("upgrade"))
    {
        return text(400, "unable to upgrade: missing upgrade headers in request");
    }
    let offered: Vec<&str> = request
        .headers()
        .get_all("x-stream-protocol-version")
        .iter()
        .flat_map(|value| value.to_str().unwrap().split(',').map(str::trim))
        .collect();
    let Some(protocol) = offered.iter().find_map(|offered| PROTOCOLS.iter().find(|known| *known == offered))
    else {
        return text(
            403,
            format!("unable to upgrade: unable to negotiate protocol: client supports {offered:?}"),
        );
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let (writer, streams) = serve(TokioIo::new(upgrade.await.unwrap()));
        handler(writer, streams).await;
    });
    Response::builder()
        .status(101)
        .header("connection", "Upgrade")
        .header("upgrade", "SPDY/3.1")
        .header("x-stream-protocol-version", *protocol)
        .body(Empty::new().boxed())
        .unwrap()
}

/// All streams that the query asks for.
async fn gather(
    query: &[(String, String)],
    streams: &mut mpsc::Receiver<Stream>,
) -> Option<HashMap<String, Stream>> {
    let on = |name: &str| query.iter().any(|(key, value)| key == name && value == "1");
    let tty = on("tty");
    let wanted = [true, on("input"), on("output"), on("error") && !tty, tty];
    let mut out = HashMap::new();
    for _ in wanted.into_iter().filter(|wanted| *wanted) {
        let stream = streams.recv().await?;
        out.insert(stream.headers["streamtype"].clone(), stream);
    }
    Some(out)
}

pub fn exec(query: Vec<(String, String)>) -> Handler {
    Box::new(move |writer, mut streams| {
        Box::pin(async move {
            let Some(mut streams) = gather(&query, &mut streams).await else { return };
            // Whoever is asked must answer.
            writer.ping(2).await;
            let words: Vec<&str> =
                query.iter().filter(|(key, _)| key == "command").map(|(_, value)| value.as_str()).collect();
            let error = streams["error"].id;
            if let Some(mut resize) = streams.remove("resize") {
                // A terminal: says each size, ends with its input.
                let (out, mut input) = (streams["stdout"].id, streams.remove("stdin").unwrap());
                loop {
                    tokio::select! {
                        Some(size) = resize.data.recv() => drop(writer.data(out, &[&size, &b"\r\n"[..]].concat()).await),
                        line = input.data.recv() => {
                            let Some(line) = line else { break };
                            writer.data(out, &line).await;
                            if line.ends_with(b"\x04") {
                                break;
                            }
                        }
                    }
                }
                return end(&writer, error, streams, 0).await;
            }
            let mut command = Command::new(words[0]);
            command.args(&words[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let Ok(mut child) = command.kill_on_drop(true).spawn() else {
                let why = json!({"metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
                    "message": format!("Internal error occurred: exec: \"{}\": executable file not found in $PATH", words[0])});
                writer.data(error, why.to_string().as_bytes()).await;
                return end(&writer, error, streams, -1).await;
            };
            let mut stdin = child.stdin.take().unwrap();
            match streams.remove("stdin") {
                Some(mut stream) => drop(tokio::spawn(async move {
                    while let Some(bytes) = stream.data.recv().await {
                        if stdin.write_all(&bytes).await.is_err() {
                            return;
                        }
                    }
                })),
                None => drop(stdin),
            }
            let to = |name: &str| streams.get(name).map(|stream| stream.id);
            let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
            tokio::join!(copy(out, &writer, to("stdout")), copy(err, &writer, to("stderr")));
            let code = child.wait().await.unwrap().code().unwrap_or(137);
            end(&writer, error, streams, code).await;
        })
    })
}

async fn copy(mut from: impl AsyncRead + Unpin, writer: &Writer, to: Option<u32>) {
    let mut buffer = vec![0; 32 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if let Some(to) = to
            && !writer.data(to, &buffer[..count]).await
        {
            return;
        }
    }
}

/// A code below 0: the status was sent.
async fn end(writer: &Writer, error: u32, streams: HashMap<String, Stream>, code: i32) {
    let status = match code {
        ..0 => None,
        0 => Some(json!({"metadata": {}, "status": "Success"})),
        code => Some(json!({"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}})),
    };
    if let Some(status) = status {
        // In two pieces: nobody promises that it comes in one.
        let status = status.to_string();
        let (first, second) = status.as_bytes().split_at(9);
        writer.data(error, first).await;
        writer.data(error, second).await;
    }
    for stream in streams.values() {
        writer.reset(stream.id).await;
    }
    writer.close().await;
}

/// Says hello, then what it hears, until it hears `bye`.
pub fn attach(query: Vec<(String, String)>) -> Handler {
    Box::new(move |writer, mut streams| {
        Box::pin(async move {
            let Some(mut streams) = gather(&query, &mut streams).await else { return };
            let (error, out) = (streams["error"].id, streams["stdout"].id);
            writer.data(out, b"attached\n").await;
            if let Some(mut input) = streams.remove("stdin") {
                while let Some(line) = input.data.recv().await {
                    writer.data(out, &line).await;
                    if line.starts_with(b"bye") {
                        break;
                    }
                }
            }
            end(&writer, error, streams, 0).await;
        })
    })
}

pub fn port_forward() -> Handler {
    Box::new(move |writer, mut streams| {
        Box::pin(async move {
            let mut errors: HashMap<String, Stream> = HashMap::new();
            while let Some(stream) = streams.recv().await {
                let request = stream.headers["requestid"].clone();
                if stream.headers["streamtype"] == "error" {
                    errors.insert(request, stream);
                    continue;
                }
                let error = errors.remove(&request).unwrap();
                tokio::spawn(connect(writer.clone(), stream, error.id));
            }
        })
    })
}

async fn connect(writer: Writer, mut data: Stream, error: u32) {
    let port: u16 = data.headers["port"].parse().unwrap();
    match TcpStream::connect(("127.0.0.1", port)).await {
        Ok(socket) => {
            let (read, mut write) = socket.into_split();
            let up = async {
                while let Some(bytes) = data.data.recv().await {
                    if write.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
                let _ = write.shutdown().await;
            };
            tokio::join!(up, async {
                copy(read, &writer, Some(data.id)).await;
                writer.finish(data.id).await;
            });
        }
        Err(why) => {
            writer.data(error, format!("an error occurred forwarding {port}: {why}").as_bytes()).await;
            writer.finish(data.id).await;
        }
    }
    writer.finish(error).await;
}
