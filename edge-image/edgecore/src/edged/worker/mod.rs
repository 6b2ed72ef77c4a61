//! One pod as a plain state machine: it looks at what is wanted and what is there, and names the next step.
//!
//! Not here: the steps themselves (`shell`), the text of the status (`status`), which pods there are (`manager`).
//!
//! Invariants
//! - At most one step of a pod is under way, and the next one is decided on an observation that began after it ended.
//! - A sandbox is only made when the observation shows none that is ready, under an attempt number that the runtime refuses to
//!   give twice: never two running sandboxes for one pod, wherever the agent is killed.
//! - The record is durable before the first sandbox is made, and again before the containers it tells of are removed.

use std::{collections::BTreeMap, time::Duration};

use super::{
    backoff::{Failure, Restarts},
    limits,
    observed::{Container as Seen, Observed, Sandbox, State},
    pod::{Container, Pod, RestartPolicy},
    record::{Ended, Record},
};

/// Monotonic time for waiting, Unix time for telling.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Now {
    pub mono: Duration,
    /// Seconds since the Unix epoch.
    pub unix: i64,
}

/// Counts steps, so that observations and steps can be put in order.
pub type Ticket = u64;

/// One step for the shell. Each can be repeated: after a crash the same step is named again.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    Persist(Record),
    PrepareVolumes,
    RunSandbox {
        attempt: u32,
    },
    /// Stops and removes a sandbox with all its containers.
    RetireSandbox {
        id: String,
    },
    /// Frees network and processes of an ended pod; its containers stay for their logs and status.
    StopSandbox {
        id: String,
    },
    CreateContainer {
        sandbox: Sandbox,
        name: String,
        attempt: u32,
    },
    StartContainer {
        id: String,
        name: String,
    },
    /// SIGTERM to all at once, SIGKILL after the grace period.
    StopContainers {
        ids: Vec<String>,
        grace: Duration,
    },
    RemoveContainer {
        id: String,
        name: String,
        attempt: u32,
    },
    /// Volumes and control groups, after the last sandbox is gone.
    CleanUp,
    /// Logs and the record: the pod was never here.
    Forget,
}

/// Why a step failed, in the words of a container's waiting state.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkError {
    pub reason: &'static str,
    pub message: String,
    pub retry: Retry,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Something is wrong: wait longer each time.
    Backoff,
    /// The runtime is away.
    Soon,
}

/// What a failure belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    Pod,
    Container(String),
}

#[derive(Clone, Debug)]
pub struct Worker {
    pub record: Record,
    /// `None`: nobody wants the pod any more.
    pub desired: Option<Pod>,
    /// The last observation, for the status; steps are decided on it only while it is fresh.
    pub seen: Option<Observed>,
    fresh: bool,
    pub failures: BTreeMap<Slot, Failure>,
    pub restarts: BTreeMap<String, Restarts>,
    /// Why the newest object was not taken; the pod goes on as it was.
    pub refused: Option<String>,
    busy: Option<Work>,
    done_at: Ticket,
    stored: bool,
    prepared: bool,
    cleaned: bool,
    forgotten: bool,
    /// Something happened since the last look at what to do and to tell.
    touched: bool,
    /// When time alone is a reason to look again.
    look_at: Option<Duration>,
}

impl Worker {
    /// `stored`: the record was read from the store.
    pub fn new(record: Record, desired: Option<Pod>, stored: bool) -> Worker {
        Worker {
            record,
            desired,
            seen: None,
            fresh: false,
            failures: BTreeMap::new(),
            restarts: BTreeMap::new(),
            refused: None,
            busy: None,
            done_at: 0,
            stored,
            prepared: false,
            cleaned: false,
            forgotten: false,
            touched: true,
            look_at: None,
        }
    }

    pub fn is_forgotten(&self) -> bool {
        self.forgotten
    }

    /// The runtime holds nothing of the pod any more.
    pub fn is_cleaned(&self) -> bool {
        self.cleaned
    }

    pub fn is_busy(&self) -> bool {
        self.busy.is_some()
    }

    pub fn is_deleting(&self) -> bool {
        self.desired.as_ref().is_none_or(|pod| pod.metadata.deletion_timestamp.is_some())
    }

    /// Takes a new wish. Returns a second, harder stop when one with a longer grace period is under way.
    pub fn set_desired(&mut self, desired: Option<Pod>) -> Option<Work> {
        self.touched = true;
        self.refused = None;
        if let Some(pod) = &desired {
            self.record.grace_s = pod.grace().as_secs();
        }
        self.desired = desired;
        match &self.busy {
            Some(Work::StopContainers { ids, grace }) if self.is_deleting() && self.grace() < *grace => {
                Some(Work::StopContainers { ids: ids.clone(), grace: self.grace() })
            }
            _ => None,
        }
    }

    /// Binds what runs to another uid of the same pod; the incarnation stays, so nothing restarts.
    pub fn rebind(&mut self, pod: Pod) {
        self.record.uid.clone_from(&pod.metadata.uid);
        self.stored = false;
        self.set_desired(Some(pod));
    }

