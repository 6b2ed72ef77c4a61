//! Values pushed as `pushMethod` says, to programs of others: Python's HTTPS server with a certificate of a CA of its own, OTLP and line
//! protocol decoded by libraries from PyPI, mosquitto. Every value at its own time, and those of an outage when it is over.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use e2e::{
    cloud::Cloud,
    host::{NODE, Node},
    process::{Process, tail},
    steps::{Steps, wait_for},
};
use serde_json::Value;

use crate::{Bench, Flow, Peer};

pub const FLOWS: &[Flow] = &[Flow {
    name: "values pushed over https, OTLP, line protocol and MQTT",
    needs: &[Peer::Python],
    run: push,
}];

const READY: Duration = Duration::from_secs(90);
const SOON: Duration = Duration::from_secs(90);
/// In the node's own network.
const HTTPS: u16 = 18_443;
const MQTT: u16 = 18_883;
const TOKEN: &str = "t0ken-of-the-plant==";
/// 90 a second are the goal; this is all that one mosquitto_pub gives.
const VALUES: usize = 200;
const START_MS: i64 = 1_767_323_045_000;

const OBJECTS: &str = "\
apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: { name: meter }
spec: { protocol: plain, properties: [{ name: power, type: DOUBLE, accessMode: ReadOnly }] }
---
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: { name: meter }
spec:
  deviceModelRef: { name: meter }
  nodeName: NODE
  protocol: { protocolName: plain, configData: { at: 1 } }
  properties:
  - name: power
    visitors: { protocolName: plain, configData: { at: 1 } }
    pushMethod:
      http: { hostName: 'https://127.0.0.1', port: HTTPS, requestPath: /in, timeout: 5000 }
      mqtt: { address: 'tcp://127.0.0.1:MQTT', topic: plant/power, qos: 1, retained: false }
      otel: { endpointURL: 'https://127.0.0.1:HTTPS/v1/metrics' }
      dbMethod:
        influxdb2:
          influxdb2ClientConfig: { url: 'https://127.0.0.1:HTTPS', org: plant, bucket: 'hall 3' }
          influxdb2DataConfig: { measurement: meters, fieldKey: watts, tag: { room: 'a b,c' } }
";

struct Places<'a> {
    node: &'a Node,
    python: &'a Path,
    dir: &'a Path,
}

