//! The shell's part of probes: tells the prober what runs, asks what it wants asked, and hands its verdicts to the manager.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{Happening, Shell};
use crate::edged::{
    events::Event,
    manager::{self, Manager},
    observed::State,
    probe::{
        Check, Known, Memory, Outcome, Prober,
        figures::{self, Who},
        is_probed,
        machine::{Action, Input, Target, Ticket},
    },
    worker::{self, Health, Worker},
};

pub(super) struct Probes {
    prober: Prober,
    memory: Memory,
}

impl Probes {
    pub fn new(memory: Memory) -> Probes {
        Probes { prober: Prober::new(rt::random_u64()), memory }
    }

    /// For the first status after a restart of the agent.
    pub fn known(&self) -> BTreeMap<String, Health> {
        let health = |known: Known| Health {
            startup: known.started.then_some(true),
            readiness: known.ready.then_some(true),
            liveness: None,
        };
        self.memory.all().map(|(id, known)| (id.clone(), health(known))).collect()
    }
}

impl Shell {
    /// When the next probe is due.
    pub(super) fn next_probe(&self) -> Option<Instant> {
        self.probes.prober.wake().map(|due| self.start + due)
    }

    /// After the manager learned something: there may be other containers.
    pub(super) fn watch_probes(&mut self) {
        let targets = targets(&self.manager, &self.probes.memory);
        if targets.is_empty() && self.probes.prober.is_empty() {
            return;
        }
        let now = self.now();
        let actions = self.probes.prober.handle(now, Input::Running(targets));
        self.act_on_probes(actions);
    }

    pub(super) fn probe_timer(&mut self) {
        let now = self.now();
        let actions = self.probes.prober.handle(now, Input::Tick);
        self.act_on_probes(actions);
    }

    pub(super) fn probed(&mut self, ticket: Ticket, outcome: Outcome) {
        let now = self.now();
        let actions = self.probes.prober.handle(now, Input::Result { ticket, outcome });
        self.act_on_probes(actions);
    }

    fn act_on_probes(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Run { incarnation, container, ticket, timeout } => {
                    self.ask(&incarnation, &container, ticket, timeout);
                }
                Action::Tell { incarnation, container, kind, outcome } => {
                    let (Some(worker), Some((reason, message))) =
                        (self.manager.worker(&incarnation), outcome.event(kind))
                    else {
                        continue;
                    };
                    let path = worker.spec.as_ref().map_or(String::new(), |pod| pod.field_path(&container));
                    self.executor.events.pod(&worker.record, Event::warning(reason, message).at(path));
                }
                Action::Verdict { incarnation, id, kind, passed } => {
                    self.probes.memory.keep(self.probes.prober.found());
                    let outcome = worker::Outcome { kind, passed };
                    let container_id = id.to_string();
                    self.handle(manager::Input::Probe { incarnation, container_id, outcome });
                }
            }
        }
    }

    fn ask(&mut self, incarnation: &str, container: &str, ticket: Ticket, timeout: Duration) {
        let worker = self.manager.worker(incarnation);
        let who = worker.map(|worker| Who {
            incarnation: incarnation.into(),
            container: container.into(),
            namespace: worker.record.namespace.clone(),
            pod: worker.record.name.clone(),
            uid: worker.record.uid.clone(),
        });
        let check = worker.and_then(|worker| {
            let container = worker.spec.as_ref()?.all_containers().find(|c| c.name == container)?;
            let probe = ticket.kind.of(container)?;
            Some(Check::of(probe, container, &ticket.id, &self.pod_ip(worker)))
        });
        let check = check.unwrap_or_else(|| Err("the pod is gone".into()));
        let executor = self.executor.clone();
        self.work.push(Box::pin(async move {
            let (kind, asked) = (ticket.kind, Instant::now());
            let outcome = match check {
                Ok(check) => executor.checker.check(check, timeout).await,
                Err(error) => Outcome::Errored(error),
            };
            if let Some(who) = who {
                figures::add(who, kind, &outcome, asked.elapsed());
            }
            Happening::Probed(ticket, outcome)
        }));
    }

    /// Where a pod is asked: its address, or the node's when it is on the node's network.
    pub(super) fn pod_ip(&self, worker: &Worker) -> String {
        let on_host = worker.spec.as_ref().is_some_and(|pod| pod.spec.host_network);
        if on_host {
            let ip = &self.manager.node().host_ip;
            return if ip.is_empty() { "127.0.0.1".into() } else { ip.clone() };
        }
        let sandbox = worker.seen.as_ref().and_then(|seen| worker.sandbox(seen));
        sandbox.and_then(|sandbox| sandbox.ips.first()).cloned().unwrap_or_default()
    }
}

/// Every running container that has probes.
fn targets<'a>(manager: &'a Manager, memory: &Memory) -> Vec<Target<'a>> {
    let mut targets = Vec::new();
    for worker in manager.workers() {
        let (Some(pod), Some(seen)) = (&worker.spec, &worker.seen) else { continue };
        let sidecars = pod.spec.init_containers.iter().filter(|container| container.is_sidecar());
        let mut probed = pod.spec.containers.iter().chain(sidecars).filter(|c| is_probed(c)).peekable();
        let Some(sandbox) = probed.peek().and_then(|_| worker.sandbox(seen)) else { continue };
        for container in probed {
            let latest = seen.latest(&sandbox.id, &container.name);
            let Some(running) = latest.filter(|found| found.state == State::Running) else { continue };
            targets.push(Target {
                incarnation: &worker.record.incarnation,
                container,
                id: &running.id,
                started_at: running.started_at,
                deleting: worker.is_deleting(),
                known: memory.get(&running.id).unwrap_or_default(),
            });
        }
    }
    targets
}
