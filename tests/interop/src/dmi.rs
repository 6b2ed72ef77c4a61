//! DMI between programs of two houses: our mapper at a stock edgecore, and a mapper made with KubeEdge's framework at ours.
//!
//! The framework's mapper is the peer `framework-mapper`: KubeEdge's template with a driver that gives back what it was set to, or
//! 21 (docs/dmi.md says how to build it). Doubles of both sides are in the tests of edgecore's and the mapper's `dmi`.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use e2e::{
    cloud::Cloud,
    host::Node,
    kubectl::Kubectl,
    process::{Process, tail},
    serial_line::SerialLine,
    steps::{Steps, wait_for},
};

use crate::{Bench, Flow, Peer, stock_edge::node::StockNode};

pub const FLOWS: &[Flow] = &[
    Flow { name: "our mapper at a stock edgecore by DMI", needs: &[Peer::Edgecore], run: at_stock_edgecore },
    Flow {
        name: "a mapper of KubeEdge's framework at our edgecore by DMI",
        needs: &[Peer::FrameworkMapper],
        run: framework_mapper,
    },
];

const NODE: &str = "dmi-1";
const READY: Duration = Duration::from_secs(150);
const SOON: Duration = Duration::from_secs(60);

const SERIAL: &str = "\
apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: { name: stove }
spec:
  protocol: serial
  properties:
  - { name: temperature, type: FLOAT, accessMode: ReadOnly, unit: C }
  - { name: heater, type: INT, accessMode: ReadWrite, minimum: '0', maximum: '3' }
---
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: { name: stove-1 }
spec:
  deviceModelRef: { name: stove }
  nodeName: dmi-1
  protocol: { protocolName: serial, configData: { path: PORT, baudRate: 9600 } }
  properties:
  - { name: temperature, reportToCloud: true, visitors: { protocolName: serial, configData: {} } }
  - name: heater
    reportToCloud: true
    desired: { value: '1' }
    visitors: { protocolName: serial, configData: { write: 'heater={}' } }
";

/// What waits for a value in DeviceStatus.
fn reported(kubectl: &Kubectl, device: &str, property: &str, wanted: &str) -> Result<()> {
    wait_for(SOON, &format!("{property} of {device} to be {wanted}"), || {
        Ok(kubectl.reported(device, property)?.filter(|value| value == wanted).map(drop))
    })
}

fn at_stock_edgecore(bench: &Bench, steps: &mut Steps) -> Result<()> {
    if let Some(lack) = e2e::containerd::missing() {
        anyhow::bail!("this machine cannot run a stock edge: {lack}");
    }
    let mut cloud =
        Cloud::new(&bench.programs.cloudcore, &bench.dir.join("cloud"), &["127.0.0.1"])?.with_tunnel();
    steps.step("our cloudcore starts", || cloud.start())?;
    let kubectl = cloud.kubectl(&bench.programs.kubectl);
    let edgecore = bench.peers()?.get(Peer::Edgecore)?;
    let mut node = StockNode::new(&edgecore, &bench.programs.images, &bench.dir, NODE)?;
    let log = bench.dir.join("mapper.log");
    let told = our_mapper(bench, &cloud, &kubectl, &mut node, &log, steps);
    told.with_context(|| {
        format!("the mapper's log:\n{}\nthe stock edgecore complains:\n{}", tail(&log, 20), node.complaints())
    })
}

