//! The agent on this machine: real containerd, real cloudcore, real kubectl, no emulation. Needs root.
//!
//! What it shows: join by token, a pod through CRI, its page on the host port, and that neither a killed agent nor a killed cloud
//! restarts a container; and that a node without its container runtime says so instead of being Ready.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    Programs, bad_input,
    cloud::Cloud,
    containerd::Containerd,
    kubectl::{Kubectl, condition},
    process::{Process, tail},
    relay::Relay,
    serial_line::SerialLine,
    shared::SharedFolder,
    steps::{Steps, wait_for, wait_until},
};

/// Of the sample pod; the node has a network of its own, so it is free.
const PORT: u16 = 8080;
pub const NODE: &str = "host-edge";
const READY: Duration = Duration::from_secs(60);
pub const SOON: Duration = Duration::from_secs(30);
/// A little longer than cloudcore waits for an acknowledgement.
pub const ACK_WAIT: Duration = Duration::from_secs(6);

/// Steps that a mutation must turn red; see [`crate::mutations`].
pub const POD_RUNS: &str = "pod runs and its page is served on the host port";
pub const NOTHING_TWICE: &str = "nothing had to be sent to the node twice";
pub const SENSOR_SPEAKS: &str = "thermometer speaks on the serial line, seen in the cloud";
const MOVED: &str = "moved to another cloud by join --adopt: the container goes on under the pod's new uid";
pub const CLOUD_RETURNS: &str = "cloud killed and started again: node Ready, the pod untouched";

/// One node on this machine: containerd in namespaces of its own, edgecore below a folder of its own.
pub struct Node {
    pub programs: Programs,
    root: PathBuf,
    /// Of its broker.
    port: u16,
    /// Where its metrics are.
    read_only_port: u16,
    pub containerd: Containerd,
    /// Ports of the cloud, and the way to them from the node's network.
    cloud: Vec<u16>,
    uplink: Option<Relay>,
    pub edgecore: Option<Process>,
    pub mapper: Option<Process>,
    /// Ends after all that uses it.
    _shared: SharedFolder,
}

impl Node {
    pub fn new(programs: &Programs, dir: &Path) -> Result<Node> {
        Node::on(programs, dir, Containerd::start_in)
    }

    /// As [`Node::new`], on the containerd that `start` gives for a folder.
    pub fn on(programs: &Programs, dir: &Path, start: impl Fn(&Path) -> Result<Containerd>) -> Result<Node> {
        let root = dir.join("node");
        std::fs::create_dir_all(&root)?;
        let shared = SharedFolder::new(dir)?;
        let containerd = start(&dir.join("containerd"))?;
        let (port, read_only_port) = (free_port()?, free_port()?);
        Ok(Node {
            programs: programs.clone(),
            root,
            port,
            read_only_port,
            _shared: shared,
            containerd,
            cloud: Vec::new(),
            uplink: None,
            edgecore: None,
            mapper: None,
        })
    }

    pub fn edgecore_command(&self) -> Command {
        Command::new(&self.programs.edgecore)
    }

    /// `edgecore join`, as an operator types it. Its error output on failure.
    pub fn join(&mut self, cloud: &Cloud, token: &str, name: &str) -> Result<()> {
        self.join_at(cloud.hub_port(), cloud.join_port(), cloud.tunnel_port(), token, name)?;
        match cloud.tunnel_port() {
            // The link carries them as well.
            Some(_) => self.add_key("kinglet", "linkStreams: false"),
            None => Ok(()),
        }
    }

    /// As [`Node::join`], at a cloud of which only the ports on this machine's loopback are known.
    pub fn join_at(
        &mut self,
        hub: u16,
        join: u16,
        tunnel: Option<u16>,
        token: &str,
        name: &str,
    ) -> Result<()> {
        self.cloud = [hub, join].into_iter().chain(tunnel).collect();
        let mut command = self.join_command(hub, join, token);
        command.args(["--edgenode-name", name]);
        command.arg("--remote-runtime-endpoint").arg(self.containerd.endpoint());
        self.joined(command)?;
        self.configure(tunnel)
    }

    /// `edgecore alone`: a node without a cloud, whose devices Home Assistant sees.
    pub fn alone(&mut self, name: &str) -> Result<()> {
        let mut command = self.edgecore_command();
        command.arg("alone").arg("--root").arg(&self.root);
        command.args(["--edgenode-name", name, "--discovery-prefix", "homeassistant"]);
        command.arg("--remote-runtime-endpoint").arg(self.containerd.endpoint());
        self.joined(command)?;
        self.configure(None)
    }

