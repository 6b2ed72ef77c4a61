//! Restarts of either end, certificates, a deleted Node, and a device that was imaged anew.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use e2e::{
    host::NODE,
    steps::{Steps, wait_for},
};

use super::{
    READY, SOON, Story,
    devices::{publish, twin},
};
use crate::Running;

const LATE: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: late }
spec:
  nodeName: NODE
  terminationGracePeriodSeconds: 1
  containers: [{ name: main, image: "docker.io/kinglet/busybox:1", command: [sleep, "10000"] }]
"#;

pub fn tell(story: &mut Story<'_>, before: &Running, steps: &mut Steps) -> Result<()> {
    let kubectl = story.kubectl.clone();
    let same = || before.goes_on(&kubectl);
    steps.step("edgecore killed and started: pods adopted, what changed meanwhile arrives", || {
        story.node.edgecore.take().context("edgecore runs")?.kill();
        kubectl.run(&["patch", "configmap", "settings", "-p", r#"{"data":{"mode":"while away"}}"#])?;
        story.node.start()?;
        kubectl.fresh_lease(NODE, READY)?;
        mode_is(story, "while away")?;
        same()
    })?;
    steps.step("cloudcore killed and started: pods untouched, a pod made meanwhile runs", || {
        story.cloud.kill();
        kubectl.apply_text(story.dir, &LATE.replace("NODE", NODE))?;
        story.cloud.start()?;
        kubectl.run(&["wait", "--for=condition=Ready", "pod/late", "--timeout=90s"])?;
        same()
    })?;
    steps.step("a pod deleted while the node was away is gone when it is back", || {
        story.node.edgecore.take().context("edgecore runs")?.stop(Duration::from_secs(10))?;
        kubectl.run(&["delete", "pod", "late", "--wait=false"])?;
        story.node.start()?;
        kubectl.run(&["wait", "--for=delete", "pod/late", "--timeout=60s"])?;
        same()
    })?;
    steps.step("a certificate near its end is exchanged for a new one, and the old is left", || {
        rotation(story)
    })?;
    imaged_anew(story, steps)?;
    steps.step("a deleted Node is made anew by the living edge", || {
        let uid = node_uid(story)?;
        kubectl.run(&["delete", "node", NODE, "--timeout=30s"])?;
        wait_for(READY, "a new Node", || {
            Ok((node_uid(story)? != uid && kubectl.node_is_ready(NODE)?).then_some(()))
        })
    })?;
    steps.step("pods run again on the new Node", || {
        kubectl.run(&[
            "delete",
            "pod",
            "web",
            "late",
            "--ignore-not-found",
            "--force",
            "--grace-period=0",
        ])?;
        kubectl.apply_text(story.dir, &LATE.replace("NODE", NODE))?;
        kubectl.run(&["wait", "--for=condition=Ready", "pod/late", "--timeout=90s"]).map(drop)
    })?;
    Ok(())
}

fn mode_is(story: &Story<'_>, mode: &str) -> Result<()> {
    wait_for(SOON, "the changed config map", || {
        let seen = story.kubectl.run(&["exec", "web", "--", "cat", "/settings/mode"])?;
        Ok((seen == mode).then_some(()))
    })
}

fn node_uid(story: &Story<'_>) -> Result<String> {
    story.kubectl.run(&["get", "node", NODE, "-o", "jsonpath={.metadata.uid}"])
}

/// A new image on the same board: nothing of the old life is there, and the Node, its pods and their delivery records are.
fn imaged_anew(story: &mut Story<'_>, steps: &mut Steps) -> Result<()> {
    let kubectl = story.kubectl.clone();
    let message =
        steps.step("a device imaged anew under its old Node is Ready and says what to do", || {
            kubectl.apply_text(story.dir, &LATE.replace("NODE", NODE))?;
            kubectl.run(&["wait", "--for=condition=Ready", "pod/late", "--timeout=60s"])?;
            story.node.edgecore.take().context("edgecore runs")?.stop(Duration::from_secs(10))?;
            story.node.containerd.power_cut()?;
            let dir = story.node.containerd.dir().to_path_buf();
            for folder in [&dir, story.node.root()] {
                std::fs::remove_dir_all(folder).with_context(|| folder.display().to_string())?;
                std::fs::create_dir_all(folder)?;
            }
            story.node.containerd = e2e::containerd::Containerd::start_in(&dir)?;
            story.join()?;
            story.node.start()?;
            kubectl.fresh_lease(NODE, READY)?;
            let told = wait_for(SOON, "the condition", || story.condition("DeliveryRecordsStale"))?;
            let message = told["message"].as_str().unwrap_or_default().to_owned();
            ensure!(message.contains("kubectl delete node"), "{message}");
            let status = std::fs::read_to_string(story.node.root().join("run/kinglet/edgecore.json"))?;
            ensure!(status.contains("objectsyncs"), "{status}");
            Ok(message)
        })?;
    steps.step(
        "its commands, as they stand there, bring pods and devices back, and the condition goes",
        || {
            let (begin, end) = ("run: ", " (or, to begin anew");
            let script = message
                .0
                .split(begin)
                .nth(1)
                .and_then(|rest| rest.split(end).next())
                .context("no commands")?;
            run_as_written(story, script)?;
            wait_for(READY, "the pod's container on the new image", || {
                let ids = story.node.containerd.processes("sleep")?;
                Ok((!ids.is_empty()).then_some(()))
            })?;
            kubectl.run(&["wait", "--for=condition=Ready", "pod/late", "--timeout=60s"])?;
            let report = serde_json::json!({"twin": {"power": {"actual": {"value": "back"}}}});
            wait_for(SOON, "the device's value", || {
                publish(story, "$hw/events/device/default/hall/twin/update", &report)?;
                Ok(twin(story, "power", "reported")?.filter(|value| value == "back"))
            })?;
            wait_for(SOON, "no condition", || {
                Ok(story.condition("DeliveryRecordsStale")?.is_none().then_some(()))
            })
        },
    )?;
    Ok(())
}

/// In a shell in which `kubectl` is this control plane's.
fn run_as_written(story: &Story<'_>, script: &str) -> Result<()> {
    let mut command = Command::new("sh");
    let path = std::env::var("PATH").unwrap_or_default();
    let folder = story.kubectl.program().parent().unwrap_or(Path::new("/usr/bin")).display().to_string();
    command
        .args(["-c", script])
        .env("KUBECONFIG", story.plane.kubeconfig())
        .env("PATH", format!("{folder}:{path}"));
    command.env_remove("HTTPS_PROXY").env_remove("https_proxy");
    let output = command.output()?;
    ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    ensure!(String::from_utf8_lossy(&output.stdout).contains("patched"), "{script}: nothing was patched");
    Ok(())
}

/// Puts a certificate of the cloud's own CA in place whose life is nearly over.
fn rotation(story: &mut Story<'_>) -> Result<()> {
    let bundle = story.node.root().join("etc/kubeedge/certs/node.pem");
    story.node.edgecore.take().context("edgecore runs")?.stop(Duration::from_secs(10))?;
    let (ca, ca_key) = story.cloud.ca(&story.kubectl)?;
    let old = short_lived(story, &bundle, &ca, &ca_key)?;
    story.node.start()?;
    wait_for(READY, "a new certificate", || {
        let text = std::fs::read_to_string(&bundle)?;
        Ok((!text.contains(old.trim())).then_some(()))
    })?;
    // The link is that of the new certificate: the old one has ended by the time the lease is seen renewed twice.
    for _ in 0..2 {
        story.kubectl.fresh_lease(NODE, SOON)?;
    }
    let leaf = story.dir.join("rotated.pem");
    std::fs::write(&leaf, leaf_of(&std::fs::read_to_string(&bundle)?)?)?;
    let output =
        Command::new("openssl").args(["x509", "-noout", "-checkend", "86400", "-in"]).arg(&leaf).output()?;
    ensure!(output.status.success(), "the new certificate ends within a day");
    Ok(())
}

/// The certificate that is not the CA's, which is the one with a node's name.
fn leaf_of(bundle: &str) -> Result<String> {
    const END: &str = "-----END CERTIFICATE-----";
    for block in bundle.split_inclusive(END) {
        let Some(at) = block.find("-----BEGIN CERTIFICATE-----") else { continue };
        let file = tempfile_with(&block[at..])?;
        let output =
            Command::new("openssl").args(["x509", "-noout", "-subject", "-in"]).arg(file.path()).output()?;
        if String::from_utf8_lossy(&output.stdout).contains("system:node:") {
            return Ok(block[at..].to_owned());
        }
    }
    anyhow::bail!("no node's certificate in the bundle")
}

fn tempfile_with(text: &str) -> Result<tempfile::NamedTempFile> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), text)?;
    Ok(file)
}

