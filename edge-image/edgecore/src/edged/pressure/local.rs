//! Limits that a pod sets for its own use of the disk: `ephemeral-storage` of containers and pod, `sizeLimit` of an emptyDir.

use super::{quantity_text, rank::Candidate};
use crate::edged::{
    cgroup::values::container_limits,
    pod::{Pod, Volume},
    quantity,
};

/// Whether a pod has such limits at all; else its disk need not be looked at.
pub fn is_limited(pod: &Pod) -> bool {
    pod.all_containers().any(|c| container_limits(c).contains_key("ephemeral-storage"))
        || pod.spec.volumes.iter().any(|volume| size_limit(volume).is_some())
}

/// The limit of an emptyDir on the node's disk.
pub fn size_limit(volume: &Volume) -> Option<u64> {
    let empty = volume.empty_dir.as_ref().filter(|empty| empty.medium != "Memory")?;
    let bytes = quantity::parse_units(&empty.size_limit).and_then(|bytes| u64::try_from(bytes).ok())?;
    (bytes > 0).then_some(bytes)
}

/// Why a pod must go for what it uses itself. `volume_bytes`: what an emptyDir holds.
pub fn exceeded(candidate: &Candidate, volume_bytes: impl Fn(&str) -> u64) -> Option<String> {
    let pod = &candidate.pod;
    for volume in &pod.spec.volumes {
        if let Some(limit) = size_limit(volume)
            && volume_bytes(&volume.name) > limit
        {
            let limit = quantity_text(limit, true);
            return Some(format!("Usage of EmptyDir volume {:?} exceeds the limit {limit:?}. ", volume.name));
        }
    }
    let mut total = Some(0_u64);
    for container in pod.spec.containers.iter() {
        let limit = container_limits(container).get("ephemeral-storage").copied();
        total = total.zip(limit).map(|(total, limit)| total.saturating_add(limit));
    }
    // Only a pod whose every container has a limit has one as a whole.
    if let Some(total) = total.filter(|total| *total > 0 && candidate.disk > *total) {
        let total = quantity_text(total, true);
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {total}. "
        ));
    }
    for container in pod.all_containers() {
        let Some(limit) = container_limits(container).get("ephemeral-storage").copied() else { continue };
        if candidate.containers.get(&container.name).is_some_and(|used| used.disk > limit) {
            let limit = quantity_text(limit, true);
            let name = &container.name;
            return Some(format!("Container {name} exceeded its local ephemeral storage limit {limit:?}. "));
        }
    }
    None
}
