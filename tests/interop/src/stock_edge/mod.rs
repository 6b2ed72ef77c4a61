//! Unmodified KubeEdge edgecores with our cloudcore: `edgecore` (v1.23) and `edgecore-1.22` among the peers.
//!
//! Not here: what a stock edge does to bad input and wrong names, which the scripted double in cloudcore's own tests shows, since
//! the real one cannot be made to lie. Start at [`story`]; [`node`] is the edge and what it needs.

pub(crate) mod mqtt;
pub(crate) mod node;

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use e2e::{
    cloud::Cloud,
    containerd,
    kubectl::Kubectl,
    process::tail,
    steps::{Steps, wait_for, wait_until},
};
use serde_json::Value;

use crate::{Bench, ControlPlane, Flow, Peer};
use node::StockNode;

pub const FLOWS: &[Flow] = &[
    Flow { name: "a stock edgecore 1.23 with our cloudcore", needs: &[Peer::Edgecore], run: newest },
    Flow { name: "a stock edgecore 1.22 with our cloudcore", needs: &[Peer::Edgecore122], run: older },
    Flow {
        name: "a stock edgecore 1.23 with our cloudcore on a cluster",
        needs: &[Peer::Edgecore, Peer::Etcd, Peer::Apiserver, Peer::ControllerManager],
        run: on_cluster,
    },
];

const NODE: &str = "stock-1";
/// A stock edge waits half a minute before it dials again; its kubelet looks at the machine's whole state before it registers.
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
  nodeName: stock-1
  terminationGracePeriodSeconds: 1
  dnsPolicy: Default
  containers:
  - name: c
    image: docker.io/kinglet/busybox:1
    imagePullPolicy: Never
    command: [sh, -c, 'echo it runs; exec sleep 100000']
    env: [{ name: K, valueFrom: { secretKeyRef: { name: keys, key: k } } }]
    volumeMounts: [{ name: cm, mountPath: /cm }, { name: sec, mountPath: /sec }, { name: may, mountPath: /may }]
  volumes:
  - { name: cm, configMap: { name: settings } }
  - { name: sec, secret: { secretName: keys } }
  - { name: may, configMap: { name: nobody-made-it, optional: true } }
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
  nodeName: stock-1
  protocol: { protocolName: modbus, configData: { port: 502 } }
  properties:
  - name: temperature
    desired: { value: '20' }
    reportToCloud: true
    visitors: { protocolName: modbus, configData: { register: HoldingRegister, offset: 3 } }
";

/// A pod that sleeps.
fn sleeper(name: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name} }}\nspec:\n  nodeName: {NODE}\n  terminationGracePeriodSeconds: 1\n  dnsPolicy: Default\n  containers:\n  - name: c\n    image: docker.io/kinglet/busybox:1\n    imagePullPolicy: Never\n    command: [sleep, '100000']\n{more}"
    )
}

fn newest(bench: &Bench, steps: &mut Steps) -> Result<()> {
    story(bench, steps, Peer::Edgecore, "v1.23", None)
}

fn older(bench: &Bench, steps: &mut Steps) -> Result<()> {
    story(bench, steps, Peer::Edgecore122, "v1.22", None)
}

fn on_cluster(bench: &Bench, steps: &mut Steps) -> Result<()> {
    let (plane, _) =
        steps.step("a control plane starts", || ControlPlane::start(bench.peers()?, &bench.dir, &[]))?;
    story(bench, steps, Peer::Edgecore, "v1.23", Some(&plane))
}

fn story(
    bench: &Bench,
    steps: &mut Steps,
    peer: Peer,
    version: &str,
    plane: Option<&ControlPlane>,
) -> Result<()> {
    if let Some(lack) = containerd::missing() {
        anyhow::bail!("this machine cannot run a stock edge: {lack}");
    }
    let cloud =
        Cloud::new(&bench.programs.cloudcore, &bench.dir.join("cloud"), &["127.0.0.1"])?.with_tunnel();
    let mut cloud = match plane {
        None => cloud,
        Some(plane) => {
            let (certificate, key) = plane.certificate("stream", "/CN=cloudcore")?;
            cloud.on_cluster(&plane.kubeconfig()).with_stream([plane.ca(), certificate, key])
        }
    };
    steps.step("our cloudcore starts", || cloud.start())?;
    let kubectl = cloud.kubectl(&bench.programs.kubectl);
    let edgecore = bench.peers()?.get(peer)?;
    let mut node = StockNode::new(&edgecore, &bench.programs.images, &bench.dir, NODE)?;
    let mut told = Story { cloud: &mut cloud, kubectl: &kubectl, dir: &bench.dir, version, plane };
    let outcome = told.run(&mut node, steps);
    outcome.with_context(|| {
        let cloud = tail(&told.cloud.log(), 15);
        format!("the stock edgecore complains:\n{}\ncloudcore's log:\n{cloud}", node.complaints())
    })
}

