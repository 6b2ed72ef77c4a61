//! The same MQTT requests at a stock edgecore and at ours: `tests/vectors/kubeedge/stock-twin.txt` says what the stock one answers, and
//! where ours says something else, why. The flow holds both to it; edgecore's unit tests hold its state machine to it without a peer.
//! `KINGLET_RECORD=1` writes down what the stock one says.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use e2e::{
    cloud::Cloud,
    host::{NODE, Node},
    kubectl::Kubectl,
    process::{Process, tail},
    steps::{Steps, wait_for, wait_until},
};
use serde_json::Value;

use crate::{
    Bench, Flow, Peer,
    stock_edge::node::{BROKER, StockNode},
};

pub const FLOWS: &[Flow] = &[Flow {
    name: "the same MQTT requests at a stock edgecore and at ours",
    needs: &[Peer::Edgecore],
    run: both,
}];

const STOCK: &str = "twins-1";
const READY: Duration = Duration::from_secs(150);
const SOON: Duration = Duration::from_secs(30);
const RECORD: &str = "KINGLET_RECORD";

/// One thing done, and what is to be heard of it.
#[derive(Debug, Default)]
struct Step {
    /// As it stands in the file, with the comments before it.
    before: Vec<String>,
    done: String,
    heard: Vec<String>,
    differs: Option<String>,
}

fn file() -> PathBuf {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../vectors/kubeedge/stock-twin.txt").into()
}

fn script() -> Result<Vec<Step>> {
    let text = std::fs::read_to_string(file())?;
    let mut steps: Vec<Step> = Vec::new();
    let mut before = Vec::new();
    for line in text.lines() {
        match (line.split_at_checked(2), steps.last_mut()) {
            (Some(("> " | "! ", _)), _) => {
                let before = std::mem::take(&mut before);
                steps.push(Step { before, done: line.into(), ..Step::default() });
            }
            (Some(("< ", heard)), Some(step)) => step.heard.push(heard.into()),
            (Some(("~ ", why)), Some(step)) => step.differs = Some(why.into()),
            _ => before.push(line.into()),
        }
    }
    Ok(steps)
}

/// A program in the network of a node.
type Inside<'a> = &'a dyn Fn(&str) -> Result<Command>;

/// One of the two, with its broker and the names that stand for NODE and DEV.
struct Asked<'a> {
    inside: Inside<'a>,
    port: u16,
    node: &'a str,
    device: &'a str,
    kubectl: &'a Kubectl,
    dir: &'a Path,
    listener: Process,
    read: usize,
}

