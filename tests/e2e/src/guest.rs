//! The release image in QEMU, byte for byte, driven from outside only: pins through qtest, a serial line through its socket,
//! kubectl and a forwarded port.
//!
//! [`Story`] is the node's life in order: [`Story::join`], [`Story::pod`], [`Story::devices`], [`Story::power_cut`],
//! [`Story::reconnect`], [`Story::measure`]. The demo stops after the devices; `--check` and the tests go to the end.

use std::{
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use qemu::Machine;

use crate::{
    Programs,
    cloud::Cloud,
    http,
    kubectl::Kubectl,
    process::tail,
    report::Report,
    steps::{Steps, wait_for, wait_until},
    watch::{Watch, reported},
};

/// The names that the samples use (cloud/deploy/samples).
pub const NODE: &str = "demo-node";
pub const POD: &str = "hello";
const BUTTON_LINE: u8 = 5;
const LAMP_LINE: u8 = 2;
/// Wired to what the card's `devices/` describe.
const CARD_BUTTON_LINE: u8 = 6;
const CARD_LED_LINE: u8 = 1;
/// The host port of the sample pod, as the guest sees it.
pub const POD_PORT: u16 = 8080;
/// Where the guest finds this machine's loopback (QEMU's user network).
const HOST_AS_SEEN_BY_GUEST: &str = "10.0.2.2";

/// The card that the image is written to is larger than the image, so that the data partition has to grow.
const CARD_MB: u64 = 2048;

/// An emulated machine on a busy two-core host is slow; a step that takes longer than this is stuck.
const BOOT: Duration = Duration::from_secs(240);
const STEP: Duration = Duration::from_secs(120);

/// How long a boot and a step may take. A test of something broken does not wait as long.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    pub boot: Duration,
    pub step: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Deadlines { boot: BOOT, step: STEP }
    }
}

pub const OFFLINE_POD: &str = "power cut, boot without cloud: the pod runs from local state";
pub const OFFLINE_LAMP: &str = "the lamp is as it was";
const OFFLINE_LOOP: &str = "without a cloud: devices/ and manifests/ of the card close a loop, a button switches an LED through a pod";

pub struct Setup {
    pub programs: Programs,
    /// The finished image. It is copied (sparse), provisioned, and the copy booted.
    pub image: PathBuf,
    /// Where QEMU and the image tools are.
    pub qemu: qemu::Programs,
    pub dir: PathBuf,
    pub memory_mb: u32,
}

pub struct Story {
    pub cloud: Cloud,
    pub kubectl: Kubectl,
    pub report: Report,
    pub steps: Steps,
    setup: Setup,
    disk: PathBuf,
    machine: Option<Machine>,
    page: String,
}

impl Story {
    /// Starts cloudcore on this machine and provisions a copy of the image for it.
    pub fn begin(setup: Setup, steps: Steps) -> Result<Story> {
        let mut cloud = Cloud::new(
            &setup.programs.cloudcore,
            &setup.dir.join("cloud"),
            &["127.0.0.1", HOST_AS_SEEN_BY_GUEST],
        )?;
        let mut steps = steps;
        steps.step("cloudcore starts on this machine", || cloud.start())?;
        let kubectl = cloud.kubectl(&setup.programs.kubectl);
        let disk = setup.dir.join("card.img");
        steps.step("card written and provisioned", || {
            let text = format!(
                "cloud = \"{HOST_AS_SEEN_BY_GUEST}:{}\"\njoin_port = {}\ntoken = \"{}\"\nnode_name = \"{NODE}\"\n",
                cloud.hub_port(),
                cloud.join_port(),
                cloud.token(&[])?,
            );
            qemu::disk::provision(&setup.image, &disk, CARD_MB, &text)
        })?;
        Ok(Story {
            cloud,
            kubectl,
            report: Report::default(),
            steps,
            setup,
            disk,
            machine: None,
            page: String::new(),
        })
    }

