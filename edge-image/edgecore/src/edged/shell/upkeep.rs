//! What volumes need while pods run: files that follow their objects, tokens that are renewed, folders of pods that are gone.

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
    time::Instant,
};

use super::{Happening, Shell};
use crate::{
    contract::LinkState,
    edged::{limits, logs, manager::Input, pod::Pod, probe::figures, tokens},
};

/// Kinds that volumes and environments are made of.
const SOURCES: [&str; 4] = ["configmap", "secret", "persistentvolumeclaim", "persistentvolume"];

/// What upkeep remembers.
pub(super) struct Upkeep {
    /// Over the versions of all stored sources.
    sources: u64,
    /// Uids of pods whose object changed since their files were looked at.
    pub renewed: BTreeSet<String>,
    /// Pods whose files are being refreshed, and whether to do it again because something changed meanwhile. One at a time:
    /// an older one that waited for the cloud must not overwrite a newer one.
    refreshing: std::collections::BTreeMap<String, bool>,
    checked: Instant,
    /// Checks since the start. Folders are looked at from the second one on: pods may still be arriving.
    checks: u32,
}

impl Upkeep {
    pub fn new(now: Instant) -> Upkeep {
        Upkeep {
            sources: 0,
            renewed: BTreeSet::new(),
            refreshing: Default::default(),
            checked: now,
            checks: 0,
        }
    }
}

impl Shell {
    /// Something in meta changed: pods that waited for an object try again at once, and files of running pods follow.
    pub(super) fn sources_changed(&mut self) {
        let mut hasher = DefaultHasher::new();
        for kind in SOURCES {
            for object in self.handles.meta.list(kind) {
                (object.uid, object.resource_version).hash(&mut hasher);
            }
        }
        let changed = std::mem::replace(&mut self.upkeep.sources, hasher.finish()) != self.upkeep.sources;
        if changed {
            self.manager.sources_changed(self.now());
            self.handle(Input::Tick);
        }
        // Labels and annotations are in the pod itself. Only in that one: a new pod must not wait while all others' files are read.
        let renewed = std::mem::take(&mut self.upkeep.renewed);
        let own = |pod: &Pod| renewed.contains(&pod.metadata.uid) && has_downward(pod);
        self.refresh_where(|pod| if changed { has_files(pod) } else { own(pod) });
    }

    fn refresh_where(&mut self, wanted: impl Fn(&Pod) -> bool) {
        let due: Vec<String> = self
            .manager
            .workers()
            .filter(|worker| !worker.is_deleting() && worker.desired.as_ref().is_some_and(|pod| wanted(pod)))
            .map(|worker| worker.record.incarnation.clone())
            .collect();
        due.into_iter().for_each(|incarnation| self.start_refresh(incarnation));
    }

    fn start_refresh(&mut self, incarnation: String) {
        if let Some(again) = self.upkeep.refreshing.get_mut(&incarnation) {
            *again = true;
            return;
        }
        let Some(worker) = self.manager.worker(&incarnation) else { return };
        let (Some(pod), Some(seen)) = (&worker.desired, &worker.seen) else { return };
        // Without a sandbox the volumes are prepared anew anyway.
        let Some(sandbox) = worker.sandbox(seen) else { return };
        let (executor, pod, record) = (self.executor.clone(), pod.clone(), worker.record.clone());
        let (ips, host_ip) = (sandbox.ips.clone(), self.manager.node().host_ip.clone());
        self.upkeep.refreshing.insert(incarnation.clone(), false);
        self.work.push(Box::pin(async move {
            executor.refresh(&pod, &record, &ips, &host_ip).await;
            Happening::Refreshed(incarnation)
        }));
    }

    pub(super) fn refreshed(&mut self, incarnation: String) {
        if self.upkeep.refreshing.remove(&incarnation) == Some(true) {
            self.start_refresh(incarnation);
        }
    }

    /// Once in a while: tokens that are due, and what pods that are gone left behind.
    pub(super) fn keep_up(&mut self) {
        if self.upkeep.checked.elapsed() < limits::UPKEEP {
            return;
        }
        self.upkeep.checked = Instant::now();
        self.upkeep.checks = self.upkeep.checks.saturating_add(1);
        figures::retain(&self.manager.incarnations().collect());
        let executor = self.executor.clone();
        self.refresh_where(|pod| tokens::projections(pod).next().is_some() && executor.tokens.is_due(pod));
        self.executor.tokens.tell_expired();
        // Only what the cloud was asked about is known to be nobody's: after the loss of the store its pods come back first.
        let connected = *self.handles.uplink.state().borrow() == LinkState::Connected;
        if self.upkeep.checks >= 2 && connected && self.manager.is_reconciled() {
            self.clean_orphans();
        }
    }

    fn clean_orphans(&mut self) {
        let mut known: BTreeSet<String> = self.manager.incarnations().collect();
        known.extend(self.manager.workers().map(|worker| worker.record.uid.clone()));
        known.extend(self.handles.meta.list("pod").into_iter().map(|object| object.uid));
        let executor = self.executor.clone();
        self.work.push(Box::pin(async move {
            executor.tokens.retain(|uid| known.contains(uid)).await;
            let (places, log_dir) = (executor.places.clone(), executor.node.log_dir.clone());
            let problems = rt::blocking(move || {
                logs::clean_orphans(&log_dir, |uid| known.contains(uid));
                places.clean_orphans(|name| known.contains(name))
            })
            .await;
            for problem in problems {
                tracing::warn!("the folder of a pod that is gone stays: {problem}");
            }
            Happening::Nothing
        }));
    }
}

fn has_files(pod: &Pod) -> bool {
    pod.spec.volumes.iter().any(|v| {
        v.config_map.is_some() || v.secret.is_some() || v.downward_api.is_some() || v.projected.is_some()
    })
}

fn has_downward(pod: &Pod) -> bool {
    let projected = |v: &crate::edged::pod::Volume| {
        v.projected.iter().flat_map(|p| &p.sources).any(|source| source.downward_api.is_some())
    };
    pod.spec.volumes.iter().any(|v| v.downward_api.is_some() || projected(v))
}