impl<'a> Asked<'a> {
    fn new(
        inside: Inside<'a>,
        port: u16,
        (node, device): (&'a str, &'a str),
        kubectl: &'a Kubectl,
        dir: &'a Path,
    ) -> Result<Asked<'a>> {
        let log = dir.join(format!("{device}.log"));
        let mut command = inside("stdbuf")?;
        command.args(["-oL", "mosquitto_sub", "-i", "listener", "-p", &port.to_string(), "-q", "1"]);
        command.args(["-t", "$hw/events/#", "-F", "%t %p"]);
        let listener = Process::start("mosquitto_sub", &mut command, &log)?;
        let mut asked = Asked { inside, port, node, device, kubectl, dir, listener, read: 0 };
        // It listens once it hears itself asked.
        wait_for(SOON, "the subscription", || {
            asked.say("$hw/events/listening", "x")?;
            Ok(asked.lines()?.iter().any(|line| line.starts_with("$hw/events/listening")).then_some(()))
        })?;
        asked.read = asked.lines()?.len();
        Ok(asked)
    }

    fn say(&self, topic: &str, payload: &str) -> Result<()> {
        let mut command = (self.inside)("mosquitto_pub")?;
        let output = command
            .args(["-p", &self.port.to_string(), "-q", "1", "-t", topic, "-m", payload])
            .output()
            .context("run mosquitto_pub; install mosquitto-clients")?;
        ensure!(output.status.success(), "mosquitto_pub: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }

    fn lines(&self) -> Result<Vec<String>> {
        Ok(std::fs::read_to_string(&self.listener.log)?.lines().map(str::to_owned).collect())
    }

    /// What was heard since the last step, in the file's words.
    fn heard(&self) -> Result<Vec<String>> {
        let lines = self.lines()?;
        let news = lines[self.read..].iter().filter_map(|line| line.split_once(' '));
        Ok(news
            .filter(|(topic, _)| is_answer(topic))
            .map(|(topic, payload)| self.plain(topic, payload))
            .collect())
    }

    fn plain(&self, topic: &str, payload: &str) -> String {
        let payload = match serde_json::from_str(payload) {
            Ok(mut value) => {
                plain(&mut value);
                value.to_string()
            }
            Err(_) => payload.to_owned(),
        };
        format!("{topic} {payload}").replace(self.device, "DEV").replace(self.node, "NODE")
    }

    fn names(&self, text: &str) -> String {
        text.replace("DEV", self.device).replace("NODE", self.node)
    }

    /// Does the step; returns what is heard of it.
    fn ask(&mut self, step: &Step, expected: usize) -> Result<Vec<String>> {
        self.read = self.lines()?.len();
        match step.done.as_str() {
            "! made" => {
                let object = OBJECTS.replace("DEVICE", self.device).replace("NODENAME", self.node);
                self.kubectl.apply_text(self.dir, &object)?;
            }
            "! removed" => drop(self.kubectl.run(&["delete", "device", self.device])?),
            asked => {
                let (topic, payload) =
                    asked[2..].split_once(' ').context("a request is a topic and a payload")?;
                self.say(&self.names(topic), payload)?;
            }
        }
        let due = if step.done.starts_with('!') { SOON } else { Duration::from_secs(5) };
        // More than is expected is heard as well: what is asked last is answered last.
        let _ = wait_until(due, "its answers", || Ok((self.heard()?.len() >= expected.max(1)).then_some(())));
        if step.done != "! removed" {
            let fence = format!("$hw/events/device/default/{}/twin/get", self.device);
            self.say(&fence, r#"{"event_id":"fence"}"#)?;
            wait_until(SOON, "the last answer", || {
                Ok(self.heard()?.iter().any(|line| line.contains("\"fence\"")).then_some(()))
            })?;
        }
        let mut heard = self.heard()?;
        heard.retain(|line| !line.contains("\"fence\""));
        Ok(heard)
    }
}

const OBJECTS: &str = "\
apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: { name: plain }
spec: { protocol: plain, properties: [{ name: p, type: STRING, accessMode: ReadWrite }] }
---
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: { name: DEVICE }
spec:
  deviceModelRef: { name: plain }
  nodeName: NODENAME
  protocol: { protocolName: plain, configData: { at: 1 } }
";

/// Not what was asked.
fn is_answer(topic: &str) -> bool {
    const ASKED: [&str; 5] =
        ["/twin/update", "/twin/get", "/twin/cloud_updated", "/state/update", "/membership/get"];
    topic != "$hw/events/listening" && !ASKED.iter().any(|asked| topic.ends_with(asked))
}

/// Without what differs from run to run, and without sentences.
fn plain(value: &mut Value) {
    let Value::Object(map) = value else {
        if let Value::Array(list) = value {
            list.iter_mut().for_each(plain);
        }
        return;
    };
    for (key, value) in map.iter_mut() {
        match (key.as_str(), &*value) {
            ("timestamp", Value::Number(number)) if number.as_i64() != Some(0) => *value = 1.into(),
            ("event_id", Value::String(id)) if id.len() == 36 => *value = "ID".into(),
            ("lastOnlineTime" | "last_online", Value::String(_)) => *value = "T".into(),
            ("reason", Value::String(_)) => *value = "".into(),
            _ => plain(value),
        }
    }
}

fn both(bench: &Bench, steps: &mut Steps) -> Result<()> {
    if let Some(lack) = e2e::containerd::missing() {
        anyhow::bail!("this machine cannot run a stock edge: {lack}");
    }
    let mut script = script()?;
    let mut cloud =
        Cloud::new(&bench.programs.cloudcore, &bench.dir.join("cloud"), &["127.0.0.1"])?.with_tunnel();
    steps.step("our cloudcore starts", || cloud.start())?;
    let kubectl = cloud.kubectl(&bench.programs.kubectl);
    steps.step("the stock edgecore answers what is written down", || {
        let edgecore = bench.peers()?.get(Peer::Edgecore)?;
        let mut node = StockNode::new(&edgecore, &bench.programs.images, &bench.dir, STOCK)?;
        node.configure(&cloud, &cloud.token(&[])?)?;
        node.start()?;
        wait_for(READY, "the stock edge to be Ready", || {
            node.keep_running()?;
            Ok(kubectl.node_is_ready(STOCK)?.then_some(()))
        })?;
        let told = at_stock(&node, &kubectl, &bench.dir, &mut script);
        told.with_context(|| format!("the stock edgecore complains:\n{}", node.complaints()))
    })?;
    steps.step("ours answers the same, but where it is said why not", || {
        let mut node = Node::new(&bench.programs, &bench.dir)?;
        node.join(&cloud, &cloud.token(&[])?, NODE)?;
        node.start()?;
        wait_for(READY, "the node to be Ready", || Ok(kubectl.node_is_ready(NODE)?.then_some(())))?;
        let told = at_ours(&node, &kubectl, &bench.dir, &script);
        told.with_context(|| format!("edgecore's log:\n{}", tail(&node.log(), 20)))
    })?;
    Ok(())
}

fn at_stock(node: &StockNode, kubectl: &Kubectl, dir: &Path, script: &mut [Step]) -> Result<()> {
    let records = std::env::var_os(RECORD).is_some();
    let inside = |program: &str| node.inside(program);
    let mut asked = Asked::new(&inside, BROKER, (STOCK, "oven-a"), kubectl, dir)?;
    let mut wrong = Vec::new();
    for step in script.iter_mut() {
        let mut heard = asked.ask(step, step.heard.len())?;
        if records {
            step.heard = heard;
            continue;
        }
        let mut expected = step.heard.clone();
        expected.sort();
        heard.sort();
        if heard != expected {
            wrong.push(format!("{}\n  expected {expected:#?}\n  heard {heard:#?}", step.done));
        }
    }
    ensure!(wrong.is_empty(), "the stock edgecore says something else:\n{}", wrong.join("\n"));
    if records {
        let text = script.iter().map(|step| {
            let heard = step.heard.iter().map(|line| format!("< {line}"));
            let why = step.differs.iter().map(|why| format!("~ {why}"));
            let lines: Vec<String> =
                step.before.iter().cloned().chain([step.done.clone()]).chain(heard).chain(why).collect();
            lines.join("\n") + "\n"
        });
        std::fs::write(file(), text.collect::<String>())?;
    }
    Ok(())
}

fn at_ours(node: &Node, kubectl: &Kubectl, dir: &Path, script: &[Step]) -> Result<()> {
    let inside = |program: &str| node.in_network(program.as_ref());
    let mut asked = Asked::new(&inside, node.broker_port(), (NODE, "oven-b"), kubectl, dir)?;
    let mut wrong = Vec::new();
    for step in script {
        let mut heard = asked.ask(step, step.heard.len())?;
        let mut expected = step.heard.clone();
        expected.sort();
        heard.sort();
        match (&step.differs, heard == expected) {
            (None, false) => {
                wrong.push(format!("{}\n  expected {expected:#?}\n  heard {heard:#?}", step.done))
            }
            (Some(why), true) => wrong.push(format!("{}: it is the same, although {why}", step.done)),
            _ => {}
        }
    }
    ensure!(wrong.is_empty(), "ours says something else:\n{}", wrong.join("\n"));
    Ok(())
}
