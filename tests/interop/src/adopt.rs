//! `edgecore adopt` on a node that an unmodified KubeEdge edgecore ran until then, and back: the same containers, processes, volumes
//! and twins all the way, with kubectl's logs and exec in between.
//!
//! Not here: power cuts between the steps, which edgecore's own tests make (`edgecore/src/adopt/tests.rs`).

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use e2e::{
    cloud::Cloud,
    containerd,
    kubectl::Kubectl,
    process::{Process, tail},
    steps::{Steps, wait_for, wait_until},
};
use serde_json::Value;

use crate::{
    Bench, Flow, Peer,
    stock_edge::{
        mqtt,
        node::{BROKER, StockNode},
    },
};

pub const FLOWS: &[Flow] =
    &[Flow { name: "adopt takes a stock edge over and gives it back", needs: &[Peer::Edgecore], run: story }];

const NODE: &str = "moved-1";
const READY: Duration = Duration::from_secs(150);
const SOON: Duration = Duration::from_secs(60);

const OBJECTS: &str = "\
apiVersion: v1
kind: ConfigMap
metadata: { name: settings }
data: { a: first }
---
apiVersion: v1
kind: Secret
metadata: { name: keys }
stringData: { k: hidden }
---
apiVersion: v1
kind: Pod
metadata: { name: web }
spec:
  nodeName: moved-1
  terminationGracePeriodSeconds: 1
  dnsPolicy: Default
  containers:
  - name: c
    image: docker.io/kinglet/busybox:1
    imagePullPolicy: Never
    command: [sh, -c, 'echo it runs; echo kept > /disk/f; echo kept > /ram/f; exec sleep 100000']
    volumeMounts:
    - { name: cm, mountPath: /cm }
    - { name: sec, mountPath: /sec }
    - { name: disk, mountPath: /disk }
    - { name: ram, mountPath: /ram }
  volumes:
  - { name: cm, configMap: { name: settings } }
  - { name: sec, secret: { secretName: keys } }
  - { name: disk, emptyDir: {} }
  - { name: ram, emptyDir: { medium: Memory, sizeLimit: 1Mi } }
---
apiVersion: v1
kind: Pod
metadata: { name: second }
spec:
  nodeName: moved-1
  terminationGracePeriodSeconds: 1
  dnsPolicy: Default
  hostNetwork: true
  initContainers:
  - { name: first, image: 'docker.io/kinglet/busybox:1', imagePullPolicy: Never, command: ['true'] }
  containers:
  - { name: c, image: 'docker.io/kinglet/busybox:1', imagePullPolicy: Never, command: [sleep, '100000'] }
";

const DEVICES: &str = "\
apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: { name: thermo }
spec:
  protocol: modbus
  properties: [{ name: temperature, type: INT, accessMode: ReadWrite }]
---
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: { name: oven }
spec:
  deviceModelRef: { name: thermo }
  nodeName: moved-1
  protocol: { protocolName: modbus, configData: { port: 502 } }
  properties:
  - name: temperature
    desired: { value: '20' }
    reportToCloud: true
    visitors: { protocolName: modbus, configData: { register: HoldingRegister, offset: 3 } }
";

fn story(bench: &Bench, steps: &mut Steps) -> Result<()> {
    if let Some(lack) = containerd::missing() {
        anyhow::bail!("this machine cannot run a stock edge: {lack}");
    }
    let mut cloud =
        Cloud::new(&bench.programs.cloudcore, &bench.dir.join("cloud"), &["127.0.0.1"])?.with_tunnel();
    steps.step("our cloudcore starts", || cloud.start())?;
    let kubectl = cloud.kubectl(&bench.programs.kubectl);
    let stock = bench.peers()?.get(Peer::Edgecore)?;
    let node = StockNode::new(&stock, &bench.programs.images, &bench.dir, NODE)?;
    let mut told = Story { cloud: &cloud, kubectl: &kubectl, bench, node, ours: None };
    let outcome = told.run(steps);
    outcome.with_context(|| {
        let ours = tail(&told.log(), 25);
        format!("the stock edgecore complains:\n{}\nour edgecore:\n{ours}", told.node.complaints())
    })
}

struct Story<'a> {
    cloud: &'a Cloud,
    kubectl: &'a Kubectl,
    bench: &'a Bench,
    node: StockNode,
    ours: Option<Process>,
}

/// What must not change: containers with their starts and restarts, and processes.
type Life = (Vec<String>, Vec<String>);

