//! Reads what the node has left and what pods use. Blocking: call through `rt::blocking`.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Level, Readings, Signal,
    rank::{Candidate, Use},
};
use crate::edged::{
    limits::USAGE_FILES_MAX,
    pod::Pod,
    stats::{
        cgroup::{Cgroups, Usage},
        disk, node,
    },
};

/// A pod that runs, and where what it uses is found.
#[derive(Clone, Debug)]
pub struct Place {
    pub uid: String,
    pub incarnation: String,
    pub pod: Arc<Pod>,
    /// Container id -> name.
    pub containers: BTreeMap<String, String>,
    pub log_dir: PathBuf,
    /// Name of an emptyDir on disk -> its folder.
    pub empty_dirs: BTreeMap<String, PathBuf>,
}

/// `images`: a folder on the file system that holds images and layers.
pub fn readings(kubelet_dir: &Path, images: Option<&Path>, cgroups: &Cgroups) -> Readings {
    let mut readings = Readings::new();
    if let Some(memory) = node::Memory::read() {
        let machine = Level { available: memory.available(), capacity: memory.total };
        let pods = cgroups.all_pods().and_then(|(_, usage)| memory_of_pods(&usage));
        readings.insert(Signal::Memory, less_of(machine, pods));
    }
    let mut add = |disk: disk::FileSystem, bytes: Signal, inodes: Signal| {
        readings.insert(bytes, Level { available: disk.available, capacity: disk.capacity });
        // A file system without a fixed number of inodes says 0.
        if disk.inodes > 0 {
            readings.insert(inodes, Level { available: disk.inodes_free, capacity: disk.inodes });
        }
    };
    let nodefs = disk::file_system(kubelet_dir);
    let imagefs = images.and_then(disk::file_system).or(nodefs);
    if let Some(nodefs) = nodefs {
        add(nodefs, Signal::NodeDisk, Signal::NodeInodes);
    }
    if let Some(imagefs) = imagefs {
        add(imagefs, Signal::ImageDisk, Signal::ImageInodes);
    }
    if let Some((used, max)) = node::processes() {
        readings.insert(Signal::Pids, Level { available: max.saturating_sub(used), capacity: max });
    }
    readings
}

/// What is left of the memory that all pods may have together (`enforceNodeAllocatable`): the kernel would end any of their
/// processes before the machine is short of memory. A kubelet's signal `allocatableMemory.available`.
fn memory_of_pods(usage: &Usage) -> Option<Level> {
    let (limit, used) = (usage.memory_limit?, usage.working_set?);
    Some(Level { available: limit.saturating_sub(used), capacity: limit })
}

fn less_of(machine: Level, pods: Option<Level>) -> Level {
    pods.filter(|pods| pods.available < machine.available).unwrap_or(machine)
}

/// What each emptyDir of a pod holds.
pub type VolumeBytes = BTreeMap<String, u64>;

/// What pods use. `layers`: bytes in the writable layer, by container id; `with_disk`: look at their folders as well.
pub fn candidates(
    cgroups: &Cgroups,
    places: &[Place],
    layers: &HashMap<String, u64>,
    with_disk: bool,
) -> Vec<(Candidate, VolumeBytes)> {
    let groups = cgroups.pods();
    places
        .iter()
        .map(|place| candidate(cgroups, groups.get(&place.incarnation), place, layers, with_disk))
        .collect()
}

fn candidate(
    cgroups: &Cgroups,
    group: Option<&crate::edged::stats::cgroup::PodGroup>,
    place: &Place,
    layers: &HashMap<String, u64>,
    with_disk: bool,
) -> (Candidate, VolumeBytes) {
    let whole = group.map(|group| cgroups.usage(&group.path)).unwrap_or_default();
    let mut found = Candidate {
        uid: place.uid.clone(),
        pod: place.pod.clone(),
        containers: BTreeMap::new(),
        memory: whole.working_set.unwrap_or(0),
        disk: 0,
        inodes: 0,
        processes: whole.processes.unwrap_or(0),
    };
    for (id, name) in &place.containers {
        let memory = group
            .and_then(|group| group.containers.get(id))
            .and_then(|path| cgroups.usage(path).working_set)
            .unwrap_or(0);
        let mut used = Use { memory, disk: 0 };
        if with_disk {
            let log = disk::folder(&place.log_dir.join(name), USAGE_FILES_MAX);
            used.disk = log.bytes + layers.get(id).copied().unwrap_or(0);
            found.disk += used.disk;
            found.inodes += log.inodes;
        }
        found.containers.insert(name.clone(), used);
    }
    let mut volumes = VolumeBytes::new();
    for (name, path) in place.empty_dirs.iter().filter(|_| with_disk) {
        let used = disk::folder(path, USAGE_FILES_MAX);
        found.disk += used.bytes;
        found.inodes += used.inodes;
        volumes.insert(name.clone(), used.bytes);
    }
    (found, volumes)
}
