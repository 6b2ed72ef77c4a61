//! Looks at the node and its pods, and removes what nobody uses, beside edged's loop.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use super::{
    Readings, local,
    machine::Crossed,
    rank::Candidate,
    usage::{self, Place},
};
use crate::edged::{
    execute::Executor, manager::Manager, observed::State, render, stats::cgroup::Cgroups, volumes::Claims,
};

/// What a look found.
pub struct Look {
    pub readings: Readings,
    /// Pods that use more of the disk than they allow themselves: uid and message.
    pub over: Vec<(String, String)>,
}

/// What was found after room was made.
pub struct Relief {
    pub crossed: Crossed,
    pub readings: Readings,
    pub candidates: Vec<Candidate>,
}

/// The pods that may be evicted, and where they are.
pub fn places(manager: &Manager, executor: &Executor) -> Vec<Place> {
    let mut places = Vec::new();
    for worker in manager.workers() {
        let (Some(pod), Some(seen)) = (&worker.desired, &worker.seen) else { continue };
        let record = &worker.record;
        if record.ended.is_some() || record.failing.is_some() || worker.is_deleting() {
            continue;
        }
        let running = seen.containers.iter().filter(|c| c.state == State::Running);
        let empty = pod.spec.volumes.iter().filter(|volume| {
            volume
                .empty_dir
                .as_ref()
                .is_some_and(|empty| empty.medium != "Memory" && !empty.medium.starts_with("HugePages"))
        });
        places.push(Place {
            uid: record.uid.clone(),
            incarnation: record.incarnation.clone(),
            pod: pod.clone(),
            containers: running.map(|c| (c.id.clone(), c.name.clone())).collect(),
            log_dir: executor.node.log_dir.join(render::log_dir_name(record)),
            empty_dirs: empty
                .filter_map(|v| {
                    Some((v.name.clone(), executor.places.volume(record, v, &Claims::default()).ok()?))
                })
                .collect(),
        });
    }
    places
}

async fn readings(executor: &Executor) -> Readings {
    let kubelet_dir = executor.settings.kubelet_dir.clone();
    let (images, groups): (Option<PathBuf>, _) = (executor.images.root_dir().await, groups(executor));
    rt::blocking(move || usage::readings(&kubelet_dir, images.as_deref(), &groups)).await
}

/// A look at the node, and at the disk of pods that limit themselves.
pub async fn look(executor: Arc<Executor>, mut places: Vec<Place>) -> Look {
    places.retain(|place| local::is_limited(&place.pod));
    let over = if places.is_empty() {
        Vec::new()
    } else {
        let layers = layers(&executor).await;
        let groups = groups(&executor);
        let found = rt::blocking(move || usage::candidates(&groups, &places, &layers, true)).await;
        let judge = |(candidate, volumes): (Candidate, usage::VolumeBytes)| {
            let message = local::exceeded(&candidate, |name| volumes.get(name).copied().unwrap_or(0))?;
            Some((candidate.uid, message))
        };
        found.into_iter().filter_map(judge).collect()
    };
    Look { readings: readings(&executor).await, over }
}

/// Removes what nobody uses, if disk is short, and looks at what pods use.
pub async fn relieve(executor: Arc<Executor>, crossed: Crossed, places: Vec<Place>) -> Relief {
    let disk = crossed.signal.condition() == super::NodeCondition::DiskPressure;
    let layers = if disk {
        executor.images.collect_all(&executor.events).await;
        layers(&executor).await
    } else {
        HashMap::new()
    };
    let groups = groups(&executor);
    let found = rt::blocking(move || usage::candidates(&groups, &places, &layers, disk)).await;
    let candidates = found.into_iter().map(|(candidate, _)| candidate).collect();
    Relief { crossed, readings: readings(&executor).await, candidates }
}

fn groups(executor: &Executor) -> Cgroups {
    Cgroups::new(&executor.node.cgroups.config)
}

/// Without the runtime's figures layers count nothing.
async fn layers(executor: &Executor) -> HashMap<String, u64> {
    let layers = executor.cri.writable_layers().await.unwrap_or_default();
    layers.into_iter().map(|(id, bytes, _)| (id, bytes)).collect()
}
