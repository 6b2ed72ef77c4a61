//! What a person sees of a device's values in the cloud: type, unit, quality, time, why a desired value is not carried out, and what
//! happens while the line is unplugged, the sensor talks nonsense, or the mapper is dead. Our own cloudcore, edgecore and mapper; the
//! sensor is a pseudo terminal behind a link, which is what udev gives a USB adapter.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use e2e::{
    cloud::Cloud,
    host::{NODE, Node},
    kubectl::Kubectl,
    process::tail,
    serial_line::SerialLine,
    steps::{Steps, wait_for},
};
use serde_json::Value;

use crate::{Bench, Flow};

pub const FLOWS: &[Flow] = &[Flow {
    name: "values, their quality and refusals in DeviceStatus",
    needs: &[],
    run: values_in_the_cloud,
}];

const READY: Duration = Duration::from_secs(90);
const SOON: Duration = Duration::from_secs(40);
const DEVICE: &str = "kiln";

const OBJECTS: &str = "\
apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: { name: kiln }
spec:
  protocol: serial
  properties:
  - { name: temperature, type: FLOAT, accessMode: ReadOnly, unit: C }
  - { name: pressure, type: DOUBLE, accessMode: ReadOnly, unit: bar }
  - { name: count, type: INT, accessMode: ReadOnly }
  - { name: door, type: BOOLEAN, accessMode: ReadOnly }
  - { name: label, type: STRING, accessMode: ReadOnly }
  - { name: code, type: BYTES, accessMode: ReadOnly }
  - { name: heater, type: INT, accessMode: ReadWrite, minimum: '0', maximum: '3', unit: W }
---
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: { name: kiln }
spec:
  deviceModelRef: { name: kiln }
  nodeName: NODE
  protocol: { protocolName: serial, configData: { path: PORT, baudRate: 9600 } }
  properties:
  - { name: temperature, reportToCloud: true, visitors: { protocolName: serial, configData: {} } }
  - { name: pressure, reportToCloud: true, visitors: { protocolName: serial, configData: {} } }
  - { name: count, reportToCloud: true, visitors: { protocolName: serial, configData: {} } }
  - { name: door, reportToCloud: true, visitors: { protocolName: serial, configData: {} } }
  - { name: label, reportToCloud: true, visitors: { protocolName: serial, configData: {} } }
  - { name: code, reportToCloud: true, visitors: { protocolName: serial, configData: {} } }
  - name: heater
    reportToCloud: true
    desired: { value: '1' }
    visitors: { protocolName: serial, configData: { write: 'heater={}' } }
";

/// What the sensor says, and what is to be seen of it: value, type, unit.
const SAID: [(&str, &str, &str, &str); 6] = [
    ("temperature", "20.5", "float", "C"),
    ("pressure", "1.25", "float", "bar"),
    ("count", "-7", "int", ""),
    ("door", "true", "boolean", ""),
    ("label", "raku", "string", ""),
    ("code", "01ff", "string", ""),
];

struct Story<'a> {
    kubectl: &'a Kubectl,
}

impl Story<'_> {
    fn status(&self) -> Result<Value> {
        Ok(self.kubectl.json(&["get", "devicestatus", DEVICE])?["status"].clone())
    }

    fn twin(&self, property: &str) -> Result<Value> {
        let status = self.status()?;
        let twins = status["twins"].as_array().context("no twins yet")?;
        Ok(twins.iter().find(|twin| twin["propertyName"] == property).cloned().unwrap_or_default())
    }

    /// Waits for a reported value of that quality.
    fn reported(&self, property: &str, value: &str, quality: &str) -> Result<Value> {
        wait_for(SOON, &format!("{property} to be {value} and {quality}"), || {
            let reported = self.twin(property)?["reported"].clone();
            let fits = reported["value"] == value && reported["metadata"]["quality"] == quality;
            ensure!(fits, "{reported}");
            Ok(Some(reported))
        })
    }

    /// Waits for a state whose reason has the text.
    fn state(&self, state: &str, reason: &str) -> Result<()> {
        wait_for(SOON, &format!("the state {state} ({reason})"), || {
            let status = self.status()?;
            let why = status["extensions"]["reason"].as_str().unwrap_or_default();
            let fits =
                status["state"] == state && (reason.is_empty() == why.is_empty()) && why.contains(reason);
            ensure!(fits, "{} {}", status["state"], status["extensions"]);
            Ok(Some(()))
        })
    }

    /// Waits for a desired value that is not carried out, and why.
    fn refused(&self, value: &str, reason: &str) -> Result<()> {
        wait_for(SOON, &format!("heater={value} to be refused"), || {
            let desired = self.twin("heater")?["observedDesired"].clone();
            let why = desired["metadata"]["refused"].as_str().unwrap_or_default();
            ensure!(desired["value"] == value && why.contains(reason), "{desired}");
            Ok(Some(()))
        })
    }
}