    /// Moves the node to another cloud, as an operator would: the agent stopped, `join --adopt`, the agent started.
    fn move_to(&mut self, cloud: &Cloud, token: &str) -> Result<()> {
        let (hub, join) = (cloud.hub_port(), cloud.join_port());
        self.edgecore.take().context("edgecore runs")?.stop(Duration::from_secs(10))?;
        let refused = self.joined(self.join_command(hub, join, token));
        let said = refused.err().map(|error| error.to_string()).unwrap_or_default();
        ensure!(said.contains("--adopt"), "without --adopt: {said:?}");
        let mut command = self.join_command(hub, join, token);
        command.arg("--adopt");
        self.joined(command)?;
        (self.cloud, self.uplink) = (vec![hub, join], None);
        self.start()
    }

    fn join_command(&self, hub: u16, join: u16, token: &str) -> Command {
        let mut command = self.edgecore_command();
        command.arg("join").arg("--root").arg(&self.root);
        command.args(["--cloudcore-ipport", &format!("127.0.0.1:{hub}")]);
        command.args(["--certport", &join.to_string(), "--token", token]);
        command
    }

    fn joined(&self, mut command: Command) -> Result<()> {
        let output = command.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }

    /// What an operator of a plain host would also set: where the node's image archives lie, where the broker listens, and a tunnel's
    /// port that is not KubeEdge's.
    fn configure(&self, tunnel: Option<u16>) -> Result<()> {
        let path = self.root.join("etc/kubeedge/config/edgecore.yaml");
        let mut text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let tunnel =
            tunnel.map(|port| ("edgeStream", format!("{{ enable: true, server: \"127.0.0.1:{port}\" }}")));
        let fixed = [
            ("preloadDir", self.programs.images.display().to_string()),
            ("readOnlyPort", self.read_only_port.to_string()),
            ("mqttServerInternal", format!("tcp://127.0.0.1:{}", self.port)),
        ];
        for (key, value) in fixed.into_iter().chain(tunnel) {
            let old = text.lines().find(|line| line.trim_start().starts_with(&format!("{key}:")));
            let old = old.with_context(|| format!("edgecore.yaml has no {key}"))?.to_owned();
            let indent = &old[..old.len() - old.trim_start().len()];
            text = text.replace(&old, &format!("{indent}{key}: {value}"));
        }
        std::fs::write(&path, text)?;
        let check = self.edgecore_command().args(["config", "check"]).arg(&path).output()?;
        ensure!(check.status.success(), "edgecore config check: {}", String::from_utf8_lossy(&check.stdout));
        Ok(())
    }

    /// Adds a line to a section of edgecore.yaml, as its first one.
    pub fn add_key(&self, section: &str, line: &str) -> Result<()> {
        let path = self.root.join("etc/kubeedge/config/edgecore.yaml");
        let text = std::fs::read_to_string(&path)?;
        let head = text.lines().find(|line| line.trim_start() == format!("{section}:"));
        let head = head.with_context(|| format!("edgecore.yaml has no {section}"))?;
        let indent = head.len() - head.trim_start().len() + 2;
        let with = text.replacen(&format!("{head}\n"), &format!("{head}\n{:indent$}{line}\n", ""), 1);
        Ok(std::fs::write(&path, with)?)
    }

    pub fn start(&mut self) -> Result<()> {
        let inside = self.containerd.inside()?;
        if self.uplink.as_ref().is_none_or(|uplink| uplink.inside() != inside) {
            self.uplink = Some(Relay::start(inside, &self.cloud)?);
        }
        let mut command = self.in_network(&self.programs.edgecore)?;
        command.arg("--config").arg(self.root.join("etc/kubeedge/config/edgecore.yaml"));
        self.edgecore = Some(Process::start("edgecore", &mut command, &self.log())?);
        Ok(())
    }

