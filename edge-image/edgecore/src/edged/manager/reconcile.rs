//! What is wanted against what is here: which pods get a worker, which go on under another uid, and what nobody asked for.

use std::{collections::BTreeSet, sync::Arc};

use super::{Action, Manager, Refused, Wanted};
use crate::edged::{
    limits,
    observed::Sandbox,
    pod::Pod,
    record::{Ended, Record},
    worker::{Now, Turn, Worker},
};

impl Manager {
    pub(super) fn reconcile(&mut self, now: Now, wanted: Vec<Wanted>, actions: &mut Vec<Action>) {
        self.reconciled = true;
        let uids: BTreeSet<&str> = wanted.iter().map(|w| w.uid.as_str()).collect();
        self.refused.retain(|uid, _| uids.contains(uid.as_str()));
        // Before anything is stopped: a pod of the cloud before goes on under its new uid.
        for wanted in &wanted {
            if let Ok(pod) = &wanted.pod {
                self.rebind(pod, &uids);
            }
        }
        for worker in self.workers.values_mut().filter(|w| !uids.contains(w.record.uid.as_str())) {
            harden(worker, None, actions);
        }
        self.places = wanted.iter().map(|wanted| (wanted.namespace.clone(), wanted.name.clone())).collect();
        // Those that run here come before newcomers, and of these the older ones first.
        let known: BTreeSet<String> = self.workers.values().map(|worker| worker.record.uid.clone()).collect();
        let mut wanted = wanted;
        wanted.sort_by_cached_key(|wanted| {
            let made = wanted.pod.as_ref().ok().and_then(|pod| pod.metadata.creation_timestamp.clone());
            (!known.contains(&wanted.uid), made.unwrap_or_default())
        });
        for wanted in wanted {
            self.want(now, wanted, actions);
        }
        self.take_orphans(now);
    }

    fn want(&mut self, now: Now, wanted: Wanted, actions: &mut Vec<Action>) {
        let known = self.workers.values_mut().find(|worker| worker.record.uid == wanted.uid);
        if let Some(worker) = known {
            match wanted.pod {
                Ok(pod) => harden(worker, Some(pod), actions),
                // What runs goes on; the error is shown with its status.
                Err(error) => {
                    worker.refused = Some(error.to_string());
                    worker.touch();
                }
            }
            return;
        }
        let pod = match &wanted.pod {
            Ok(pod) => pod.clone(),
            Err(error) => return self.refuse(wanted.clone(), "InvalidPodSpec", error.to_string()),
        };
        if self.workers.len() >= limits::PODS_MAX && !wanted.deleting {
            let message = format!("this node runs {} pods already, its limit; delete one", limits::PODS_MAX);
            return self.refuse(wanted, "OutOfpods", message);
        }
        self.refused.remove(&wanted.uid);
        let unrecorded = self.unrecorded(&wanted.uid).map(|sandbox| sandbox.incarnation.clone());
        let is_new = unrecorded.is_none() && !wanted.deleting;
        let incarnation = unrecorded.unwrap_or_else(|| wanted.uid.clone());
        let record = Record {
            incarnation: incarnation.clone(),
            namespace: wanted.namespace,
            name: wanted.name,
            uid: wanted.uid,
            cloud: Some(self.cloud.clone()),
            grace_s: pod.grace().as_secs(),
            ended: ended(&pod.status.phase),
            ..Record::default()
        };
        let mut worker = Worker::new(record, Some(pod), false);
        worker.ended_elsewhere = worker.record.ended.is_some();
        if is_new && !worker.ended_elsewhere {
            self.enter(&mut worker, true, actions);
        }
        if let Some(observed) = &self.observed {
            worker.observe(now, self.ticket, observed);
        }
        self.workers.insert(incarnation, Box::new(worker));
    }

    /// A sandbox of this uid whose record was lost with the store: the pod is adopted from the runtime's labels.
    fn unrecorded(&self, uid: &str) -> Option<&Arc<Sandbox>> {
        let sandboxes = &self.observed.as_ref()?.sandboxes;
        sandboxes.iter().find(|s| s.uid == uid && !self.workers.contains_key(&s.incarnation))
    }

    fn rebind(&mut self, pod: &Arc<Pod>, wanted: &BTreeSet<&str>) {
        if pod.metadata.deletion_timestamp.is_some()
            || self.workers.values().any(|w| w.record.uid == pod.metadata.uid)
        {
            return;
        }
        let (name, hash) = (pod.full_name(), pod.spec_hash());
        let same = |worker: &&mut Box<Worker>| {
            let record = &worker.record;
            let foreign = record.cloud.as_ref().is_some_and(|cloud| *cloud != self.cloud);
            foreign
                && !wanted.contains(record.uid.as_str())
                && record.full_name() == name
                && record.spec_hash == hash
        };
        let Some(worker) = self.workers.values_mut().find(same) else { return };
        tracing::info!("pod {name} goes on under the uid that its new cloud gave it, {}", pod.metadata.uid);
        worker.record.cloud = Some(self.cloud.clone());
        worker.rebind(pod.clone());
        // Under the new uid nothing was told yet.
        self.told.remove(&worker.record.incarnation);
    }

    /// Sandboxes without a record stay, unless they hold the place of a wanted pod or hold nothing: a killed agent's last call may
    /// make one after its pod was forgotten.
    pub(super) fn take_orphans(&mut self, now: Now) {
        let Some(observed) = &self.observed else { return };
        for sandbox in &observed.sandboxes {
            let place = (sandbox.namespace.clone(), sandbox.name.clone());
            let in_use = observed.in_sandbox(&sandbox.id).next().is_some();
            if self.workers.contains_key(&sandbox.incarnation) || in_use && !self.places.contains(&place) {
                continue;
            }
            let record = Record {
                incarnation: sandbox.incarnation.clone(),
                namespace: sandbox.namespace.clone(),
                name: sandbox.name.clone(),
                uid: sandbox.uid.clone(),
                grace_s: limits::GRACE_DEFAULT.as_secs(),
                ..Record::default()
            };
            let mut worker = Worker::new(record, None, true);
            worker.observe(now, self.ticket, observed);
            self.workers.insert(sandbox.incarnation.clone(), Box::new(worker));
        }
    }

    fn refuse(&mut self, wanted: Wanted, reason: &'static str, message: String) {
        let told = self
            .refused
            .get(&wanted.uid)
            .is_some_and(|old| old.message == message && old.told && old.wanted.deleting == wanted.deleting);
        self.refused.insert(wanted.uid.clone(), Refused { wanted, reason, message, told });
    }
}

/// A pod does not leave a terminal phase, whoever wrote it.
fn ended(phase: &str) -> Option<Ended> {
    match phase {
        "Succeeded" => Some(Ended::Succeeded),
        "Failed" => Some(Ended::Failed),
        _ => None,
    }
}

fn harden(worker: &mut Worker, desired: Option<Arc<Pod>>, actions: &mut Vec<Action>) {
    let incarnation = worker.record.incarnation.clone();
    match worker.set_desired(desired) {
        Turn::GoOn => {}
        Turn::Hasten { grace } => actions.push(Action::Hasten { incarnation, grace }),
        Turn::CallOff => actions.push(Action::CallOff { incarnation }),
    }
}