fn values_in_the_cloud(bench: &Bench, steps: &mut Steps) -> Result<()> {
    if let Some(lack) = e2e::containerd::missing() {
        anyhow::bail!("this flow {lack}");
    }
    let mut cloud = Cloud::new(&bench.programs.cloudcore, &bench.dir.join("cloud"), &["127.0.0.1"])?;
    let kubectl = cloud.kubectl(&bench.programs.kubectl);
    let mut node = Node::new(&bench.programs, &bench.dir)?;
    steps.step("cloud, node and mapper start; the first join logs no error", || {
        cloud.start()?;
        node.join(&cloud, &cloud.token(&[])?, NODE)?;
        node.start()?;
        node.start_mapper()?;
        wait_for(READY, "the node to be Ready", || Ok(kubectl.node_is_ready(NODE)?.then_some(())))?;
        let log = std::fs::read_to_string(node.log())?;
        let errors: Vec<&str> = log.lines().filter(|line| line.contains("inventory")).collect();
        ensure!(errors.is_empty(), "{errors:?}");
        Ok(())
    })?;
    let told = tell(bench, &Story { kubectl: &kubectl }, &mut node, steps);
    told.with_context(|| {
        let mapper = tail(&node.mapper_log(), 20);
        format!("the mapper's log:\n{mapper}\nedgecore's log:\n{}", tail(&node.log(), 20))
    })
}

