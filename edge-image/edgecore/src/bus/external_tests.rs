//! Modes 1 and 2 against the real mosquitto, which is killed and started again.

use std::{
    fs,
    path::Path,
    process::{Child, Command as Process, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::*;
use crate::config::EventBusTls;

const DEADLINE: Duration = Duration::from_secs(30);

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.expect("in time")
}

/// mosquitto with a disk, on an address of its own that stays over restarts.
struct Mosquitto {
    port: u16,
    dir: tempfile::TempDir,
    more: String,
    child: Option<Child>,
}

impl Mosquitto {
    async fn start(more: &str) -> Mosquitto {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let mut mosquitto = Mosquitto { port, dir, more: more.into(), child: None };
        mosquitto.again().await;
        mosquitto
    }

    async fn again(&mut self) {
        let dir = self.dir.path().display();
        let text = format!(
            "listener {} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {dir}/\nautosave_on_changes true\nautosave_interval 1\nmax_queued_messages 0\n{}",
            self.port, self.more
        );
        // Root's mosquitto would become a user that cannot read the folder.
        let user = if nix::unistd::geteuid().is_root() { "\nuser root\n" } else { "\n" };
        let file = self.dir.path().join("conf");
        fs::write(&file, text + user).unwrap();
        let program =
            if Path::new("/usr/sbin/mosquitto").exists() { "/usr/sbin/mosquitto" } else { "mosquitto" };
        self.child = Some(Process::new(program).arg("-c").arg(&file).stderr(Stdio::null()).spawn().unwrap());
        within(async {
            while tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }

    fn end(&mut self, signal: Signal) {
        let Some(mut child) = self.child.take() else { return };
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        child.wait().unwrap();
    }

    fn url(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.port)
    }

    /// mosquitto's own clients against it.
    async fn client(&self, program: &str, args: &[&str]) -> String {
        let mut process = Process::new(program);
        process.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-q", "1"]).args(args);
        let output = tokio::task::spawn_blocking(move || process.stderr(Stdio::inherit()).output().unwrap())
            .await
            .unwrap();
        assert!(output.status.success(), "{program} {args:?}: {}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.end(Signal::SIGKILL);
    }
}

fn config(mode: u8, external: &str, node: &str) -> Config {
    let mut cfg = Config::default();
    cfg.modules.edged.hostname_override = node.into();
    cfg.kinglet.mqtt.persistence = false;
    cfg.modules.event_bus.mqtt_mode = mode;
    cfg.modules.event_bus.mqtt_server_internal = "tcp://127.0.0.1:0".into();
    cfg.modules.event_bus.mqtt_server_external = external.into();
    cfg
}

async fn publish(bus: &dyn Bus, topic: &str, payload: &str, retain: bool) {
    within(bus.publish(topic, Bytes::copy_from_slice(payload.as_bytes()), retain)).await.unwrap();
}

/// The order of first arrivals: QoS 1 may repeat.
fn firsts(text: &str) -> Vec<&str> {
    let mut seen = Vec::new();
    for line in text.lines() {
        if !seen.contains(&line) {
            seen.push(line);
        }
    }
    seen
}

#[tokio::test]
async fn what_is_published_while_the_external_broker_is_killed_arrives_later() {
    let mut mosquitto = Mosquitto::start("").await;
    let drain = Drain::new();
    let bus = start(&config(2, &mosquitto.url(), "node-out"), drain.clone()).unwrap();
    publish(&*bus, "state", "0", true).await;
    within(mosquitto.client("mosquitto_sub", &["-t", "state", "-C", "1", "-W", "20"])).await;
    // A subscriber with a session on the broker's disk collects what comes.
    within(mosquitto.client("mosquitto_sub", &["-c", "-i", "keeper", "-t", "out/#", "-E"])).await;
    mosquitto.end(Signal::SIGTERM);
    mosquitto.again().await;
    mosquitto.end(Signal::SIGKILL);
    for at in 0..50 {
        publish(&*bus, "out/x", &at.to_string(), false).await;
        publish(&*bus, "state", &at.to_string(), true).await;
    }
    mosquitto.again().await;
    let seen = within(
        mosquitto.client("mosquitto_sub", &["-c", "-i", "keeper", "-t", "out/#", "-C", "50", "-W", "20"]),
    )
    .await;
    let wanted: Vec<String> = (0..50).map(|at| at.to_string()).collect();
    assert_eq!(firsts(&seen), wanted);
    let state = within(mosquitto.client("mosquitto_sub", &["-t", "state", "-C", "1", "-W", "20"])).await;
    assert_eq!(state, "49\n");
    drain.start();
}

#[tokio::test]
async fn what_devices_publish_while_edgecore_and_then_the_broker_are_away_arrives_later() {
    let mut mosquitto = Mosquitto::start("").await;
    let cfg = config(2, &mosquitto.url(), "node-in");
    let first = Drain::new();
    let bus = start(&cfg, first.clone()).unwrap();
    let mut messages = bus.subscribe("in/#");
    within(async {
        loop {
            mosquitto.client("mosquitto_pub", &["-t", "in/x", "-m", "hello"]).await;
            if let Ok(Some(_)) = tokio::time::timeout(Duration::from_millis(100), messages.recv()).await {
                break;
            }
        }
    })
    .await;
    first.start();
    drop(bus);
    // Whatever "hello" is left in the session comes first.
    for at in 0..20 {
        mosquitto.client("mosquitto_pub", &["-t", "in/x", "-m", &at.to_string()]).await;
    }
    mosquitto.end(Signal::SIGTERM);
    mosquitto.again().await;
    let second = Drain::new();
    let bus = start(&cfg, second.clone()).unwrap();
    // Modules subscribe a while after the bus has connected.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut messages = bus.subscribe("in/#");
    let mut seen = Vec::new();
    while seen.len() < 20 {
        let text = String::from_utf8(within(messages.recv()).await.unwrap().payload.to_vec()).unwrap();
        if text != "hello" && !seen.contains(&text) {
            seen.push(text);
        }
    }
    assert_eq!(seen, (0..20).map(|at| at.to_string()).collect::<Vec<_>>());
    second.start();
}

#[tokio::test]
async fn the_bridge_copies_both_ways_once_and_over_a_killed_broker() {
    let mut mosquitto = Mosquitto::start("").await;
    let mut cfg = config(1, &mosquitto.url(), "node-bridge");
    let rule = |topic: &str, direction, retain| BridgeRule {
        topic: topic.into(),
        direction,
        prefix: if direction == BridgeDirection::Out { "site/" } else { "wish/" }.into(),
        retain,
        live: false,
    };
    // The same topics inside on both ways: what comes in also goes out, once, and does not come back.
    cfg.modules.event_bus.bridge =
        vec![rule("room/#", BridgeDirection::Out, true), rule("room/#", BridgeDirection::In, false)];
    let drain = Drain::new();
    let bus = start(&cfg, drain.clone()).unwrap();
    let mut inside = bus.subscribe("room/+");
    // The bus publishes on both brokers; a device on the external one wishes, and the wish comes inside.
    within(async {
        loop {
            mosquitto.client("mosquitto_pub", &["-t", "wish/room/lamp", "-m", "on"]).await;
            if let Ok(Some(message)) = tokio::time::timeout(Duration::from_millis(100), inside.recv()).await {
                assert_eq!((message.topic.as_str(), &message.payload[..]), ("room/lamp", &b"on"[..]));
                break;
            }
        }
    })
    .await;
    let copied =
        within(mosquitto.client("mosquitto_sub", &["-t", "site/#", "-C", "1", "-W", "20", "-F", "%t %p"]))
            .await;
    assert_eq!(copied, "site/room/lamp on\n");
    while tokio::time::timeout(Duration::from_millis(300), inside.recv()).await.is_ok() {}
    mosquitto.end(Signal::SIGKILL);
    for at in 0..5 {
        publish(&*bus, &format!("room/{at}"), "late", false).await;
    }
    mosquitto.again().await;
    let args = ["-t", "site/room/+", "-C", "6", "-W", "20", "-F", "%t"];
    let seen = within(mosquitto.client("mosquitto_sub", &args)).await;
    let mut topics = firsts(&seen);
    topics.sort_unstable();
    assert_eq!(
        topics,
        ["site/room/0", "site/room/1", "site/room/2", "site/room/3", "site/room/4", "site/room/lamp"]
    );
    drain.start();
}

#[tokio::test]
async fn an_external_broker_behind_tls_with_client_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let now = crate::credentials::unix_now_s();
    let ca = pki::Ca::create("Test", now).unwrap();
    let file = |name: &str, text: String| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let ca_file = file("ca.pem", ca.cert_pem());
    let names = pki::Names { ips: vec!["127.0.0.1".parse().unwrap()], ..pki::Names::default() };
    let (key, client_key) = (pki::Key::generate().unwrap(), pki::Key::generate().unwrap());
    let pem = |der: &[u8]| pki::pem_encode("CERTIFICATE", der);
    let server = ca.issue_server(&key, &names, now).unwrap();
    let client = ca.issue_client(&client_key, "node", &[], 10, now).unwrap();
    let (server_file, key_file) = (file("server.pem", pem(&server)), file("server.key", key.to_pem()));
    let tls = EventBusTls {
        enable: true,
        tls_mqtt_ca_file: ca_file.clone(),
        tls_mqtt_cert_file: file("client.pem", pem(&client)),
        tls_mqtt_private_key_file: file("client.key", client_key.to_pem()),
    };
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let listener = format!(
        "listener {port} 127.0.0.1\ncafile {ca_file}\ncertfile {server_file}\nkeyfile {key_file}\nrequire_certificate true\n"
    );
    let mosquitto = Mosquitto::start(&listener).await;
    let mut cfg = config(2, &format!("tls://127.0.0.1:{port}"), "node-tls");
    cfg.modules.event_bus.tls = tls;
    let drain = Drain::new();
    let bus = start(&cfg, drain.clone()).unwrap();
    publish(&*bus, "over/tls", "yes", true).await;
    let seen = within(mosquitto.client("mosquitto_sub", &["-t", "over/tls", "-C", "1", "-W", "20"])).await;
    assert_eq!(seen, "yes\n");
    drain.start();

    // Another CA: refused, never talked to without verification.
    let other = pki::Ca::create("Other", now).unwrap();
    cfg.modules.event_bus.tls.tls_mqtt_ca_file = file("other.pem", other.cert_pem());
    let endpoint =
        Endpoint::external(&cfg.modules.event_bus.mqtt_server_external, &cfg.modules.event_bus.tls).unwrap();
    let peer = Peer::external(endpoint.clone(), &cfg.modules.event_bus, "node-tls");
    let mut client = mqtt::client::Client::new(peer.options("sub", "", 60));
    let refused = socket::Socket::open(&endpoint, &mut client, std::time::Instant::now()).await;
    assert!(matches!(refused, Err(socket::SocketError::Tls(_))));
}

#[tokio::test]
async fn tls_keys_that_do_not_fit_name_the_remedy() {
    for (url, enable, expected) in [
        ("tls://h:1", false, "modules.eventBus.eventBusTLS.enable is false: set it"),
        ("tcp://h:1", true, "write tls://h:1, or switch it off"),
        ("ssl://h:1", true, "tlsMqttCAFile: read /nowhere"),
    ] {
        let mut cfg = config(2, url, "n");
        cfg.modules.event_bus.tls.enable = enable;
        cfg.modules.event_bus.tls.tls_mqtt_ca_file = "/nowhere".into();
        let Err(error) = start(&cfg, Drain::new()) else { panic!("accepted {url}") };
        assert!(format!("{error:#}").contains(expected), "{error:#}");
    }
}
