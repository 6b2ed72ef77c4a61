//! Wrong things said to a node and to its cloud: each ends in one line that names the thing and the remedy, and costs nothing that
//! was stored. Told on a node of the host story, whose pod goes on throughout.
//!
//! Elsewhere: a store damaged in the middle and a missing containerd socket ([`crate::host`]), a truncated provisioning file
//! (init's own tests).

use std::{path::Path, process::Command, time::Duration, time::Instant};

use anyhow::{Context, Result, ensure};

use crate::{
    cloud::Cloud,
    host::{NODE, Node, Running, SOON, free_port, fresh_lease, unchanged},
    kubectl::Kubectl,
    steps::{Steps, wait_for, wait_until},
};

/// Bytes that no write of the store ends in.
const GARBAGE: [u8; 100] = [0xa5; 100];

pub fn run(
    cloud: &Cloud,
    node: &mut Node,
    kubectl: &Kubectl,
    before: &Running,
    steps: &mut Steps,
) -> Result<()> {
    let dir = node.root().join("bad-input");
    std::fs::create_dir_all(&dir)?;
    joins(cloud, node, &dir, steps)?;
    objects(node, kubectl, &dir, steps)?;
    steps.step("a corrupt end of the store: cut off, kept aside, said in the log, nothing lost", || {
        corrupt_tail(node)?;
        fresh_lease(kubectl)?;
        unchanged(kubectl, node, before)
    })?;
    Ok(())
}

/// A join that must be refused: of a device of its own, so that the node that runs is not touched.
struct Join<'a> {
    cloud: &'a Cloud,
    node: &'a Node,
    dir: &'a Path,
}

impl Join<'_> {
    /// The one line that it ends in.
    fn refused(&self, case: &str, token: &str, name: &str, join_port: u16) -> Result<String> {
        let root = self.dir.join(case);
        let mut command = Command::new(&self.node.programs.edgecore);
        command.arg("join").arg("--root").arg(&root);
        command.args(["--cloudcore-ipport", &format!("127.0.0.1:{}", self.cloud.hub_port())]);
        command.args(["--certport", &join_port.to_string(), "--token", token, "--edgenode-name", name]);
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        ensure!(!output.status.success(), "the join succeeded");
        ensure!(said.lines().count() == 1, "not one line: {said:?}");
        ensure!(!root.join("etc/kubeedge/certs/node.pem").exists(), "a certificate was written");
        let status = std::fs::read_to_string(root.join("run/kinglet/edgecore.json"))?;
        let status: serde_json::Value = serde_json::from_str(&status)?;
        let line = said.strip_prefix("edgecore: ").with_context(|| format!("who says it? {said}"))?;
        ensure!(
            status["state"] == "Failed" && status["error"].as_str().is_some_and(|error| line.contains(error)),
            "edgecore.json, which status.txt is made from, has {status}, the console {line:?}"
        );
        Ok(line.to_owned())
    }
}

fn joins(cloud: &Cloud, node: &Node, dir: &Path, steps: &mut Steps) -> Result<()> {
    let join = Join { cloud, node, dir };
    let good = cloud.token(&[])?;
    steps.step("a wrong token is refused", || {
        let line = join.refused("wrong-token", &mutilated(&good)?, "wrong-token", cloud.join_port())?;
        names(&line, &["token is not signed by this cloud", "cloudcore token"])
    })?;
    steps.step("an expired token is refused", || {
        let token = cloud.token(&["--ttl", "1s"])?;
        let made = Instant::now();
        wait_until(SOON, "its end", || Ok((made.elapsed() > Duration::from_secs(2)).then_some(())))?;
        let line = join.refused("expired", &token, "expired", cloud.join_port())?;
        names(&line, &["token expired at", "cloudcore token"])
    })?;
    steps.step("a token with another CA's hash is refused before it is sent", || {
        let (hash, rest) = good.split_once('.').context("a token is HASH.REST")?;
        let other: String = hash.chars().map(|c| if c == '0' { '1' } else { '0' }).collect();
        let line = join.refused("wrong-ca", &format!("{other}.{rest}"), "wrong-ca", cloud.join_port())?;
        names(&line, &["another cloud", &other, hash, "check the address", "cloudcore token"])
    })?;
    steps.step("a cloud that cannot be reached is named", || {
        let port = free_port()?;
        let line = join.refused("unreachable", &good, "unreachable", port)?;
        names(&line, &[&format!("127.0.0.1:{port}"), "check the address, --certport"])
    })?;
    steps.step("a node name that is taken is refused", || {
        let line = join.refused("taken", &cloud.token(&[])?, NODE, cloud.join_port())?;
        names(
            &line,
            &[
                &format!("node name {NODE} is taken"),
                &format!("cloudcore node reset {NODE}"),
                "--edgenode-name",
            ],
        )
    })?;
    Ok(())
}

