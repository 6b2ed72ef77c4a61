//! What a wanted pod needs next, down to its sandbox.

use std::sync::Arc;

use super::{Now, Slot, Work, Worker};
use crate::edged::{
    observed::{Observed, Sandbox},
    pod::{Pod, RestartPolicy},
};

impl Worker {
    pub(super) fn next_run(&mut self, now: Now, seen: &Observed) -> Option<Work> {
        let pod = self.desired.clone()?;
        if self.waits(now, &Slot::Pod) {
            return None;
        }
        self.note_start(now, &pod);
        let current = self.sandbox(seen).cloned();
        let is_current = |s: &&Arc<Sandbox>| current.as_ref().is_some_and(|current| current.id == s.id);
        let old = seen.sandboxes.iter().find(|s| !is_current(s)).cloned();
        // An ended pod keeps its dead sandbox: its containers hold logs and exit codes.
        if self.record.ended.is_none() {
            if let Some(old) = &old
                && self.record.harvest(seen, old)
            {
                self.stored = false;
            }
            self.check_deadline(now, &pod);
        }
        let outcome = self.outcome(&pod, seen, current.as_deref());
        if let Some(outcome) = outcome
            && current.is_none()
        {
            self.note_end(outcome);
        }
        let is_next_sandbox = outcome.is_none() && old.is_none() && current.is_none();
        if is_next_sandbox {
            return Some(match self.prepared {
                false => Work::Prepare,
                true => Work::RunSandbox { attempt: self.record.next_sandbox, unwritten: self.unwritten() },
            });
        }
        if let Some(record) = self.unwritten() {
            return Some(Work::Persist(record));
        }
        if outcome.is_some() {
            // Its volumes go, as a kubelet's do: a memory volume of a finished job is memory. Logs and exit codes stay.
            let empty = (current.is_none() && !self.emptied).then_some(Work::CleanUp);
            return self.take_down(seen, current.map(|sandbox| sandbox.id.clone())).or(empty);
        }
        if let Some(old) = old {
            if current.is_none() {
                self.say_sandbox_changed();
            }
            return Some(Work::RetireSandbox { id: old.id.clone() });
        }
        self.next_in_sandbox(now, &pod, seen, &current?)
    }

    /// The facts that are written once, before anything is made.
    fn note_start(&mut self, now: Now, pod: &Pod) {
        let hash = pod.spec_hash();
        if self.record.spec_hash != hash {
            self.record.spec_hash = hash;
            self.stored = false;
        }
        if self.record.start_time == 0 {
            self.record.start_time = now.unix;
            self.stored = false;
        }
    }
}

/// True when a container that ended so is not started again.
pub(super) fn is_final(pod: &Pod, exit_code: i32) -> bool {
    match pod.spec.restart_policy {
        RestartPolicy::Always => false,
        RestartPolicy::OnFailure => exit_code == 0,
        RestartPolicy::Never => true,
    }
}
