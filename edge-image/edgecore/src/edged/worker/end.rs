//! How a pod ends by itself: its containers are done, its time is over, or somebody on the node gave it up.

use std::time::Duration;

use super::{Now, Work, Worker, run::is_final};
use crate::edged::{
    events::Event,
    observed::{Observed, Sandbox},
    pod::{Pod, RestartPolicy},
    record::{Ended, Failing},
};

const DEADLINE: &str = "DeadlineExceeded";
const DEADLINE_TEXT: &str = "Pod was active on the node longer than the specified deadline";

impl Worker {
    /// Gives the pod up: its containers are stopped, then it is Failed with this reason, and stays so. False when it is ending or
    /// has ended already.
    pub fn give_up(&mut self, reason: &str, message: &str, grace: Option<Duration>) -> bool {
        if self.record.ended.is_some() || self.record.failing.is_some() || self.is_deleting() {
            return false;
        }
        let grace_s = grace.map(|grace| u32::try_from(grace.as_secs()).unwrap_or(u32::MAX));
        let (reason, message) = (reason.into(), message.into());
        self.record.failing = Some(Failing { reason, message, grace_s, at_the_door: false });
        self.stored = false;
        self.touched = true;
        true
    }

    /// A newcomer that is not let in.
    pub fn turn_away(&mut self, reason: &str, message: &str) -> bool {
        let given_up = self.give_up(reason, message, None);
        if let Some(failing) = self.record.failing.as_mut().filter(|_| given_up) {
            failing.at_the_door = true;
        }
        given_up
    }

    pub(super) fn check_deadline(&mut self, now: Now, pod: &Pod) {
        let over = deadline_unix(pod, self.record.start_time).is_some_and(|deadline| deadline <= now.unix);
        if over && self.give_up(DEADLINE, DEADLINE_TEXT, None) {
            self.say(Event::normal(DEADLINE, DEADLINE_TEXT));
        }
    }

    /// When `activeDeadlineSeconds` is over, in monotonic time.
    pub(super) fn deadline(&self, now: Now) -> Option<Duration> {
        let pod = self.desired.as_ref().filter(|_| !self.is_deleting())?;
        if self.record.ended.is_some() || self.record.failing.is_some() {
            return None;
        }
        let left = deadline_unix(pod, self.record.start_time)?.saturating_sub(now.unix);
        Some(now.mono + Duration::from_secs(u64::try_from(left).unwrap_or(0)))
    }

    /// What the pod comes to, if its containers or the node have decided that.
    pub(super) fn outcome(&self, pod: &Pod, seen: &Observed, sandbox: Option<&Sandbox>) -> Option<Ended> {
        if let Some(ended) = self.record.ended {
            return Some(ended);
        }
        if self.record.failing.is_some() || self.init_failed(pod, seen, sandbox) {
            return Some(Ended::Failed);
        }
        let codes: Option<Vec<i32>> =
            pod.spec.containers.iter().map(|container| self.exit_code(seen, sandbox, container)).collect();
        let codes = codes?;
        if !codes.iter().all(|code| is_final(pod, *code)) {
            return None;
        }
        Some(if codes.iter().any(|code| *code != 0) { Ended::Failed } else { Ended::Succeeded })
    }

    /// An init container failed and is not to be tried again.
    fn init_failed(&self, pod: &Pod, seen: &Observed, sandbox: Option<&Sandbox>) -> bool {
        let mut plain = pod.spec.init_containers.iter().filter(|c| !c.is_sidecar());
        pod.spec.restart_policy == RestartPolicy::Never
            && plain.any(|c| self.exit_code(seen, sandbox, c).is_some_and(|code| code != 0))
    }

    /// The next step towards a pod of which nothing runs: containers first, then the sandbox, after which none can start.
    pub(super) fn take_down(&mut self, seen: &Observed, sandbox: Option<String>) -> Option<Work> {
        self.stop_all(seen).or(sandbox.map(|id| Work::StopSandbox { id }))
    }

    /// Remembers how the pod ended. For good: what is told of it must outlive every crash.
    pub(super) fn note_end(&mut self, outcome: Ended) {
        if self.record.ended.is_none() {
            self.record.ended = Some(outcome);
            self.stored = false;
        }
    }

    /// What a deleted pod came to. What never ran counts as failed.
    pub(super) fn outcome_of_deleted(&self, seen: &Observed) -> Ended {
        let Some(pod) = &self.spec else { return Ended::Failed };
        let well = |container| self.exit_code(seen, None, container) == Some(0);
        let failed = self.record.failing.is_some() || !pod.spec.containers.iter().all(well);
        if failed { Ended::Failed } else { Ended::Succeeded }
    }
}

fn deadline_unix(pod: &Pod, start: i64) -> Option<i64> {
    let seconds = pod.spec.active_deadline_seconds.filter(|_| start > 0)?;
    Some(start.saturating_add(seconds.max(0)))
}
