//! What the containers of a ready sandbox need next: kills first, then ephemeral, init and main containers, in kubelet's order.
//!
//! A kubelet cannot tell the containers of an older sandbox from those of this one and has rules for that; here they are apart,
//! so every init container runs again in a new sandbox, and only there.

use std::sync::Arc;

use super::{Now, Slot, Stop, Work, Worker, run::is_final};
use crate::edged::{
    limits,
    observed::{Container as Seen, Observed, Sandbox, State},
    pod::{Container, Pod, RestartPolicy},
};

impl Worker {
    pub(super) fn next_in_sandbox(
        &mut self,
        now: Now,
        pod: &Pod,
        seen: &Observed,
        sandbox: &Arc<Sandbox>,
    ) -> Option<Work> {
        if let Some(kill) = self.next_kill(pod, seen, sandbox) {
            return Some(kill);
        }
        for container in &pod.spec.ephemeral_containers {
            if let Some(work) = self.start_once(now, seen, sandbox, container) {
                return Some(work);
            }
        }
        let (initialized, needed) = self.init_plan(pod, seen, sandbox);
        for at in needed {
            let container = &pod.spec.init_containers[at];
            if let Some(work) = self.container_step(now, seen, sandbox, container) {
                return Some(work);
            }
        }
        if !initialized {
            return None;
        }
        for container in &pod.spec.containers {
            if self.exit_code(seen, Some(sandbox), container).is_some_and(|code| is_final(pod, code)) {
                continue;
            }
            if let Some(work) = self.container_step(now, seen, sandbox, container) {
                return Some(work);
            }
        }
        older_container(seen, sandbox)
    }

    /// A running container that must not go on: a probe failed, its definition changed, or nobody knows its state.
    fn next_kill(&mut self, pod: &Pod, seen: &Observed, sandbox: &Sandbox) -> Option<Work> {
        for container in pod.all_containers() {
            let main = pod.spec.containers.iter().any(|c| c.name == container.name);
            let kind = if main { "Container" } else { "Init container" };
            // What is to end by itself is only stopped when nobody knows its state.
            let kept = main || container.is_sidecar();
            let Some(latest) = seen.latest(&sandbox.id, &container.name) else { continue };
            let failed = self.failed_probe(container, latest);
            let (why, grace) = match latest.state {
                State::Unknown => ("is in \"unknown\" state, try killing it before restart".into(), None),
                State::Running if !kept => continue,
                State::Running if latest.hash != container.hash() => {
                    ("definition changed, will be restarted".to_string(), None)
                }
                State::Running => match failed {
                    None => continue,
                    Some((name, probe)) => {
                        let again = !main || pod.spec.restart_policy != RestartPolicy::Never;
                        let after = if again { ", will be restarted" } else { "" };
                        (format!("failed {name} probe{after}"), probe.termination_grace_period_seconds)
                    }
                },
                _ => continue,
            };
            let grace = grace.map_or(pod.grace(), |s| super::stop::seconds(s.max(1)));
            self.say_killing(&container.name, format!("{kind} {} {why}", container.name));
            let stop = Stop { id: latest.id.clone(), name: container.name.clone(), turn: 0 };
            return Some(Work::StopContainers { stops: vec![stop], grace });
        }
        None
    }