fn our_mapper(
    bench: &Bench,
    cloud: &Cloud,
    kubectl: &Kubectl,
    node: &mut StockNode,
    log: &Path,
    steps: &mut Steps,
) -> Result<()> {
    steps.step("it joins by token and is Ready", || {
        node.configure(cloud, &cloud.token(&[])?)?;
        node.start()?;
        wait_for(READY, "the stock edge to be Ready", || {
            node.keep_running()?;
            Ok(kubectl.node_is_ready(NODE)?.then_some(()))
        })
    })?;
    let mut line = SerialLine::new()?;
    let program = bench.programs.mapper.with_file_name("kinglet-mapper-dmi");
    let start = |node: &StockNode| {
        let mut command = node.inside(&program.display().to_string())?;
        command.args(["--dmi", "/etc/kubeedge/dmi.sock", "--dmi-protocols", "serial"]);
        Process::start("mapper", &mut command, log)
    };
    let objects = SERIAL.replace("PORT", &line.path().display().to_string());
    let (mapper, _) =
        steps.step("our mapper registers; a device of its protocol comes, with its model", || {
            let mapper = start(node)?;
            kubectl.apply_text(&bench.dir, &objects)?;
            // Said until it is heard: what comes before the port was opened is lost.
            wait_for(SOON, "the first value", || {
                line.say("temperature=20.5")?;
                Ok(kubectl.reported("stove-1", "temperature")?.filter(|value| value == "20.5").map(drop))
            })?;
            Ok(mapper)
        })?;
    steps.step("what the sensor says is in DeviceStatus, and the state", || {
        line.say("temperature=21.5")?;
        reported(kubectl, "stove-1", "temperature", "21.5")?;
        wait_for(SOON, "the state", || {
            let status = kubectl.json(&["get", "devicestatus", "stove-1"])?;
            Ok((status["status"]["state"] == "online").then_some(()))
        })
    })?;
    steps.step("a desired value is carried out", || {
        kubectl.set_desired("stove-1", "heater", "2")?;
        reported(kubectl, "stove-1", "heater", "2")
    })?;
    steps.step("one out of the model's range is refused, the one before stands", || {
        kubectl.set_desired("stove-1", "heater", "7")?;
        wait_for(SOON, "the state", || {
            let status = kubectl.json(&["get", "devicestatus", "stove-1"])?;
            Ok((status["status"]["state"] == "unhealthy").then_some(()))
        })?;
        ensure!(kubectl.reported("stove-1", "heater")?.as_deref() == Some("2"), "it was carried out");
        kubectl.set_desired("stove-1", "heater", "3")?;
        reported(kubectl, "stove-1", "heater", "3")
    })?;
    steps.step("the stock edgecore restarted: the mapper registers again and goes on", || {
        node.stop("KILL")?;
        line.say("temperature=22.5")?;
        node.start()?;
        reported(kubectl, "stove-1", "temperature", "22.5")
    })?;
    steps.step("the mapper restarted: its devices come again", || {
        end(mapper)?;
        let mapper = start(node)?;
        wait_for(SOON, "the new value", || {
            line.say("temperature=23.5")?;
            Ok(kubectl.reported("stove-1", "temperature")?.filter(|value| value == "23.5").map(drop))
        })?;
        kubectl.run(&["delete", "device", "stove-1"])?;
        wait_for(SOON, "the device to go", || {
            Ok(std::fs::read_to_string(log)?.contains("device default/stove-1 was removed").then_some(()))
        })?;
        end(mapper)
    })?;
    Ok(())
}

/// Ends a program in the node's namespaces, and what brought it there.
fn end(program: Process) -> Result<()> {
    let children = format!("/proc/{0}/task/{0}/children", program.pid());
    let pid = std::fs::read_to_string(children)?.trim().to_owned();
    ensure!(!pid.is_empty(), "the mapper has ended by itself");
    let sent = Command::new("kill").args(["-KILL", &pid]).status()?;
    ensure!(sent.success(), "kill {pid}: {sent}");
    program.kill();
    Ok(())
}

/// A device of the framework's mapper.
fn echo(name: &str, desired: &str) -> String {
    format!(
        "\
apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: {{ name: echo }}
spec:
  protocol: echo
  properties: [{{ name: level, type: INT, accessMode: ReadWrite, minimum: '0', maximum: '100' }}]
---
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {{ name: {name} }}
spec:
  deviceModelRef: {{ name: echo }}
  nodeName: {}
  protocol: {{ protocolName: echo, configData: {{ slave: 1 }} }}
  stateReport: {{ reportToCloud: true, reportCycle: 1000 }}
  properties:
  - name: level
    reportToCloud: true
    collectCycle: 300
    desired: {{ value: '{desired}', metadata: {{ type: int }} }}
    visitors: {{ protocolName: echo, configData: {{ dataType: int }} }}
",
        e2e::host::NODE
    )
}

fn framework_mapper(bench: &Bench, steps: &mut Steps) -> Result<()> {
    if let Some(lack) = e2e::containerd::missing() {
        anyhow::bail!("this flow {lack}");
    }
    let mut cloud = Cloud::new(&bench.programs.cloudcore, &bench.dir.join("cloud"), &["127.0.0.1"])?;
    steps.step("our cloudcore starts", || cloud.start())?;
    let kubectl = cloud.kubectl(&bench.programs.kubectl);
    let mut node = Node::new(&bench.programs, &bench.dir)?;
    let mut foreign = Foreign {
        program: bench.peers()?.get(Peer::FrameworkMapper)?,
        folder: node.root().join("etc/kubeedge"),
        log: bench.dir.join("framework-mapper.log"),
    };
    let told = at_our_edgecore(bench, &cloud, &kubectl, &mut node, &mut foreign, steps);
    told.with_context(|| {
        format!("the mapper's log:\n{}\nedgecore's log:\n{}", tail(&foreign.log, 20), tail(&node.log(), 20))
    })
}

