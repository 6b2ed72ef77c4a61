use std::{collections::BTreeMap, net::SocketAddr, sync::Mutex as StdMutex};

use bytes::Bytes;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::twin::tests::until;

/// A request as the little server read it.
#[derive(Clone, Debug)]
struct Heard {
    path: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

/// A server that keeps what it is told and answers with the next of its statuses, then with 204 for ever.
struct Server {
    address: SocketAddr,
    heard: Arc<StdMutex<Vec<Heard>>>,
    connections: Arc<StdMutex<usize>>,
}

impl Server {
    async fn start(statuses: &[&'static str]) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (heard, connections) = (Arc::new(StdMutex::new(Vec::new())), Arc::new(StdMutex::new(0)));
        let statuses = Arc::new(StdMutex::new(statuses.to_vec()));
        let (to, count) = (heard.clone(), connections.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                *count.lock().unwrap() += 1;
                tokio::spawn(serve(stream, to.clone(), statuses.clone()));
            }
        });
        Server { address, heard, connections }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }
}

async fn serve(
    mut stream: TcpStream,
    heard: Arc<StdMutex<Vec<Heard>>>,
    statuses: Arc<StdMutex<Vec<&'static str>>>,
) {
    let mut bytes = Vec::new();
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut request = httparse::Request::new(&mut headers);
        let whole = match request.parse(&bytes).unwrap() {
            httparse::Status::Complete(head) => {
                let headers: BTreeMap<String, String> = request
                    .headers
                    .iter()
                    .map(|h| (h.name.to_lowercase(), String::from_utf8(h.value.to_vec()).unwrap()))
                    .collect();
                let len: usize = headers["content-length"].parse().unwrap();
                let path = request.path.unwrap().to_owned();
                assert_eq!(request.method, Some("POST"));
                (bytes.len() >= head + len)
                    .then(|| (head + len, Heard { path, headers, body: bytes[head..head + len].to_vec() }))
            }
            httparse::Status::Partial => None,
        };
        let Some((len, request)) = whole else {
            if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                return;
            }
            continue;
        };
        bytes.drain(..len);
        let status = statuses.lock().unwrap().pop().unwrap_or("204 No Content");
        heard.lock().unwrap().push(request);
        let length = if status.starts_with("204") { "" } else { "Content-Length: 2\r\n" };
        let body = if length.is_empty() { "" } else { "no" };
        stream.write_all(format!("HTTP/1.1 {status}\r\n{length}\r\n{body}").as_bytes()).await.unwrap();
    }
}

fn pushers(drain: &Drain, token_file: PathBuf) -> Pushers {
    let settings = Settings {
        queue_bytes: 10_000,
        ca_file: "/nowhere".into(),
        token_file,
        node: "edge-1".into(),
        gather: Duration::from_millis(20),
    };
    Pushers::new(settings, drain.clone())
}

fn sample(method: Value, value_type: &str, value: &str, at_ms: i64) -> Sample {
    let (ways, complaints) = read(&method, value_type);
    assert_eq!(complaints, [""; 0]);
    Sample {
        id: "default/oven".into(),
        property: "temperature".into(),
        value: value.into(),
        value_type: value_type.into(),
        quality: "good".into(),
        at_ms,
        kept: true,
        push: ways.into(),
    }
}

/// 2026-01-02T03:04:05.678Z
const AT_MS: i64 = 1_767_323_045_678;

