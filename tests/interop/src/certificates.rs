//! Certificates over their life between our real programs: short lives, renewals, a node that is away too long, a change of the CA
//! with one node here and one away, a revocation. No peer is needed.
//!
//! The nodes run no pods, so that no container runtime is needed either.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use e2e::{
    kubectl::Kubectl,
    process::{Process, tail},
    steps::{Steps, wait_until},
};

use crate::{Bench, Flow};

/// It needs no peer; it runs where peers are given, since its certificates live seconds, which a busy machine may sleep through.
pub const FLOWS: &[Flow] = &[Flow {
    name: "certificates of our own two ends over their life",
    needs: &[crate::Peer::Kubectl],
    run: life,
}];

/// Seconds that a node's certificate lives.
const LIFE: u64 = 40;
const SOON: Duration = Duration::from_secs(60);

fn life(bench: &Bench, steps: &mut Steps) -> Result<()> {
    let mut cloud = Site::new(bench)?;
    steps.step("cloudcore starts, with certificates that live 40 s", || cloud.start())?;
    let (mut here, mut away) = (Node::new(bench, "here")?, Node::new(bench, "away")?);
    let told = story(&mut cloud, &mut here, &mut away, steps);
    told.with_context(|| {
        let logs = [cloud.log(), here.log(), away.log()];
        logs.map(|log| format!("{}:\n{}", log.display(), tail(&log, 15))).join("\n")
    })
}

fn story(cloud: &mut Site, here: &mut Node, away: &mut Node, steps: &mut Steps) -> Result<()> {
    steps.step("two nodes join", || {
        here.join(cloud)?;
        away.join(cloud)
    })?;
    let first = here.bundle()?;
    here.start()?;
    steps.step(
        "a running node renews its certificate with a new key before it ends, and its link goes over",
        || {
            here.until_linked(cloud)?;
            wait_until(SOON, "another certificate", || Ok((here.bundle()? != first).then_some(())))?;
            let links = here.links(cloud)?;
            wait_until(SOON, "a link with it", || Ok((here.links(cloud)? > links.max(1) - 1).then_some(())))?;
            ensure!(here.openssl("x509 -noout -checkend 0")?, "the certificate in use has ended");
            ensure!(here.path("node.pem.previous").exists(), "the one before is kept");
            Ok(())
        },
    )?;
    steps.step(
        "a node whose certificate ended while it was off renews it at its start, with the key that it has",
        || {
            wait_until(SOON, "the end of the certificate", || {
                Ok((!away.openssl("x509 -noout -checkend 0")?).then_some(()))
            })?;
            // Its Node object must be there: it registered in an earlier life.
            cloud.kubectl.run(&["create", "-f", &away.manifest()?])?;
            let key = away.key()?;
            away.start()?;
            away.until_linked(cloud)?;
            ensure!(away.openssl("x509 -noout -checkend 0")?, "it is renewed");
            let renewed = away.key()?;
            // It may have been renewed once more by now, with another key; the first time it had the old one.
            ensure!(
                renewed == key || std::fs::read_to_string(away.path("node.pem.previous"))?.contains(&key),
                "the key changed at once"
            );
            Ok(())
        },
    )?;
    away.stop();
    steps.step("the CA changes while one node is here and one is away", || {
        cloud.run(&["ca", "rotate"])?;
        wait_until(SOON, "the node here to have a certificate of the new CA", || {
            let left = cloud.run(&["ca", "status"])?;
            Ok((!left.contains("now: here") && !left.contains(", here")).then_some(()))
        })?;
        ensure!(cloud.run(&["ca", "status"])?.contains("away"), "the other one has none");
        ensure!(cloud.run(&["ca", "finish"]).is_err(), "the change does not end over its head");
        Ok(())
    })?;
    steps.step("the node that was away comes back, learns the new CA and is let in with it", || {
        away.start()?;
        away.until_linked(cloud)?;
        wait_until(SOON, "every node to have a certificate of the new CA", || {
            Ok(cloud.run(&["ca", "status"])?.contains("every node").then_some(()))
        })?;
        cloud.run(&["ca", "finish"]).map(drop)
    })?;
    steps.step(
        "both nodes go on after the old CA is gone, also with a cloudcore that starts anew",
        || {
            cloud.stop()?;
            cloud.start()?;
            here.until_linked(cloud)?;
            away.until_linked(cloud)
        },
    )?;
    steps.step("a revoked node is out within seconds and says why; taken back, it returns", || {
        cloud.run(&["revoke", "here", "--reason", "stolen"])?;
        wait_until(SOON, "the node to say that it was revoked", || {
            Ok(here.says("here was revoked (stolen)")?.then_some(()))
        })?;
        cloud.run(&["unrevoke", "here"])?;
        here.until_linked(cloud)
    })?;
    Ok(())
}

struct Site {
    program: PathBuf,
    dir: PathBuf,
    kubectl: Kubectl,
    ports: Option<[u16; 2]>,
    running: Option<Process>,
}

impl Site {
    fn new(bench: &Bench) -> Result<Site> {
        let dir = bench.dir.join("cloud");
        std::fs::create_dir_all(&dir)?;
        let kubectl = Kubectl::new(&bench.programs.kubectl, &dir.join("kubeconfig"), &dir.join("kubectl"));
        Ok(Site { program: bench.programs.cloudcore.clone(), dir, kubectl, ports: None, running: None })
    }

    fn log(&self) -> PathBuf {
        self.dir.join("cloudcore.log")
    }