struct Foreign {
    program: PathBuf,
    /// Where edgecore's socket is, and its own.
    folder: PathBuf,
    log: PathBuf,
}

impl Foreign {
    fn start(&self, node: &Node) -> Result<Process> {
        let config = self.folder.join("framework-mapper.yaml");
        let folder = self.folder.display();
        std::fs::write(
            &config,
            format!(
                "grpc_server: {{ socket_path: {folder}/echo.sock }}\ncommon:\n  name: echo-mapper\n  version: v1\n  api_version: v1\n  protocol: echo\n  \
                 address: 127.0.0.1\n  edgecore_sock: {folder}/dmi.sock\n  http_port: '7777'\n"
            ),
        )?;
        let mut command = in_network(node, &self.program.display().to_string())?;
        command.arg("--config-file").arg(&config).args(["--v", "3"]);
        Process::start("framework mapper", &mut command, &self.log)
    }
}

fn in_network(node: &Node, program: &str) -> Result<Command> {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{}/ns/net", node.containerd.inside()?)).arg(program);
    Ok(command)
}

fn at_our_edgecore(
    bench: &Bench,
    cloud: &Cloud,
    kubectl: &Kubectl,
    node: &mut Node,
    foreign: &mut Foreign,
    steps: &mut Steps,
) -> Result<()> {
    steps.step("our edgecore joins and starts", || {
        node.join(cloud, &cloud.token(&[])?, e2e::host::NODE)?;
        node.start()
    })?;
    let (mut mapper, _) = steps.step("it registers with a device that is there, and reports", || {
        kubectl.apply_text(&bench.dir, &echo("first", "20"))?;
        let mapper = foreign.start(node)?;
        reported(kubectl, "first", "level", "20")?;
        Ok(mapper)
    })?;
    steps.step("a changed desired value reaches it", || {
        kubectl.set_desired("first", "level", "23")?;
        reported(kubectl, "first", "level", "23")
    })?;
    steps.step("a device made later is registered with it", || {
        kubectl.apply_text(&bench.dir, &echo("second", "23"))?;
        reported(kubectl, "second", "level", "23")
    })?;
    steps.step("its states are the devices'", || {
        wait_for(SOON, "the state", || {
            let status = kubectl.json(&["get", "devicestatus", "second"])?;
            Ok((status["status"]["state"] == "ok").then_some(()))
        })
    })?;
    steps.step(
        "edgecore killed and started: what changed meanwhile reaches the mapper, which did not restart",
        || {
            node.edgecore.take().context("edgecore runs")?.kill();
            // Its driver keeps one value for all devices: the one that is told last sets it.
            for device in ["first", "second"] {
                kubectl.set_desired(device, "level", "31")?;
            }
            node.start()?;
            reported(kubectl, "first", "level", "31")?;
            ensure!(mapper.ended().is_none(), "the mapper has ended");
            Ok(())
        },
    )?;
    let (_mapper, _) =
        steps.step("the mapper killed: the devices say so; started again it has them all", || {
            mapper.kill();
            wait_for(SOON, "the reason", || {
                let status = kubectl.json(&["get", "devicestatus", "first"])?;
                let reason = status["status"]["extensions"]["reason"].as_str().unwrap_or_default();
                Ok(reason.contains("mapper echo-mapper does not answer").then_some(()))
            })?;
            for device in ["first", "second"] {
                kubectl.set_desired(device, "level", "44")?;
            }
            let mapper = foreign.start(node)?;
            for device in ["first", "second"] {
                reported(kubectl, device, "level", "44")?;
            }
            wait_for(SOON, "the state", || {
                let status = kubectl.json(&["get", "devicestatus", "first"])?["status"].clone();
                Ok((status["state"] == "ok" && status["extensions"]["reason"].is_null()).then_some(()))
            })?;
            Ok(mapper)
        })?;
    steps.step("a deleted device is removed from it", || {
        let known = || -> Result<bool> {
            let mut curl = in_network(node, "curl")?;
            curl.args([
                "--silent",
                "--max-time",
                "5",
                "http://127.0.0.1:7777/api/v1/device/default/second/level",
            ]);
            let output = curl.output().context("run curl; install it")?;
            let text = String::from_utf8_lossy(&output.stdout);
            ensure!(!text.is_empty(), "the mapper's HTTP API does not answer");
            Ok(text.contains("\"statusCode\":200"))
        };
        wait_for(SOON, "the mapper to know the device", || Ok(known()?.then_some(())))?;
        kubectl.run(&["delete", "device", "second"])?;
        wait_for(SOON, "the mapper to forget it", || Ok((!known()?).then_some(())))
    })?;
    Ok(())
}