    /// A program in the node's network, where pods and the runtime's streaming server are reached.
    pub fn in_network(&self, program: &Path) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.containerd.inside()?)).arg(program);
        Ok(command)
    }

    pub fn start_mapper(&mut self) -> Result<()> {
        let mut command = self.in_network(&self.programs.mapper)?;
        command.args(["--broker", &format!("127.0.0.1:{}", self.port)]);
        command.arg("--lines-socket").arg(self.root.join("no-line-holder.sock"));
        self.mapper = Some(Process::start("mapper", &mut command, &self.mapper_log())?);
        Ok(())
    }

    pub fn mapper_log(&self) -> PathBuf {
        self.root.join("mapper.log")
    }

    pub fn broker_port(&self) -> u16 {
        self.port
    }

    pub fn read_only_port(&self) -> u16 {
        self.read_only_port
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn log(&self) -> PathBuf {
        self.root.join("edgecore.log")
    }

    /// The pod's processes.
    pub fn processes(&self) -> Result<Vec<u32>> {
        self.containerd.processes("hello")
    }

    /// What init and people without kubectl read.
    fn state(&self) -> Result<String> {
        let text = std::fs::read_to_string(self.root.join("run/kinglet/edgecore.json"))?;
        let status: serde_json::Value = serde_json::from_str(&text)?;
        Ok(status["state"].as_str().unwrap_or_default().to_owned())
    }

    pub fn store_log(&self) -> PathBuf {
        self.root.join("var/lib/kubeedge/store/store.log")
    }

    /// Stops the agent, exchanges its store's log, starts it again. The log that was there.
    fn with_store_log(&mut self, log: &[u8]) -> Result<Vec<u8>> {
        self.edgecore.take().context("edgecore runs")?.stop(Duration::from_secs(10))?;
        let before = std::fs::read(self.store_log())?;
        std::fs::write(self.store_log(), log)?;
        self.start()?;
        Ok(before)
    }
}

/// What must not change when an agent or a cloud comes back.
#[derive(Debug, PartialEq)]
pub struct Running {
    container: String,
    restarts: i64,
    started_at: String,
    page: String,
    pid: u32,
}

fn page(node: &Node) -> Result<String> {
    let answer = node.containerd.http_get(node.containerd.node_address(PORT), "/")?;
    ensure!(answer.contains(" 200 ") && answer.contains("hello from"), "the page is {answer:?}");
    Ok(answer.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned())
}

fn running(kubectl: &Kubectl, node: &Node) -> Result<Option<Running>> {
    let pod = kubectl.json(&["get", "pod", "hello"])?;
    let status = &pod["status"]["containerStatuses"][0];
    let (Some(container), Some(started_at)) =
        (status["containerID"].as_str(), status["state"]["running"]["startedAt"].as_str())
    else {
        return Ok(None);
    };
    let processes = node.containerd.processes("hello")?;
    let [pid] = processes[..] else { bail!("{} processes named hello", processes.len()) };
    Ok(Some(Running {
        container: container.into(),
        restarts: status["restartCount"].as_i64().unwrap_or(0),
        started_at: started_at.into(),
        page: page(node)?,
        pid,
    }))
}

/// Runs the whole story; the names of the steps that held.
pub fn run(programs: &Programs, dir: &Path, steps: &mut Steps) -> Result<()> {
    let mut cloud = Cloud::new(&programs.cloudcore, &dir.join("cloud"), &["127.0.0.1"])?;
    steps.step("cloudcore starts", || cloud.start())?;
    let kubectl = cloud.kubectl(&programs.kubectl);
    let mut node = Node::new(programs, dir)?;
    let outcome = story(&mut cloud, &mut node, &kubectl, steps);
    outcome.with_context(|| {
        format!("edgecore's log:\n{}\ncloudcore's log:\n{}", tail(&node.log(), 15), tail(&cloud.log(), 15))
    })
}