#[tokio::test]
async fn http_gets_kubeedge_s_form_over_one_connection() {
    let server = Server::start(&[]).await;
    let drain = Drain::new();
    let mut pushers = pushers(&drain, "/nowhere".into());
    let method = json!({"http": {"hostName": "http://127.0.0.1", "port": server.address.port(), "requestPath": "/in", "timeout": 5}});
    for value in ["21.5", "22"] {
        pushers.push(&sample(method.clone(), "float", value, AT_MS));
    }
    until(|| server.heard().len() == 2).await;
    let heard = server.heard().remove(0);
    assert_eq!(
        (heard.path.as_str(), heard.headers["content-type"].as_str()),
        ("/in", "application/x-www-form-urlencoded")
    );
    let fields: BTreeMap<String, String> = String::from_utf8(heard.body)
        .unwrap()
        .split('&')
        .map(|pair| pair.split_once('=').unwrap())
        .map(|(key, value)| {
            (key.to_owned(), value.replace("%20", " ").replace("%3A", ":").replace("%2F", "/"))
        })
        .collect();
    let expected = json!({"temperature": "21.5", "time": "2026-01-02 03:04:05", "timestamp": AT_MS.to_string(),
        "device": "default/oven", "quality": "good"});
    assert_eq!(json!(fields), expected);
    assert_eq!(*server.connections.lock().unwrap(), 1);
    drain.start();
}

/// What a line says, read back by the rules of the format.
fn line(text: &str) -> (String, BTreeMap<String, String>, String, String, i64) {
    let mut parts: Vec<String> = vec![String::new()];
    let (mut escaped, mut quoted) = (false, false);
    for letter in text.chars() {
        let part = parts.last_mut().unwrap();
        match letter {
            _ if std::mem::take(&mut escaped) => part.push(letter),
            '\\' => escaped = true,
            '"' => {
                quoted = !quoted;
                part.push('"');
            }
            ',' | ' ' | '=' if !quoted => parts.push(letter.to_string()),
            _ => part.push(letter),
        }
    }
    let mut tags = BTreeMap::new();
    let mut at = 1;
    while parts[at].starts_with(',') {
        tags.insert(parts[at][1..].to_owned(), parts[at + 1][1..].to_owned());
        at += 2;
    }
    let (field, value, time) = (&parts[at][1..], &parts[at + 1][1..], &parts[at + 2][1..]);
    (parts[0].clone(), tags, field.into(), value.into(), time.parse().unwrap())
}

#[tokio::test]
async fn influx_gets_lines_with_its_token_and_what_waited_while_it_was_away() {
    let server = Server::start(&["503 Service Unavailable"]).await;
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "s3cret\n").unwrap();
    let drain = Drain::new();
    let mut pushers = pushers(&drain, token);
    let method = |field: &str| {
        json!({"dbMethod": {"influxdb2": {
            "influxdb2ClientConfig": {"url": server.url(""), "org": "my org", "bucket": "b"},
            "influxdb2DataConfig": {"measurement": "air, room", "tag": {"place": "hall 1", "empty": ""}, "fieldKey": field}}}})
    };
    pushers.push(&sample(method("t"), "float", "21.5", AT_MS));
    pushers.push(&sample(method("on"), "boolean", "true", AT_MS + 1));
    pushers.push(&sample(method("text"), "string", "a\"b\\c", AT_MS + 2));
    pushers.push(&sample(method("t"), "int", "", AT_MS + 3));
    until(|| server.heard().len() == 2).await;
    let heard = server.heard();
    assert_eq!(heard[0].body, heard[1].body, "nothing is lost by the first");
    assert_eq!(heard[1].path, "/api/v2/write?org=my%20org&bucket=b&precision=ms");
    assert_eq!(heard[1].headers["authorization"], "Token s3cret");
    let text = String::from_utf8(heard[1].body.clone()).unwrap();
    let lines: Vec<_> = text.lines().map(line).collect();
    assert_eq!(lines.len(), 3, "no value, no line: {text}");
    let tags: BTreeMap<String, String> = [("place".to_owned(), "hall 1".to_owned())].into();
    assert_eq!(lines[0], ("air, room".into(), tags.clone(), "t".into(), "21.5".into(), AT_MS));
    assert_eq!(lines[1], ("air, room".into(), tags.clone(), "on".into(), "true".into(), AT_MS + 1));
    assert_eq!(lines[2], ("air, room".into(), tags, "text".into(), "\"a\"b\\c\"".into(), AT_MS + 2));
    drain.start();
}

