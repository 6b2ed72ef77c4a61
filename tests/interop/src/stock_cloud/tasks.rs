//! Jobs for nodes: images are pulled ahead, what a Kinglet node does not do is answered with what to do.
//!
//! What begins a job at its nodes is KubeEdge's controllermanager, a program of its own: here kubectl writes what it would write.

use anyhow::{Result, ensure};
use e2e::{
    host::NODE,
    steps::{Steps, wait_for},
};
use serde_json::{Value, json};

use super::{SOON, Story};

pub fn tell(story: &mut Story<'_>, steps: &mut Steps) -> Result<()> {
    // Before 1.21 a job is run by cloudcore alone, with messages of the older generation.
    let is_old = story.cloud.minor < 21;
    let template = json!({"images": ["docker.io/kinglet/busybox:1"], "nodeNames": [NODE], "timeoutSeconds": 120, "retryTimes": 0, "concurrency": 1});
    steps.step("an image pre-pull job is done and told", || {
        let job = begin(story, "ImagePrePullJob", "fetch", &json!({"imagePrePullTemplate": template}))?;
        let status = ended(story, &job)?;
        let text = status.to_string();
        ensure!(text.contains("busybox"), "{text}");
        match is_old {
            true => ensure!(text.contains("Success"), "{text}"),
            false => ensure!(status["nodeStatus"][0]["phase"] == "Successful", "{text}"),
        }
        Ok(())
    })?;
    if is_old {
        // It takes a version that has not `kubeedge` in it for one of before 1.16, and expects an answer by HTTPS.
        return Ok(());
    }
    steps.step("node upgrade and configuration jobs fail with what to do instead", || {
        let upgrade = json!({"version": "v1.23.1", "nodeNames": [NODE], "timeoutSeconds": 120, "concurrency": 1});
        let fields =
            json!({"nodeNames": [NODE], "timeoutSeconds": 120, "updateFields": {"modules.edgeHub.heartbeat": "20"}});
        let jobs = [
            (begin(story, "NodeUpgradeJob", "upgrade", &upgrade)?, "install the new edgecore"),
            (begin(story, "ConfigUpdateJob", "change", &fields)?, "change edgecore.yaml"),
        ];
        for (job, remedy) in jobs {
            let text = ended(story, &job)?.to_string();
            ensure!(text.contains(remedy) && text.contains("Fail"), "{job}: {text}");
        }
        Ok(())
    })?;
    Ok(())
}

fn begin(story: &Story<'_>, kind: &str, name: &str, spec: &Value) -> Result<String> {
    let is_old = story.cloud.minor < 21;
    let version = if is_old { "v1alpha1" } else { "v1alpha2" };
    let job = json!({"apiVersion": format!("operations.kubeedge.io/{version}"), "kind": kind, "metadata": {"name": name}, "spec": spec});
    story.kubectl.apply_text(story.dir, &job.to_string())?;
    let resource = format!("{}/{name}", kind.to_lowercase());
    if !is_old {
        let status =
            json!({"status": {"phase": "Init", "nodeStatus": [{"nodeName": NODE, "phase": "Pending"}]}});
        story.kubectl.run(&[
            "patch",
            &resource,
            "--subresource=status",
            "--type=merge",
            "-p",
            &status.to_string(),
        ])?;
    }
    Ok(resource)
}

fn ended(story: &Story<'_>, job: &str) -> Result<Value> {
    let is_old = story.cloud.minor < 21;
    wait_for(SOON, job, || {
        let status = story.kubectl.json(&["get", job])?["status"].clone();
        // The job's own phase is controllermanager's to write.
        let state = if is_old { &status["state"] } else { &status["nodeStatus"][0]["phase"] };
        let state = state.as_str().unwrap_or_default().to_owned();
        let done = ["Completed", "Failure", "Successful", "Failed"].contains(&state.as_str());
        if done { Ok(Some(status)) } else { anyhow::bail!("{status}") }
    })
}
