//! What this node offers, and for what it does not what to use in its place.

use super::VolumeError;
use crate::edged::pod::{Container, Pod, Volume, VolumeMount};

const LOCAL: &str = "use hostPath, or a PersistentVolume of type local or hostPath with node affinity";

/// Refuses a volume of a type that this node cannot set up, by the type's name.
pub fn check(volume: &Volume) -> Result<(), VolumeError> {
    let offered = volume.empty_dir.is_some()
        || volume.host_path.is_some()
        || volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
        || volume.persistent_volume_claim.is_some();
    if offered {
        return Ok(());
    }
    let kind = match (&volume.image, volume.other.keys().next()) {
        (Some(_), _) => "image",
        (None, Some(kind)) => kind,
        // Kubernetes' default: an emptyDir.
        (None, None) => return Ok(()),
    };
    Err(unsupported(kind))
}

/// The refusal of a type of volume or PersistentVolume.
pub fn unsupported(kind: &str) -> VolumeError {
    let remedy = match kind {
        "image" => "copy the files in an init container that runs this image, into an emptyDir",
        "gitRepo" => "clone in an init container, into an emptyDir",
        "ephemeral" => "use emptyDir",
        "nfs" | "cephfs" | "glusterfs" | "iscsi" | "rbd" | "fc" => {
            "mount it on the node (in /etc/fstab), and use hostPath or a PersistentVolume of type local"
        }
        _ => LOCAL,
    };
    VolumeError::Unsupported { kind: kind.into(), remedy }
}

/// Refuses what a container asks of its volumes and this node cannot do.
pub fn check_container(pod: &Pod, container: &Container) -> Result<(), VolumeError> {
    if !container.volume_devices.is_empty() {
        return Err(VolumeError::Devices { container: container.name.clone() });
    }
    let unknown = |mount: &&VolumeMount| !pod.spec.volumes.iter().any(|volume| volume.name == mount.name);
    if let Some(mount) = container.volume_mounts.iter().find(unknown) {
        let (volume, container) = (mount.name.clone(), container.name.clone());
        return Err(VolumeError::NoVolume { volume, container });
    }
    // Containerd before 2.0 and kernels before 5.12 have no recursive read-only mounts. `IfPossible` means plain read-only then.
    let forced = |mount: &&VolumeMount| mount.recursive_read_only.as_deref() == Some("Enabled");
    match container.volume_mounts.iter().find(forced) {
        Some(mount) => Err(VolumeError::RecursiveReadOnly(mount.name.clone())),
        None => Ok(()),
    }
}
