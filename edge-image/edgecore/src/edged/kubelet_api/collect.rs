//! One round of figures: what runs, from the runtime's lists, and what it uses, from control groups.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    time::{Instant, SystemTime},
};

use super::{Node, limits};
use crate::edged::{
    cri::{CriError, messages as cri},
    observed::{label, take},
    stats::{
        cgroup::{PodGroup, Usage},
        disk::{self, FileSystem, FolderUsage},
        network::{self, Interface},
    },
};

/// Something with a control group.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Empty: the group was not found.
    pub group: PathBuf,
    pub usage: Usage,
    /// Nanoseconds of processor time per second.
    pub cpu_rate: Option<u64>,
}

#[derive(Clone, Debug, Default)]
pub struct ContainerFigures {
    pub name: String,
    pub id: String,
    pub image: String,
    /// Nanoseconds since the Unix epoch.
    pub created_at: i64,
    pub figures: Figures,
}

#[derive(Clone, Debug, Default)]
pub struct PodFigures {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub incarnation: String,
    pub created_at: i64,
    pub figures: Figures,
    pub sandbox: ContainerFigures,
    /// Those that run.
    pub containers: Vec<ContainerFigures>,
    /// Empty on the host's network.
    pub interfaces: Vec<Interface>,
}

/// Pods that run, at one moment.
pub struct Round {
    pub unix_ms: i64,
    pub pods: Vec<PodFigures>,
}

/// What a pod takes on disks.
#[derive(Clone, Debug, Default)]
pub struct PodDisk {
    /// Of each container's log folder, by container name.
    pub logs: BTreeMap<String, FolderUsage>,
    pub volumes: Vec<VolumeFigures>,
}

#[derive(Clone, Debug)]
pub struct VolumeFigures {
    pub name: String,
    /// On the node's own disk, and gone with the pod.
    pub ephemeral: bool,
    pub used: FolderUsage,
    pub system: FileSystem,
}

impl Node {
    /// Sandboxes that are ready and containers that run, with their figures.
    pub async fn collect(&self) -> Result<Round, CriError> {
        let ours = HashMap::from([(label::NODE.to_string(), self.handles.node_name.to_string())]);
        let (sandboxes, containers) = futures_util::future::try_join(
            self.cri.list_pod_sandboxes(ours.clone()),
            self.cri.list_containers(ours),
        )
        .await?;
        let mut pods = pods_of(sandboxes, containers);
        let cgroups = self.cgroups.clone();
        pods = rt::blocking(move || {
            let groups = cgroups.pods();
            let own_network = fs::read_link("/proc/self/ns/net").ok();
            for pod in &mut pods {
                place(pod, &groups);
                if !pod.figures.group.as_os_str().is_empty() {
                    pod.figures.usage = cgroups.usage(&pod.figures.group);
                }
                for container in pod.containers.iter_mut().chain([&mut pod.sandbox]) {
                    if !container.figures.group.as_os_str().is_empty() {
                        container.figures.usage = cgroups.usage(&container.figures.group);
                    }
                }
                // The sandbox's first process is in the pod's network namespace.
                let process = cgroups.process(&pod.sandbox.figures.group);
                if let Some(pid) = process.filter(|_| !pod.sandbox.figures.group.as_os_str().is_empty())
                    && fs::read_link(format!("/proc/{pid}/ns/net")).ok() != own_network
                {
                    pod.interfaces = network::of_process(pid);
                }
            }
            pods
        })
        .await;
        Ok(Round { unix_ms: unix_ms(), pods })
    }

    /// Sandboxes that are ready, and containers by state.
    pub async fn running_counts(&self) -> Result<(usize, BTreeMap<&'static str, usize>), CriError> {
        let ours = HashMap::from([(label::NODE.to_string(), self.handles.node_name.to_string())]);
        let ready = i32::from(cri::PodSandboxState::Ready);
        let pods =
            self.cri.list_pod_sandboxes(ours.clone()).await?.iter().filter(|s| s.state == ready).count();
        let mut containers = BTreeMap::new();
        for container in self.cri.list_containers(ours).await? {
            let state = match cri::ContainerState::try_from(container.state) {
                Ok(cri::ContainerState::Created) => "created",
                Ok(cri::ContainerState::Running) => "running",
                Ok(cri::ContainerState::Exited) => "exited",
                _ => "unknown",
            };
            *containers.entry(state).or_default() += 1;
        }
        Ok((pods, containers))
    }

    /// Fills in rates. If some counter was not read lately (or `wait` says so), waits a moment and reads it once more.
    pub async fn add_rates(&self, round: &mut Round, wait: bool) {
        if self.read_rates(round) && !wait {
            return;
        }
        tokio::time::sleep(limits::RATE_SAMPLE).await;
        for figures in round.pods.iter_mut().flat_map(PodFigures::all) {
            if figures.cpu_rate.is_none() && !figures.group.as_os_str().is_empty() {
                figures.usage.cpu_ns = self.cgroups.usage(&figures.group).cpu_ns;
            }
        }
        self.read_rates(round);
    }

    /// True: every counter has a rate.
    fn read_rates(&self, round: &mut Round) -> bool {
        let (now, mut complete) = (Instant::now(), true);
        let mut rates = self.rates.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for figures in round.pods.iter_mut().flat_map(PodFigures::all) {
            if let Some(ns) = figures.usage.cpu_ns {
                figures.cpu_rate = rates.read(now, &figures.group, ns);
                complete &= figures.cpu_rate.is_some();
            }
        }
        rates.forget(now);
        complete
    }