#[tokio::test]
async fn otlp_decodes_to_gauges() {
    let server = Server::start(&["400 Bad Request"]).await;
    let drain = Drain::new();
    let mut pushers = pushers(&drain, "/nowhere".into());
    let method = json!({"otel": {"endpointURL": server.url("/v1/metrics")}});
    pushers.push(&sample(method.clone(), "int", "1", AT_MS));
    until(|| server.heard().len() == 1).await;
    pushers.push(&sample(method.clone(), "int", "0", AT_MS + 5));
    pushers.push(&sample(method, "boolean", "true", AT_MS + 6));
    until(|| server.heard().len() == 2).await;
    let heard = server.heard().remove(1);
    assert_eq!(
        (heard.path.as_str(), heard.headers["content-type"].as_str()),
        ("/v1/metrics", "application/x-protobuf")
    );
    let request = otlp::ExportMetricsServiceRequest::decode(Bytes::from(heard.body)).unwrap();
    let [resource] = &request.resource_metrics[..] else { panic!("{request:?}") };
    let device = &resource.resource.as_ref().unwrap().attributes[0];
    assert_eq!(
        (device.key.as_str(), device.value.as_ref().unwrap().string_value.as_str()),
        ("device.id", "default/oven")
    );
    let metric = &resource.scope_metrics[0].metrics[0];
    let points: Vec<(u64, Option<f64>)> = metric
        .gauge
        .as_ref()
        .unwrap()
        .data_points
        .iter()
        .map(|point| (point.time_unix_nano, point.as_double))
        .collect();
    assert_eq!(metric.name, "temperature");
    let nanos = |ms: i64| ms as u64 * 1_000_000;
    assert_eq!(
        points,
        [(nanos(AT_MS + 5), Some(0.0)), (nanos(AT_MS + 6), Some(1.0))],
        "a refused batch is not repeated"
    );
    drain.start();
}

