//! Makes, writes and removes groups in the file system, on cgroup v1 (one hierarchy per controller) and v2 (one for all).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    CgroupError,
    names::Name,
    values::{Limits, PERIOD_US, weight},
};
use crate::edged::cgroup::Driver;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

/// One file to write: the controller whose hierarchy it is in, its name, its value.
pub type Entry = (&'static str, String, String);

/// The controllers that a v1 group is made in; the runtime makes its own groups in the others.
const V1_CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// A hybrid system (v1 with an empty v2 beside it) is v1: that is where its controllers are.
pub fn version(mount: &Path) -> Version {
    if mount.join("cgroup.controllers").exists() { Version::V2 } else { Version::V1 }
}

/// The files that put limits in force.
pub fn entries(limits: &Limits, version: Version) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut push = |controller, file: &str, value: String| entries.push((controller, file.into(), value));
    match version {
        Version::V1 => {
            if let Some(shares) = limits.shares {
                push("cpu", "cpu.shares", shares.to_string());
            }
            if let Some(quota) = limits.quota_us {
                push("cpu", "cpu.cfs_period_us", PERIOD_US.to_string());
                push("cpu", "cpu.cfs_quota_us", quota.to_string());
            }
            if let Some(bytes) = limits.memory_bytes {
                push("memory", "memory.limit_in_bytes", bytes.to_string());
            }
            if let Some(pids) = limits.pids {
                push("pids", "pids.max", pids.to_string());
            }
            for (size, bytes) in &limits.huge {
                push("hugetlb", &format!("hugetlb.{size}.limit_in_bytes"), bytes.to_string());
            }
        }
        Version::V2 => {
            if let Some(shares) = limits.shares {
                push("cpu", "cpu.weight", weight(shares).to_string());
            }
            if let Some(quota) = limits.quota_us {
                push("cpu", "cpu.max", format!("{quota} {PERIOD_US}"));
            }
            if let Some(bytes) = limits.memory_bytes {
                push("memory", "memory.max", bytes.to_string());
            }
            if let Some(pids) = limits.pids {
                push("pids", "pids.max", pids.to_string());
            }
            for (size, bytes) in &limits.huge {
                push("hugetlb", &format!("hugetlb.{size}.max"), bytes.to_string());
            }
        }
    }
    entries
}

/// Makes a group and everything above it, and writes its limits. All that can be written is, whatever fails; the first failure is
/// returned.
pub fn apply(mount: &Path, name: &Name, limits: &Limits) -> Result<(), CgroupError> {
    let version = version(mount);
    let mut first = Ok(());
    let mut note = |result: Result<(), CgroupError>| {
        if first.is_ok() {
            first = result;
        }
    };
    let group = name.path(Driver::Cgroupfs);
    match version {
        Version::V2 => {
            let mut above = mount.to_path_buf();
            for folder in name.ancestors(Driver::Cgroupfs) {
                note(delegate(&above));
                above = mount.join(folder);
                note(make(&above));
            }
        }
        Version::V1 => {
            let controllers = V1_CONTROLLERS.iter().chain((!limits.huge.is_empty()).then_some(&"hugetlb"));
            for controller in controllers {
                // A kernel without the controller: told by the write that needs it.
                if mount.join(controller).is_dir() {
                    note(make(&mount.join(controller).join(&group)));
                }
            }
        }
    }
    for (controller, file, value) in entries(limits, version) {
        let folder = match version {
            Version::V1 => mount.join(controller).join(&group),
            Version::V2 => mount.join(&group),
        };
        note(write(&folder.join(file), &value, controller));
    }
    first
}

fn make(folder: &Path) -> Result<(), CgroupError> {
    fs::create_dir_all(folder).map_err(|source| CgroupError::Make { path: folder.into(), source })
}

/// Lets the groups below use all controllers that this one has.
fn delegate(folder: &Path) -> Result<(), CgroupError> {
    let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default();
    let (available, enabled) = (read("cgroup.controllers"), read("cgroup.subtree_control"));
    let path = folder.join("cgroup.subtree_control");
    let mut first = Ok(());
    for controller in available.split_whitespace() {
        if enabled.split_whitespace().any(|name| name == controller) {
            continue;
        }
        // One by one: a controller that cannot be enabled (cpuset partitions) does not keep the others back.
        let needed = V1_CONTROLLERS.contains(&controller);
        let wrote = fs::write(&path, format!("+{controller}"));
        if let (Err(source), true, true) = (wrote, needed, first.is_ok()) {
            first = Err(CgroupError::Write { path: path.clone(), value: format!("+{controller}"), source });
        }
    }
    first
}

fn write(path: &Path, value: &str, controller: &'static str) -> Result<(), CgroupError> {
    if fs::read_to_string(path).is_ok_and(|now| now.trim_end() == value) {
        return Ok(());
    }
    // Never made: on a test's plain folders that would hide a missing controller.
    let wrote = fs::OpenOptions::new().write(true).truncate(true).open(path);
    wrote.and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes())).map_err(
        |source| match source.kind() {
            io::ErrorKind::NotFound => CgroupError::NoController { controller, path: path.into() },
            _ => CgroupError::Write { path: path.into(), value: value.into(), source },
        },
    )
}

/// The hierarchies' mount points: one in v2, one per controller in v1.
pub fn hierarchies(mount: &Path) -> Vec<PathBuf> {
    if version(mount) == Version::V2 {
        return vec![mount.into()];
    }
    let entries = fs::read_dir(mount).into_iter().flatten().flatten().map(|entry| entry.path());
    // `cpu` and `cpuacct` are links to one mount on many systems; removing twice does no harm.
    entries.filter(|path| path.is_dir()).collect()
}

/// Removes a group with the empty ones in it, in all hierarchies. A group with processes stays: only empty ones can be removed,
/// so this cannot hurt a pod that runs. True when nothing is left.
pub fn remove(mount: &Path, group: &Path) -> bool {
    // In every hierarchy, whatever the others say.
    let trees = hierarchies(mount);
    trees.iter().filter(|tree| !remove_tree(&tree.join(group), 0)).count() == 0
}

fn remove_tree(folder: &Path, depth: usize) -> bool {
    // Pod, container, and what a container with its own groups made; deeper is nothing of ours.
    const DEPTH_MAX: usize = 8;
    if depth < DEPTH_MAX {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_tree(&entry.path(), depth + 1);
            }
        }
    }
    match fs::remove_dir(folder) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}