    /// Whether the init containers let the main ones start, and those of them that need a step, by index.
    ///
    /// From the last to the first, as kubelet does: a later one that was started proves that those before it were done, even when
    /// their containers were removed meanwhile.
    fn init_plan(&self, pod: &Pod, seen: &Observed, sandbox: &Sandbox) -> (bool, Vec<usize>) {
        let inits = &pod.spec.init_containers;
        let latest = |container: &Container| seen.latest(&sandbox.id, &container.name);
        let mut initialized = inits.is_empty() || pod.spec.containers.iter().any(|c| latest(c).is_some());
        let mut passed = initialized;
        let mut needed = Vec::new();
        for (at, container) in inits.iter().enumerate().rev() {
            let sidecar = container.is_sidecar();
            let Some(found) = latest(container) else {
                if passed && sidecar {
                    needed.push(at);
                }
                continue;
            };
            if passed && !sidecar {
                continue;
            }
            let done = match found.state {
                State::Running => sidecar && self.is_started(container, found),
                State::Exited => !sidecar && found.exit_code == 0,
                State::Created | State::Unknown => false,
            };
            if !done && (found.state != State::Running) {
                needed.push(at);
            }
            if done && at + 1 == inits.len() {
                initialized = true;
            } else if done && !passed {
                needed.push(at + 1);
            }
            passed = true;
        }
        if !passed {
            needed.push(0);
        }
        needed.reverse();
        (initialized, needed)
    }

    /// An ephemeral container: one life, whatever it ends with.
    fn start_once(
        &self,
        now: Now,
        seen: &Observed,
        sandbox: &Arc<Sandbox>,
        container: &Container,
    ) -> Option<Work> {
        let remembered = self.record.containers.get(&container.name).is_some_and(|r| r.last.is_some());
        match seen.latest(&sandbox.id, &container.name) {
            None if remembered => None,
            Some(found) if found.state != State::Created => None,
            _ => self.container_step(now, seen, sandbox, container),
        }
    }

    fn container_step(
        &self,
        now: Now,
        seen: &Observed,
        sandbox: &Arc<Sandbox>,
        container: &Container,
    ) -> Option<Work> {
        let name = container.name.clone();
        if self.waits(now, &Slot::Container(name.clone())) {
            return None;
        }
        let remembered = self.record.containers.get(&name).map_or(0, |r| r.next_attempt);
        let Some(latest) = seen.latest(&sandbox.id, &name) else {
            return Some(Work::CreateContainer { sandbox: sandbox.clone(), name, attempt: remembered });
        };
        let same = latest.hash == container.hash();
        let retire = |seen: &Seen| Work::RemoveContainer {
            id: seen.id.clone(),
            name: name.clone(),
            attempt: seen.attempt,
        };
        match latest.state {
            State::Created if same => Some(Work::StartContainer { id: latest.id.clone(), name }),
            State::Created => Some(retire(latest)),
            // Who must not go on was killed before.
            State::Running | State::Unknown => None,
            State::Exited => {
                let waiting = self.restarts.get(&name).is_some_and(|restarts| restarts.is_waiting(now.mono));
                if same && waiting {
                    return None;
                }
                let older = seen.in_sandbox(&sandbox.id).find(|c| c.name == name && c.id != latest.id);
                let attempt = remembered.max(latest.attempt.saturating_add(1));
                // The one before stays for `lastState` and its log; those before it go first.
                let (sandbox, name) = (sandbox.clone(), name.clone());
                let again = Work::CreateContainer { sandbox, name, attempt };
                Some(older.map_or(again, retire))
            }
        }
    }

    /// How a container ended: in this sandbox, else in one that is gone.
    pub fn exit_code(
        &self,
        seen: &Observed,
        sandbox: Option<&Sandbox>,
        container: &Container,
    ) -> Option<i32> {
        match sandbox.and_then(|sandbox| seen.latest(&sandbox.id, &container.name)) {
            Some(latest) => (latest.state == State::Exited).then_some(latest.exit_code),
            None => self.record.containers.get(&container.name)?.last.as_ref().map(|last| last.exit_code),
        }
    }
}

/// Of each name the newest and the one before it are kept.
fn older_container(seen: &Observed, sandbox: &Sandbox) -> Option<Work> {
    let excess = seen.in_sandbox(&sandbox.id).find(|container| {
        let newer = |c: &&Seen| c.name == container.name && c.attempt > container.attempt;
        container.state == State::Exited
            && seen.in_sandbox(&sandbox.id).filter(newer).count() > limits::DEAD_KEPT
    })?;
    Some(Work::RemoveContainer { id: excess.id.clone(), name: excess.name.clone(), attempt: excess.attempt })
}
