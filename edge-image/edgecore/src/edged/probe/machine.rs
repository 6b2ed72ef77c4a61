//! When which probe runs, and what its results mean: a plain state machine for all containers of the node.
//!
//! Behaviour of kubelet's prober (worker.go): liveness and readiness are held back until startup succeeded; a container that failed
//! is not probed again; liveness and startup stop when the pod is being deleted, readiness goes on. Different: a queue instead of
//! a goroutine per probe, so a storm of probes is late, not large.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{Kind, Known, Outcome};
use crate::edged::{
    limits,
    pod::{Container, Probe},
    worker::Now,
};

/// A running container that has probes.
#[derive(Clone, Debug)]
pub struct Target<'a> {
    pub incarnation: &'a str,
    pub container: &'a Container,
    pub id: &'a str,
    /// Nanoseconds since the Unix epoch.
    pub started_at: i64,
    /// The pod is being deleted.
    pub deleting: bool,
    /// What was found before the agent restarted.
    pub known: Known,
}

#[derive(Debug)]
pub enum Input<'a> {
    /// All running containers with probes, each time one came or went.
    Running(Vec<Target<'a>>),
    Result {
        ticket: Ticket,
        outcome: Outcome,
    },
    /// Time passed.
    Tick,
}

/// Names a probe under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    pub id: Arc<str>,
    pub kind: Kind,
    class: Class,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Ask the container; answered with `Input::Result`.
    Run { incarnation: String, container: String, ticket: Ticket, timeout: Duration },
    /// Worth an event (see [`Outcome::event`]).
    Tell { incarnation: String, container: String, kind: Kind, outcome: Outcome },
    /// A probe came to a verdict, or to another one. A container that did not pass startup or liveness is not asked again.
    Verdict { incarnation: String, id: Arc<str>, kind: Kind, passed: bool },
}

/// What bounds how many run at once: an exec costs a process in the container, the others a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Exec,
    Network,
}

impl Class {
    const ALL: [Class; 2] = [Class::Exec, Class::Network];

    fn places(self) -> usize {
        match self {
            Class::Exec => limits::EXEC_PROBES_MAX,
            Class::Network => limits::NETWORK_PROBES_MAX,
        }
    }
}

type Entry = (Duration, Arc<str>, Kind);

pub struct Prober {
    containers: BTreeMap<Arc<str>, Watched>,
    /// By class: what waits, the oldest first.
    queues: [BTreeSet<Entry>; 2],
    under_way: [usize; 2],
    random: u64,
}

#[derive(Debug)]
struct Watched {
    incarnation: String,
    name: String,
    deleting: bool,
    /// Passed its startup probe, or has none.
    started: bool,
    /// Must be stopped: startup or liveness failed.
    failed: bool,
    probes: Vec<Slot>,
    /// Still there in the newest list.
    seen: bool,
}

#[derive(Debug)]
struct Slot {
    kind: Kind,
    class: Class,
    timing: Timing,
    /// Not before this, once nothing else holds it back.
    first: Duration,
    next: Duration,
    queued: bool,
    under_way: bool,
    last: Option<bool>,
    run: u32,
    verdict: Option<bool>,
}

/// The numbers of a probe, with Kubernetes' defaults for what is not set.
#[derive(Clone, Copy, Debug)]
struct Timing {
    delay: Duration,
    period: Duration,
    timeout: Duration,
    successes: u32,
    failures: u32,
}

impl Timing {
    fn of(probe: &Probe) -> Timing {
        let or = |value: u32, default: u32| if value == 0 { default } else { value };
        let seconds = |value: u32| Duration::from_secs(value.into());
        Timing {
            delay: seconds(probe.initial_delay_seconds),
            period: seconds(or(probe.period_seconds, 10)),
            timeout: seconds(or(probe.timeout_seconds, 1)).min(limits::PROBE_TIMEOUT_MAX),
            successes: or(probe.success_threshold, 1),
            failures: or(probe.failure_threshold, 3),
        }
    }
}

impl Prober {
    pub fn new(seed: u64) -> Prober {
        Prober { containers: BTreeMap::new(), queues: Default::default(), under_way: [0; 2], random: seed }
    }