    fn boot(&mut self, log: &str) -> Result<()> {
        let mut config = qemu::Config::new(self.setup.qemu.clone(), &self.disk, self.setup.dir.join(log));
        config.memory_mb = self.setup.memory_mb;
        config.forward = vec![POD_PORT];
        config.serial_ports = 1;
        config.usb_serial = true;
        self.machine = Some(Machine::start(&config)?);
        Ok(())
    }

    /// The finished image, unprovisioned.
    pub fn image(&self) -> &Path {
        &self.setup.image
    }

    pub fn machine(&mut self) -> Result<&mut Machine> {
        self.machine.as_mut().context("the machine is off")
    }

    /// Port of this machine that leads to the pod's page.
    pub fn page_port(&self) -> Result<u16> {
        self.machine.as_ref().context("the machine is off")?.host_port(POD_PORT)
    }

    /// The first boot, until `kubectl get nodes` says Ready.
    pub fn join(&mut self) -> Result<()> {
        let begun = Instant::now();
        self.boot("boot-1")?;
        let (mut machine, kubectl) = (self.machine.take().context("just started")?, self.kubectl.clone());
        let ready = self.steps.step("image boots, joins, node is Ready", || {
            wait_for(BOOT, "node Ready", || {
                ensure!(machine.is_running(), "QEMU ended");
                Ok(kubectl.node_is_ready(NODE)?.then_some(()))
            })
        });
        self.report.seconds("boot_cpu_s", machine.cpu_seconds()?);
        self.report.seconds("node_ready_s", begun.elapsed().as_secs_f64());
        self.machine = Some(machine);
        ready.map(drop)
    }

    pub fn pod(&mut self) -> Result<()> {
        let (kubectl, port) = (self.kubectl.clone(), self.page_port()?);
        let sample = self.setup.programs.samples.join("pod.yaml");
        let (page, took) =
            self.steps.step("sample pod runs and its page is fetched through the host port", || {
                kubectl.apply(&sample)?;
                wait_for(STEP, "pod Running", || {
                    let pod = kubectl.json(&["get", "pod", POD])?;
                    Ok((pod["status"]["phase"] == "Running").then_some(()))
                })?;
                wait_for(STEP, "the pod's page", || http::page(port).map(Some))
            })?;
        ensure!(page.contains("hello from hello"), "unexpected page {page:?}");
        self.page = page;
        self.report.seconds("pod_running_s", took);
        let kubectl = self.kubectl.clone();
        self.steps.step(
            "exec, log and figures of the pod come over the link, and its control group has its limit",
            || {
                let limit =
                    kubectl.run(&["exec", POD, "--", "/hello", "print", "/sys/fs/cgroup/memory.max"])?;
                // 32Mi of the sample, in the guest's cgroup v2.
                ensure!(limit.trim() == "33554432", "memory.max in the pod is {limit:?}");
                kubectl.run(&["logs", POD, "--tail=1"])?;
                wait_for(STEP, "the pod's memory", || {
                    let line = kubectl.run(&["top", "pod", POD, "--no-headers"])?;
                    let memory = line.split_whitespace().nth(2).unwrap_or_default().to_owned();
                    ensure!(memory.ends_with("Mi"), "kubectl top says {line:?}");
                    Ok(Some(()))
                })?;
                let figures =
                    kubectl.run(&["get", "--raw", &format!("/api/v1/nodes/{NODE}/proxy/stats/summary")])?;
                let figures: serde_json::Value = serde_json::from_str(&figures)?;
                let used =
                    figures["pods"].as_array().into_iter().flatten().find(|pod| pod["podRef"]["name"] == POD);
                let used = used.and_then(|pod| pod["memory"]["workingSetBytes"].as_u64()).unwrap_or(0);
                ensure!(used > 0, "the summary has no memory of the pod: {figures}");
                Ok(())
            },
        )?;
        Ok(())
    }