impl Story<'_> {
    fn run(&mut self, steps: &mut Steps) -> Result<()> {
        steps.step("a stock edge joins and is Ready", || {
            self.node.configure(self.cloud, &self.cloud.token(&[])?)?;
            self.node.start()?;
            self.ready()
        })?;
        steps.step("two pods with volumes run, a device reports", || {
            self.kubectl.apply_text(&self.bench.dir, &format!("{OBJECTS}---\n{DEVICES}"))?;
            self.running("web")?;
            self.running("second")?;
            self.reports("41")
        })?;
        let life = self.life()?;
        let (plan, _) = steps.step("a dry run tells what would be done, and changes nothing", || {
            let plan = self.adopt(&["--dry-run"])?;
            let parts = ["default/web: 1 running", "default/second: 1 running", "1 devices with 1 twins"];
            ensure!(parts.iter().all(|part| plan.contains(part)), "{plan}");
            ensure!(self.life()? == life, "a dry run touched containers");
            Ok(plan)
        })?;
        println!("{}", plan.trim_end());
        steps.step("adopt ends the stock agent and takes the node over", || {
            let told = self.adopt(&[])?;
            ensure!(told.contains("was taken over"), "{told}");
            self.node.gone()?;
            ensure!(self.life()?.1 == life.1, "containers were touched");
            Ok(())
        })?;
        steps.step("our agent is Ready, the containers are the same", || {
            self.start_ours()?;
            self.ready()?;
            self.is_ours()?;
            self.same(&life)
        })?;
        steps.step("logs, exec and volumes go on", || {
            let log = self.kubectl.run(&["logs", "web"])?;
            ensure!(log == "it runs\n", "the log is {log:?}");
            let seen = self.in_web("echo $(cat /cm/a) $(cat /sec/k) $(cat /disk/f) $(cat /ram/f)")?;
            ensure!(seen.trim() == "first hidden kept kept", "the pod sees {seen:?}");
            self.changes("second")
        })?;
        steps.step("the device's twin goes on", || self.reports("42"))?;
        steps.step("a new pod starts and is deleted", || {
            let pod = OBJECTS.rsplit("---").next().unwrap_or_default().replace("name: second", "name: third");
            self.kubectl.apply_text(&self.bench.dir, &pod)?;
            self.running("third")?;
            self.kubectl.run(&["delete", "pod", "third", "--timeout=60s"]).map(drop)
        })?;
        steps.step("our agent killed and started: still the same containers", || {
            self.kill_ours()?;
            self.start_ours()?;
            self.ready()?;
            self.same(&life)
        })?;
        steps.step("adopt --undo gives the node back", || {
            let told = self.adopt(&["--undo"])?;
            ensure!(told.contains("is KubeEdge's again"), "{told}");
            self.ours.take();
            ensure!(self.life()?.1 == life.1, "containers were touched");
            Ok(())
        })?;
        steps.step("the stock edge is Ready, the containers are the same", || {
            self.node.start()?;
            self.ready()?;
            self.same(&life)?;
            self.reports("43")?;
            // Told, not asked for: any start of KubeEdge's edgecore may empty the volumes of pods that run (docs/adopt.md).
            let seen = self.in_web("echo $(cat /cm/a /disk/f)").unwrap_or_else(|error| error.to_string());
            println!("    after the start of KubeEdge's edgecore its pod sees {:?}", seen.trim());
            Ok(())
        })?;
        Ok(())
    }

    fn config(&self) -> PathBuf {
        self.bench.dir.join(NODE).join("edgecore.yaml")
    }

    fn log(&self) -> PathBuf {
        self.bench.dir.join("ours.log")
    }

    fn adopt(&self, words: &[&str]) -> Result<String> {
        let program = self.bench.programs.edgecore.to_str().context("a path in UTF-8")?;
        let mut command = self.node.inside(program)?;
        let ran = command.arg("adopt").arg("--config").arg(self.config()).args(words).output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        ensure!(ran.status.success(), "adopt {words:?}: {}{}", text(&ran.stdout), text(&ran.stderr));
        Ok(text(&ran.stdout))
    }

    fn start_ours(&mut self) -> Result<()> {
        let mut command = self.node.inside("/bin/sh")?;
        // The run folder is the node's own, and in memory, as on a device.
        let script = "mkdir -p /run/kinglet; mountpoint -q /run/kinglet || mount -t tmpfs tmpfs /run/kinglet; \
            for group in /sys/fs/cgroup/*/cgroup.procs; do echo $$ > $group; done 2>/dev/null; exec \"$@\"";
        command.args(["-c", script, "sh"]).arg(&self.bench.programs.edgecore);
        command.arg("--config").arg(self.config());
        self.ours = Some(Process::start("our edgecore", &mut command, &self.log())?);
        Ok(())
    }

    /// As a power cut does, but for what is on the disk.
    fn kill_ours(&mut self) -> Result<()> {
        let mut agent = self.ours.take().context("our edgecore runs")?;
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", agent.pid()))?;
        let sent =
            std::process::Command::new("kill").arg("-KILL").args(children.split_whitespace()).status()?;
        ensure!(sent.success(), "kill {children}: {sent}");
        wait_until(SOON, "the end of our edgecore", || Ok(agent.ended())).map(drop)
    }

    /// Ready, and its lease is renewed: only a link that is up does that.
    fn ready(&mut self) -> Result<()> {
        let renewed = || -> Option<String> {
            let lease = self.kubectl.json(&["get", "lease", NODE, "-n", "kube-node-lease"]).ok()?;
            lease["spec"]["renewTime"].as_str().map(str::to_owned)
        };
        let before = renewed();
        wait_for(READY, "the node to be Ready with a fresh lease", || {
            let fresh = renewed().is_some_and(|now| Some(now) != before);
            Ok((fresh && self.kubectl.node_is_ready(NODE)?).then_some(()))
        })
    }

    fn is_ours(&self) -> Result<()> {
        wait_for(SOON, "the node to tell our version", || {
            let node = self.kubectl.json(&["get", "node", NODE])?;
            let version = node["status"]["nodeInfo"]["kubeletVersion"].as_str().unwrap_or_default();
            let stale = |c: &Value| c["type"] == "DeliveryRecordsStale" && c["status"] == "True";
            let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
            ensure!(
                !conditions.iter().any(stale),
                "a store that was taken over is no empty one: {conditions:?}"
            );
            Ok(version.contains("kinglet").then_some(()))
        })
    }

    fn running(&self, pod: &str) -> Result<()> {
        wait_for(SOON, &format!("pod {pod} to run"), || {
            let object = self.kubectl.json(&["get", "pod", pod])?;
            Ok(object["status"]["containerStatuses"][0]["state"]["running"].is_object().then_some(()))
        })
    }

    fn in_web(&self, script: &str) -> Result<String> {
        self.kubectl.run(&["exec", "web", "--", "sh", "-c", script])
    }

    fn changes(&self, value: &str) -> Result<()> {
        let patch = serde_json::json!({"data": {"a": value}}).to_string();
        self.kubectl.run(&["patch", "configmap", "settings", "-p", &patch])?;
        wait_for(SOON, "the new value in the pod", || Ok((self.in_web("cat /cm/a")? == value).then_some(())))
    }

    fn reports(&self, value: &str) -> Result<()> {
        let payload = format!(
            r#"{{"event_id":"","timestamp":0,"twin":{{"temperature":{{"actual":{{"value":"{value}"}},"metadata":{{"type":"int"}}}}}}}}"#
        );
        wait_for(SOON, "the reported value", || {
            let topic = "$hw/events/device/default/oven/twin/update";
            // Said until it is heard: a device is known to the edge a moment after it is made.
            let said = self.node.in_network(|| mqtt::publish(BROKER, topic, payload.as_bytes()));
            let seen = self.kubectl.reported("oven", "temperature")?;
            Ok((said.is_ok() && seen.is_some_and(|now| now == value)).then_some(()))
        })
    }

    /// As kubectl tells it, and as the runtime does.
    fn life(&self) -> Result<Life> {
        let mut told = Vec::new();
        for pod in ["web", "second"] {
            let object = self.kubectl.json(&["get", "pod", pod])?;
            let status = &object["status"]["containerStatuses"][0];
            let of = |value: &Value| value.to_string();
            told.push(format!(
                "{pod} {} {} {} {}",
                of(&object["metadata"]["uid"]),
                of(&status["containerID"]),
                of(&status["restartCount"]),
                of(&status["state"]["running"]["startedAt"])
            ));
        }
        Ok((told, self.node.containers()?))
    }

    /// Waits for the agent's own word: right after a start the cloud still has that of the agent before.
    fn same(&self, life: &Life) -> Result<()> {
        let last = std::cell::RefCell::new(None);
        let reached = wait_until(SOON, "the same containers", || {
            let now = self.life()?;
            let same = now == *life;
            *last.borrow_mut() = Some(now);
            Ok(same.then_some(()))
        });
        reached.with_context(|| format!("before {life:#?}, now {:#?}", last.borrow()))
    }
}
