//! Our edgecore at an unmodified KubeEdge cloudcore on a real kube-apiserver: join, pods, streams, devices, tasks, restarts, and a
//! device that was imaged anew.
//!
//! The same story for each version of KubeEdge that is among the peers.
//! The doubles that `cargo test` runs are in `edgecore/src/stock_cloud`; docs/interop.md has the results.

pub mod cloudcore;
mod crds;
mod devices;
mod life;
mod pods;
mod tasks;

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use e2e::{
    host::{NODE, Node},
    kubectl::{Kubectl, condition},
    process::tail,
    steps::{Steps, wait_for},
};
use serde_json::Value;

use crate::{Bench, ControlPlane, Flow, Peer};
use cloudcore::StockCloud;

macro_rules! flow {
    ($name:literal, $peer:expr) => {
        Flow {
            name: $name,
            needs: &[Peer::Etcd, Peer::Apiserver, Peer::ControllerManager, $peer],
            run: |bench, steps| edge_at_stock_cloud(bench, steps, $peer),
        }
    };
}

pub const FLOWS: &[Flow] = &[
    flow!("our edgecore at a KubeEdge cloudcore", Peer::Cloudcore),
    flow!("our edgecore at a KubeEdge cloudcore of v1.22", Peer::Cloudcore122),
    flow!("our edgecore at a KubeEdge cloudcore of v1.21", Peer::Cloudcore121),
    flow!("our edgecore at a KubeEdge cloudcore of v1.20", Peer::Cloudcore120),
];

const READY: Duration = Duration::from_secs(90);
const SOON: Duration = Duration::from_secs(40);

/// Everything of one run.
pub(crate) struct Story<'a> {
    plane: ControlPlane,
    cloud: StockCloud,
    node: Node,
    kubectl: Kubectl,
    dir: &'a Path,
}

fn edge_at_stock_cloud(bench: &Bench, steps: &mut Steps, peer: Peer) -> Result<()> {
    if let Some(why) = e2e::containerd::missing() {
        bail!("this flow {why}");
    }
    let peers = bench.peers()?;
    // Nobody resolves the node's name here.
    let by_address = ["--kubelet-preferred-address-types=InternalIP"];
    let (plane, _) =
        steps.step("a control plane starts", || ControlPlane::start(peers, &bench.dir, &by_address))?;
    let kubectl = plane.kubectl();
    let mut cloud = StockCloud::new(&peers.get(peer)?, &plane, &bench.dir)?;
    steps.step(&format!("KubeEdge cloudcore {} starts", cloud.version), || cloud.start())?;
    let node = Node::new(&bench.programs, &bench.dir)?;
    let mut story = Story { plane, cloud, node, kubectl, dir: &bench.dir };
    let told = story.tell(steps);
    told.with_context(|| {
        let (edge, cloud) = (tail(&story.node.log(), 25), tail(&story.cloud.log(), 15));
        format!("edgecore's log:\n{edge}\ncloudcore's log:\n{cloud}")
    })
}

impl Story<'_> {
    fn tell(&mut self, steps: &mut Steps) -> Result<()> {
        steps.step("a wrong token is refused, and the reason named", || self.wrong_token())?;
        steps.step("join by KubeEdge's token", || self.join())?;
        steps.step("node Ready, with its labels, a lease and cloudcore's annotation", || {
            self.node.start()?;
            self.ready()
        })?;
        let before = pods::tell(self, steps)?;
        devices::tell(self, steps)?;
        tasks::tell(self, steps)?;
        life::tell(self, &before, steps)
    }

    fn wrong_token(&mut self) -> Result<()> {
        let token = self.cloud.token(&self.kubectl)?;
        let (digest, _) = token.split_once('.').context("a token has parts")?;
        let (hub, join, tunnel) = (self.cloud.hub, self.cloud.join, Some(self.cloud.tunnel));
        for (bad, said) in
            [(format!("{}.a.b.c", "0".repeat(64)), "token"), (format!("{digest}.a.b.c"), "token")]
        {
            let error = self.node.join_at(hub, join, tunnel, &bad, NODE).err().context("it joined")?;
            ensure!(error.to_string().contains(said), "{error:#}");
        }
        Ok(())
    }

    pub fn join(&mut self) -> Result<()> {
        let token = self.cloud.token(&self.kubectl)?;
        self.node.join_at(self.cloud.hub, self.cloud.join, Some(self.cloud.tunnel), &token, NODE)
    }

    fn ready(&self) -> Result<()> {
        wait_for(READY, "node Ready", || Ok(self.kubectl.node_is_ready(NODE)?.then_some(())))?;
        let node = self.kubectl.json(&["get", "node", NODE])?;
        let labels = &node["metadata"]["labels"];
        for (label, value) in [
            ("node-role.kubernetes.io/edge", ""),
            ("node-role.kubernetes.io/agent", ""),
            ("kubernetes.io/hostname", NODE),
            ("kubernetes.io/os", "linux"),
        ] {
            ensure!(labels[label] == value, "label {label} is {}", labels[label]);
        }
        ensure!(labels["kubernetes.io/arch"].is_string(), "{labels}");
        ensure!(
            node["metadata"]["annotations"]["cloudcore"].is_string(),
            "{}",
            node["metadata"]["annotations"]
        );
        let version = node["status"]["nodeInfo"]["kubeletVersion"].as_str().unwrap_or_default();
        ensure!(version.contains("-kinglet-v"), "{version}");
        let lease = self.kubectl.json(&["get", "lease", NODE, "-n", "kube-node-lease"])?;
        ensure!(lease["metadata"]["ownerReferences"][0]["uid"] == node["metadata"]["uid"], "{lease}");
        self.kubectl.fresh_lease(NODE, SOON)
    }

    /// A program in the node's network; its standard output.
    pub fn in_network(&self, program: &str, args: &[&str]) -> Result<String> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.node.containerd.inside()?)).arg(program).args(args);
        let output = command.output().with_context(|| format!("run {program}"))?;
        ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub fn condition(&self, kind: &str) -> Result<Option<Value>> {
        let node = self.kubectl.json(&["get", "node", NODE])?;
        Ok(condition(&node, kind).filter(|condition| condition["status"] == "True").cloned())
    }
}
