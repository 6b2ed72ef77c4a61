//! The shell with real sockets and the disk, spoken to by mosquitto's clients.

use std::{
    fs,
    process::{Command, Output, Stdio},
    time::Duration,
};

use mqtt::broker::{Auth, DurableTopics};
use store::{
    Store,
    sim::{Cut, SimDisk},
};

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

fn loopback() -> Listen {
    Listen::Tcp("127.0.0.1:0".parse().unwrap())
}

/// Runs one of mosquitto's clients to its end.
async fn run(program: &str, port: u16, args: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(["-h", "127.0.0.1", "-p", &port.to_string()]).args(args).stdin(Stdio::null());
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

async fn publish(port: u16, args: &[&str]) -> bool {
    run("mosquitto_pub", port, args).await.status.success()
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(DEADLINE, async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what}");
}

#[tokio::test]
async fn sessions_and_messages_are_back_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let start = || {
        let drain = Drain::new();
        let durable = DurableTopics { sync: vec!["sync/#".into()], lazy: Vec::new() };
        let store_dir = Some(dir.path().join("mqtt"));
        let settings = Settings { listen: vec![loopback()], durable, store_dir, ..Settings::default() };
        (start_with(settings, drain.clone()), drain)
    };
    let keeper = ["-c", "-i", "keeper", "-q", "2", "-t", "sync/#", "-t", "plain/#"];
    let (broker, drain) = start();
    let port = broker.address().port();
    // Subscribes, and goes away.
    assert!(run("mosquitto_sub", port, &[&keeper[..], &["-E"]].concat()).await.status.success());
    for (topic, qos) in [("sync/1", "1"), ("sync/2", "2"), ("plain/1", "1")] {
        assert!(publish(port, &["-t", topic, "-m", topic, "-q", qos]).await);
    }
    assert!(publish(port, &["-t", "kept", "-m", "yes", "-r", "-q", "1"]).await);
    drain.start();
    assert!(broker.stopped().await);
    let (broker, drain) = start();
    assert_eq!((broker.stats().sessions, broker.stats().subscriptions, broker.stats().retained), (1, 2, 1));
    let port = broker.address().port();
    let got =
        run("mosquitto_sub", port, &[&keeper[..], &["-C", "3", "-W", "15", "-F", "%t %p"]].concat()).await;
    // The client shows a message of QoS 2 when it is released, after others that came behind it.
    let text = String::from_utf8(got.stdout).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["plain/1 plain/1", "sync/1 sync/1", "sync/2 sync/2"]);
    let got =
        run("mosquitto_sub", port, &["-V", "5", "-t", "kept", "-C", "1", "-W", "15", "-F", "%r %p"]).await;
    assert_eq!(String::from_utf8(got.stdout).unwrap(), "1 yes\n");
    drain.start();
}

/// The real store on a disk whose unsynced writes are lost: what mosquitto's client was told is there.
#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_power_cut() {
    let disk = SimDisk::new();
    let durable = || DurableTopics { sync: vec!["sync/#".into()], lazy: Vec::new() };
    let open = |disk: &SimDisk| Store::open_with(Box::new(disk.clone()), disk::options()).unwrap();
    let drain = Drain::new();
    let settings = Settings { listen: vec![loopback()], durable: durable(), ..Settings::default() };
    let broker = start_on(settings, Some(open(&disk)), drain.clone());
    let port = broker.address().port();
    let keeper = ["-c", "-i", "keeper", "-q", "2", "-t", "sync/#"];
    assert!(run("mosquitto_sub", port, &[&keeper[..], &["-E"]].concat()).await.status.success());
    for count in 1..=6u64 {
        let (topic, qos) = (format!("sync/{count}"), if count % 2 == 0 { "2" } else { "1" });
        assert!(publish(port, &["-t", &topic, "-m", "v", "-q", qos]).await);
        for cut in [Cut::LoseAll, Cut::Random(count)] {
            let mut after = Broker::with_disk(Limits::default(), Auth::default(), durable(), true);
            disk::restore(&mut after, &open(&disk.after_power_cut(cut)));
            assert_eq!((after.stats().sessions, after.stats().subscriptions), (1, 1));
            assert_eq!(after.queued("keeper"), count as usize, "{cut:?}");
        }
    }
    drain.start();
}