fn story(cloud: &mut Cloud, node: &mut Node, kubectl: &Kubectl, steps: &mut Steps) -> Result<()> {
    let before = pod_runs(cloud, node, kubectl, steps)?;
    nothing_twice(cloud, 0, ACK_WAIT, steps)?;
    let mut sensor = device(node, kubectl, steps)?;
    sensor_speaks(kubectl, &mut sensor, SOON, steps)?;
    steps.step("agent killed and started again: the pod is adopted", || {
        node.edgecore.take().context("edgecore runs")?.kill();
        node.start()?;
        fresh_lease(kubectl)?;
        unchanged(kubectl, node, &before)
    })?;
    cloud_returns(cloud, node, kubectl, &before, steps, |_| Ok(()))?;
    steps.step("a second agent is told that the first one runs", || {
        let config = node.root.join("etc/kubeedge/config/edgecore.yaml");
        let output = node.edgecore_command().arg("--config").arg(config).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && said.contains("in use by another process"), "{said}");
        unchanged(kubectl, node, &before)
    })?;
    steps.step("a damaged store: the node says so, nothing is lost and nothing stops", || {
        let log = std::fs::read(node.store_log())?;
        let mut damaged = log.clone();
        let middle = damaged.len() / 3;
        damaged[middle] ^= 0xff;
        let whole = node.with_store_log(&damaged)?;
        let shown = wait_for(SOON, "the condition StoreUnreadable", || {
            let node = kubectl.json(&["get", "node", NODE])?;
            let shown = condition(&node, "StoreUnreadable").filter(|c| c["status"] == "True").cloned();
            Ok(shown.filter(|_| condition(&node, "Ready").is_some_and(|ready| ready["status"] == "False")))
        })?;
        let message = shown["message"].as_str().unwrap_or_default();
        ensure!(
            message.contains("store.log is damaged") && message.contains("nothing was changed"),
            "{message}"
        );
        ensure!(node.state()? == "Failed", "edgecore.json says {}", node.state()?);
        page(node).context("the pod goes on")?;
        ensure!(node.with_store_log(&whole)? == damaged, "the damaged log was changed");
        fresh_lease(kubectl)?;
        unchanged(kubectl, node, &before)
    })?;
    // A store that cannot be written acknowledges nothing: what was sent meanwhile was sent again, and rightly so.
    let excused = cloud.resends()?;
    bad_input::run(cloud, node, kubectl, &before, steps)?;
    let (offline, _) = steps.step("power cut and no cloud: the pod runs from local state", || {
        cloud.kill();
        node.edgecore.take().context("edgecore runs")?.kill();
        node.containerd.power_cut()?;
        ensure!(page(node).is_err(), "the power is cut and the page still there");
        let dir = node.containerd.dir().to_path_buf();
        node.containerd = Containerd::start_in(&dir)?;
        node.start()?;
        wait_for(SOON, "the page", || page(node).map(Some))?;
        node.processes()
    })?;
    steps.step("the cloud is back: node Ready, nothing was restarted", || {
        cloud.start()?;
        fresh_lease(kubectl)?;
        wait_for(SOON, "the pod's status", || running(kubectl, node))?;
        let now = node.processes()?;
        ensure!(now == offline, "processes before {offline:?}, now {now:?}");
        Ok(())
    })?;
    nothing_twice(cloud, excused, Duration::ZERO, steps)?;
    let mut second =
        Cloud::new(&node.programs.cloudcore, &node.root.with_file_name("second"), &["127.0.0.1"])?;
    steps.step(MOVED, || moved(node, kubectl, &mut second))?;
    let kubectl = &second.kubectl(&node.programs.kubectl);
    steps.step("pod deleted: gone here and there", || {
        kubectl.run(&["delete", "pod", "hello", "--timeout=60s"])?;
        wait_until(SOON, "page gone", || Ok(page(node).is_err().then_some(())))
    })?;
    steps.step("no container runtime: the node is not Ready and names the socket", || {
        node.containerd.power_cut()?;
        let _ = std::fs::remove_file(node.containerd.socket());
        let shown = wait_for(READY, "Ready False", || {
            let node = kubectl.json(&["get", "node", NODE])?;
            Ok(condition(&node, "Ready").filter(|ready| ready["status"] == "False").cloned())
        })?;
        let message = shown["message"].as_str().unwrap_or_default();
        ensure!(
            message.contains("containerd.sock") && shown["reason"] == "ContainerRuntimeUnavailable",
            "{shown}"
        );
        Ok(())
    })?;
    Ok(())
}

/// Nothing of the first cloud is asked for: the second one has the pod by its name, with a spec and a uid of its own.
fn moved(node: &mut Node, kubectl: &Kubectl, second: &mut Cloud) -> Result<()> {
    let before = running(kubectl, node)?.context("the pod runs")?;
    let uid = |kubectl: &Kubectl| -> Result<String> {
        let pod = kubectl.json(&["get", "pod", "hello"])?;
        Ok(pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned())
    };
    let old = uid(kubectl)?;
    second.start()?;
    let kubectl = second.kubectl(&node.programs.kubectl);
    kubectl.apply(&node.programs.samples.join("pod.yaml"))?;
    node.move_to(second, &second.token(&[])?)?;
    wait_for(READY, "node Ready", || Ok(kubectl.node_is_ready(NODE)?.then_some(())))?;
    let now = wait_for(READY, "pod hello running", || running(&kubectl, node))?;
    ensure!(now == before, "the container was restarted: before {before:?}, now {now:?}");
    let new = uid(&kubectl)?;
    ensure!(!new.is_empty() && new != old, "uid before {old}, now {new}");
    wait_for(SOON, "the log under the new uid", || {
        Ok(kubectl.run(&["logs", "hello"])?.contains("listening").then_some(()))
    })
}

