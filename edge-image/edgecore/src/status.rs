//! `<runDir>/edgecore.json`: how the node is, for init's status.txt and for people without kubectl. Written on change, and told to
//! the service manager (`systemctl status` shows it).

use std::{
    fs,
    path::{Path, PathBuf},
};

use rt::Drain;
use serde::Serialize;
use tokio::sync::watch;

use crate::{
    config::Config,
    contract::{Condition, Handles, LinkState, RuntimeStatus},
    notify,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum State {
    Starting,
    Joining,
    Ready,
    Offline,
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    pub state: State,
    pub error: String,
    pub remedy: String,
    pub node: String,
    pub cloud: String,
}

impl Status {
    /// Our messages are `what is wrong; what to do`.
    pub fn new(state: State, message: &str, node: &str, cloud: &str) -> Status {
        let (error, remedy) = message.split_once("; ").unwrap_or((message, ""));
        Status { state, error: error.into(), remedy: remedy.into(), node: node.into(), cloud: cloud.into() }
    }

    /// For people: `Offline: timed out; node pi-1 of 192.0.2.1:10000`.
    fn line(&self) -> String {
        let Status { state, error, remedy, node, cloud } = self;
        let node = format!("node {node}");
        let parts: Vec<&str> =
            [error.as_str(), remedy, &node].into_iter().filter(|part| !part.is_empty()).collect();
        let of = if cloud.is_empty() { String::new() } else { format!(" of {cloud}") };
        format!("{state:?}: {}{of}", parts.join("; ")).replace(char::is_control, " ")
    }

    /// A folder that cannot be written is logged and no reason to stop.
    pub fn write(&self, run_dir: &Path) {
        let text = serde_json::to_vec(self).expect("texts serialise");
        let path = run_dir.join("edgecore.json");
        let made = fs::create_dir_all(run_dir).map_err(|error| error.to_string());
        let written =
            made.and_then(|()| rt::atomic_write(&path, &text).map_err(|error| rt::error_chain(&error)));
        if let Err(error) = written {
            tracing::warn!("{}: {error}", path.display());
        }
    }
}

#[derive(Clone)]
pub struct Sources {
    run_dir: PathBuf,
    node: String,
    cloud: String,
    link: watch::Receiver<LinkState>,
    runtime: watch::Receiver<RuntimeStatus>,
    raised: watch::Receiver<Vec<Condition>>,
    uses_cloud: bool,
}

impl Sources {
    pub fn new(cfg: &Config, handles: &Handles, raised: watch::Receiver<Vec<Condition>>) -> Sources {
        Sources {
            run_dir: cfg.kinglet.run_dir.clone(),
            node: handles.node_name.to_string(),
            cloud: cfg.modules.edge_hub.websocket.server.clone(),
            link: handles.uplink.state(),
            runtime: handles.runtime.subscribe(),
            raised,
            uses_cloud: cfg.modules.edge_hub.enable,
        }
    }

    fn status(&mut self) -> Status {
        let link = self.link.borrow_and_update().clone();
        let runtime = self.runtime.borrow_and_update().clone();
        let raised = self.raised.borrow_and_update().clone();
        let condition = raised.iter().find(|condition| condition.status).map(|c| c.message.as_str());
        let (state, message) = judge(&link, &runtime, condition, self.uses_cloud);
        Status::new(state, &message, &self.node, &self.cloud)
    }
}

/// The worst thing first: a store or runtime that does not work, then the link.
fn judge(
    link: &LinkState,
    runtime: &RuntimeStatus,
    condition: Option<&str>,
    uses_cloud: bool,
) -> (State, String) {
    let condition = condition.unwrap_or_default().to_owned();
    match (runtime, link) {
        (RuntimeStatus::Down { message }, _) if condition.is_empty() => (State::Failed, message.clone()),
        (RuntimeStatus::Down { .. }, _) => (State::Failed, condition),
        (RuntimeStatus::Unknown, LinkState::Connected) => (State::Starting, condition),
        (_, LinkState::Disconnected(why)) if uses_cloud => (State::Offline, why.clone()),
        _ => (State::Ready, condition),
    }
}

pub async fn run(mut sources: Sources, drain: Drain) {
    let starting = Status::new(State::Starting, "", &sources.node, &sources.cloud);
    starting.write(&sources.run_dir);
    // Store and bus are open; a cloud or a runtime that is away is no reason to call the agent not started.
    notify::tell(&format!("READY=1\nSTATUS={}", starting.line()));
    let mut last = None;
    loop {
        let changed = async {
            tokio::select! {
                changed = sources.link.changed() => changed,
                changed = sources.runtime.changed() => changed,
                changed = sources.raised.changed() => changed,
            }
        };
        match drain.or(changed).await {
            Some(Ok(())) => {}
            Some(Err(_)) | None => return,
        }
        let status = sources.status();
        if last.as_ref() != Some(&status) {
            status.write(&sources.run_dir);
            notify::tell(&format!("STATUS={}", status.line()));
            last = Some(status);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_is_shown() {
        let ready = RuntimeStatus::Ready { version: "containerd://1.7".into() };
        let down = RuntimeStatus::Down { message: "no socket; start containerd".into() };
        let lost = LinkState::Disconnected("cut".into());
        assert_eq!(judge(&LinkState::Connected, &ready, None, true), (State::Ready, String::new()));
        assert_eq!(judge(&LinkState::Connected, &RuntimeStatus::Unknown, None, true).0, State::Starting);
        assert_eq!(judge(&lost, &ready, None, true), (State::Offline, "cut".into()));
        assert_eq!(
            judge(&lost, &ready, None, false).0,
            State::Ready,
            "a node without a cloud is not offline"
        );
        assert_eq!(judge(&lost, &down, None, true).0, State::Failed);
        let status = Status::new(State::Failed, "no socket; start containerd", "n", "c:1");
        assert_eq!((status.error.as_str(), status.remedy.as_str()), ("no socket", "start containerd"));
        assert_eq!(status.line(), "Failed: no socket; start containerd; node n of c:1");
        assert_eq!(Status::new(State::Ready, "", "n", "").line(), "Ready: node n");
    }
}