    /// An observation that began at `began`; older than the last step, it is not used.
    pub fn observe(&mut self, now: Now, began: Ticket, all: &Observed) {
        if self.busy.is_some() || began < self.done_at {
            return;
        }
        let seen = all.of(&self.record.incarnation);
        for container in seen.containers.iter().filter(|c| c.state == State::Exited) {
            let latest = seen.latest(&container.sandbox_id, &container.name);
            if latest.is_some_and(|latest| latest.id == container.id) {
                self.restarts.entry(container.name.clone()).or_default().note_exit(now.mono, &container.id);
            }
        }
        self.touched |= !self.fresh || self.seen.as_ref() != Some(&seen);
        self.seen = Some(seen);
        self.fresh = true;
    }

    pub fn done(&mut self, now: Now, at: Ticket, result: Result<(), WorkError>) {
        let Some(work) = self.busy.take() else { return };
        self.done_at = at;
        self.fresh = false;
        self.touched = true;
        let slot = match &work {
            Work::CreateContainer { name, .. } | Work::StartContainer { name, .. } => {
                Slot::Container(name.clone())
            }
            _ => Slot::Pod,
        };
        if let Err(error) = result {
            let failure = match error.retry {
                Retry::Soon => Failure::soon(now.mono, error.reason, error.message),
                Retry::Backoff => {
                    Failure::after(self.failures.get(&slot), now.mono, error.reason, error.message)
                }
            };
            self.failures.insert(slot, failure);
            return;
        }
        self.failures.remove(&slot);
        match work {
            // The record may have changed while it was written.
            Work::Persist(written) => self.stored = written == self.record,
            Work::PrepareVolumes => self.prepared = true,
            Work::RetireSandbox { .. } => self.prepared = false,
            Work::CleanUp => self.cleaned = true,
            Work::Forget => self.forgotten = true,
            _ => {}
        }
    }

    /// Keeps the worker from being looked at while nothing happens to it; `touch` makes it look again.
    pub fn is_due(&self, now: Now) -> bool {
        self.touched || self.look_at.is_some_and(|due| due <= now.mono)
    }

    pub fn touch(&mut self) {
        self.touched = true;
    }

    /// What there was to decide is decided.
    pub fn rest(&mut self, now: Now) {
        self.touched = false;
        self.look_at = self.wake(now);
    }

    /// The next step, if there is one to take now. It is under way until `done`.
    pub fn next(&mut self, now: Now) -> Option<Work> {
        if self.busy.is_some() || self.forgotten || !self.fresh {
            return None;
        }
        let seen = self.seen.clone()?;
        let work = if self.is_deleting() {
            self.next_stop(now, &seen)
        } else {
            self.cleaned = false;
            self.next_run(now, &seen)
        };
        self.busy.clone_from(&work);
        work
    }

    /// When to look again though nothing happens.
    pub fn wake(&self, now: Now) -> Option<Duration> {
        if self.busy.is_some() {
            return None;
        }
        let failures = self.failures.values().map(|failure| failure.due);
        let restarts = self.restarts.values().map(Restarts::due);
        failures.chain(restarts).filter(|due| *due > now.mono).min()
    }

    pub fn grace(&self) -> Duration {
        match &self.desired {
            Some(pod) => pod.grace(),
            None => Duration::from_secs(self.record.grace_s),
        }
    }