/// Replaces the bundle's certificate by one for the same key that began long ago and ends in two minutes; its text.
fn short_lived(story: &Story<'_>, bundle: &Path, ca: &Path, ca_key: &Path) -> Result<String> {
    let dir = story.dir.join("short-lived");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("index.txt"), "")?;
    std::fs::write(dir.join("serial"), "5A5A5A\n")?;
    std::fs::write(dir.join("ca.conf"), CA_CONF.replace("DIR", &dir.display().to_string()))?;
    let run = |args: &[&str], files: &[(&str, &Path)]| -> Result<()> {
        let mut command = Command::new("openssl");
        command.args(args);
        for (flag, path) in files {
            command.arg(flag).arg(path);
        }
        let output = command.output()?;
        ensure!(output.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    let subject = format!("/O=system:nodes/CN=system:node:{NODE}");
    let (csr, new) = (dir.join("node.csr"), dir.join("node.crt"));
    run(&["req", "-new", "-subj", &subject], &[("-key", bundle), ("-out", &csr)])?;
    let date = |offset: &str| -> Result<String> {
        let output = Command::new("date").args(["-u", "-d", offset, "+%y%m%d%H%M%SZ"]).output()?;
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    let (begin, end) = (date("-30 minutes")?, date("+2 minutes")?);
    run(
        &["ca", "-batch", "-notext", "-startdate", &begin, "-enddate", &end],
        &[
            ("-config", &dir.join("ca.conf")),
            ("-cert", ca),
            ("-keyfile", ca_key),
            ("-in", &csr),
            ("-out", &new),
        ],
    )?;
    let text = std::fs::read_to_string(bundle)?;
    let leaf = leaf_of(&text)?;
    let new = std::fs::read_to_string(&new)?;
    std::fs::write(bundle, text.replace(leaf.trim(), new.trim()))?;
    Ok(new)
}

const CA_CONF: &str = "[ca]
default_ca = it
[it]
database = DIR/index.txt
serial = DIR/serial
new_certs_dir = DIR
default_md = sha256
policy = names
x509_extensions = usage
unique_subject = no
[names]
organizationName = supplied
commonName = supplied
[usage]
keyUsage = digitalSignature,keyEncipherment
extendedKeyUsage = clientAuth
";
