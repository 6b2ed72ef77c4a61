//! Two replicas: the node goes to the other one when its own is gone, and nothing happens to its pods.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail, ensure};
use e2e::{
    cloud::Cloud,
    host::NODE,
    process::{Process, tail},
    steps::{Steps, wait_for, wait_until},
};

use super::{LATE, READY, SOON, recorded};
use crate::{Bench, ControlPlane, Running, ports};

pub fn tell(
    bench: &Bench,
    plane: &ControlPlane,
    cloud: &mut Cloud,
    before: &Running,
    steps: &mut Steps,
) -> Result<()> {
    let kubectl = plane.kubectl();
    let (hub, join) = (cloud.hub_port(), cloud.join_port());
    let [other_hub, other_join] = ports::free()?;
    let (other, _) = steps
        .step("a second replica starts in a pod's environment, as its service account", || {
            InPod::start(bench, plane, "b", other_hub, other_join)
        })?;
    steps.step("a token that the first one made is used up for the second one too", || {
        let token = cloud.token(&["--uses", "1"])?;
        let join_at = |port: u16, hub: u16, root: &str, name: &str| {
            let mut command = Command::new(&bench.programs.edgecore);
            command.arg("join").arg("--root").arg(bench.dir.join(root));
            command.args([
                "--cloudcore-ipport",
                &format!("127.0.0.1:{hub}"),
                "--certport",
                &port.to_string(),
            ]);
            command.args(["--token", &token, "--edgenode-name", name]);
            let output = command.output()?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            Ok::<_, anyhow::Error>((output.status.success(), said))
        };
        let (joined, said) = join_at(other_join, other_hub, "second-node", "second-edge")?;
        ensure!(joined, "{said}");
        let (joined, said) = join_at(join, hub, "third-node", "third-edge")?;
        ensure!(!joined && said.contains("already used"), "{said}");
        Ok(())
    })?;
    drop(other);
    steps.step("the node's replica is killed; another one takes its place: nothing is sent again", || {
        cloud.kill();
        let other = InPod::start(bench, plane, "c", hub, join)?;
        kubectl.fresh_lease(NODE, READY)?;
        before.goes_on(&kubectl)?;
        kubectl.apply_text(&bench.dir, &LATE.replace("NODE", NODE))?;
        kubectl.run(&["wait", "--for=condition=Ready", "pod/late", "--timeout=60s"])?;
        recorded(&kubectl, &[("Pod", "late")])?;
        kubectl.run(&["delete", "pod", "late", "--timeout=60s"])?;
        let log = std::fs::read_to_string(&other.process.log)?;
        let again = log.lines().find(|line| line.contains("default/pod/web"));
        ensure!(again.is_none(), "sent again: {again:?}");
        other.process.stop(SOON)
    })?;
    kubectl_follows(bench, plane, cloud, before, steps)?;
    steps.step("a deleted Node is made anew by the living edge", || {
        let uid = || kubectl.run(&["get", "node", NODE, "-o", "jsonpath={.metadata.uid}"]);
        let before = uid()?;
        kubectl.run(&["delete", "node", NODE])?;
        wait_for(READY, "a new Node", || Ok((uid()? != before && kubectl.node_is_ready(NODE)?).then_some(())))
    })?;
    Ok(())
}

