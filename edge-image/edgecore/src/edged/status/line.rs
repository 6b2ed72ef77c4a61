//! One container's status: waiting, running or terminated, and how it ended before.
//!
//! Source: the Kubernetes documentation of container states, and what kubelets report.

use serde_json::{Map, Value, json};

use super::rfc3339;
use crate::edged::{
    hooks::POST_START_ERROR,
    observed::{Container as Seen, Observed, Sandbox, State},
    pod::{Container, Pod, RestartPolicy, VolumeMount},
    record::{Remembered, Terminated},
    worker::{RUN_ERROR, Slot, Worker},
};

/// Where in the pod a container stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Init,
    Sidecar,
    Main,
    Ephemeral,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    Waiting { reason: String, message: String },
    Running { started_at: i64 },
    Terminated(Terminated),
}

#[derive(Clone, Debug)]
pub struct Line {
    pub kind: Kind,
    pub name: String,
    pub stage: Stage,
    pub last: Option<Terminated>,
    pub ready: bool,
    pub started: bool,
    restarts: u32,
    image: String,
    image_ref: String,
    id: String,
    mounts: Vec<Value>,
}

impl Line {
    pub fn is_running(&self) -> bool {
        matches!(self.stage, Stage::Running { .. })
    }

    pub fn is_waiting(&self) -> bool {
        matches!(self.stage, Stage::Waiting { .. })
    }

    pub fn ended(&self) -> Option<&Terminated> {
        match &self.stage {
            Stage::Terminated(ended) => Some(ended),
            _ => None,
        }
    }

    /// What a kubelet says of a container of a deleted pod that it cannot account for.
    pub fn give_up(&mut self) {
        if self.ended().is_none() {
            self.stage = Stage::Terminated(Terminated::unknown(self.id.clone()));
            (self.ready, self.started) = (false, false);
        }
    }

    pub fn render(self, message_bytes_max: usize) -> Value {
        let mut status = Map::new();
        status.insert("name".into(), self.name.into());
        status.insert("ready".into(), self.ready.into());
        if self.kind != Kind::Ephemeral {
            status.insert("started".into(), self.started.into());
        }
        // An ephemeral container that was made and never started counts one; it is not a restart.
        let restarts = if self.kind == Kind::Ephemeral { 0 } else { self.restarts };
        status.insert("restartCount".into(), restarts.into());
        status.insert("image".into(), self.image.into());
        status.insert("imageID".into(), self.image_ref.into());
        if !self.id.is_empty() {
            status.insert("containerID".into(), format!("containerd://{}", self.id).into());
        }
        status.insert("state".into(), stage(&self.stage, message_bytes_max));
        let last =
            self.last.map_or(json!({}), |last| json!({ "terminated": terminated(&last, message_bytes_max) }));
        status.insert("lastState".into(), last);
        if !self.mounts.is_empty() {
            status.insert("volumeMounts".into(), self.mounts.into());
        }
        Value::Object(status)
    }
}

/// What a line is made from.
pub struct Scene<'a> {
    pub worker: &'a Worker,
    pub pod: &'a Pod,
    pub seen: &'a Observed,
    /// The sandbox whose containers are the pod's: the ready one, or the last.
    pub home: Option<&'a Sandbox>,
    /// What a container waits for that nothing is known of.
    pub reason: &'static str,
}

