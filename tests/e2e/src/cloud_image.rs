//! cloudcore from its OCI image: imported into containerd, run by it, joined. No registry, no base image, no Docker.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Result, bail, ensure};

use crate::{
    Programs,
    containerd::Containerd,
    steps::{Steps, wait_for},
};

const REFERENCE: &str = "docker.io/kinglet/cloudcore:1";
const WITHIN: Duration = Duration::from_secs(30);

/// `archive` is what `cargo xtask cloud-image` writes for this machine.
pub fn run(programs: &Programs, archive: &Path, dir: &Path, steps: &mut Steps) -> Result<()> {
    let containerd = Containerd::start_in(&dir.join("cloud-containerd"))?;
    let data = dir.join("cloud-data");
    // runc keeps the state of all containers of a machine in one place, also what a test that was cut off left there.
    let name = format!("cloud-{}", std::process::id());
    std::fs::create_dir_all(&data)?;
    steps.step("the cloud's image is imported and run by containerd", || {
        ctr(&containerd, &["images", "import", &archive.display().to_string()])?;
        let mount = format!("type=bind,src={},dst=/var/lib/kubeedge,options=rbind:rw", data.display());
        let program = ["/cloudcore", "--data-dir", "/var/lib/kubeedge", "--bind-address", "127.0.0.1"];
        let start = ["run", "--detach", "--net-host", "--mount", &mount, REFERENCE, &name];
        ctr(&containerd, &[&start[..], &program[..], &["--advertise-address", "127.0.0.1"]].concat())?;
        wait_for(WITHIN, "endpoints.json", || Ok(data.join("endpoints.json").exists().then_some(())))
    })?;
    steps.step("a node joins the cloud that runs from its image", || {
        let token =
            inside(&containerd, Command::new(&programs.cloudcore).args(["token", "--data-dir"]).arg(&data))?;
        let root = dir.join("cloud-image-node");
        let mut join = Command::new(&programs.edgecore);
        join.arg("join").arg("--root").arg(&root).args(["--cloudcore-ipport", "127.0.0.1:10000"]);
        join.args(["--edgenode-name", "image-edge", "--token", token.trim()]);
        inside(&containerd, &join)?;
        ensure!(root.join("etc/kubeedge/certs/node.pem").exists(), "joined without a certificate");
        let mut nodes = Command::new(&programs.kubectl);
        nodes
            .arg("--kubeconfig")
            .arg(data.join("kubeconfig"))
            .arg("--cache-dir")
            .arg(dir.join("kubectl-cache-2"));
        inside(&containerd, nodes.args(["get", "--raw", "/readyz"])).map(drop)
    })?;
    Ok(())
}

fn ctr(containerd: &Containerd, args: &[&str]) -> Result<String> {
    output(Command::new("ctr").arg("--address").arg(containerd.socket()).args(args))
}

/// Runs a command in the node's network, where the cloud listens.
fn inside(containerd: &Containerd, command: &Command) -> Result<String> {
    let mut entered = Command::new("nsenter");
    entered.arg(format!("--net=/proc/{}/ns/net", containerd.inside()?));
    output(entered.arg(command.get_program()).args(command.get_args()))
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