/// The node's link moves from replica to replica while both run: the API server finds the kubelet at the one that has it.
fn kubectl_follows(
    bench: &Bench,
    plane: &ControlPlane,
    cloud: &mut Cloud,
    before: &Running,
    steps: &mut Steps,
) -> Result<()> {
    let kubectl = plane.kubectl();
    let kubeconfig = plane.kubeconfig_of("kubeedge", super::rights::ACCOUNT)?;
    let (certificate, key) = plane.certificate("stream", "/CN=cloudcore")?;
    let replica = |name: &str| -> Result<Cloud> {
        let cloud = Cloud::new(&bench.programs.cloudcore, &bench.dir.join(name), &["127.0.0.1"])?;
        let cloud = cloud.on_cluster(&kubeconfig).with_tunnel();
        Ok(cloud
            .with_stream([plane.ca(), certificate.clone(), key.clone()])
            .with_flags(&["--kubelet-address", "127.0.0.1"]))
    };
    let (hub, join) = (cloud.hub_port(), cloud.join_port());
    // This node has its streams in a tunnel, which ends where its link does.
    let tunnel = cloud.tunnel_port();
    let (mut with_link, mut without) = (replica("d")?.at(hub, join, tunnel), replica("e")?);
    steps.step(
        "two replicas run: kubectl logs and exec reach the node at the one that has its link",
        || {
            with_link.start()?;
            without.start()?;
            kubectl.fresh_lease(NODE, READY)?;
            super::streams::logs_and_exec(&kubectl, &with_link)
        },
    )?;
    steps.step(
        "the node's link moves to a third replica: kubectl follows it there, no container restarts",
        || {
            with_link.kill();
            // Where the node dials; its stream port is another one.
            cloud.start()?;
            kubectl.fresh_lease(NODE, READY)?;
            super::streams::logs_and_exec(&kubectl, cloud)?;
            without.stop()?;
            before.goes_on(&kubectl)
        },
    )?;
    Ok(())
}

/// cloudcore as it is in a pod: a mount namespace with the service account's files, the variables of the cluster, no kubeconfig.
pub struct InPod {
    pub process: Process,
}

const FILES: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

impl InPod {
    pub fn start(bench: &Bench, plane: &ControlPlane, name: &str, hub: u16, join: u16) -> Result<InPod> {
        let dir = bench.dir.join(name);
        std::fs::create_dir_all(&dir)?;
        let files = dir.join("serviceaccount");
        std::fs::create_dir_all(&files)?;
        let token = ["create", "token", super::rights::ACCOUNT, "-n", "kubeedge", "--duration=1h"];
        std::fs::write(files.join("token"), plane.kubectl().run(&token)?.trim())?;
        std::fs::write(files.join("namespace"), "kubeedge")?;
        std::fs::copy(plane.ca(), files.join("ca.crt"))?;
        let endpoints = dir.join("endpoints.json");
        drop(std::fs::remove_file(&endpoints));
        // The folder of secrets may not be there outside, and must not stay there: an empty file system is mounted over /var/run.
        let script = format!(
            "mount -t tmpfs tmpfs $(readlink -f /var/run) && mkdir -p {FILES} && cp {}/* {FILES}/ && exec \"$@\"",
            quoted(&files)?
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]);
        command.arg(&bench.programs.cloudcore).arg("--data-dir").arg(&dir);
        command.args(["--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1"]);
        command.args(["--hub-port", &hub.to_string(), "--join-port", &join.to_string()]);
        command.args(["--log", "info,cloudcore::hub=debug"]);
        command.env("KUBERNETES_SERVICE_HOST", "127.0.0.1");
        command.env("KUBERNETES_SERVICE_PORT", plane.port().to_string());
        let mut process = Process::start("cloudcore in a pod", &mut command, &dir.join("cloudcore.log"))?;
        wait_until(SOON, "cloudcore's listeners", || {
            if let Some(status) = process.ended() {
                bail!("cloudcore ended with {status}:\n{}", tail(&process.log, 10));
            }
            Ok(endpoints.exists().then_some(()))
        })?;
        let log = std::fs::read_to_string(&process.log)?;
        ensure!(log.contains("of the cluster that this is a pod of"), "{log}");
        Ok(InPod { process })
    }
}

fn quoted(path: &Path) -> Result<String> {
    let text = path.to_str().context("path is not UTF-8")?;
    ensure!(!text.contains('\''), "a quote in {text}");
    Ok(format!("'{text}'"))
}