    /// What pods take on disks, walked at most once a minute per pod.
    pub async fn disks(&self, round: &Round) -> HashMap<String, PodDisk> {
        let now = Instant::now();
        let mut known =
            std::mem::take(&mut *self.disks.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        known.retain(|incarnation, (at, _)| {
            now.duration_since(*at) < limits::DISK_AGE_MAX
                && round.pods.iter().any(|pod| pod.incarnation == *incarnation)
        });
        let missing: Vec<(String, PathBuf)> = round
            .pods
            .iter()
            .filter(|pod| !known.contains_key(&pod.incarnation))
            .map(|pod| {
                let logs = format!("{}_{}_{}", pod.namespace, pod.name, pod.incarnation);
                (pod.incarnation.clone(), self.settings.log_dir.join(logs))
            })
            .collect();
        let places = self.settings.places();
        let walked = rt::blocking(move || {
            let walk = |(incarnation, logs): (String, PathBuf)| {
                let volumes = places.pods_dir.join(&incarnation).join("volumes");
                let disk = pod_disk(&logs, &volumes, &places.run_dir.join(&incarnation));
                (incarnation, disk)
            };
            missing.into_iter().map(walk).collect::<Vec<_>>()
        })
        .await;
        known.extend(walked.into_iter().map(|(incarnation, disk)| (incarnation, (now, disk))));
        let answer =
            known.iter().map(|(incarnation, (_, disk))| (incarnation.clone(), disk.clone())).collect();
        *self.disks.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = known;
        answer
    }
}

impl Round {
    pub fn empty() -> Round {
        Round { unix_ms: unix_ms(), pods: Vec::new() }
    }
}

impl PodFigures {
    fn all(&mut self) -> impl Iterator<Item = &mut Figures> {
        let containers = self.containers.iter_mut().map(|container| &mut container.figures);
        containers.chain([&mut self.figures])
    }
}

fn pods_of(sandboxes: Vec<cri::PodSandbox>, containers: Vec<cri::Container>) -> Vec<PodFigures> {
    let ready = |sandbox: &cri::PodSandbox| sandbox.state == i32::from(cri::PodSandboxState::Ready);
    let mut pods: BTreeMap<String, PodFigures> = BTreeMap::new();
    for sandbox in sandboxes.into_iter().filter(ready) {
        let mut labels = sandbox.labels;
        let pod = PodFigures {
            namespace: take(&mut labels, label::POD_NAMESPACE),
            name: take(&mut labels, label::POD_NAME),
            uid: take(&mut labels, label::POD_UID),
            incarnation: take(&mut labels, label::INCARNATION),
            created_at: sandbox.created_at,
            sandbox: ContainerFigures {
                id: sandbox.id.clone(),
                created_at: sandbox.created_at,
                ..ContainerFigures::default()
            },
            ..PodFigures::default()
        };
        pods.insert(sandbox.id, pod);
    }
    let runs = |container: &cri::Container| container.state == i32::from(cri::ContainerState::Running);
    for container in containers.into_iter().filter(runs) {
        let Some(pod) = pods.get_mut(&container.pod_sandbox_id) else { continue };
        let mut labels = container.labels;
        pod.containers.push(ContainerFigures {
            name: take(&mut labels, label::CONTAINER_NAME),
            id: container.id,
            image: container.image.map_or(String::new(), |image| image.image),
            created_at: container.created_at,
            figures: Figures::default(),
        });
    }
    let mut pods: Vec<PodFigures> = pods.into_values().collect();
    for pod in &mut pods {
        pod.containers.sort_by(|a, b| a.name.cmp(&b.name));
    }
    pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    pods
}

/// Gives a pod and its containers their groups.
fn place(pod: &mut PodFigures, groups: &BTreeMap<String, PodGroup>) {
    let own = groups.get(&pod.incarnation);
    let loose = groups.get("");
    pod.figures.group = own.map(|own| own.path.clone()).unwrap_or_default();
    for container in pod.containers.iter_mut().chain([&mut pod.sandbox]) {
        let found = own.into_iter().chain(loose).find_map(|group| group.containers.get(&container.id));
        container.figures.group = found.cloned().unwrap_or_default();
    }
}

/// Volumes lie in `<kind>/<name>`; those of secrets in a folder of their own, which is in memory.
fn pod_disk(logs: &Path, volumes: &Path, secrets: &Path) -> PodDisk {
    let mut disk = PodDisk::default();
    let mut budget = limits::DISK_ENTRIES_MAX;
    let mut walk = |path: &Path| {
        let usage = disk::folder(path, budget);
        budget = budget.saturating_sub(usage.inodes as usize);
        usage
    };
    for (name, path) in folders(logs) {
        disk.logs.insert(name, walk(&path));
    }
    let of_kinds = folders(volumes).into_iter().flat_map(|(kind, path)| {
        let ephemeral = kind == "kubernetes.io~empty-dir";
        folders(&path).into_iter().map(move |(name, path)| (name, path, ephemeral))
    });
    let of_secrets = folders(secrets).into_iter().map(|(name, path)| (name, path, false));
    for (name, path, ephemeral) in of_kinds.chain(of_secrets) {
        let Some(system) = disk::file_system(&path) else { continue };
        // A file system of its own (an emptyDir in memory) takes nothing of the node's disk.
        let own = disk::file_system(volumes).is_some_and(|around| around.id != system.id);
        disk.volumes.push(VolumeFigures { name, ephemeral: ephemeral && !own, used: walk(&path), system });
    }
    disk
}

fn folders(path: &Path) -> Vec<(String, PathBuf)> {
    let mut found: Vec<(String, PathBuf)> = fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
        .collect();
    found.sort();
    found
}

fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
