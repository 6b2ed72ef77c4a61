//! Devices both ways: what a mapper reports is seen at the API, and what is desired there reaches the mapper.

use std::{process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use e2e::{
    host::NODE,
    process::Process,
    steps::{Steps, wait_for, wait_until},
};
use serde_json::{Value, json};

use super::{SOON, Story};

const OBJECTS: &str = r#"
apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: { name: lamp, namespace: default }
spec:
  protocol: custom
  properties:
    - { name: power, type: STRING, accessMode: ReadWrite }
    - { name: warmth, type: FLOAT, accessMode: ReadOnly }
---
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: { name: hall, namespace: default }
spec:
  deviceModelRef: { name: lamp }
  nodeName: NODE
  protocol: { protocolName: custom, configData: { line: 1 } }
  properties:
    - { name: power, desired: { value: "on" }, reportToCloud: true, visitors: { protocolName: custom, configData: { at: 1 } } }
    - { name: warmth, reportToCloud: true, visitors: { protocolName: custom, configData: { at: 2 } } }
"#;

pub fn tell(story: &mut Story<'_>, steps: &mut Steps) -> Result<()> {
    let kubectl = story.kubectl.clone();
    steps.step("a device and its model arrive, with what is desired", || {
        kubectl.apply_text(story.dir, &OBJECTS.replace("NODE", NODE))?;
        wait_for(SOON, "its description for mappers", || {
            let seen = heard(story, "$kinglet/mapper/custom/device/default/hall", 5)?;
            Ok(seen.contains("\"hall\"").then_some(()))
        })?;
        let wish = wait_for(SOON, "what is desired", || {
            Ok(twin(story, "power", "observedDesired")?.filter(|v| v == "on"))
        })?;
        ensure!(wish == "on", "{wish}");
        Ok(())
    })?;
    steps.step("twin reports and states are seen at the API, the first value too", || {
        let update =
            json!({"twin": {"power": {"actual": {"value": "on"}}, "warmth": {"actual": {"value": "21.5"}}}});
        publish(story, "$hw/events/device/default/hall/twin/update", &update)?;
        for (property, value) in [("power", "on"), ("warmth", "21.5")] {
            wait_for(SOON, property, || Ok(twin(story, property, "reported")?.filter(|seen| seen == value)))?;
        }
        publish(story, "$hw/events/device/default/hall/state/update", &json!({"state": "online"}))?;
        state_is(story, "online")
    })?;
    steps.step("a changed wish reaches the mapper", || {
        // Not connected yet when it is published, it would miss it: it listens before.
        let mut mapper = listen(story, "$hw/events/device/default/hall/twin/update/delta")?;
        kubectl.set_desired("hall", "power", "off")?;
        let delta = wait_until(SOON, "the delta", || {
            ensure!(mapper.ended().is_none_or(|status| status.success()), "mosquitto_sub ended");
            let text = std::fs::read_to_string(&mapper.log)?;
            Ok(text.lines().find(|line| line.contains("\"off\"")).map(str::to_owned))
        })?;
        let delta: Value = serde_json::from_str(&delta)?;
        ensure!(delta["delta"]["power"] == "off", "{delta}");
        publish(
            story,
            "$hw/events/device/default/hall/twin/update",
            &json!({"twin": {"power": {"actual": {"value": "off"}}}}),
        )?;
        wait_for(SOON, "its confirmation", || {
            Ok(twin(story, "power", "reported")?.filter(|seen| seen == "off"))
        })?;
        Ok(())
    })?;
    Ok(())
}

/// KubeEdge 1.23 keeps what a device reports in an object of its own.
fn status(story: &Story<'_>) -> Result<Value> {
    let kind = if story.cloud.minor >= 23 { "devicestatus" } else { "device" };
    Ok(story.kubectl.json(&["get", kind, "hall"])?["status"].clone())
}

/// Before 1.23 a state is written beside the Device's status, where nobody sees it (`updateDeviceStatus` patches without `status`).
pub fn state_is(story: &Story<'_>, state: &str) -> Result<()> {
    if story.cloud.minor < 23 {
        return Ok(());
    }
    wait_for(SOON, "the state", || Ok((status(story)?["state"] == state).then_some(())))
}

pub fn twin(story: &Story<'_>, property: &str, side: &str) -> Result<Option<String>> {
    let status = status(story)?;
    let twins = status["twins"].as_array().context("no twins yet")?;
    let twin = twins.iter().find(|twin| twin["propertyName"] == property);
    Ok(twin.and_then(|twin| twin[side]["value"].as_str()).map(str::to_owned))
}

pub fn publish(story: &Story<'_>, topic: &str, payload: &Value) -> Result<()> {
    let port = story.node.broker_port().to_string();
    story
        .in_network("mosquitto_pub", &["-p", &port, "-q", "1", "-t", topic, "-m", &payload.to_string()])
        .map(drop)
}

/// The first message of a topic.
fn heard(story: &Story<'_>, topic: &str, seconds: u32) -> Result<String> {
    let (port, wait) = (story.node.broker_port().to_string(), seconds.to_string());
    story.in_network("mosquitto_sub", &["-p", &port, "-t", topic, "-C", "1", "-W", &wait])
}

fn listen(story: &Story<'_>, topic: &str) -> Result<Process> {
    let port = story.node.broker_port().to_string();
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{}/ns/net", story.node.containerd.inside()?)).args([
        "stdbuf",
        "-oL",
        "mosquitto_sub",
    ]);
    command.args(["-d", "-p", &port, "-q", "1", "-t", topic]);
    let log = story.dir.join("mapper.log");
    let _ = std::fs::remove_file(&log);
    let process = Process::start("mosquitto_sub", &mut command, &log)?;
    wait_until(Duration::from_secs(20), "the subscription", || {
        Ok(std::fs::read_to_string(&log)?.contains("SUBACK").then_some(()))
    })?;
    Ok(process)
}