impl Places<'_> {
    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn inside(&self, program: impl AsRef<Path>) -> Result<Command> {
        self.node.in_network(program.as_ref())
    }

    fn https(&self) -> Result<Process> {
        let script = self.file("push.py");
        std::fs::write(&script, include_str!("push.py"))?;
        let mut command = self.inside(self.python)?;
        command.arg(script).arg(HTTPS.to_string()).arg(self.file("server.pem")).arg(self.file("server.key"));
        command.arg(TOKEN).arg(self.file("got"));
        Process::start("https", &mut command, &self.file("https.log"))
    }

    fn mosquitto(&self) -> Result<Process> {
        let config = self.file("mosquitto.conf");
        let folder = self.dir.display();
        // As root it would become somebody who may not write here.
        let text = format!(
            "listener {MQTT} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {folder}/\nuser root\n"
        );
        std::fs::write(&config, text)?;
        let mut command = self.inside("mosquitto")?;
        command.arg("-c").arg(config);
        Process::start("mosquitto", &mut command, &self.file("mosquitto.log"))
    }

    /// Keeps its session, so that nothing is missed while it or the broker is away.
    fn reader(&self) -> Result<Process> {
        let mut command = self.inside("stdbuf")?;
        command.args(["-oL", "mosquitto_sub", "-p", &MQTT.to_string(), "-i", "reader", "-c", "-q", "1"]);
        command.args(["-t", "plant/#"]);
        Process::start("mosquitto_sub", &mut command, &self.file("heard"))
    }

    /// Values `from..to`, each at its own millisecond.
    fn say(&self, from: usize, to: usize) -> Result<()> {
        let lines: String = (from..to)
            .map(|n| {
                let at_ms = START_MS + n as i64;
                format!("{{\"twin\":{{\"power\":{{\"actual\":{{\"value\":\"{n}.5\",\"metadata\":{{\"timestamp\":{at_ms}}}}}}}}}}}\n")
            })
            .collect();
        let input = self.file("values");
        std::fs::write(&input, lines)?;
        let mut command = self.inside("mosquitto_pub")?;
        command.args(["-p", &self.node.broker_port().to_string(), "-q", "1", "-l"]);
        command.args(["-t", "$hw/events/device/default/meter/twin/update"]);
        let output = command.stdin(std::fs::File::open(input)?).output()?;
        ensure!(output.status.success(), "mosquitto_pub: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }

    /// Which values came by which way; an error if one came with another time than its own.
    fn got(&self) -> Result<BTreeMap<String, BTreeSet<usize>>> {
        let mut got: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
        let mut take = |way: &str, value: f64, at_ms: Option<i64>| -> Result<()> {
            let n = (value - 0.5) as usize;
            ensure!(at_ms == Some(START_MS + n as i64), "{way}: {value} at {at_ms:?}");
            got.entry(way.into()).or_default().insert(n);
            Ok(())
        };
        for line in std::fs::read_to_string(self.file("got")).unwrap_or_default().lines() {
            let (way, _, value, at_ms): (String, String, f64, i64) = serde_json::from_str(line)?;
            take(&way, value, Some(at_ms))?;
        }
        for line in std::fs::read_to_string(self.file("heard")).unwrap_or_default().lines() {
            let Ok(message) = serde_json::from_str::<Value>(line) else { continue };
            let value = message["value"].as_str().unwrap_or_default().parse()?;
            take("mqtt", value, message["timestamp"].as_i64())?;
        }
        Ok(got)
    }

    /// Waits until all four ways have all values.
    fn complete(&self, len: usize) -> Result<()> {
        wait_for(SOON, "all values by all ways", || {
            let lens: BTreeMap<String, usize> =
                self.got()?.into_iter().map(|(way, values)| (way, values.len())).collect();
            ensure!(lens.len() == 4 && lens.values().all(|have| *have == len), "{lens:?} of {len}");
            Ok(Some(()))
        })
    }
}

/// A CA of our own, and the server's certificate.
fn certificates(dir: &Path) -> Result<()> {
    let script = "\
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=plant -keyout ca.key -out ca.pem
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=places -keyout server.key -out server.csr
printf 'subjectAltName=IP:127.0.0.1\\nextendedKeyUsage=serverAuth\\n' > server.ext
openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile server.ext -out server.pem";
    let output = Command::new("sh").args(["-ec", script]).current_dir(dir).output()?;
    ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

fn push(bench: &Bench, steps: &mut Steps) -> Result<()> {
    if let Some(lack) = e2e::containerd::missing() {
        anyhow::bail!("this flow {lack}");
    }
    let dir = &bench.dir;
    certificates(dir)?;
    std::fs::write(dir.join("token"), format!("{TOKEN}\n"))?;
    let mut cloud = Cloud::new(&bench.programs.cloudcore, &dir.join("cloud"), &["127.0.0.1"])?;
    let kubectl = cloud.kubectl(&bench.programs.kubectl);
    let mut node = Node::new(&bench.programs, dir)?;
    steps.step("cloud and node start; a device whose values go four ways", || {
        cloud.start()?;
        node.join(&cloud, &cloud.token(&[])?, NODE)?;
        let (ca, token) = (dir.join("ca.pem"), dir.join("token"));
        let devices =
            format!("devices: {{ pushCAFile: {}, pushTokenFile: {} }}", ca.display(), token.display());
        node.add_key("kinglet", &devices)?;
        node.start()?;
        wait_for(READY, "the node to be Ready", || Ok(kubectl.node_is_ready(NODE)?.then_some(())))?;
        let objects = OBJECTS.replace("HTTPS", &HTTPS.to_string()).replace("MQTT", &MQTT.to_string());
        kubectl.apply_text(dir, &objects.replace("NODE", NODE)).map(drop)
    })?;
    let python = bench.python.as_deref().context("the flow said that it needs Python")?;
    let places = Places { node: &node, python, dir };
    let told = deliver(&places, steps);
    told.with_context(|| {
        let place = tail(&places.file("https.log"), 8);
        format!("the place's log:\n{place}\nedgecore's log:\n{}", tail(&node.log(), 20))
    })
}

fn deliver(places: &Places<'_>, steps: &mut Steps) -> Result<()> {
    let (https, mosquitto) = (places.https()?, places.mosquitto()?);
    wait_for(SOON, "the other broker", || {
        let mut command = places.inside("mosquitto_pub")?;
        command.args(["-p", &MQTT.to_string(), "-t", "ready", "-m", "x"]);
        Ok(command.output()?.status.success().then_some(()))
    })?;
    let _reader = places.reader()?;
    wait_for(SOON, "the reader", || {
        Ok(std::fs::read_to_string(places.file("mosquitto.log"))?.contains("as reader").then_some(()))
    })?;
    steps.step("every value comes by every way, with its own time", || {
        // Said until it is heard: the device is known to the node a moment after it is made.
        wait_for(SOON, "the first value", || {
            places.say(0, 1)?;
            Ok((!places.got()?.is_empty()).then_some(()))
        })?;
        places.say(1, VALUES)?;
        places.complete(VALUES)
    })?;
    steps.step("what comes while the places are away is delivered when they are back", || {
        https.kill();
        mosquitto.stop(Duration::from_secs(10))?;
        places.say(VALUES, 2 * VALUES)?;
        let missing = places.got()?.values().all(|values| values.len() == VALUES);
        ensure!(missing, "it came although nobody was there");
        let (_https, _mosquitto) = (places.https()?, places.mosquitto()?);
        places.complete(2 * VALUES)
    })?;
    Ok(())
}