struct Story<'a> {
    cloud: &'a mut Cloud,
    kubectl: &'a Kubectl,
    dir: &'a std::path::Path,
    version: &'a str,
    /// `None`: the embedded API.
    plane: Option<&'a ControlPlane>,
}

impl Story<'_> {
    fn run(&mut self, node: &mut StockNode, steps: &mut Steps) -> Result<()> {
        steps.step("it joins by token and is Ready", || self.joins(node))?;
        steps.step("a pod runs with its config map, secret and token", || self.pod_runs(node))?;
        steps.step("a pod waits for a config map that it needs, and starts when it is made", || {
            self.waits(node)
        })?;
        steps.step("a changed config map reaches its volume", || self.changes(node, "second"))?;
        match self.plane {
            None => steps.step("logs, exec and figures come through the tunnel", || self.streams())?,
            Some(plane) => {
                steps.step("an API server gets logs through the tunnel", || self.stream_port(plane))?
            }
        };
        steps.step("events arrive", || {
            let events =
                self.kubectl.json(&["get", "events", "--field-selector", "involvedObject.name=web"])?;
            let started = events["items"].as_array().into_iter().flatten().any(|e| e["reason"] == "Started");
            ensure!(started, "no event says that the pod has started");
            Ok(())
        })?;
        steps.step("a device reports, from its first value on", || self.device(node))?;
        steps.step("a deleted pod is gone here and there", || {
            let (before, since) = (node.containers()?.len(), node.log_len());
            self.kubectl.run(&["delete", "pod", "waiting", "--timeout=60s"])?;
            wait_until(SOON, "its containers to go", || {
                let told = node.received(since).contains(&"delete default/pod/waiting".to_owned());
                Ok((told && node.containers()?.len() < before).then_some(()))
            })?;
            // What follows on the link comes after the acknowledgement.
            self.ready(node)
        })?;
        steps.step(
            "cloudcore killed and started: nothing acknowledged comes again, nothing is lost",
            || self.cloud_restarts(node),
        )?;
        steps.step("the edge restarted: Ready, the containers are the same", || {
            let before = node.containers()?;
            node.stop("TERM")?;
            node.start()?;
            self.ready(node)?;
            let now = node.containers()?;
            ensure!(now == before, "containers before {before:?}, now {now:?}");
            Ok(())
        })?;
        steps.step(
            "the edge restarted without a cloud: its pods stay; what was changed meanwhile arrives",
            || self.offline(node),
        )?;
        if self.version == "v1.23" {
            steps.step("its database emptied: everything comes again", || self.emptied(node))?;
        }
        steps.step("the cloud saw no push unanswered", || {
            ensure!(self.cloud.resends()? == 0, "{} pushes had to be sent again", self.cloud.resends()?);
            Ok(())
        })?;
        Ok(())
    }

    fn joins(&self, node: &mut StockNode) -> Result<()> {
        node.configure(self.cloud, &self.cloud.token(&[])?)?;
        node.start()?;
        self.ready(node)?;
        let object = self.kubectl.json(&["get", "node", NODE])?;
        let version = object["status"]["nodeInfo"]["kubeletVersion"].as_str().unwrap_or_default();
        ensure!(version.contains(&format!("kubeedge-{}", self.version)), "it is {version}");
        let labels = &object["metadata"]["labels"];
        ensure!(
            labels["node-role.kubernetes.io/edge"] == "" && labels["kubernetes.io/hostname"] == NODE,
            "its labels are {labels}"
        );
        Ok(())
    }

    /// Ready, and its lease is renewed: only a link that is up does that.
    fn ready(&self, node: &mut StockNode) -> Result<()> {
        let renewed = || -> Option<String> {
            let lease = self.kubectl.json(&["get", "lease", NODE, "-n", "kube-node-lease"]).ok()?;
            lease["spec"]["renewTime"].as_str().map(str::to_owned)
        };
        let before = renewed();
        wait_for(READY, "the stock edge to be Ready with a fresh lease", || {
            node.keep_running()?;
            let fresh = renewed().is_some_and(|now| Some(now) != before);
            Ok((fresh && self.kubectl.node_is_ready(NODE)?).then_some(()))
        })
    }

    fn running(&self, pod: &str) -> Result<()> {
        wait_for(SOON, &format!("pod {pod} to run"), || {
            let object = self.kubectl.json(&["get", "pod", pod])?;
            Ok((object["status"]["containerStatuses"][0]["state"]["running"].is_object()).then_some(()))
        })
    }

    /// By kubectl; the cluster's API server here has no way to the node, for which a host would redirect its connections.
    fn in_pod(&self, node: &StockNode, pod: &str, script: &str) -> Result<String> {
        if self.plane.is_none() {
            return self.kubectl.run(&["exec", pod, "--", "sh", "-c", script]);
        }
        let object = self.kubectl.json(&["get", "pod", pod])?;
        let id = object["status"]["containerStatuses"][0]["containerID"].as_str().unwrap_or_default();
        node.in_container(id.trim_start_matches("containerd://"), script)
    }

    fn pod_runs(&self, node: &StockNode) -> Result<()> {
        self.kubectl.apply_text(self.dir, OBJECTS)?;
        self.running("web")?;
        let seen = wait_for(SOON, "the pod's files", || {
            self.in_pod(node, "web", "echo $(cat /cm/a) $(cat /sec/k) $K").map(Some)
        })?;
        ensure!(seen.trim() == "first hidden hidden", "the pod sees {seen:?}");
        let account = "/var/run/secrets/kubernetes.io/serviceaccount";
        let token = self.in_pod(node, "web", &format!("cat {account}/token"))?;
        ensure!(token.trim().split('.').count() == 3, "no token: {token:?}");
        let rest =
            self.in_pod(node, "web", &format!("cat {account}/namespace {account}/ca.crt; ls /may | wc -l"))?;
        ensure!(rest.starts_with("default-----BEGIN CERTIFICATE") && rest.trim().ends_with('0'), "{rest:?}");
        Ok(())
    }

    fn waits(&self, node: &StockNode) -> Result<()> {
        let volume = "    volumeMounts: [{ name: v, mountPath: /v }]\n  volumes: [{ name: v, configMap: { name: later } }]\n";
        self.kubectl.apply_text(self.dir, &sleeper("waiting", volume))?;
        wait_for(SOON, "an event that says what is missing", || {
            let selector = "involvedObject.name=waiting,reason=FailedMount";
            let events = self.kubectl.json(&["get", "events", "--field-selector", selector])?;
            Ok(events["items"].as_array().filter(|items| !items.is_empty()).map(drop))
        })?;
        self.kubectl.run(&["create", "configmap", "later", "--from-literal=x=y"])?;
        self.running("waiting")?;
        let seen = self.in_pod(node, "waiting", "cat /v/x")?;
        ensure!(seen == "y", "the pod sees {seen:?}");
        Ok(())
    }

    fn change(&self, value: &str) -> Result<()> {
        let patch = serde_json::json!({"data": {"a": value}}).to_string();
        self.kubectl.run(&["patch", "configmap", "settings", "-p", &patch]).map(drop)
    }

    fn changes(&self, node: &StockNode, value: &str) -> Result<()> {
        self.change(value)?;
        wait_for(SOON, "the new value in the pod", || {
            Ok((self.in_pod(node, "web", "cat /cm/a")? == value).then_some(()))
        })
    }

    fn streams(&self) -> Result<()> {
        let log = self.kubectl.run(&["logs", "web"])?;
        ensure!(log == "it runs\n", "the log is {log:?}");
        let failed = self.kubectl.command(&["exec", "web", "--", "sh", "-c", "exit 7"]).output()?;
        ensure!(failed.status.code() == Some(7), "exec ended with {}", failed.status);
        let mut cat = self.kubectl.command(&["exec", "-i", "web", "--", "cat"]);
        let input = self.dir.join("input");
        // More than a frame, and not text.
        let bytes: Vec<u8> = (0..50_000_u32).map(|n| (n % 251) as u8).collect();
        std::fs::write(&input, &bytes)?;
        let output = cat.stdin(std::fs::File::open(&input)?).output()?;
        ensure!(output.stdout == bytes, "{} of {} bytes came back", output.stdout.len(), bytes.len());
        let summary: Value = serde_json::from_str(&self.kubectl.run(&[
            "get",
            "--raw",
            &format!("/api/v1/nodes/{NODE}/proxy/stats/summary"),
        ])?)?;
        ensure!(summary["node"]["nodeName"] == NODE, "the summary is of {}", summary["node"]["nodeName"]);
        for path in ["metrics", "metrics/cadvisor", "metrics/resource"] {
            let text = self.kubectl.run(&["get", "--raw", &format!("/api/v1/nodes/{NODE}/proxy/{path}")])?;
            ensure!(text.contains("# TYPE "), "{path} has no figures");
        }
        Ok(())
    }

    /// What a cluster's API server does for `kubectl logs`, with its certificate; anybody else gets nothing.
    fn stream_port(&self, plane: &ControlPlane) -> Result<()> {
        let url = format!("https://127.0.0.1:{}/containerLogs/default/web/c", self.cloud.stream_port());
        let fetch = |as_whom: Option<(PathBuf, PathBuf)>| -> Result<std::process::Output> {
            let mut curl = Command::new("curl");
            curl.args(["--silent", "--show-error", "--max-time", "10", "--noproxy", "*", "--cacert"]);
            curl.arg(plane.ca());
            if let Some((certificate, key)) = as_whom {
                curl.arg("--cert").arg(certificate).arg("--key").arg(key);
            }
            curl.arg(&url).output().context("run curl; install it")
        };
        let logs = fetch(Some(plane.certificate("kubelet-client", "/CN=kube-apiserver")?))?;
        let text = String::from_utf8_lossy(&logs.stdout);
        ensure!(text == "it runs\n", "the log is {text:?}: {}", String::from_utf8_lossy(&logs.stderr));
        ensure!(fetch(None)?.stdout.is_empty(), "the stream port answers without a certificate");
        Ok(())
    }

    fn device(&self, node: &StockNode) -> Result<()> {
        self.kubectl.apply_text(self.dir, DEVICES)?;
        let topic = |rest: &str| format!("$hw/events/device/default/oven/{rest}");
        let say = |rest: &str, payload: &str| {
            node.in_network(|| mqtt::publish(node::BROKER, &topic(rest), payload.as_bytes()))
        };
        let twin = |value: &str| {
            format!(
                r#"{{"event_id":"","timestamp":0,"twin":{{"temperature":{{"actual":{{"value":"{value}"}},"metadata":{{"type":"int"}}}}}}}}"#
            )
        };
        let reported = |value: &str| {
            wait_for(Duration::from_secs(5), "the reported value", || {
                Ok(self.kubectl.reported("oven", "temperature")?.filter(|now| now == value).map(drop))
            })
        };
        // Said until it is heard: the device is known to the edge a moment after it is made.
        wait_for(SOON, "the first value", || {
            say("twin/update", &twin("41"))?;
            reported("41").map(Some)
        })?;
        say("twin/update", &twin("42"))?;
        reported("42")?;
        say("state/update", r#"{"event_id":"","timestamp":0,"state":"online"}"#)?;
        wait_for(SOON, "the state", || {
            let status = self.kubectl.json(&["get", "devicestatus", "oven"])?;
            Ok((status["status"]["state"] == "online").then_some(()))
        })
    }

    fn cloud_restarts(&mut self, node: &mut StockNode) -> Result<()> {
        let before = node.containers()?;
        self.cloud.kill();
        let since = node.log_len();
        self.cloud.start()?;
        // While the edge is not back.
        self.kubectl.apply_text(self.dir, &sleeper("meanwhile", ""))?;
        self.ready(node)?;
        self.running("meanwhile")?;
        let mut received = node.received(since);
        // The certificate of the cluster comes with the first pod of a service account; this is not the first.
        received.dedup();
        ensure!(received == ["insert default/pod/meanwhile"], "from a restarted cloud came {received:?}");
        let now = node.containers()?;
        ensure!(before.iter().all(|id| now.contains(id)), "containers before {before:?}, now {now:?}");
        Ok(())
    }

    fn offline(&mut self, node: &mut StockNode) -> Result<()> {
        let before = node.containers()?;
        node.stop("KILL")?;
        self.change("third")?;
        self.kubectl.run(&["delete", "pod", "meanwhile", "--wait=false"])?;
        self.cloud.kill();
        node.start()?;
        wait_until(SOON, "the kubelet without a cloud", || {
            let asked = node.in_network(|| Ok(std::net::TcpStream::connect(("127.0.0.1", 10350)).is_ok()));
            Ok(asked?.then_some(()))
        })?;
        let now = node.containers()?;
        ensure!(now == before, "without a cloud: containers before {before:?}, now {now:?}");
        let since = node.log_len();
        self.cloud.start()?;
        self.ready(node)?;
        wait_for(READY, "what was changed meanwhile", || {
            let received = node.received(since);
            let has = |line: &str| received.iter().any(|r| r == line);
            let gone = self.kubectl.run(&["get", "pod", "meanwhile"]).is_err();
            Ok((has("update default/configmap/settings") && gone).then_some(()))
        })
    }

    /// It gives up until its own Node comes back; a service manager starts it again.
    fn emptied(&mut self, node: &mut StockNode) -> Result<()> {
        node.stop("TERM")?;
        node.empty_database()?;
        let since = node.log_len();
        node.start()?;
        self.ready(node)?;
        wait_for(SOON, "its pods and devices", || {
            node.keep_running()?;
            let received = node.received(since);
            let wanted = [
                "insert default/pod/web",
                "insert default/configmap/settings",
                "insert default/secret/keys",
                "insert default/device/oven",
            ];
            let missing: Vec<&&str> =
                wanted.iter().filter(|line| !received.iter().any(|r| r == **line)).collect();
            ensure!(missing.is_empty(), "{missing:?} did not come");
            Ok(Some(()))
        })?;
        self.running("web")
    }
}
