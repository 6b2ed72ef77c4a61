//! One pod as a plain state machine: it looks at what is wanted and what is there, and names the next step.
//!
//! Not here: the steps themselves (`shell`), the text of the status (`status`), which pods there are (`manager`).
//!
//! Invariants
//! - At most one step of a pod is under way, and the next one is decided on an observation that began after it ended, or after
//!   the last step before it that may have changed what the runtime holds: writing a record or files changes nothing there.
//! - A pod that ends has its containers stopped first; only then is its end recorded and told.
//! - A sandbox is only made when the observation shows none that is ready, under an attempt number that the runtime refuses to
//!   give twice: never two running sandboxes for one pod, wherever the agent is killed.
//! - The record is durable before the first container is made, and again before the containers it tells of are removed. The
//!   first sandbox is made while it is written: an empty sandbox without a record is adopted by its labels or taken away
//!   (docs/decisions/pod-record.md).

mod containers;
mod end;
mod health;
mod run;
mod say;
mod stop;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

pub use health::{Health, Outcome, ProbeKind};
pub use stop::Stop;

use super::{
    backoff::{Failure, Restarts},
    events::Event,
    observed::{Observed, Sandbox, State},
    pod::Pod,
    record::Record,
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
    Persist(Box<Record>),
    /// Sets the volumes up.
    Prepare,
    /// Makes a sandbox, and beside that writes the record if it is not stored: both must be done before there is a container.
    RunSandbox {
        attempt: u32,
        unwritten: Option<Box<Record>>,
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
        sandbox: Arc<Sandbox>,
        name: String,
        attempt: u32,
    },
    StartContainer {
        id: String,
        name: String,
    },
    /// Hooks, then SIGTERM to each in its turn, SIGKILL after what is left of the grace period.
    StopContainers {
        stops: Vec<Stop>,
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

impl Work {
    /// What was seen of the runtime before the step says nothing any more after it.
    fn is_of_runtime(&self) -> bool {
        !matches!(self, Work::Persist(_) | Work::Prepare)
    }
}

/// The runtime did not start a container that it had made.
pub const RUN_ERROR: &str = "RunContainerError";

/// Why a step failed, in the words of a container's waiting state.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkError {
    pub reason: &'static str,
    pub message: String,
    pub retry: Retry,
}

impl WorkError {
    pub fn called_off() -> WorkError {
        WorkError { reason: "CalledOff", message: String::new(), retry: Retry::Now }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Something is wrong: wait longer each time.
    Backoff,
    /// The runtime is away.
    Soon,
    /// Who failed knows when it is worth another try.
    After(Duration),
    /// The step was called off (the pod is being deleted): decide anew at once.
    Now,
}

/// What becomes of the step under way when the wish changes.
#[derive(Clone, Debug, PartialEq)]
pub enum Turn {
    GoOn,
    /// The same stop, with less time.
    Hasten {
        grace: Duration,
    },
    /// What it works for is not wanted any more.
    CallOff,
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
    pub desired: Option<Arc<Pod>>,
    /// The last spec that was known, also when the object is gone: how to stop what it started.
    pub spec: Option<Arc<Pod>>,
    /// The last observation, for the status; steps are decided on it only while it is fresh.
    pub seen: Option<Observed>,
    fresh: bool,
    pub failures: BTreeMap<Slot, Failure>,
    pub restarts: BTreeMap<String, Restarts>,
    /// What probes found, by container id.
    pub health: BTreeMap<String, Health>,
    /// To be told with the next look.
    events: Vec<Event>,
    /// Why the newest object was not taken; the pod goes on as it was.
    pub refused: Option<String>,
    /// The cloud's object says that the pod ended, and nothing here knows more: its status is left as it stands there.
    pub ended_elsewhere: bool,
    busy: Option<Work>,
    done_at: Ticket,
    stored: bool,
    end_stored: bool,
    prepared: bool,
    cleaned: bool,
    /// The volumes of a pod that ended were removed.
    emptied: bool,
    forgotten: bool,
    /// Something happened since the last look at what to do and to tell.
    touched: bool,
    /// When time alone is a reason to look again.
    look_at: Option<Duration>,
}

impl Worker {
    /// `stored`: the record was read from the store.
    pub fn new(record: Record, desired: Option<Arc<Pod>>, stored: bool) -> Worker {
        let ended = record.ended.is_some();
        Worker {
            record,
            spec: desired.clone(),
            desired,
            seen: None,
            fresh: false,
            failures: BTreeMap::new(),
            restarts: BTreeMap::new(),
            health: BTreeMap::new(),
            events: Vec::new(),
            refused: None,
            ended_elsewhere: false,
            busy: None,
            done_at: 0,
            stored,
            end_stored: stored && ended,
            prepared: false,
            cleaned: false,
            emptied: false,
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

    /// The pod has ended for good, and the store knows it.
    pub fn has_ended(&self) -> bool {
        self.end_stored
    }

    pub fn is_busy(&self) -> bool {
        self.busy.is_some()
    }

    /// What was last seen of the runtime holds.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    pub fn is_deleting(&self) -> bool {
        self.desired.as_ref().is_none_or(|pod| pod.metadata.deletion_timestamp.is_some())
    }

    /// Takes a new wish, and tells what becomes of the step that is under way.
    pub fn set_desired(&mut self, desired: Option<Arc<Pod>>) -> Turn {
        let same = |(new, known): (&Arc<Pod>, &Arc<Pod>)| Arc::ptr_eq(new, known);
        if self.refused.is_none() && desired.as_ref().zip(self.desired.as_ref()).is_some_and(same) {
            return Turn::GoOn;
        }
        self.touched = true;
        self.refused = None;
        if let Some(pod) = &desired {
            self.record.grace_s = pod.grace().as_secs();
            self.spec = Some(pod.clone());
        }
        self.desired = desired;
        self.turn()
    }

    /// Binds what runs to another uid of the same pod; the incarnation stays, so nothing restarts.
    pub fn rebind(&mut self, pod: Arc<Pod>) {
        self.record.uid.clone_from(&pod.metadata.uid);
        self.stored = false;
        self.set_desired(Some(pod));
    }

    /// An observation that began at `began`; older than the last step of the runtime, it is not used.
    pub fn observe(&mut self, now: Now, began: Ticket, all: &Observed) {
        if self.busy.as_ref().is_some_and(Work::is_of_runtime) || began < self.done_at {
            return;
        }
        let seen = all.of(&self.record.incarnation);
        let mut exits = Vec::new();
        for container in seen.containers.iter().filter(|c| c.state == State::Exited) {
            let latest = seen.latest(&container.sandbox_id, &container.name);
            if latest.is_some_and(|latest| latest.id == container.id) {
                let killed = self.health(&container.id).killed();
                let restarts = self.restarts.entry(container.name.clone()).or_default();
                if restarts.note_exit(now.mono, &container.id, killed) {
                    exits.push(container.name.clone());
                }
            }
        }
        self.health.retain(|id, _| seen.containers.iter().any(|c| c.id == *id));
        self.touched |= !self.fresh || self.seen.as_ref() != Some(&seen);
        self.seen = Some(seen);
        self.fresh = true;
        for name in exits {
            self.say_backoff(now, &name);
        }
    }

    pub fn done(&mut self, now: Now, at: Ticket, result: Result<(), WorkError>) {
        let Some(work) = self.busy.take() else { return };
        if work.is_of_runtime() {
            self.done_at = at;
            self.fresh = false;
        }
        self.touched = true;
        let slot = match &work {
            Work::CreateContainer { name, .. } | Work::StartContainer { name, .. } => {
                Slot::Container(name.clone())
            }
            _ => Slot::Pod,
        };
        self.say_outcome(&work, &result);
        if let Err(error) = result {
            self.fail(now, slot, error);
            return;
        }
        self.failures.remove(&slot);
        match work {
            Work::Persist(written) => self.wrote(&written),
            Work::Prepare => self.prepared = true,
            Work::RunSandbox { unwritten: Some(written), .. } => self.wrote(&written),
            Work::RetireSandbox { .. } => self.prepared = false,
            Work::CleanUp => {
                self.emptied = true;
                let nothing = |seen: &Observed| seen.sandboxes.is_empty();
                self.cleaned = self.is_deleting() && self.seen.as_ref().is_some_and(nothing);
            }
            Work::Forget => self.forgotten = true,
            _ => {}
        }
    }

    /// The record may have changed while it was written.
    fn wrote(&mut self, written: &Record) {
        self.end_stored |= written.ended.is_some();
        self.stored = *written == self.record;
    }

    /// The record, if it is to be written.
    fn unwritten(&self) -> Option<Box<Record>> {
        (!self.stored).then(|| Box::new(self.record.clone()))
    }

    fn fail(&mut self, now: Now, slot: Slot, error: WorkError) {
        let WorkError { reason, message, retry } = error;
        let failure = match retry {
            Retry::Now => return,
            Retry::Soon => Failure::soon(now.mono, reason, message),
            Retry::After(delay) => Failure::until(now.mono + delay, reason, message),
            Retry::Backoff => Failure::after(self.failures.get(&slot), now.mono, reason, message),
        };
        self.failures.insert(slot, failure);
    }

    /// Config maps, secrets or claims changed: a step that failed for the lack of one need not wait any longer.
    pub fn sources_changed(&mut self, now: Now) {
        const OF_SOURCES: [&str; 2] = ["FailedMount", "CreateContainerConfigError"];
        for failure in self.failures.values_mut().filter(|failure| OF_SOURCES.contains(&failure.reason)) {
            failure.due = failure.due.min(now.mono);
            self.touched = true;
        }
    }

    /// What happened since the last call, in kubelet's words.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
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
        failures.chain(restarts).chain(self.deadline(now)).filter(|due| *due > now.mono).min()
    }

    /// The sandbox that the pod runs in: the ready one; of several, which only a foreign hand can make, the fullest.
    pub fn sandbox<'a>(&self, seen: &'a Observed) -> Option<&'a Arc<Sandbox>> {
        let running =
            |sandbox: &Sandbox| seen.in_sandbox(&sandbox.id).filter(|c| c.state == State::Running).count();
        seen.sandboxes.iter().filter(|s| s.ready).max_by_key(|s| (running(s), s.attempt))
    }

    fn waits(&self, now: Now, slot: &Slot) -> bool {
        self.failures.get(slot).is_some_and(|failure| failure.due > now.mono)
    }
}
