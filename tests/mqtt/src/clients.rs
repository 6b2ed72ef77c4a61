//! Clients that are not ours against our broker: mosquitto_pub and mosquitto_sub, and Paho's for Python.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use e2e::steps::wait_until;

use crate::{
    brokers::{Broker, Kind, Programs, Setup, USER, free_address},
    peer::Peer,
    wire::{Connect, V5},
};

/// What was tried, and why it failed if it did.
pub type Cases = Vec<(String, Result<()>)>;

/// `python`: one that has Paho's client.
pub fn run(programs: &Programs, python: Option<&Path>, dir: &Path) -> Result<Cases> {
    fs::create_dir_all(dir)?;
    let (socket, secure) = (dir.join("broker.sock"), free_address()?);
    certificates(dir)?;
    let text = |path: &Path| path.display().to_string();
    let more = [("--listen", format!("unix://{}", socket.display()))];
    let broker = Broker::start(Kind::Ours, programs, dir, &setup(&more, false))?;
    // TLS is for those who come from elsewhere, and they must say who they are.
    let more = [
        ("--listen", format!("tls://{secure}")),
        ("--cert", text(&dir.join("server.pem"))),
        ("--key", text(&dir.join("server.key"))),
    ];
    let locked = Broker::start(Kind::Ours, programs, &dir.join("locked"), &setup(&more, true))?;
    let (plain, locked) = (broker.v4.port().to_string(), locked.v4.port().to_string());
    let (secure, ca, other) =
        (secure.port().to_string(), text(&dir.join("ca.pem")), text(&dir.join("server.pem")));
    let mut cases = Cases::new();
    for version in ["mqttv311", "mqttv5"] {
        let way = |port: &str, more: &[&str]| {
            let mut args = vec![
                "-V".to_owned(),
                version.into(),
                "-h".into(),
                "127.0.0.1".into(),
                "-p".into(),
                port.into(),
            ];
            args.extend(more.iter().map(|text| (*text).to_owned()));
            args
        };
        let mut case = |name: &str, result: Result<()>| cases.push((format!("{version}: {name}"), result));
        for qos in ["0", "1", "2"] {
            case(&format!("QoS {qos}"), delivers(&broker, &way(&plain, &["-q", qos])));
        }
        case("session kept while away", session(&way(&plain, &["-q", "1"])));
        case("retained", retained(&way(&plain, &["-q", "1"])));
        case("will of a killed client", will(&broker, &way(&plain, &["-q", "1"])));
        let known = ["-u", USER.0, "-P", USER.1, "-q", "1", "--cafile"];
        case("TLS", retained(&way(&secure, &[&known[..], &[&ca]].concat())));
        case("TLS with another CA", refused(&way(&secure, &[&known[..], &[&other]].concat())));
        case("TLS without a user", refused(&way(&secure, &["--cafile", &ca])));
        case("user and password", retained(&way(&locked, &["-q", "1", "-u", USER.0, "-P", USER.1])));
        case("wrong password", refused(&way(&locked, &["-u", USER.0, "-P", "wrong"])));
        case("nobody", refused(&way(&locked, &[])));
    }
    // mosquitto's clients learn to speak over a unix socket in 2.1; ours does for this.
    cases.push(("unix socket".into(), unix(&socket)));
    for (python, name) in python.into_iter().flat_map(|python| [(python, "mqttv311"), (python, "mqttv5")]) {
        let mut command = Command::new(python);
        command
            .arg(dir.join("suite.py"))
            .args([&plain, name])
            .env("CA", &ca)
            .env("SECURE", &secure)
            .env("USER_NAME", USER.0)
            .env("PASSWORD", USER.1);
        fs::write(dir.join("suite.py"), include_str!("paho.py"))?;
        let output = command.output().with_context(|| format!("start {}", python.display()))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        for line in said.lines() {
            let (verdict, what) = line.split_once(' ').unwrap_or(("?", line));
            let result = if verdict == "ok" { Ok(()) } else { Err(anyhow::anyhow!("{verdict}")) };
            cases.push((format!("Paho {name}: {what}"), result));
        }
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            cases.push((format!("Paho {name}"), Err(anyhow::anyhow!("{}: {error}", output.status))));
        }
    }
    Ok(cases)
}

fn setup(more: &[(&str, String)], users: bool) -> Setup {
    let ours = more.iter().flat_map(|(name, value)| [(*name).to_owned(), value.clone()]).collect();
    Setup { users, ours, ..Setup::default() }
}