    /// Values from a pin and a serial line to the cloud, and a desired value from kubectl to a pin.
    pub fn devices(&mut self) -> Result<()> {
        let (kubectl, sample) = (self.kubectl.clone(), self.setup.programs.samples.join("devices.yaml"));
        let mut machine = self.machine.take().context("the machine is off")?;
        let outcome = device_steps(&kubectl, &sample, &mut machine, &mut self.steps, &mut self.report);
        self.machine = Some(machine);
        outcome
    }

    /// Cloud stopped, power cut, boot without a cloud: the pod and the lamp come back from local state.
    pub fn power_cut(&mut self, memory_mb: u32, within: Deadlines) -> Result<()> {
        self.cloud.stop()?;
        self.machine.take().context("the machine is off")?.power_cut()?;
        card_folders(&self.setup.programs, &self.disk)?;
        self.setup.memory_mb = memory_mb;
        self.boot("boot-2")?;
        let (port, mut machine) = (self.page_port()?, self.machine.take().context("just started")?);
        let (page, took) = self.steps.step(OFFLINE_POD, || {
            wait_for(within.boot, "the pod's page", || {
                ensure!(machine.is_running(), "QEMU ended");
                http::page(port).map(Some)
            })
        })?;
        ensure!(page != self.page, "the page says that nothing was restarted, after a power cut");
        self.page = page;
        self.report.seconds("offline_pod_running_s", took);
        self.steps.step(OFFLINE_LAMP, || {
            wait_for(within.step, "lamp on", || {
                Ok((machine.gpio().output(LAMP_LINE)? == Some(true)).then_some(()))
            })
        })?;
        self.steps.step(OFFLINE_LOOP, || card_loop(&mut machine, within.step))?;
        self.machine = Some(machine);
        Ok(())
    }

    /// The cloud comes back: the node is Ready and not one container was restarted.
    pub fn reconnect(&mut self) -> Result<()> {
        let (kubectl, port) = (self.kubectl.clone(), self.page_port()?);
        self.cloud.start()?;
        let (_, took) = self
            .steps
            .step("cloud is back: node Ready, pod status fresh", || kubectl.fresh_lease(NODE, STEP))?;
        self.report.seconds("reconnect_s", took);
        let container = || -> Result<(String, i64)> {
            let pod = kubectl.json(&["get", "pod", POD])?;
            let status = &pod["status"]["containerStatuses"][0];
            let id = status["containerID"].as_str().context("pod has no container id")?.to_owned();
            Ok((id, status["restartCount"].as_i64().unwrap_or(0)))
        };
        let page = self.page.clone();
        let (restarts, _) = self.steps.step("no container was restarted by the reconnect", || {
            let first = wait_for(STEP, "container id", || container().map(Some))?;
            // Everything that a returning cloud sends has been worked off when a change made after it has arrived.
            kubectl.run(&["annotate", "pod", POD, "--overwrite", "kinglet.io/seen=after-reconnect"])?;
            kubectl.fresh_lease(NODE, STEP)?;
            let last = container()?;
            let changed = u64::from(http::page(port)? != page) + u64::from(first.0 != last.0);
            Ok(changed + last.1.abs_diff(first.1))
        })?;
        self.report.set("restarts_on_reconnect", restarts);
        ensure!(restarts == 0, "{restarts} restart(s) on reconnect");
        self.steps.step("nothing had to be sent to the node twice", || {
            let resends = self.cloud.resends()?;
            ensure!(resends == 0, "{resends} time(s): see {}", self.cloud.log().display());
            Ok(())
        })?;
        Ok(())
    }

    /// Memory, from init's line on the console and from /proc here.
    pub fn measure(&mut self) -> Result<()> {
        self.report.set("cloudcore_rss_kb", self.cloud.rss_kb()?);
        let machine = self.machine.as_mut().context("the machine is off")?;
        let line = machine.wait_for("kinglet: memory kB", BOOT)?;
        for (program, kb) in memory(&line) {
            let name = match program.as_str() {
                "available" | "total" => format!("guest_{program}_kb"),
                program => format!("{}_rss_kb", program.replace('-', "_")),
            };
            self.report.set(&name, kb);
        }
        ensure!(self.report.get("edgecore_rss_kb").is_some(), "init's memory line has no edgecore: {line:?}");
        Ok(())
    }