    fn start(&mut self) -> Result<()> {
        let config = self.dir.join("cloudcore.yaml");
        std::fs::write(&config, format!("kinglet: {{ edgeCertSeconds: {LIFE} }}\n"))?;
        let endpoints = self.dir.join("endpoints.json");
        let [hub, join] = self.ports.unwrap_or_default().map(|port| port.to_string());
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(&config).arg("--data-dir").arg(&self.dir);
        command.args([
            "--bind-address",
            "127.0.0.1",
            "--api-port",
            "0",
            "--hub-port",
            &hub,
            "--join-port",
            &join,
        ]);
        self.running = Some(Process::start("cloudcore", &mut command, &self.log())?);
        wait_until(SOON, "cloudcore's ports", || Ok(endpoints.exists().then_some(())))?;
        let seen: serde_json::Value = serde_json::from_slice(&std::fs::read(&endpoints)?)?;
        let port = |key: &str| seen[key].as_str().and_then(|text| text.rsplit(':').next()?.parse().ok());
        self.ports = Some([port("hub").context("no hub")?, port("join").context("no join port")?]);
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        self.running.take().map_or(Ok(()), |process| process.stop(Duration::from_secs(20)))
    }

    /// A command of cloudcore's; its output.
    fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(&self.program).args(arguments).arg("--data-dir").arg(&self.dir).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!("cloudcore {}: {text}{}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(text)
    }
}

struct Node {
    name: &'static str,
    program: PathBuf,
    root: PathBuf,
    running: Option<Process>,
}

impl Node {
    fn new(bench: &Bench, name: &'static str) -> Result<Node> {
        let root = bench.dir.join(name);
        std::fs::create_dir_all(&root)?;
        Ok(Node { name, program: bench.programs.edgecore.clone(), root, running: None })
    }

    fn log(&self) -> PathBuf {
        self.root.join("edgecore.log")
    }

    fn config(&self) -> PathBuf {
        self.root.join("etc/kubeedge/config/edgecore.yaml")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join("etc/kubeedge/certs").join(name)
    }

    fn bundle(&self) -> Result<String> {
        std::fs::read_to_string(self.path("node.pem")).context("the node's bundle")
    }

    /// The text of the private key.
    fn key(&self) -> Result<String> {
        let bundle = self.bundle()?;
        let key = bundle
            .split("-----BEGIN EC PRIVATE KEY-----")
            .nth(1)
            .and_then(|rest| rest.split("-----END").next());
        Ok(key.context("a key in the bundle")?.to_owned())
    }

    /// Whether openssl says yes about the certificate in use.
    fn openssl(&self, question: &str) -> Result<bool> {
        let mut command = Command::new("openssl");
        command.args(question.split(' ')).arg("-in").arg(self.path("node.pem"));
        Ok(command.output().context("openssl is needed")?.status.success())
    }

    fn join(&self, cloud: &Site) -> Result<()> {
        let [hub, join] = cloud.ports.context("cloudcore has started")?;
        // For any node: it is not what lets a node in that was away.
        let token = cloud.run(&["token"])?;
        let mut command = Command::new(&self.program);
        command.arg("join").arg("--root").arg(&self.root);
        command.args(["--cloudcore-ipport", &format!("127.0.0.1:{hub}"), "--certport", &join.to_string()]);
        command.args(["--token", token.trim(), "--edgenode-name", self.name]);
        let output = command.output()?;
        ensure!(output.status.success(), "join: {}", String::from_utf8_lossy(&output.stderr));
        self.set("    enable: true\n    hostnameOverride", "    enable: false\n    hostnameOverride")?;
        self.set("eventBus:\n    enable: true", "eventBus:\n    enable: false")?;
        self.set("certificateCheckSeconds: 1800", "certificateCheckSeconds: 1")
    }

    fn set(&self, from: &str, to: &str) -> Result<()> {
        let text = std::fs::read_to_string(self.config())?;
        ensure!(text.contains(from), "edgecore.yaml has no {from:?}");
        Ok(std::fs::write(self.config(), text.replacen(from, to, 1))?)
    }

    /// A Node object as the node itself would have made it.
    fn manifest(&self) -> Result<String> {
        let path = self.root.join("node.yaml");
        std::fs::write(&path, format!("apiVersion: v1\nkind: Node\nmetadata: {{ name: {} }}\n", self.name))?;
        Ok(path.display().to_string())
    }

    fn start(&mut self) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(self.config());
        self.running = Some(Process::start("edgecore", &mut command, &self.log())?);
        Ok(())
    }

    fn stop(&mut self) {
        self.running.take().into_iter().for_each(Process::kill);
    }

    fn says(&self, text: &str) -> Result<bool> {
        Ok(read(&self.log())?.contains(text))
    }

    /// How often the cloud let it in.
    fn links(&self, cloud: &Site) -> Result<usize> {
        Ok(read(&cloud.log())?.matches(&format!("node {} connected from", self.name)).count())
    }

    /// One more link than there are now.
    fn until_linked(&mut self, cloud: &Site) -> Result<()> {
        let ended = self.running.as_mut().and_then(Process::ended);
        ensure!(ended.is_none(), "edgecore {} has ended: {ended:?}", self.name);
        let path = ["get", "lease", "-n", "kube-node-lease", self.name, "-o", "jsonpath={.spec.renewTime}"];
        let lease = |cloud: &Site| cloud.kubectl.run(&path).unwrap_or_default();
        let before = lease(cloud);
        wait_until(SOON, "a lease renewed over the link", || {
            let now = lease(cloud);
            Ok((!now.is_empty() && now != before).then_some(()))
        })
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}