/// A node that has joined and runs the sample pod.
pub fn pod_runs(cloud: &Cloud, node: &mut Node, kubectl: &Kubectl, steps: &mut Steps) -> Result<Running> {
    steps.step("edgecore joins by token", || node.join(cloud, &cloud.token(&[])?, NODE))?;
    steps.step("node is Ready", || {
        node.start()?;
        wait_for(READY, "node Ready", || Ok(kubectl.node_is_ready(NODE)?.then_some(())))
    })?;
    let (before, _) = steps.step(POD_RUNS, || {
        kubectl.apply(&node.programs.samples.join("pod.yaml"))?;
        wait_for(SOON, "pod hello running", || running(kubectl, node))
    })?;
    Ok(before)
}

/// `watched`: how long to look on, since what was sent just now is sent again only after a while.
pub fn nothing_twice(cloud: &Cloud, excused: usize, watched: Duration, steps: &mut Steps) -> Result<()> {
    let begun = Instant::now();
    let check = || {
        wait_until(watched + SOON, "the end of the look", || {
            let resends = cloud.resends()?;
            ensure!(resends <= excused, "{} resend(s): see {}", resends - excused, cloud.log().display());
            Ok((begun.elapsed() >= watched).then_some(()))
        })
    };
    steps.step(NOTHING_TWICE, check).map(drop)
}

/// The sample thermometer on a serial line of ours, up to its first value.
pub fn device(node: &mut Node, kubectl: &Kubectl, steps: &mut Steps) -> Result<SerialLine> {
    let mut line = SerialLine::new()?;
    steps.step("mapper opens a serial line, its first value is seen", || {
        let sample = std::fs::read_to_string(node.programs.samples.join("devices.yaml"))?;
        let thermometer: Vec<&str> =
            sample.split("\n---\n").filter(|part| part.contains("name: thermometer")).collect();
        let objects = thermometer.join("\n---\n");
        let objects =
            objects.replace("demo-node", NODE).replace("/dev/ttyS0", &line.path().display().to_string());
        kubectl.apply_text(&node.root, &objects)?;
        node.start_mapper()?;
        wait_for(SOON, "device status", || {
            // What is said before the port was opened may be lost.
            line.say("temperature=20.5")?;
            Ok(kubectl.reported("thermometer", "temperature")?.filter(|value| value == "20.5"))
        })
    })?;
    Ok(line)
}

pub fn sensor_speaks(
    kubectl: &Kubectl,
    line: &mut SerialLine,
    within: Duration,
    steps: &mut Steps,
) -> Result<()> {
    let speak = || {
        line.say("temperature=21.5")?;
        wait_for(within, "device status", || {
            Ok(kubectl.reported("thermometer", "temperature")?.filter(|value| value == "21.5"))
        })
    };
    steps.step(SENSOR_SPEAKS, speak).map(drop)
}

/// `meanwhile`: what a mutation does between the look before and the look after.
pub fn cloud_returns(
    cloud: &mut Cloud,
    node: &Node,
    kubectl: &Kubectl,
    before: &Running,
    steps: &mut Steps,
    meanwhile: impl FnOnce(&Node) -> Result<()>,
) -> Result<()> {
    let check = || {
        cloud.kill();
        meanwhile(node)?;
        cloud.start()?;
        fresh_lease(kubectl)?;
        unchanged(kubectl, node, before)
    };
    steps.step(CLOUD_RETURNS, check).map(drop)
}

/// A port that nothing listens on at this moment.
pub fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

pub fn fresh_lease(kubectl: &Kubectl) -> Result<()> {
    kubectl.fresh_lease(NODE, READY)
}

pub fn unchanged(kubectl: &Kubectl, node: &Node, before: &Running) -> Result<()> {
    let now = wait_for(SOON, "pod status", || running(kubectl, node))?;
    ensure!(now == *before, "the container was restarted: before {before:?}, now {now:?}");
    Ok(())
}
