//! Which devices there are and whose they are: a plain value.
//!
//! Invariants
//! - A device is held by one pod at a time, whatever plugins say and in whatever order they come and go.
//! - What a pod holds it keeps until it ends, whether its plugin is there or not.
//! - Only healthy devices are given out.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    contract::{DeviceCount, DeviceCounts},
    edged::{
        cgroup::values::container_limits,
        limits,
        pod::{Container, Pod, RestartPolicy},
    },
};

/// Devices of one kind for one container of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Claim {
    pub container: String,
    pub resource: String,
    pub ids: Vec<String>,
}

/// What plugins do. A `generation` is one registration: what an older one says is not heard any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    Registered {
        resource: String,
        generation: u64,
    },
    /// All devices and whether they are healthy.
    Listed {
        resource: String,
        generation: u64,
        devices: BTreeMap<String, bool>,
    },
    /// The plugin went away.
    Lost {
        resource: String,
        generation: u64,
    },
}

#[derive(Clone, Debug, Default)]
struct Resource {
    devices: BTreeMap<String, bool>,
    generation: u64,
    lost_at: Option<Duration>,
}

#[derive(Clone, Debug, Default)]
pub struct Book {
    resources: BTreeMap<String, Resource>,
    /// By incarnation.
    held: BTreeMap<String, Vec<Claim>>,
    /// Pods whose plugins have not answered yet.
    pending: BTreeSet<String>,
}

impl Book {
    /// `held`: what the store tells. Their resources are known, and empty until their plugins register again.
    pub fn new(held: BTreeMap<String, Vec<Claim>>, known: impl IntoIterator<Item = String>) -> Book {
        let names = held.values().flatten().map(|claim| claim.resource.clone()).chain(known);
        let lost = || Resource { lost_at: Some(Duration::ZERO), ..Resource::default() };
        let resources = names.map(|name| (name, lost())).collect();
        Book { resources, held, pending: BTreeSet::new() }
    }

    pub fn handle(&mut self, now: Duration, news: News) {
        match news {
            News::Registered { resource, generation } => {
                if self.resources.len() >= limits::DEVICE_RESOURCES_MAX
                    && !self.resources.contains_key(&resource)
                {
                    return;
                }
                // The devices of a plugin that was here before stay until the new one has listed its own.
                let entry = self.resources.entry(resource).or_default();
                entry.generation = generation;
                entry.lost_at = None;
            }
            News::Listed { resource, generation, devices } => {
                if let Some(entry) = self.current(&resource, generation) {
                    entry.devices = devices;
                }
            }
            News::Lost { resource, generation } => {
                if let Some(entry) = self.current(&resource, generation) {
                    entry.devices.values_mut().for_each(|healthy| *healthy = false);
                    entry.lost_at = Some(now);
                }
            }
        }
    }

    fn current(&mut self, resource: &str, generation: u64) -> Option<&mut Resource> {
        self.resources.get_mut(resource).filter(|entry| entry.generation == generation)
    }