    pub fn is_empty(&self) -> bool {
        self.containers.is_empty()
    }

    /// What is known of every container, for keeping it over a restart.
    pub fn found(&self) -> impl Iterator<Item = (&str, Known)> {
        let ready = |watched: &Watched| {
            let probe = watched.probes.iter().find(|slot| slot.kind == Kind::Readiness);
            probe.is_none_or(|slot| slot.verdict == Some(true))
        };
        let running = self.containers.iter().filter(|(_, watched)| !watched.failed);
        running.map(move |(id, watched)| (&**id, Known { started: watched.started, ready: ready(watched) }))
    }

    /// When the next probe is due; `None` while nothing waits for time alone.
    pub fn wake(&self) -> Option<Duration> {
        let free = |class: &&Class| self.under_way[**class as usize] < class.places();
        let first = |class: &Class| self.queues[*class as usize].first().map(|entry| entry.0);
        Class::ALL.iter().filter(free).filter_map(first).min()
    }

    pub fn handle(&mut self, now: Now, input: Input<'_>) -> Vec<Action> {
        let mut actions = Vec::new();
        match input {
            Input::Running(targets) => self.running(now, targets, &mut actions),
            Input::Result { ticket, outcome } => self.result(now, &ticket, outcome, &mut actions),
            Input::Tick => {}
        }
        self.start(now, &mut actions);
        actions
    }

    fn running(&mut self, now: Now, targets: Vec<Target<'_>>, actions: &mut Vec<Action>) {
        self.containers.values_mut().for_each(|watched| watched.seen = false);
        for target in targets {
            match self.containers.get_mut(target.id) {
                Some(watched) => {
                    watched.seen = true;
                    watched.deleting |= target.deleting;
                }
                None => self.add(now, &target, actions),
            }
        }
        self.containers.retain(|_, watched| watched.seen);
        // Also entries of containers that are only now being deleted: what may not run any more leaves the queue.
        for queue in &mut self.queues {
            queue.retain(|(_, id, kind)| {
                self.containers.get(id).is_some_and(|c| *kind == Kind::Readiness || !c.deleting)
            });
        }
    }

    fn add(&mut self, now: Now, target: &Target<'_>, actions: &mut Vec<Action>) {
        let age = now.unix.saturating_sub(target.started_at / 1_000_000_000);
        let age = Duration::from_secs(u64::try_from(age).unwrap_or(0));
        let mut probes = Vec::new();
        for kind in Kind::ALL {
            let Some(probe) = kind.of(target.container) else { continue };
            let timing = Timing::of(probe);
            // Older than this agent: many are found at once, so they are spread. Nobody waits for a liveness probe's first
            // success, so it is always spread; the others run at once, but 30 containers started together not in one instant.
            let spread = match age > now.mono || kind == Kind::Liveness {
                true => timing.period,
                false => timing.period.min(limits::PROBE_SPREAD),
            };
            let first = now.mono + timing.delay.saturating_sub(age) + self.part_of(spread);
            let class = if probe.exec.is_some() { Class::Exec } else { Class::Network };
            let idle = Slot {
                kind,
                class,
                timing,
                first,
                next: first,
                queued: false,
                under_way: false,
                last: None,
                run: 0,
                verdict: None,
            };
            probes.push(idle);
        }
        let id: Arc<str> = target.id.into();
        for slot in &mut probes {
            let known = match slot.kind {
                Kind::Startup => target.known.started,
                Kind::Readiness => target.known.ready,
                Kind::Liveness => false,
            };
            if known {
                slot.verdict = Some(true);
                let (incarnation, id) = (target.incarnation.into(), id.clone());
                actions.push(Action::Verdict { incarnation, id, kind: slot.kind, passed: true });
            }
        }
        let watched = Watched {
            incarnation: target.incarnation.into(),
            name: target.container.name.clone(),
            deleting: target.deleting,
            started: target.container.startup_probe.is_none() || target.known.started,
            failed: false,
            probes,
            seen: true,
        };
        self.containers.insert(id.clone(), watched);
        self.queue(now, &id);
    }

