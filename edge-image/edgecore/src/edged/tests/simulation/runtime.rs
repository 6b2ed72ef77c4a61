//! A runtime as the simulation needs it: what it holds, and how its calls change that.

use std::{collections::BTreeSet, sync::Arc};

use crate::edged::{
    observed::{Container, Observed, Sandbox, State},
    pod::Pod,
    record::Record,
    worker::{Retry, Work, WorkError},
};

#[derive(Default)]
pub struct Runtime {
    pub seen: Observed,
    made: u64,
    /// Uid and name of every container that was ever started.
    lives: BTreeSet<(String, String)>,
}

impl Runtime {
    fn id(&mut self) -> String {
        self.made += 1;
        format!("id{}", self.made)
    }

    pub fn apply(&mut self, record: &Record, pod: Option<&Pod>, work: &Work) -> Result<(), WorkError> {
        match work {
            Work::RunSandbox { attempt, .. } => return self.run_sandbox(record, *attempt),
            Work::RetireSandbox { id } => {
                self.seen.sandboxes.retain(|s| s.id != *id);
                self.seen.containers.retain(|c| c.sandbox_id != *id);
            }
            Work::StopSandbox { id } => {
                self.seen
                    .sandboxes
                    .iter_mut()
                    .filter(|s| s.id == *id)
                    .for_each(|s| Arc::make_mut(s).ready = false);
                let inside = |c: &&mut Arc<Container>| c.sandbox_id == *id && c.state == State::Running;
                self.seen.containers.iter_mut().filter(inside).for_each(|c| end(c, 137));
            }
            Work::CreateContainer { sandbox, name, attempt, .. } => {
                return self.create(&sandbox.id, pod.unwrap(), name, *attempt);
            }
            Work::StartContainer { id, .. } => {
                let ready = |id: &str| self.seen.sandboxes.iter().any(|s| s.id == id && s.ready);
                let startable: Vec<bool> =
                    self.seen.containers.iter().map(|c| ready(&c.sandbox_id)).collect();
                let mut all = self.seen.containers.iter_mut().zip(startable);
                let container = all.find(|(c, startable)| c.id == *id && *startable).map(|(c, _)| c);
                let Some(container) = container else { return Err(failed("no such container")) };
                if container.state == State::Created {
                    let container = Arc::make_mut(container);
                    let once = self.lives.insert((record.uid.clone(), container.name.clone()));
                    assert!(once || !container.name.starts_with('e'), "a second life of {container:?}");
                    (container.state, container.started_at) = (State::Running, 1);
                }
            }
            Work::StopContainers { stops, .. } => {
                let named = |c: &Container| stops.iter().any(|stop| stop.id == c.id);
                let running =
                    |c: &&mut Arc<Container>| named(c) && matches!(c.state, State::Running | State::Unknown);
                self.seen.containers.iter_mut().filter(running).for_each(|c| end(c, 0));
            }
            Work::RemoveContainer { id, .. } => self.seen.containers.retain(|c| c.id != *id),
            Work::Persist(_) | Work::Prepare | Work::CleanUp | Work::Forget => {}
        }
        Ok(())
    }

    fn run_sandbox(&mut self, record: &Record, attempt: u32) -> Result<(), WorkError> {
        let taken = |s: &Arc<Sandbox>| s.incarnation == record.incarnation && s.attempt == attempt;
        if self.seen.sandboxes.iter().any(taken) {
            return Err(failed("the name is reserved"));
        }
        let id = self.id();
        self.seen.sandboxes.push(Arc::new(Sandbox {
            id,
            incarnation: record.incarnation.clone(),
            namespace: record.namespace.clone(),
            name: record.name.clone(),
            uid: record.uid.clone(),
            attempt,
            ready: true,
            ips: vec!["10.0.0.2".into()],
        }));
        Ok(())
    }

    fn create(&mut self, sandbox: &str, pod: &Pod, name: &str, attempt: u32) -> Result<(), WorkError> {
        if !self.seen.sandboxes.iter().any(|s| s.id == sandbox && s.ready) {
            return Err(failed("no such sandbox"));
        }
        let taken = |c: &Arc<Container>| c.sandbox_id == sandbox && c.name == name && c.attempt == attempt;
        if self.seen.containers.iter().any(taken) {
            return Err(failed("the name is reserved"));
        }
        let wanted = pod.all_containers().find(|c| c.name == name).unwrap();
        let container = Container {
            id: self.id(),
            sandbox_id: sandbox.into(),
            name: name.into(),
            attempt,
            hash: wanted.hash(),
            ..Container::default()
        };
        self.seen.containers.push(Arc::new(container));
        Ok(())
    }

    /// Everything ends; what is on disk stays.
    pub fn power_cut(&mut self) {
        self.seen.sandboxes.iter_mut().for_each(|s| Arc::make_mut(s).ready = false);
        let alive = |c: &&mut Arc<Container>| matches!(c.state, State::Running | State::Unknown);
        self.seen.containers.iter_mut().filter(alive).for_each(|c| end(c, 255));
    }

    /// Names of what runs of a pod.
    pub fn running_of(&self, uid: &str) -> Vec<&str> {
        let ours = |c: &&Arc<Container>| {
            self.seen.sandboxes.iter().any(|s| s.id == c.sandbox_id && s.uid == uid)
                && c.state == State::Running
        };
        self.seen.containers.iter().filter(ours).map(|c| c.name.as_str()).collect()
    }

    pub fn running(&self) -> Vec<usize> {
        let is = |at: &usize| self.seen.containers[*at].state == State::Running;
        (0..self.seen.containers.len()).filter(is).collect()
    }
}

pub fn end(container: &mut Arc<Container>, code: i32) {
    let container = Arc::make_mut(container);
    container.state = State::Exited;
    container.exit_code = code;
}

pub fn failed(message: &str) -> WorkError {
    WorkError { reason: "RuntimeError", message: message.into(), retry: Retry::Backoff }
}