    /// For the Node's status. A resource whose plugin is gone for good is shown as none: leaving it out would leave the old number.
    pub fn counts(&self, now: Duration) -> DeviceCounts {
        let count = |(name, entry): (&String, &Resource)| {
            let gone = entry.lost_at.is_some_and(|at| now.saturating_sub(at) >= limits::DEVICE_PLUGIN_GRACE);
            let capacity = if gone { 0 } else { entry.devices.len() as u64 };
            let allocatable = entry.devices.values().filter(|healthy| **healthy).count() as u64;
            (name.clone(), DeviceCount { capacity, allocatable })
        };
        self.resources.iter().map(count).collect()
    }

    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.resources.keys()
    }

    pub fn is_pending(&self, incarnation: &str) -> bool {
        self.pending.contains(incarnation)
    }

    pub fn held(&self) -> impl Iterator<Item = (&String, &Vec<Claim>)> {
        self.held.iter()
    }

    fn taken(&self, resource: &str) -> BTreeSet<&str> {
        let of = self.held.values().flatten().filter(|claim| claim.resource == resource);
        of.flat_map(|claim| claim.ids.iter().map(String::as_str)).collect()
    }

    /// Devices of a resource that nobody holds.
    pub fn free(&self, resource: &str) -> Vec<String> {
        let taken = self.taken(resource);
        let devices = self.resources.get(resource).into_iter().flat_map(|entry| &entry.devices);
        let free = devices.filter(|(id, healthy)| **healthy && !taken.contains(id.as_str()));
        free.map(|(id, _)| id.clone()).collect()
    }

    /// Sets devices aside for all containers of a pod, or says in kubelet's words why that is not possible. Init containers leave
    /// theirs to those that come after them; sidecars keep theirs.
    pub fn reserve(&mut self, incarnation: &str, pod: &Pod) -> Result<Vec<Claim>, String> {
        let mut claims: Vec<Claim> = Vec::new();
        // By resource: what ended init containers leave.
        let mut left: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let init = pod.spec.init_containers.iter().map(|container| (container, true));
        let main = pod.spec.containers.iter().map(|container| (container, false));
        for (container, init) in init.chain(main) {
            let leaves = init && container.restart_policy != Some(RestartPolicy::Always);
            for (resource, count) in self.wanted(container) {
                let pool = left.entry(resource.clone()).or_default();
                let mut ids: Vec<String> = pool.iter().take(count).cloned().collect();
                let ours: BTreeSet<String> = claims
                    .iter()
                    .filter(|claim| claim.resource == resource)
                    .flat_map(|claim| claim.ids.clone())
                    .collect();
                ids.extend(self.choose(&resource, count - ids.len(), &ours)?);
                for id in &ids {
                    if leaves {
                        pool.insert(id.clone());
                    } else {
                        pool.remove(id);
                    }
                }
                claims.push(Claim { container: container.name.clone(), resource, ids });
            }
        }
        if !claims.is_empty() {
            self.held.insert(incarnation.into(), claims.clone());
            self.pending.insert(incarnation.into());
        }
        Ok(claims)
    }

    /// Resources of plugins only: others may belong to the cluster.
    fn wanted(&self, container: &Container) -> Vec<(String, usize)> {
        let limits = container_limits(container).into_iter();
        let ours = limits.filter(|(name, count)| *count > 0 && self.resources.contains_key(name));
        ours.map(|(name, count)| (name, usize::try_from(count).unwrap_or(usize::MAX))).collect()
    }

    fn choose(&self, resource: &str, count: usize, ours: &BTreeSet<String>) -> Result<Vec<String>, String> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let entry = self.resources.get(resource);
        if !entry.is_some_and(|entry| entry.devices.values().any(|healthy| *healthy)) {
            return Err(format!("no healthy devices present; cannot allocate unhealthy devices {resource}"));
        }
        let free: Vec<String> = self.free(resource).into_iter().filter(|id| !ours.contains(id)).collect();
        if free.len() < count {
            return Err(format!(
                "requested number of devices unavailable for {resource}. Requested: {count}, Available: {}",
                free.len()
            ));
        }
        Ok(free.into_iter().take(count).collect())
    }

    /// Takes other devices for a claim because its plugin prefers them; what it may not have, or has not the right number, is
    /// left as it was. Returns the claims as they are now.
    pub fn settle(&mut self, incarnation: &str, preferred: &[(usize, Vec<String>)]) -> Vec<Claim> {
        for (at, ids) in preferred {
            let Some(claim) = self.held.get(incarnation).and_then(|claims| claims.get(*at)).cloned() else {
                continue;
            };
            let free: BTreeSet<String> = self.free(&claim.resource).into_iter().collect();
            let unique: BTreeSet<&String> = ids.iter().collect();
            // A device that an init container shares stays: the claim after it counts on it.
            let shared = |id: &String| {
                let claims = self.held.get(incarnation).into_iter().flatten().enumerate();
                claims
                    .filter(|(n, _)| n != at)
                    .any(|(_, c)| c.resource == claim.resource && c.ids.contains(id))
            };
            let keeps = claim.ids.iter().filter(|id| shared(id)).all(|id| unique.contains(id));
            let allowed = ids.iter().all(|id| free.contains(id) || claim.ids.contains(id));
            if allowed && keeps && unique.len() == claim.ids.len() && ids.len() == claim.ids.len() {
                self.held.get_mut(incarnation).expect("found above")[*at].ids.clone_from(ids);
            }
        }
        self.held.get(incarnation).cloned().unwrap_or_default()
    }

    /// The plugins answered, and that is durable; or they failed, and nothing is held.
    pub fn answered(&mut self, incarnation: &str, granted: bool) {
        if self.pending.remove(incarnation) && !granted {
            self.held.remove(incarnation);
        }
    }

    /// Gives back what pods hold that are not active any more. Returns those pods.
    pub fn release(&mut self, active: impl Fn(&str) -> bool) -> Vec<String> {
        let gone: Vec<String> =
            self.held.keys().filter(|incarnation| !active(incarnation)).cloned().collect();
        for incarnation in &gone {
            self.held.remove(incarnation);
            self.pending.remove(incarnation);
        }
        gone
    }
}
