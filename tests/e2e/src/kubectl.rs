//! kubectl, as a user has it.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::steps::wait_for;

#[derive(Clone, Debug)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    cache: PathBuf,
}

impl Kubectl {
    /// `scratch` keeps its discovery cache, so that tests do not share one.
    pub fn new(program: &Path, kubeconfig: &Path, scratch: &Path) -> Kubectl {
        Kubectl {
            program: program.into(),
            kubeconfig: kubeconfig.into(),
            cache: scratch.join("kubectl-cache"),
        }
    }

    /// Where it is, for a person who wants to use it too.
    pub fn program(&self) -> &Path {
        &self.program
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--kubeconfig").arg(&self.kubeconfig).arg("--cache-dir").arg(&self.cache).args(args);
        // A proxy of the machine's is not meant for the loopback.
        command.env_remove("HTTPS_PROXY").env_remove("https_proxy");
        command
    }

    /// Standard output of `kubectl ARGS`; an error carries what it said.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        let output =
            self.command(args).output().with_context(|| format!("run {}", self.program.display()))?;
        if !output.status.success() {
            bail!("kubectl {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let text = self.run(&[args, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("kubectl {}: not JSON", args.join(" ")))
    }

    pub fn apply(&self, file: &Path) -> Result<String> {
        self.run(&["apply", "-f", file.to_str().context("path is not UTF-8")?])
    }

    /// As [`Kubectl::apply`], with the objects as text.
    pub fn apply_text(&self, dir: &Path, objects: &str) -> Result<String> {
        let file = dir.join("applied.yaml");
        std::fs::write(&file, objects)?;
        self.apply(&file)
    }

    /// True when the node's Ready condition is `True`.
    pub fn node_is_ready(&self, node: &str) -> Result<bool> {
        let node = self.json(&["get", "node", node])?;
        Ok(condition(&node, "Ready").is_some_and(|c| c["status"] == "True"))
    }

    /// Waits until the node is Ready and its lease has been renewed after this moment: only a live link does that.
    pub fn fresh_lease(&self, node: &str, within: Duration) -> Result<()> {
        let renewed = || -> Result<String> {
            let lease = self.json(&["get", "lease", node, "-n", "kube-node-lease"])?;
            Ok(lease["spec"]["renewTime"].as_str().context("lease has no renewTime")?.to_owned())
        };
        let before = wait_for(within, "lease", || renewed().map(Some))?;
        wait_for(within, "a renewed lease", || {
            Ok((renewed()? != before && self.node_is_ready(node)?).then_some(()))
        })
    }

    /// The reported value of a device's property, from its DeviceStatus.
    pub fn reported(&self, device: &str, property: &str) -> Result<Option<String>> {
        let status = self.json(&["get", "devicestatus", device])?;
        Ok(crate::watch::reported(&status, property).map(str::to_owned))
    }

    /// Sets `spec.properties[property].desired.value` of a device, as an operator's script would: read, change, replace.
    pub fn set_desired(&self, device: &str, property: &str, value: &str) -> Result<()> {
        let object = self.json(&["get", "device", device])?;
        let properties = object["spec"]["properties"].as_array().context("device has no properties")?;
        let index = properties
            .iter()
            .position(|p| p["name"] == property)
            .with_context(|| format!("no property {property}"))?;
        let patch = serde_json::json!([{"op": "add", "path": format!("/spec/properties/{index}/desired"), "value": {"value": value}}]);
        self.run(&["patch", "device", device, "--type=json", "-p", &patch.to_string()]).map(drop)
    }
}

pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)
}