    /// What the end of a failed run should show.
    pub fn logs(&self) -> String {
        let console = self.machine.as_ref().map(|machine| machine.console.tail()).unwrap_or_default();
        format!("console:\n{console}\ncloudcore:\n{}", tail(&self.cloud.log(), 15))
    }
}

/// What a person copies onto the first partition: two devices of the library with their lines set, and a static pod.
fn card_folders(programs: &Programs, card: &Path) -> Result<()> {
    for (model, old, line) in [("button", "line: 27", CARD_BUTTON_LINE), ("led", "line: 17", CARD_LED_LINE)] {
        let path = programs.samples.join(format!("../../../devices/{model}.yaml"));
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        ensure!(text.contains(old), "{} has no {old}", path.display());
        // QEMU's board has no header, so there is no chip that a device has by itself.
        let text = text
            .replace(old, &format!("line: {line}"))
            .replace("{protocolName: gpio}", "{protocolName: gpio, configData: {chip: 9030000.pl061}}");
        qemu::disk::write_boot_file(card, &format!("devices/{model}.yaml"), text.as_bytes())?;
    }
    qemu::disk::write_boot_file(card, "manifests/rule.yaml", RULE.as_bytes())
}

const RULE: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: lamp-rule}
spec:
  hostNetwork: true
  containers:
  - name: rule
    image: docker.io/kinglet/rule:1
    args: [\"default/button-1 pressed =true => default/led-1 lit toggle\"]
";

/// Each press toggles the LED; one that the rule's pod was not there for yet is lost.
fn card_loop(machine: &mut Machine, within: Duration) -> Result<()> {
    const FOLLOWS: Duration = Duration::from_secs(3);
    wait_for(within, "the LED driven", || Ok(machine.gpio().output(CARD_LED_LINE)?.map(drop)))?;
    for _ in 0..2 {
        let before = machine.gpio().output(CARD_LED_LINE)?;
        wait_for(within, "the LED to follow the button", || {
            // Pressed is 0: the button is between the line and ground.
            machine.gpio().set_input(CARD_BUTTON_LINE, true)?;
            std::thread::sleep(PRESS);
            machine.gpio().set_input(CARD_BUTTON_LINE, false)?;
            let pressed = Instant::now();
            while pressed.elapsed() < FOLLOWS {
                if machine.gpio().output(CARD_LED_LINE)? != before {
                    return Ok(Some(()));
                }
                std::thread::sleep(PRESS);
            }
            Ok(None)
        })?;
    }
    Ok(())
}

/// Longer than the debounce time of the library's button, by an emulated clock.
const PRESS: Duration = Duration::from_millis(100);

/// A scale on a USB adapter, which nobody has plugged in yet; then somebody does, trips over the cable, and plugs it in again.
fn usb_scale(kubectl: &Kubectl, machine: &mut Machine, steps: &mut Steps) -> Result<()> {
    let state_is = |wanted: &str| {
        wait_for(STEP, wanted, || {
            let status = kubectl.json(&["get", "devicestatus", "scale"])?;
            Ok((status["status"]["state"] == wanted).then_some(()))
        })
    };
    let weighs = |adapter: &mut dyn Write, value: &str| {
        wait_for(STEP, "device status", || {
            // What is said before the port was opened is lost.
            writeln!(adapter, "ST,GS,+ {value}kg")?;
            Ok(kubectl.reported("scale", "weight")?.filter(|seen| seen == value))
        })
    };
    steps.step("a scale on a USB adapter that is not there is offline", || {
        kubectl.apply_text(tempfile::tempdir()?.path(), &SCALE.replace("NUMBER", qemu::USB_SERIAL_NUMBER))?;
        state_is("offline")
    })?;
    steps.step("adapter plugged in, unplugged and plugged in again, seen in the cloud", || {
        let mut adapter = machine.usb_serial()?;
        weighs(&mut adapter, "1.5")?;
        drop(adapter);
        state_is("offline")?;
        weighs(&mut machine.usb_serial()?, "2.5")
    })?;
    Ok(())
}

/// The path is udev's name for the adapter, on an image without udev.
const SCALE: &str = "\
apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: {name: scale}
spec:
  protocol: serial
  properties:
  - {name: weight, type: FLOAT, accessMode: ReadOnly, unit: kg}
---
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {name: scale}
spec:
  deviceModelRef: {name: scale}
  nodeName: demo-node
  protocol:
    protocolName: serial
    configData: {path: /dev/serial/by-id/usb-QEMU_QEMU_USB_SERIAL_NUMBER-if00-port0, baudRate: 9600}
  properties:
  - name: weight
    reportToCloud: true
    visitors: {protocolName: serial, configData: {pattern: \"ST,GS,+*kg\"}}
";

fn device_steps(
    kubectl: &Kubectl,
    sample: &Path,
    machine: &mut Machine,
    steps: &mut Steps,
    report: &mut Report,
) -> Result<()> {
    steps.step("devices applied and reported", || {
        kubectl.apply(sample)?;
        wait_for(STEP, "the button's first value", || kubectl.reported("panel", "button"))
    })?;
    let mut panel = Watch::start(kubectl, &["devicestatus", "panel"])?;
    let (ms, _) = steps.step("button pressed outside, seen in the cloud", || {
        // Twice, and only the second counts: the first finds every cache cold.
        let mut took = 0;
        for level in [true, false] {
            machine.gpio().set_input(BUTTON_LINE, level)?;
            let set = Instant::now();
            let wanted = level.to_string();
            let seen = panel.until(STEP, |status| reported(status, "button") == Some(&wanted))?;
            took = seen.saturating_duration_since(set).as_millis() as u64;
        }
        Ok(took)
    })?;
    report.set("twin_reported_ms", ms);
    let (ms, _) = steps.step("thermometer speaks on the serial line, seen in the cloud", || {
        let mut line = machine.serial(0)?;
        let mut took = 0;
        for value in ["20.5", "21.5"] {
            line.write_all(format!("temperature={value}\n").as_bytes())?;
            let sent = Instant::now();
            wait_for(STEP, "device status", || {
                Ok(kubectl.reported("thermometer", "temperature")?.filter(|v| v == value))
            })?;
            took = sent.elapsed().as_millis() as u64;
        }
        Ok(took)
    })?;
    report.set("serial_reported_ms", ms);
    usb_scale(kubectl, machine, steps)?;
    // Last, since the power may be cut right after it: what was seen on the line must be there again.
    let (ms, _) = steps.step("lamp switched with kubectl, seen on the line", || {
        let begun = Instant::now();
        kubectl.set_desired("panel", "lamp", "true")?;
        wait_until(STEP, "lamp on", || Ok((machine.gpio().output(LAMP_LINE)? == Some(true)).then_some(())))?;
        Ok(begun.elapsed().as_millis() as u64)
    })?;
    report.set("twin_desired_ms", ms);
    Ok(())
}

/// The figures of init's line `kinglet: memory kB edgecore=5120 mapper=900 ...`.
fn memory(line: &str) -> Vec<(String, u64)> {
    let words = line.split_whitespace().filter_map(|word| word.split_once('='));
    words.filter_map(|(program, kb)| Some((program.to_owned(), kb.parse().ok()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_line_is_read() {
        let line = "[   21.0] kinglet: memory kB edgecore=5120 line-holder=600 containerd=41000";
        let expected = [("edgecore", 5120), ("line-holder", 600), ("containerd", 41000)]
            .map(|(p, kb)| (p.to_owned(), kb));
        assert_eq!(memory(line), expected);
    }
}
