//! What edged remembers of a pod across restarts and power cuts: one small local record per pod, kept by meta.
//!
//! The record is durable before the pod's first container exists, so a container without a record is one that this store never
//! made, and is not removed for lack of a desired pod: missing data is never an empty desired state.
//!
//! The incarnation is our own identity of a running pod: sandboxes, volume folders and log folders carry it. It is the uid that
//! the pod had when it was first run here; `join --adopt` may bind a record to another uid without touching what runs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::observed;

/// Kind of the local records.
pub const KIND: &str = "podstate";

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    pub incarnation: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// Identity of the cloud whose pod this is; `None`: written before records had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cloud: Option<String>,
    pub spec_hash: String,
    pub grace_s: u64,
    /// Unix seconds.
    pub start_time: i64,
    /// Attempt number of the next sandbox. Counting up while an older one exists is what makes two sandboxes impossible: the
    /// runtime refuses a second one of the same attempt.
    pub next_sandbox: u32,
    pub containers: BTreeMap<String, Remembered>,
    /// Given up; its containers are being stopped, or were, if `ended` says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failing: Option<Failing>,
    pub ended: Option<Ended>,
}

/// Why a pod was given up, as its status has it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Failing {
    pub reason: String,
    pub message: String,
    /// `None`: the pod's own grace period.
    pub grace_s: Option<u32>,
    /// Before anything of it was made: the pod was not admitted.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub at_the_door: bool,
}

/// A container whose sandbox was removed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Remembered {
    pub next_attempt: u32,
    pub last: Option<Terminated>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Terminated {
    pub container_id: String,
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    pub started_at: i64,
    pub finished_at: i64,
    pub image: String,
    pub image_ref: String,
}

/// 128 + SIGKILL.
const KILLED: i32 = 137;

/// A pod that will not run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    Succeeded,
    Failed,
}

impl Terminated {
    /// Nobody knows how it ended.
    pub fn unknown(container_id: String) -> Terminated {
        Terminated {
            container_id,
            exit_code: KILLED,
            reason: "ContainerStatusUnknown".into(),
            message: "The container could not be located when the pod was terminated".into(),
            ..Terminated::default()
        }
    }

    pub fn of(container: &observed::Container) -> Terminated {
        // A container that the runtime still calls running when its sandbox is removed is killed with it.
        if container.state != observed::State::Exited {
            return Terminated {
                started_at: container.started_at,
                image: container.image.clone(),
                image_ref: container.image_ref.clone(),
                ..Terminated::unknown(container.id.clone())
            };
        }
        let exit_code = container.exit_code;
        let reason = match (&*container.reason, exit_code) {
            ("", 0) => "Completed".to_string(),
            ("", _) => "Error".to_string(),
            (reason, _) => reason.to_string(),
        };
        Terminated {
            container_id: container.id.clone(),
            exit_code,
            reason,
            message: container.message.clone(),
            started_at: container.started_at,
            finished_at: container.finished_at,
            image: container.image.clone(),
            image_ref: container.image_ref.clone(),
        }
    }
}

impl Record {
    /// Takes over what a sandbox and its containers tell, before they are removed. True when that was news.
    pub fn harvest(&mut self, seen: &observed::Observed, sandbox: &observed::Sandbox) -> bool {
        let before = self.clone();
        self.next_sandbox = self.next_sandbox.max(sandbox.attempt.saturating_add(1));
        for container in seen.in_sandbox(&sandbox.id) {
            let entry = self.containers.entry(container.name.clone()).or_default();
            let next = container.attempt.saturating_add(1);
            if next >= entry.next_attempt {
                entry.next_attempt = next;
                // Never started: nothing ended that could be told.
                if container.state != observed::State::Created {
                    entry.last = Some(Terminated::of(container));
                }
            }
        }
        *self != before
    }

    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}
