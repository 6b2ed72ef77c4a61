//! The pod `web` of a flow, by what must not change when a cloud or an agent comes or goes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{kubectl::Kubectl, steps::wait_for};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

#[derive(Debug, PartialEq)]
pub struct Running {
    container: String,
    restarts: i64,
    started_at: String,
}

impl Running {
    pub fn seen(kubectl: &Kubectl) -> Result<Running> {
        let pod = kubectl.json(&["get", "pod", "web"])?;
        let status = &pod["status"]["containerStatuses"][0];
        let text = |value: &Value| value.as_str().map(str::to_owned).context("the container does not run");
        Ok(Running {
            container: text(&status["containerID"])?,
            restarts: status["restartCount"].as_i64().unwrap_or(-1),
            started_at: text(&status["state"]["running"]["startedAt"])?,
        })
    }

    /// The pod is the same as before.
    pub fn goes_on(&self, kubectl: &Kubectl) -> Result<()> {
        let now = wait_for(SOON, "the pod's status", || Running::seen(kubectl).map(Some))?;
        ensure!(now == *self, "before {self:?}, now {now:?}");
        Ok(())
    }
}
