//! A node that has no cloud at all: devices from a folder, a loop closed by a static pod over the node's broker, Home Assistant's discovery.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    Programs,
    host::{Node, SOON},
    process::tail,
    serial_line::SerialLine,
    steps::{Steps, wait_for},
};

const NAME: &str = "alone";

/// A button and a lamp at one microcontroller.
fn panel(port: &Path) -> String {
    format!(
        "apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: {{name: panel}}
spec:
  protocol: serial
  properties:
  - {{name: pressed, type: BOOLEAN, accessMode: ReadOnly}}
  - {{name: lit, type: BOOLEAN, accessMode: ReadWrite}}
---
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {{name: panel}}
spec:
  deviceModelRef: {{name: panel}}
  protocol: {{protocolName: serial, configData: {{path: {}, framing: lines}}}}
  properties:
  - {{name: pressed, visitors: {{protocolName: serial, configData: {{}}}}}}
  - {{name: lit, visitors: {{protocolName: serial, configData: {{write: \"lit={{}}\"}}}}}}
",
        port.display()
    )
}

fn rule(broker: u16) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: rule}}
spec:
  hostNetwork: true
  containers:
  - name: rule
    image: docker.io/kinglet/rule:1
    env: [{{name: MQTT, value: \"127.0.0.1:{broker}\"}}]
    args: [\"default/panel pressed =true => default/panel lit toggle\"]
"
    )
}

/// Its own node, beside the one of the main story.
pub fn run(programs: &Programs, dir: &Path, steps: &mut Steps) -> Result<()> {
    let dir = dir.join(NAME);
    fs::create_dir_all(&dir)?;
    let mut node = Node::new(programs, &dir)?;
    let outcome = story(&mut node, steps);
    outcome.with_context(|| {
        let mapper = node.root().join("mapper.log");
        format!("edgecore's log:\n{}\nmapper's log:\n{}", tail(&node.log(), 15), tail(&mapper, 15))
    })
}

fn story(node: &mut Node, steps: &mut Steps) -> Result<()> {
    let mut line = SerialLine::new()?;
    let devices: PathBuf = node.root().join("etc/kinglet/devices");
    steps.step(
        "no cloud: a button switches a lamp, by a rule in a static pod and devices from a folder",
        || {
            node.alone(NAME)?;
            let manifests = node.root().join("etc/kubeedge/manifests");
            for folder in [&devices, &manifests] {
                fs::create_dir_all(folder)?;
            }
            fs::write(devices.join("panel.yaml"), panel(line.path()))?;
            fs::write(manifests.join("rule.yaml"), rule(node.broker_port()))?;
            node.start()?;
            node.start_mapper()?;
            press(&mut line, "lit=true")
        },
    )?;
    steps.step("Home Assistant's discovery describes the lamp and shows that it is lit", || {
        let config = retained(node, &format!("homeassistant/switch/{NAME}_default_panel/lit/config"))?;
        let config: serde_json::Value = serde_json::from_str(&config).context(config)?;
        let text = |key: &str| config[key].as_str().unwrap_or_default().to_owned();
        ensure!(text("command_topic") == format!("kinglet/{NAME}/default/panel/lit/set"), "{config}");
        let value = wait_for(SOON, "the lamp's value", || Ok(retained(node, &text("state_topic")).ok()))?;
        ensure!(value == "true", "{value}");
        publish(node, &text("command_topic"), "false")?;
        wait_for(SOON, "the lamp to go out by its command topic", || {
            Ok(line.hear("lit=false")?.then_some(()))
        })
    })?;
    steps.step("a broken device file removes no device, and the loop goes on", || {
        fs::write(devices.join("panel.yaml"), "kind: [")?;
        wait_for(SOON, "the node to name the file", || {
            Ok(tail(&node.log(), 200).contains("panel.yaml: line 1").then_some(()))
        })?;
        press(&mut line, "lit=true")
    })?;
    Ok(())
}

/// Presses the button until the lamp hears what it should. Each press toggles it, so none is made before the lamp had time to follow.
fn press(line: &mut SerialLine, wanted: &str) -> Result<()> {
    const FOLLOWS: Duration = Duration::from_secs(2);
    let off = if wanted == "lit=true" { "lit=false" } else { "lit=true" };
    let mut pressed: Option<std::time::Instant> = None;
    wait_for(SOON, "the lamp to follow the button", || {
        if line.hear(wanted)? {
            return Ok(Some(()));
        }
        if pressed.is_none_or(|at| at.elapsed() > FOLLOWS) {
            // What is said before the port was opened may be lost, and so is a press before the rule listens.
            line.say(off)?;
            line.say("pressed=false")?;
            line.say("pressed=true")?;
            pressed = Some(std::time::Instant::now());
        }
        Ok(None)
    })
    .map(drop)
}

/// The retained message of a topic.
fn retained(node: &Node, topic: &str) -> Result<String> {
    let mut command = mosquitto(node, "mosquitto_sub")?;
    let output = command.args(["-t", topic, "-C", "1", "-W", "5"]).output().context("run mosquitto_sub")?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    ensure!(output.status.success() && !text.is_empty(), "nothing is retained on {topic}");
    Ok(text)
}

fn publish(node: &Node, topic: &str, payload: &str) -> Result<()> {
    let status = mosquitto(node, "mosquitto_pub")?.args(["-q", "1", "-t", topic, "-m", payload]).status();
    ensure!(status.context("run mosquitto_pub")?.success(), "cannot publish to {topic}");
    Ok(())
}

fn mosquitto(node: &Node, program: &str) -> Result<Command> {
    let mut command = node.in_network(Path::new(program))?;
    command.args(["-p", &node.broker_port().to_string()]);
    Ok(command)
}