fn tell(bench: &Bench, story: &Story<'_>, node: &mut Node, steps: &mut Steps) -> Result<()> {
    let kubectl = story.kubectl;
    // Device files are below /dev.
    let folder = Folder::new()?;
    let port = folder.0.join("usb-adapter");
    let plug = || -> Result<SerialLine> {
        let line = SerialLine::new()?;
        let new = folder.0.join("new");
        std::os::unix::fs::symlink(line.path(), &new)?;
        std::fs::rename(new, &port)?;
        Ok(line)
    };
    let mut line = plug()?;
    steps.step("every type, with unit, quality and time", || {
        let objects = OBJECTS.replace("PORT", &port.display().to_string()).replace("NODE", NODE);
        kubectl.apply_text(&bench.dir, &objects)?;
        wait_for(SOON, "the port to be opened", || Ok(line.hear("heater=1")?.then_some(())))?;
        let before_ms = now_ms();
        for (property, value, _, _) in SAID {
            line.say(&format!("{property}={value}"))?;
        }
        for (property, value, value_type, unit) in SAID {
            let metadata = story.reported(property, value, "good")?["metadata"].clone();
            ensure!(metadata["type"] == value_type, "{property}: {metadata}");
            ensure!(metadata["unit"].as_str().unwrap_or_default() == unit, "{property}: {metadata}");
            let at_ms: i64 = metadata["timestamp"].as_str().unwrap_or_default().parse()?;
            ensure!((before_ms - 1_000..=now_ms()).contains(&at_ms), "{property}: {metadata}");
        }
        line.say("heater=1")?;
        story.reported("heater", "1", "good")?;
        story.state("online", "")
    })?;
    steps.step("a desired value out of range is refused, and DeviceStatus says why", || {
        kubectl.set_desired(DEVICE, "heater", "7")?;
        story.refused("7", "3")?;
        story.state("unhealthy", "heater")?;
        ensure!(!line.hear("heater=7")?, "it was written to the device");
        story.reported("heater", "1", "good").map(drop)
    })?;
    steps.step("one of the wrong type too; a good one ends it", || {
        kubectl.set_desired(DEVICE, "heater", "warm")?;
        story.state("unhealthy", "\"warm\" is not of type int")?;
        kubectl.set_desired(DEVICE, "heater", "2")?;
        wait_for(SOON, "the good one", || Ok(line.hear("heater=2")?.then_some(())))?;
        line.say("heater=2")?;
        story.reported("heater", "2", "good")?;
        story.state("online", "")?;
        let desired = story.twin("heater")?["observedDesired"].clone();
        ensure!(desired["metadata"]["refused"].is_null(), "{desired}");
        Ok(())
    })?;
    steps.step("a sensor that says what is no number is named", || {
        line.say("count=many")?;
        story.state("unhealthy", "count was read as \"many\"")?;
        line.say("count=-7")?;
        story.reported("count", "-7", "good")?;
        story.state("online", "")
    })?;
    steps.step("unplugged: the last values stand, and say that they are only that", || {
        std::fs::remove_file(&port)?;
        drop(line);
        story.state("offline", "plug")?;
        for (property, value, _, _) in SAID {
            story.reported(property, value, "disconnected")?;
        }
        Ok(())
    })?;
    let (mut line, _) =
        steps.step("plugged in again: desired values are written, values are good", || {
            let mut line = plug()?;
            wait_for(SOON, "the desired value", || Ok(line.hear("heater=2")?.then_some(())))?;
            line.say("temperature=21.5")?;
            story.reported("temperature", "21.5", "good")?;
            Ok(line)
        })?;
    steps.step("the mapper killed: nobody knows what its devices are", || {
        node.mapper.take().context("the mapper runs")?.kill();
        story.state("unknown", "mapper kinglet-mapper is gone")?;
        story.reported("temperature", "21.5", "disconnected").map(drop)
    })?;
    steps.step("and started again: values and state are told anew", || {
        node.start_mapper()?;
        wait_for(SOON, "the desired value", || Ok(line.hear("heater=2")?.then_some(())))?;
        line.say("temperature=22.5")?;
        story.reported("temperature", "22.5", "good").map(drop)
    })?;
    steps.step("fifty devices made at once: each has its first value within seconds", || {
        let objects: String = (0..50).map(many).collect();
        kubectl.apply_text(&bench.dir, &objects)?;
        let mut input = String::new();
        for at in 0..50 {
            input += &format!(
                "mosquitto_pub -p {} -q 1 -t '$hw/events/device/default/many-{at}/twin/update' -m '{{\"twin\":{{\"p\":{{\"actual\":{{\"value\":\"{at}\"}}}}}}}}'\n",
                node.broker_port()
            );
        }
        let seen = || -> Result<usize> {
            let all = kubectl.json(&["get", "devicestatuses"])?;
            let items = all["items"].as_array().context("a list")?;
            let has = |item: &&Value| {
                item["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("many-"))
                    && item["status"]["twins"][0]["reported"]["value"].is_string()
            };
            Ok(items.iter().filter(has).count())
        };
        // Said until the last one is known to the node.
        wait_for(SOON, "all first values", || {
            let status = node.in_network("sh".as_ref())?.args(["-c", &input]).status()?;
            ensure!(status.success(), "mosquitto_pub: {status}");
            Ok((seen()? == 50).then_some(()))
        })
    })?;
    Ok(())
}

fn many(at: usize) -> String {
    format!(
        "---\napiVersion: devices.kubeedge.io/v1beta1\nkind: Device\nmetadata: {{ name: many-{at} }}\nspec:\n  deviceModelRef: {{ name: plain }}\n  \
         nodeName: {NODE}\n  protocol: {{ protocolName: plain, configData: {{ at: 1 }} }}\n{}",
        if at == 0 {
            "---\napiVersion: devices.kubeedge.io/v1beta1\nkind: DeviceModel\nmetadata: { name: plain }\nspec: { protocol: plain, properties: [] }\n"
        } else {
            ""
        }
    )
}

/// Of this flow's own, in memory; removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Folder> {
        let path = PathBuf::from(format!("/dev/shm/kinglet-values-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as i64)
}