    /// Queues every probe of a container that may run and does not wait yet.
    fn queue(&mut self, now: Now, id: &Arc<str>) {
        let Some(watched) = self.containers.get_mut(id) else { return };
        if watched.failed {
            return;
        }
        let (started, deleting) = (watched.started, watched.deleting);
        for slot in &mut watched.probes {
            let its_turn = (slot.kind == Kind::Startup) != started;
            if !its_turn || slot.queued || slot.under_way || deleting && slot.kind != Kind::Readiness {
                continue;
            }
            slot.queued = true;
            slot.next = slot.next.max(slot.first).max(now.mono);
            self.queues[slot.class as usize].insert((slot.next, id.clone(), slot.kind));
        }
    }

    fn start(&mut self, now: Now, actions: &mut Vec<Action>) {
        for class in Class::ALL {
            let queue = &mut self.queues[class as usize];
            while self.under_way[class as usize] < class.places() {
                let Some(entry) = queue.first().filter(|entry| entry.0 <= now.mono).cloned() else { break };
                queue.remove(&entry);
                let (due, id, kind) = entry;
                let Some(watched) = self.containers.get_mut(&id) else { continue };
                let Some(slot) = watched.probes.iter_mut().find(|slot| slot.kind == kind) else { continue };
                slot.queued = false;
                slot.under_way = true;
                slot.next = tick_after(due, slot.timing.period, now.mono);
                self.under_way[class as usize] += 1;
                actions.push(Action::Run {
                    incarnation: watched.incarnation.clone(),
                    container: watched.name.clone(),
                    ticket: Ticket { id, kind, class },
                    timeout: slot.timing.timeout,
                });
            }
        }
    }

    fn result(&mut self, now: Now, ticket: &Ticket, outcome: Outcome, actions: &mut Vec<Action>) {
        let under_way = &mut self.under_way[ticket.class as usize];
        *under_way = under_way.saturating_sub(1);
        let Some(watched) = self.containers.get_mut(&ticket.id) else { return };
        let Some(slot) = watched.probes.iter_mut().find(|slot| slot.kind == ticket.kind) else { return };
        slot.under_way = false;
        // The container is being stopped, for this probe or another: its last answers mean nothing.
        if watched.failed || watched.deleting && slot.kind != Kind::Readiness {
            return;
        }
        let success = match &outcome {
            Outcome::Success | Outcome::Warning(_) => Some(true),
            Outcome::Failure(_) => Some(false),
            Outcome::Errored(_) => None,
        };
        let verdict = success.filter(|success| slot.counts(*success));
        if outcome != Outcome::Success {
            actions.push(Action::Tell {
                incarnation: watched.incarnation.clone(),
                container: watched.name.clone(),
                kind: ticket.kind,
                outcome,
            });
        }
        if let Some(passed) = verdict {
            if slot.verdict != Some(passed) {
                slot.verdict = Some(passed);
                let (incarnation, id) = (watched.incarnation.clone(), ticket.id.clone());
                actions.push(Action::Verdict { incarnation, id, kind: ticket.kind, passed });
            }
            watched.started |= passed && ticket.kind == Kind::Startup;
            watched.failed = !passed && ticket.kind != Kind::Readiness;
        }
        if watched.failed {
            for queue in &mut self.queues {
                queue.retain(|(_, id, _)| *id != ticket.id);
            }
        }
        self.queue(now, &ticket.id);
    }

    /// A random part of a duration, for jitter.
    fn part_of(&mut self, whole: Duration) -> Duration {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let part = (self.random >> 40) as f64 / (1u64 << 24) as f64;
        whole.mul_f64(part)
    }
}

impl Slot {
    /// Counts a result; true when the threshold is reached.
    fn counts(&mut self, success: bool) -> bool {
        self.run = if self.last == Some(success) { self.run.saturating_add(1) } else { 1 };
        self.last = Some(success);
        self.run >= if success { self.timing.successes } else { self.timing.failures }
    }
}

/// The first of `due + n * period` after `now`: a late probe is not made up for, and keeps its phase.
fn tick_after(due: Duration, period: Duration, now: Duration) -> Duration {
    let late = now.saturating_sub(due).as_nanos() / period.as_nanos().max(1);
    due + period * u32::try_from(late + 1).unwrap_or(u32::MAX)
}