#[tokio::test]
async fn users_rules_tls_and_the_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let text = |name: &str| path(name).display().to_string();
    let made = Command::new("mosquitto_passwd")
        .args(["-b", "-c", &text("users"), "ann", "secret"])
        .status()
        .unwrap();
    assert!(made.success());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let ca = pki::Ca::create("ca", now).unwrap();
    let key = pki::Key::generate().unwrap();
    let certificate = ca.issue_server(&key, &pki::Names::new(["127.0.0.1"]), now).unwrap();
    fs::write(path("ca"), ca.cert_pem()).unwrap();
    fs::write(path("cert"), pki::pem_encode("CERTIFICATE", &certificate)).unwrap();
    fs::write(path("key"), key.to_pem()).unwrap();
    fs::write(path("acl"), "user ann\ntopic readwrite home/#\n").unwrap();
    let mut cfg = crate::config::Config::default();
    cfg.kinglet.mqtt = crate::config::Mqtt {
        listen: vec!["mqtts://127.0.0.1:0".into(), format!("unix://{}", text("socket"))],
        tls_cert_file: path("cert"),
        tls_private_key_file: path("key"),
        password_file: path("users"),
        acl_file: path("acl"),
        persistence: false,
        ..Default::default()
    };
    let drain = Drain::new();
    let broker = start_with(from_config(&cfg, "127.0.0.1:0".parse().unwrap()).unwrap(), drain.clone());
    let [plain, tls] = broker.addresses() else { panic!("{:?}", broker.addresses()) };
    assert!(publish(plain.port(), &["-t", "any", "-m", "v", "-q", "1"]).await, "this machine needs no user");
    // TLS is for others, also when they are here.
    let secure = ["--cafile", &text("ca"), "-V", "5", "-q", "1", "-m", "v"];
    let with = |args: &[&'static str]| [&secure[..], args].concat();
    let ann = ["-u", "ann", "-P", "secret"];
    let port = tls.port();
    assert!(!publish(port, &with(&["-t", "home/x"])).await);
    assert!(!publish(port, &with(&["-t", "home/x", "-u", "ann", "-P", "wrong"])).await);
    assert!(publish(port, &with(&[&ann[..], &["-t", "home/x", "-r"]].concat())).await);
    publish(port, &with(&[&ann[..], &["-t", "garden/x", "-r"]].concat())).await;
    until("only what the rules allow is kept", || broker.stats().retained == 1).await;
    // Users and rules change without a restart; what is broken changes nothing.
    fs::write(path("acl"), "user ann\ntopic readwrite garden/#\ntopic deny garden/safe").unwrap();
    let deadline = Instant::now() + DEADLINE;
    while broker.stats().retained < 2 && Instant::now() < deadline {
        publish(port, &with(&[&ann[..], &["-t", "garden/x", "-r"]].concat())).await;
    }
    publish(port, &with(&[&ann[..], &["-t", "garden/safe", "-r"]].concat())).await;
    publish(port, &with(&[&ann[..], &["-t", "home/y", "-r"]].concat())).await;
    assert_eq!(broker.stats().retained, 2, "the new rules hold, and only they");
    assert!(Command::new("mosquitto_passwd").args(["-D", &text("users"), "ann"]).status().unwrap().success());
    let bob = ["-u", "bob", "-P", "secret"];
    let made = Command::new("mosquitto_passwd").args(["-b", &text("users"), "bob", "secret"]).status();
    assert!(made.unwrap().success());
    let deadline = Instant::now() + DEADLINE;
    while !publish(port, &with(&[&bob[..], &["-t", "x"]].concat())).await {
        assert!(Instant::now() < deadline, "the new user is not known");
    }
    assert!(!publish(port, &with(&[&ann[..], &["-t", "garden/x"]].concat())).await, "ann is no more");
    let stream = tokio::net::UnixStream::connect(path("socket")).await.unwrap();
    stream.writable().await.unwrap();
    stream.try_write(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01c").unwrap();
    let mut answer = [0; 4];
    stream.readable().await.unwrap();
    assert_eq!((stream.try_read(&mut answer).unwrap(), answer), (4, [0x20, 2, 0, 0]));
    for (key, value, expected) in [
        (
            "listen",
            "http://x",
            "kinglet.mqtt.listen: http://x: write tcp://IP:PORT, mqtts://IP:PORT or unix:///PATH",
        ),
        ("acl", "grant x", "line 1: \"grant\" is unknown; begin with user, client, topic or pattern"),
    ] {
        let mut wrong = cfg.clone();
        if key == "listen" {
            wrong.kinglet.mqtt.listen = vec![value.into()];
        } else {
            fs::write(path("acl"), value).unwrap();
        }
        let error = from_config(&wrong, "127.0.0.1:0".parse().unwrap()).err().unwrap();
        assert!(format!("{error:#}").ends_with(expected), "{error:#}");
    }
    drain.start();
}

/// Five hundred connections at once, as many refused: the ones that were there go on.
#[tokio::test]
async fn a_crowd_at_the_door_is_refused_and_forgotten() {
    let drain = Drain::new();
    let limits = Limits { connections_max: 50, ..Limits::default() };
    let settings = Settings { listen: vec![loopback()], limits, ..Settings::default() };
    let broker = start_with(settings, drain.clone());
    let crowd: Vec<_> = (0..500).map(|_| std::net::TcpStream::connect(broker.address()).unwrap()).collect();
    until("the crowd is refused", || broker.stats().closed_by_broker >= 400).await;
    assert!(broker.stats().connections <= 50);
    drop(crowd);
    until("the crowd has gone", || broker.stats().connections == 0).await;
    assert!(publish(broker.address().port(), &["-t", "t", "-m", "v", "-q", "2"]).await);
    drain.start();
}