#[tokio::test]
async fn mqtt_gets_messages_at_the_qos_and_retained_as_asked() {
    let drain = Drain::new();
    let broker = crate::test_broker(&drain);
    let address = broker.address().to_string();
    let mut pushers = pushers(&drain, "/nowhere".into());
    let method = |qos: u8| json!({"mqtt": {"address": format!("tcp://{address}"), "topic": format!("plant/{qos}"), "qos": qos, "retained": true}});
    for at in 0..200 {
        pushers.push(&sample(method(1), "float", &at.to_string(), AT_MS + at));
    }
    pushers.push(&sample(method(0), "float", "7", AT_MS));
    // Retained, so that a reader who comes later has the last ones.
    let mut seen = BTreeMap::new();
    for _ in 0..200 {
        seen = read_retained(&address).await;
        if seen.len() == 2 && seen["plant/1"]["value"] == "199" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let expected = json!({"device": "default/oven", "property": "temperature", "value": "199", "type": "float",
        "timestamp": AT_MS + 199, "quality": "good"});
    assert_eq!(seen["plant/1"], expected);
    assert_eq!(seen["plant/0"]["value"], "7");
    drain.start();
}

/// The retained messages below `plant/`, read with the client's own state machine.
async fn read_retained(address: &str) -> BTreeMap<String, Value> {
    use ::mqtt::client::{Client, Event, Options};
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut client = Client::new(Options {
        client_id: "reader".into(),
        username: None,
        password: None,
        clean_session: true,
        will: None,
        keep_alive_s: 60,
        packet_bytes_max: ::mqtt::limits::PACKET_BYTES_MAX,
    });
    client.subscribe("plant/#");
    client.opened(0);
    let mut seen = BTreeMap::new();
    let reading = async {
        loop {
            let output = std::mem::take(client.output());
            stream.write_all(&output).await.unwrap();
            let mut buffer = [0; 4096];
            let len = stream.read(&mut buffer).await.unwrap();
            client.receive(&buffer[..len]);
            while let Some(event) = client.next_event().unwrap() {
                if let Event::Message { topic, payload, .. } = event {
                    seen.insert(topic.to_owned(), serde_json::from_slice(payload).unwrap());
                }
            }
        }
    };
    // All that is retained comes at once; what does not is looked for again by the caller.
    let _: Result<(), _> = tokio::time::timeout(Duration::from_millis(100), reading).await;
    seen
}

#[test]
fn what_cannot_be_done_is_said() {
    let (ways, complaints) = read(
        &json!({"http": {"port": 80}, "otel": {"endpointURL": "http://h/x"}, "mqtt": {"address": "ssl://h", "topic": "t"},
            "dbMethod": {"redis": {"redisClientConfig": {}}, "TDEngine": {}, "mysql": {}, "influxdb2": {"influxdb2ClientConfig": {"url": "http://h"}}},
            "anomalyDetection": {}}),
        "string",
    );
    assert_eq!(ways, []);
    assert_eq!(
        complaints,
        [
            "pushMethod.http.hostName is missing: write http://HOST",
            "pushMethod.mqtt.address: \"ssl://h\" is not an address: write tcp://HOST:PORT",
            "pushMethod.otel.endpointURL: OpenTelemetry takes numbers, and the property is a text",
            "pushMethod.dbMethod.influxdb2.influxdb2ClientConfig.bucket is missing",
            "pushMethod.dbMethod.redis is not supported: use http, mqtt, otel or dbMethod.influxdb2",
            "pushMethod.dbMethod.TDEngine is not supported: use http, mqtt, otel or dbMethod.influxdb2",
            "pushMethod.dbMethod.mysql is not supported: use http, mqtt, otel or dbMethod.influxdb2",
            "pushMethod.anomalyDetection is not supported: use http, mqtt, otel or dbMethod.influxdb2",
        ]
    );
    for (text, server, path) in [
        ("http://h", "h:80", "/"),
        ("https://h/a?b", "h:443", "/a?b"),
        ("h:8086/x", "h:8086", "/x"),
        ("http://[::1]:7?q", "[::1]:7", "/?q"),
        ("http://[::1]/", "[::1]:80", "/"),
    ] {
        let url = Url::parse(text).unwrap();
        assert_eq!((url.server.as_str(), url.path.as_str()), (server, path), "{text}");
    }
    for text in
        ["", "ftp://h", "http://u:p@h", "http://h:0", "http://h:x", "http://h/a b", "http://h/\r\nX: y"]
    {
        assert!(Url::parse(text).is_err(), "{text}");
    }
}

#[test]
fn a_queue_drops_its_oldest_and_takes_a_batch_back_before_the_rest() {
    let item = |at_ms: i64| Item {
        id: "d/x".into(),
        property: "t".into(),
        value: "1".into(),
        value_type: "int".into(),
        quality: String::new(),
        at_ms,
        ways: Vec::new().into(),
        way: 0,
    };
    let mut queue = Queue::new(2_000);
    for at_ms in 0..100 {
        queue.push(item(at_ms));
    }
    let kept = queue.len();
    assert!(kept > 3 && queue.dropped() == 100 - kept as u64);
    let batch = queue.batch(3);
    assert_eq!(batch[0].at_ms, 100 - kept as i64);
    queue.push(item(100));
    queue.put_back(batch);
    let all: Vec<i64> = queue.batch(1_000).iter().map(|item| item.at_ms).collect();
    assert!(all.windows(2).all(|two| two[0] + 1 == two[1]), "{all:?}");
    assert_eq!((all.last(), all.len()), (Some(&100), kept), "one more was dropped for the new one");
    assert!(queue.is_empty());
}

#[test]
fn random_push_methods_never_panic() {
    let mut random = ::mqtt::broker::testing::Random(9);
    let good = json!({"http": {"hostName": "http://h", "port": 1, "requestPath": "/x"}, "mqtt": {"address": "h", "topic": "t", "qos": 2},
        "otel": {"endpointURL": "https://[::1]:4318/v1/metrics"}, "dbMethod": {"influxdb2": {"influxdb2DataConfig": {"tag": {"a": "b"}}}}});
    let good = good.to_string().into_bytes();
    for _ in 0..1_500 {
        let mut bytes = good.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len());
            bytes[at] = random.below(256) as u8;
        }
        fuzz_push(&bytes);
    }
}