impl Scene<'_> {
    pub fn line(&self, container: &Container, kind: Kind) -> Line {
        let worker = self.worker;
        let mut all: Vec<&Seen> = self
            .home
            .map(|sandbox| self.seen.in_sandbox(&sandbox.id).filter(|c| c.name == container.name).collect())
            .unwrap_or_default();
        all.sort_by_key(|c| c.attempt);
        let latest = all.pop();
        let remembered = worker.record.containers.get(&container.name);
        let memory = remembered.and_then(|r| r.last.clone());
        let ran = |r: &Remembered| r.next_attempt.saturating_sub(u32::from(r.last.is_some()));
        let restarts_before = remembered.map_or(0, ran);
        let mut line = Line {
            kind,
            name: container.name.clone(),
            stage: self.waiting(container),
            last: None,
            ready: false,
            started: false,
            restarts: 0,
            image: container.image.clone(),
            image_ref: String::new(),
            id: String::new(),
            mounts: container.volume_mounts.iter().map(mount).collect(),
        };
        let Some(found) = latest else {
            // Its container was removed with its sandbox: told from memory.
            line.restarts = restarts_before;
            if let Some(ended) = memory {
                (line.image, line.image_ref) = (ended.image.clone(), ended.image_ref.clone());
                line.id.clone_from(&ended.container_id);
                self.ended(&mut line, container, ended, None);
            }
            return line;
        };
        // Counted when it starts: one that was only made may be removed again, and a count must not fall.
        let before = all.last().map_or(restarts_before, |before| before.attempt);
        line.restarts = if found.state == State::Created { before } else { found.attempt };
        (line.image, line.image_ref) = (found.image.clone(), found.image_ref.clone());
        line.id.clone_from(&found.id);
        line.last =
            all.pop().map(Terminated::of).or(memory.clone()).filter(|last| last.container_id != found.id);
        match found.state {
            State::Running | State::Unknown => {
                line.stage = Stage::Running { started_at: found.started_at };
                line.started = worker.is_started(container, found);
                line.ready = worker.is_ready(container, found) && matches!(kind, Kind::Main | Kind::Sidecar);
            }
            State::Exited => {
                let mut ended = Terminated::of(found);
                // Its last words were read when it ended; its volumes may be gone since.
                if let Some(memory) =
                    memory.filter(|m| m.container_id == found.id && ended.message.is_empty())
                {
                    ended.message = memory.message;
                }
                self.ended(&mut line, container, ended, Some(found));
            }
            State::Created => {}
        }
        line
    }

    /// A container that ended: terminated, or waiting for its next start.
    fn ended(&self, line: &mut Line, container: &Container, ended: Terminated, found: Option<&Seen>) {
        let failure = self.worker.failures.get(&Slot::Container(container.name.clone()));
        let crash_loop = found.and_then(|found| self.worker.crash_loop(found));
        // The start or its hook failed, and the container ended of it: what its next start waits for is the newer news.
        let of_start = |reason: &str| [RUN_ERROR, POST_START_ERROR].contains(&reason);
        let failure = failure.filter(|failure| crash_loop.is_none() || !of_start(failure.reason));
        let waiting = match failure {
            _ if !self.comes_again(line.kind, ended.exit_code) => None,
            Some(failure) => Some((failure.reason.to_string(), failure.message.clone())),
            None => crash_loop.map(|message| ("CrashLoopBackOff".to_string(), message)),
        };
        match waiting {
            Some((reason, message)) => {
                line.stage = Stage::Waiting { reason, message };
                line.last = Some(ended);
            }
            None => {
                line.ready = line.kind == Kind::Init && ended.exit_code == 0;
                line.stage = Stage::Terminated(ended);
            }
        }
    }

    fn comes_again(&self, kind: Kind, exit_code: i32) -> bool {
        let worker = self.worker;
        if worker.is_deleting() || worker.record.ended.is_some() || worker.record.failing.is_some() {
            return false;
        }
        match (kind, self.pod.spec.restart_policy) {
            (Kind::Ephemeral, _) => false,
            (Kind::Init, _) if exit_code == 0 => false,
            (Kind::Sidecar, _) | (_, RestartPolicy::Always) => true,
            (_, RestartPolicy::OnFailure) => exit_code != 0,
            (_, RestartPolicy::Never) => false,
        }
    }

    /// Nothing ran yet.
    fn waiting(&self, container: &Container) -> Stage {
        let failure = self.worker.failures.get(&Slot::Container(container.name.clone()));
        let of_pod = self.worker.failures.get(&Slot::Pod);
        let (reason, message) = match (failure, of_pod) {
            (Some(failure), _) => (failure.reason, failure.message.clone()),
            // A kubelet has no message here, only an event; an event may be lost on a link that comes and goes.
            (None, Some(failure)) => (self.reason, failure.message.clone()),
            (None, None) => (self.reason, String::new()),
        };
        Stage::Waiting { reason: reason.into(), message }
    }
}

/// As kubelets from 1.31 on: of every mount of the spec, whatever the container's state. No runtime here mounts recursively read-only.
fn mount(mount: &VolumeMount) -> Value {
    let mut status = json!({ "name": mount.name, "mountPath": mount.mount_path });
    if mount.read_only {
        status["readOnly"] = true.into();
        status["recursiveReadOnly"] = "Disabled".into();
    }
    status
}

fn stage(stage: &Stage, message_bytes_max: usize) -> Value {
    match stage {
        Stage::Waiting { reason, message } if message.is_empty() => {
            json!({ "waiting": { "reason": reason } })
        }
        Stage::Waiting { reason, message } => json!({ "waiting": { "reason": reason, "message": message } }),
        Stage::Running { started_at } => json!({ "running": { "startedAt": nanos(*started_at) } }),
        Stage::Terminated(ended) => json!({ "terminated": terminated(ended, message_bytes_max) }),
    }
}

fn terminated(ended: &Terminated, message_bytes_max: usize) -> Value {
    let mut state = json!({
        "exitCode": ended.exit_code, "reason": ended.reason,
        "startedAt": nanos(ended.started_at), "finishedAt": nanos(ended.finished_at),
    });
    if !ended.message.is_empty() {
        let end = ended.message.floor_char_boundary(message_bytes_max);
        state["message"] = json!(ended.message[..end]);
    }
    if !ended.container_id.is_empty() {
        state["containerID"] = json!(format!("containerd://{}", ended.container_id));
    }
    state
}

fn nanos(value: i64) -> Value {
    if value <= 0 { Value::Null } else { json!(rfc3339(value / 1_000_000_000)) }
}