fn client(program: &str, way: &[String], more: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(way).args(more).stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

fn output(mut command: Command) -> Result<String> {
    let output = command.output().context("start a client of mosquitto")?;
    ensure!(
        output.status.success(),
        "{command:?} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A subscriber waits in the background until the broker has its subscription.
fn delivers(broker: &Broker, way: &[String]) -> Result<()> {
    let topic = format!("clients/{}", way.join("").replace(['/', '+', '#'], ""));
    let reader = reader(way, &topic, &["-C", "3", "-F", "%q %p"])?;
    heard(broker, &topic)?;
    for text in ["one", "two", "three"] {
        output(client("mosquitto_pub", way, &["-t", &topic, "-m", text]))?;
    }
    let seen = reader.wait_with_output()?;
    let at =
        way.iter().position(|arg| arg == "-q").and_then(|at| way.get(at + 1)).map_or("0", String::as_str);
    let wanted = format!("{at} one\n{at} two\n{at} three\n");
    ensure!(
        seen.stdout == wanted.as_bytes(),
        "{:?} instead of {wanted:?}",
        String::from_utf8_lossy(&seen.stdout)
    );
    Ok(())
}

/// A subscriber of `topic` in the background. It subscribes to `probe/topic` too, of which it says nothing.
fn reader(way: &[String], topic: &str, more: &[&str]) -> Result<Child> {
    let probe = format!("probe/{topic}");
    let mut command = client("mosquitto_sub", way, &["-t", topic, "-t", &probe, "-T", &probe, "-W", "15"]);
    command.args(more).stdout(Stdio::piped()).spawn().context("start mosquitto_sub")
}

/// Waits until the broker has the subscriptions of [`reader`].
fn heard(broker: &Broker, topic: &str) -> Result<()> {
    let mut peer = Peer::connect(broker.v5, &Connect::new(V5, &format!("watch-{topic}")))?;
    wait_until(Duration::from_secs(10), &format!("a subscriber of {topic}"), || {
        Ok(peer.has_reader(&format!("probe/{topic}"))?.then_some(()))
    })
}

fn session(way: &[String]) -> Result<()> {
    let topic = format!("session/{}", way[1]);
    let id = format!("keeper-{}", way[1]);
    let with = |more: &[&str]| {
        let args = [&["-t", &topic, "-c", "-i", &id], more].concat();
        output(client("mosquitto_sub", way, &args))
    };
    with(&["-E"])?;
    for text in ["one", "two", "three"] {
        output(client("mosquitto_pub", way, &["-t", &topic, "-m", text]))?;
    }
    let seen = with(&["-C", "3", "-W", "10"])?;
    ensure!(seen == "one\ntwo\nthree\n", "{seen:?}");
    Ok(())
}

fn retained(way: &[String]) -> Result<()> {
    let topic = format!("retained/{}", way[1]);
    output(client("mosquitto_pub", way, &["-t", &topic, "-m", "kept", "-r"]))?;
    let seen = output(client("mosquitto_sub", way, &["-t", &topic, "-C", "1", "-W", "10", "-F", "%r %p"]))?;
    output(client("mosquitto_pub", way, &["-t", &topic, "-n", "-r"]))?;
    ensure!(seen == "1 kept\n", "{seen:?}");
    Ok(())
}

fn will(broker: &Broker, way: &[String]) -> Result<()> {
    let topic = format!("wills/{}", way[1]);
    let heir = reader(way, &topic, &["-C", "1"])?;
    heard(broker, &topic)?;
    let other = format!("{topic}/alive");
    let mut mortal =
        reader(way, &other, &["--will-topic", &topic, "--will-payload", "gone", "--will-qos", "1"])?;
    heard(broker, &other)?;
    mortal.kill()?;
    mortal.wait()?;
    let seen = heir.wait_with_output()?;
    ensure!(seen.stdout == b"gone\n", "{:?}", String::from_utf8_lossy(&seen.stdout));
    Ok(())
}

fn refused(way: &[String]) -> Result<()> {
    match output(client("mosquitto_pub", way, &["-t", "refused", "-m", "x", "-q", "1"])) {
        Ok(_) => bail!("it was accepted"),
        Err(_) => Ok(()),
    }
}

fn unix(socket: &Path) -> Result<()> {
    let mut peer = Peer::unix(socket, &Connect::new(V5, "unix"))?;
    peer.subscribe("unix/t", 2)?;
    peer.publish("unix/t", "x", 2, false)?;
    peer.expect("unix/t", "x").map(drop)
}

fn certificates(dir: &Path) -> Result<()> {
    let openssl = |args: &[&str]| -> Result<()> {
        let output = Command::new("openssl").current_dir(dir).args(args).output().context("start openssl")?;
        ensure!(output.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let ca = ["req", "-x509", "-subj", "/CN=Suite", "-days", "2", "-keyout", "ca.key", "-out", "ca.pem"];
    openssl(&[&ca[..], &key].concat())?;
    openssl(
        &[&["req", "-subj", "/CN=broker", "-keyout", "server.key", "-out", "server.csr"][..], &key].concat(),
    )?;
    fs::write(dir.join("ext"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")?;
    let sign = [
        "x509",
        "-req",
        "-in",
        "server.csr",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-days",
        "2",
    ];
    openssl(&[&sign[..], &["-extfile", "ext", "-out", "server.pem"]].concat())
}
