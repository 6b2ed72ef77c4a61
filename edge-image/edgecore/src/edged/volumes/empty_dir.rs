//! emptyDir volumes: a folder on the node's disk, or a tmpfs with a bound.

use std::{fs, io, os::unix::fs::PermissionsExt, path::Path};

use nix::mount::{MsFlags, mount};

use super::{VolumeError, failed, mounts, ownership};
use crate::edged::{
    pod::{EmptyDir, Pod},
    quantity,
};

const REMEDY: &str = "use medium \"Memory\" or none";

/// Makes the folder, or mounts the tmpfs unless it is there. Can be repeated: what the pod wrote stays.
pub fn set_up(path: &Path, empty: &EmptyDir, bytes_max: u64, group: Option<u32>) -> Result<(), VolumeError> {
    if !matches!(empty.medium.as_str(), "" | "Memory") {
        let kind = format!("emptyDir with medium {}", empty.medium);
        return Err(VolumeError::Unsupported { kind, remedy: REMEDY });
    }
    fs::create_dir_all(path).map_err(failed("make", path))?;
    if empty.medium == "Memory" && !mounts::is_mount_point(path) {
        let options = format!("mode=0777,size={bytes_max}");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options.as_str()))
            .map_err(io::Error::from)
            .map_err(failed("mount a tmpfs on", path))?;
    }
    // Once something is in it, mode and owner are the pod's own business. Until then a power cut may have come between.
    if fs::read_dir(path).map_err(failed("read", path))?.next().is_some() {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o777)).map_err(failed("chmod", path))?;
    match group {
        Some(group) => ownership::give(path, group, false),
        None => Ok(()),
    }
}

/// The size of a tmpfs: the smallest of the volume's limit, the pod's memory limit and what pods may have on this node
/// (kubelet: pkg/volume/emptydir, `SizeMemoryBackedVolumes`).
pub fn memory_bytes_max(empty: &EmptyDir, pod: &Pod, node_bytes: i64) -> u64 {
    let own = quantity::parse_units(&empty.size_limit);
    let limits = [own, pod_memory_limit(pod), Some(node_bytes)];
    let smallest = limits.into_iter().flatten().filter(|bytes| *bytes > 0).min();
    // Nothing is known: half of the memory is what the kernel would take; a size of 0 would mean no bound at all.
    smallest.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(64 * 1024 * 1024)
}

/// The memory that the pod's containers may use together; `None` when one of them has no limit.
fn pod_memory_limit(pod: &Pod) -> Option<i64> {
    let bytes = |limits: &std::collections::BTreeMap<String, String>| {
        limits.get("memory").and_then(|text| quantity::parse_units(text)).filter(|bytes| *bytes > 0)
    };
    if let Some(whole) = pod.spec.resources.as_ref().and_then(|resources| bytes(&resources.limits)) {
        return Some(whole);
    }
    let all: Option<Vec<i64>> = pod.spec.containers.iter().map(|c| bytes(&c.resources.limits)).collect();
    let together = all?.into_iter().fold(0_i64, i64::saturating_add);
    let first: Option<Vec<i64>> =
        pod.spec.init_containers.iter().map(|c| bytes(&c.resources.limits)).collect();
    Some(together.max(first?.into_iter().max().unwrap_or(0)))
}