    /// The sandbox that the pod runs in: the ready one; of several, which only a foreign hand can make, the fullest.
    pub fn sandbox<'a>(&self, seen: &'a Observed) -> Option<&'a Sandbox> {
        let running =
            |sandbox: &Sandbox| seen.in_sandbox(&sandbox.id).filter(|c| c.state == State::Running).count();
        seen.sandboxes.iter().filter(|s| s.ready).max_by_key(|s| (running(s), s.attempt))
    }

    fn waits(&self, now: Now, slot: &Slot) -> bool {
        self.failures.get(slot).is_some_and(|failure| failure.due > now.mono)
    }

    fn next_stop(&mut self, now: Now, seen: &Observed) -> Option<Work> {
        if self.waits(now, &Slot::Pod) {
            return None;
        }
        if let Some(stop) = self.stop_all(seen) {
            return Some(stop);
        }
        if let Some(sandbox) = seen.sandboxes.first() {
            // Kept in memory for the last status; not worth a write, the pod is going.
            self.record.harvest(seen, sandbox);
            return Some(Work::RetireSandbox { id: sandbox.id.clone() });
        }
        if !self.cleaned {
            return Some(Work::CleanUp);
        }
        self.desired.is_none().then_some(Work::Forget)
    }

    fn stop_all(&self, seen: &Observed) -> Option<Work> {
        let alive = |c: &&Seen| matches!(c.state, State::Running | State::Unknown);
        let ids: Vec<String> = seen.containers.iter().filter(alive).map(|c| c.id.clone()).collect();
        (!ids.is_empty()).then(|| Work::StopContainers { ids, grace: self.grace() })
    }

    fn next_run(&mut self, now: Now, seen: &Observed) -> Option<Work> {
        let pod = self.desired.clone()?;
        if self.waits(now, &Slot::Pod) {
            return None;
        }
        let hash = pod.spec_hash();
        if self.record.spec_hash != hash {
            self.record.spec_hash = hash;
            self.stored = false;
        }
        if self.record.start_time == 0 {
            self.record.start_time = now.unix;
            self.stored = false;
        }
        let current = self.sandbox(seen).cloned();
        let old = seen
            .sandboxes
            .iter()
            .find(|s| current.as_ref().is_none_or(|current| current.id != s.id))
            .cloned();
        // An ended pod keeps its dead sandbox: its containers hold logs and exit codes.
        if let Some(old) = old.as_ref().filter(|_| self.record.ended.is_none()) {
            if self.record.harvest(seen, old) {
                self.stored = false;
            }
            if current.is_none() {
                self.end_if_complete(&pod, seen, None);
            }
        }
        if !self.stored {
            return Some(Work::Persist(self.record.clone()));
        }
        if self.record.ended.is_some() {
            return current.map(|sandbox| Work::StopSandbox { id: sandbox.id });
        }
        if let Some(old) = old {
            return Some(Work::RetireSandbox { id: old.id });
        }
        let Some(sandbox) = current else {
            return Some(match self.prepared {
                false => Work::PrepareVolumes,
                true => Work::RunSandbox { attempt: self.record.next_sandbox },
            });
        };
        self.next_in_sandbox(now, &pod, seen, &sandbox)
    }

    fn next_in_sandbox(&mut self, now: Now, pod: &Pod, seen: &Observed, sandbox: &Sandbox) -> Option<Work> {
        // A container whose init container's record was removed by hand has got past it.
        let started = pod.spec.containers.iter().any(|c| seen.latest(&sandbox.id, &c.name).is_some());
        for container in &pod.spec.init_containers {
            let latest = seen.latest(&sandbox.id, &container.name);
            match latest {
                Some(c) if c.state == State::Exited && c.exit_code == 0 => continue,
                Some(c) if c.state == State::Exited && pod.spec.restart_policy == RestartPolicy::Never => {
                    self.record.ended = Some(Ended::Failed);
                    return self.persist();
                }
                None if started => continue,
                _ => return self.container_step(now, seen, sandbox, container, latest),
            }
        }
        for container in &pod.spec.containers {
            if self.exit_code(seen, Some(sandbox), container).is_some_and(|code| is_final(pod, code)) {
                continue;
            }
            let latest = seen.latest(&sandbox.id, &container.name);
            if let Some(work) = self.container_step(now, seen, sandbox, container, latest) {
                return Some(work);
            }
        }
        self.end_if_complete(pod, seen, Some(sandbox));
        match self.stored {
            false => Some(Work::Persist(self.record.clone())),
            true => older_container(seen, sandbox),
        }
    }

    fn container_step(
        &self,
        now: Now,
        seen: &Observed,
        sandbox: &Sandbox,
        container: &Container,
        latest: Option<&Seen>,
    ) -> Option<Work> {
        let name = container.name.clone();
        if self.waits(now, &Slot::Container(name.clone())) {
            return None;
        }
        let remembered = self.record.containers.get(&name).map_or(0, |r| r.next_attempt);
        let Some(latest) = latest else {
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
            State::Running if same => None,
            State::Running | State::Unknown => {
                Some(Work::StopContainers { ids: vec![latest.id.clone()], grace: self.grace() })
            }
            State::Exited => {
                let waiting = self.restarts.get(&name).is_some_and(|restarts| restarts.is_waiting(now.mono));
                if same && waiting {
                    return None;
                }
                let older = seen.in_sandbox(&sandbox.id).find(|c| c.name == name && c.id != latest.id);
                let attempt = remembered.max(latest.attempt.saturating_add(1));
                // The one before stays for `lastState` and its log; those before it go first.
                Some(older.map_or(
                    Work::CreateContainer { sandbox: sandbox.clone(), name: name.clone(), attempt },
                    retire,
                ))
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

    /// Decides whether every container has ended for good.
    fn end_if_complete(&mut self, pod: &Pod, seen: &Observed, sandbox: Option<&Sandbox>) {
        let codes: Option<Vec<i32>> =
            pod.spec.containers.iter().map(|container| self.exit_code(seen, sandbox, container)).collect();
        let Some(codes) = codes else { return };
        if codes.iter().all(|code| is_final(pod, *code)) {
            let failed = codes.iter().any(|code| *code != 0);
            self.record.ended = Some(if failed { Ended::Failed } else { Ended::Succeeded });
            self.stored = false;
        }
    }

    fn persist(&mut self) -> Option<Work> {
        self.stored = false;
        Some(Work::Persist(self.record.clone()))
    }
}

/// True when a container that ended so is not started again.
fn is_final(pod: &Pod, exit_code: i32) -> bool {
    match pod.spec.restart_policy {
        RestartPolicy::Always => false,
        RestartPolicy::OnFailure => exit_code == 0,
        RestartPolicy::Never => true,
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