fn objects(node: &Node, kubectl: &Kubectl, dir: &Path, steps: &mut Steps) -> Result<()> {
    steps.step("a malformed device says in its status which field to correct", || {
        kubectl.apply_text(dir, &malformed_device())?;
        let reason = wait_for(SOON, "the device's status", || {
            let status = &kubectl.json(&["get", "devicestatus", "malformed"])?["status"];
            let reason = status["extensions"]["reason"].as_str().map(str::to_owned);
            Ok(reason.filter(|_| status["state"] == "unhealthy"))
        })?;
        names(&reason, &["spec.properties[0].name", "no property humidity", "use one of temperature"])?;
        let log = std::fs::read_to_string(node.log())?;
        let said = log.lines().any(|line| line.contains("default/malformed") && line.contains(&reason));
        ensure!(said, "edgecore's log does not say {reason:?}");
        let good = kubectl.reported("thermometer", "temperature")?;
        ensure!(good.as_deref() == Some("21.5"), "the thermometer's value is now {good:?}");
        kubectl.run(&["delete", "device", "malformed"]).map(drop)
    })?;
    steps.step("a malformed pod is refused with the field", || {
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: malformed}\nspec: {containers: [{name: a, imag: b}]}\n";
        let Err(error) = kubectl.apply_text(dir, pod) else { anyhow::bail!("it was accepted") };
        names(&format!("{error:#}"), &["spec.containers[0].imag"])
    })?;
    steps.step("a pod that the node cannot run says in its status why", || {
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: no-image}}\nspec:\n  nodeName: {NODE}\n  containers:\n    \
             - {{name: a, image: \"docker.io/kinglet/absent:1\", imagePullPolicy: Never}}\n"
        );
        kubectl.apply_text(dir, &pod)?;
        let message = wait_for(SOON, "the pod's status", || {
            let pod = kubectl.json(&["get", "pod", "no-image"])?;
            let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
            Ok(waiting["message"].as_str().filter(|message| !message.is_empty()).map(str::to_owned))
        })?;
        names(&message, &["docker.io/kinglet/absent:1"])?;
        kubectl.run(&["delete", "pod", "no-image", "--timeout=60s"]).map(drop)
    })?;
    Ok(())
}

fn malformed_device() -> String {
    format!(
        "apiVersion: devices.kubeedge.io/v1beta1\nkind: Device\nmetadata: {{name: malformed}}\nspec:\n  \
         deviceModelRef: {{name: thermometer}}\n  nodeName: {NODE}\n  \
         protocol: {{protocolName: serial, configData: {{path: /dev/null, framing: lines}}}}\n  \
         properties:\n    - {{name: humidity, visitors: {{protocolName: serial, configData: {{}}}}}}\n"
    )
}

/// Stops the agent, appends what a torn write may leave, and starts it again.
fn corrupt_tail(node: &mut Node) -> Result<()> {
    node.edgecore.take().context("edgecore runs")?.stop(Duration::from_secs(10))?;
    let log = node.store_log();
    let mut bytes = std::fs::read(&log)?;
    let whole = bytes.len();
    bytes.extend(GARBAGE);
    std::fs::write(&log, &bytes)?;
    node.start()?;
    let aside = log.with_file_name("store-1.damaged");
    let kept = wait_for(SOON, "the bytes kept aside", || Ok(Some(std::fs::read(&aside)?)))?;
    ensure!(kept == GARBAGE, "{} has {} bytes, not those cut off", aside.display(), kept.len());
    let expected = [
        format!("{} bytes from byte {whole} were cut off", GARBAGE.len()),
        format!("kept as {}", aside.display()),
        "nothing that had been acknowledged is lost".into(),
    ];
    wait_for(SOON, "the line in the log", || {
        let text = std::fs::read_to_string(node.log())?;
        Ok(text.lines().any(|line| expected.iter().all(|words| line.contains(words))).then_some(()))
    })
}

fn names(line: &str, wanted: &[&str]) -> Result<()> {
    ensure!(line.lines().count() == 1, "not one line: {line:?}");
    let missing: Vec<&&str> = wanted.iter().filter(|words| !line.contains(**words)).collect();
    ensure!(missing.is_empty(), "does not say {missing:?}: {line}");
    Ok(())
}

/// The token with another signature of the same length.
fn mutilated(token: &str) -> Result<String> {
    let (rest, signature) = token.rsplit_once('.').context("a token ends in .SIGNATURE")?;
    let first = if signature.starts_with('A') { 'B' } else { 'A' };
    Ok(format!("{rest}.{first}{}", signature.get(1..).context("a token has a signature")?))
}
