//! Folders and files that a pod's containers see: emptyDir, hostPath, config maps, secrets, projections, claims, /etc/hosts.
//!
//! Not here: fetching objects (`sources`), service account tokens (`tokens`). Everything of a pod lies in one folder per
//! incarnation below the kubelet folder, and secrets in one below the run folder, which is in RAM on the device.
//!
//! Invariants
//! - Nothing outside of these two is ever removed, and a mounted file system inside them is unmounted first, never emptied.
//! - A subPath never leads out of its volume, whatever a container puts there (`sub_path`).
//! - The files of a volume change in one moment (`atomic`), and a half-written folder is repaired before a pod starts.
//!
//! Every step can be repeated. Start at [`Places::set_up`].

pub mod atomic;
pub mod claim;
pub mod hosts;
pub mod mounts;
pub mod support;

mod empty_dir;
mod error;
mod host_path;
mod ownership;
mod sub_path;

#[cfg(test)]
mod tests;

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::{
    env,
    pod::{Container, EmptyDir, Pod, Volume, VolumeMount},
    record::Record,
};
pub use atomic::File;
pub use claim::{Claims, LocalVolume};
pub use empty_dir::memory_bytes_max;
use error::failed;
pub use error::{VolumeError, set_up_failed};

/// Where the volumes of the node are.
#[derive(Clone, Debug)]
pub struct Places {
    /// `/var/lib/kubelet/pods`.
    pub pods_dir: PathBuf,
    /// `/run/kinglet/volumes`.
    pub run_dir: PathBuf,
}

impl Places {
    pub fn pod_dir(&self, record: &Record) -> PathBuf {
        self.pods_dir.join(&record.incarnation)
    }

    fn secret_dir(&self, record: &Record) -> PathBuf {
        self.run_dir.join(&record.incarnation)
    }

    /// Where a volume is on the host.
    pub fn volume(&self, record: &Record, volume: &Volume, claims: &Claims) -> Result<PathBuf, VolumeError> {
        support::check(volume)?;
        let in_pod = |plugin: &str| self.pod_dir(record).join("volumes").join(plugin).join(&volume.name);
        if let Some(host) = &volume.host_path {
            return Ok(PathBuf::from(&host.path));
        }
        if volume.persistent_volume_claim.is_some() {
            let local =
                claims.get(&volume.name).ok_or_else(|| VolumeError::Unresolved(volume.name.clone()))?;
            return Ok(local.path.clone());
        }
        Ok(if volume.config_map.is_some() {
            in_pod("kubernetes.io~configmap")
        } else if volume.downward_api.is_some() {
            in_pod("kubernetes.io~downward-api")
        } else if volume.secret.is_some() || volume.projected.is_some() {
            // A kubelet mounts memory below the pod's folder; containers that were taken over from it look there.
            let kind = if volume.secret.is_some() { "secret" } else { "projected" };
            let of_kubelet = in_pod(&format!("kubernetes.io~{kind}"));
            match of_kubelet.exists() && mounts::is_mount_point(&of_kubelet) {
                true => of_kubelet,
                false => self.secret_dir(record).join(&volume.name),
            }
        } else {
            in_pod("kubernetes.io~empty-dir")
        })
    }

    /// Makes what needs no object's content. `node_bytes`: memory that pods may have on this node.
    pub fn set_up(
        &self,
        pod: &Pod,
        record: &Record,
        volume: &Volume,
        claims: &Claims,
        node_bytes: i64,
    ) -> Result<(), VolumeError> {
        let path = self.volume(record, volume, claims)?;
        if let Some(host) = &volume.host_path {
            return host_path::check(host);
        }
        if let Some(local) = claims.get(&volume.name) {
            return local.set_up(pod);
        }
        let made_of_files = volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.projected.is_some()
            || volume.downward_api.is_some();
        if made_of_files {
            return Ok(());
        }
        // A volume that names no type is an emptyDir (Kubernetes' default).
        let empty = volume.empty_dir.clone().unwrap_or_default();
        empty_dir::set_up(&path, &empty, memory_bytes_max(&empty, pod, node_bytes), fs_group(pod))
    }

    /// Writes the files of a volume whole or not at all; what is unchanged is not written.
    pub fn write_files(
        &self,
        pod: &Pod,
        record: &Record,
        volume: &Volume,
        files: &[File],
    ) -> Result<bool, VolumeError> {
        let dir = self.volume(record, volume, &Claims::new())?;
        atomic::write(&dir, files, fs_group(pod))
    }

    /// What a container's mount shows: the volume, or the part of it that subPath names, bound to a place of its own.
    pub fn mount_source(
        &self,
        record: &Record,
        base: &Path,
        container: &Container,
        index: usize,
        env: &[(String, String)],
    ) -> Result<PathBuf, VolumeError> {
        let wanted = &container.volume_mounts[index];
        let sub_path = sub_path_of(wanted, env)?;
        if sub_path.is_empty() {
            return Ok(base.to_owned());
        }
        let target = self
            .pod_dir(record)
            .join("volume-subpaths")
            .join(&wanted.name)
            .join(&container.name)
            .join(index.to_string());
        let part = sub_path::Wanted { volume: &wanted.name, container: &container.name, sub_path: &sub_path };
        part.bind(base, &target)?;
        Ok(target)
    }

    /// The file that a container may leave its last words in.
    pub fn termination_log(&self, record: &Record, container: &str, attempt: u32) -> PathBuf {
        self.pod_dir(record).join("containers").join(container).join(attempt.to_string())
    }

    pub fn make_termination_log(
        &self,
        record: &Record,
        container: &str,
        attempt: u32,
    ) -> Result<PathBuf, VolumeError> {
        self.write_own(record, &format!("containers/{container}/{attempt}"), b"").inspect(|path| {
            // Written by whatever user the container runs as.
            let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o666));
        })
    }

    /// /etc/hosts of a pod. In place, not by a rename: running containers have the file itself mounted.
    pub fn write_hosts(&self, record: &Record, text: &str) -> Result<PathBuf, VolumeError> {
        self.write_own(record, "etc-hosts", text.as_bytes())
    }

    fn write_own(&self, record: &Record, name: &str, data: &[u8]) -> Result<PathBuf, VolumeError> {
        let path = self.pod_dir(record).join(name);
        let parent = path.parent().unwrap_or(&self.pods_dir);
        fs::create_dir_all(parent).map_err(failed("make", parent))?;
        if fs::read(&path).is_ok_and(|old| old == data) {
            return Ok(path);
        }
        fs::write(&path, data).map_err(failed("write", &path))?;
        Ok(path)
    }

    /// Removes all volumes of a pod.
    pub fn clean_up(&self, record: &Record) -> Result<(), VolumeError> {
        self.pods_dirs(&record.incarnation).iter().try_for_each(|dir| mounts::remove_tree(dir))
    }

    fn pods_dirs(&self, incarnation: &str) -> [PathBuf; 2] {
        [self.pods_dir.join(incarnation), self.run_dir.join(incarnation)]
    }

    /// Folders of incarnations that are not `known`: pods that were forgotten while a removal could not finish. What is still
    /// mounted is unmounted, and a folder whose mounts stay in use is left alone and named.
    pub fn clean_orphans(&self, known: impl Fn(&str) -> bool) -> Vec<VolumeError> {
        let mut problems = Vec::new();
        for dir in [&self.pods_dir, &self.run_dir] {
            let entries = match fs::read_dir(dir) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    problems.push(failed("read", dir)(error));
                    continue;
                }
            };
            for entry in entries.flatten() {
                let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
                if is_dir && entry.file_name().to_str().is_some_and(|name| !known(name)) {
                    tracing::info!("{} belongs to no pod any more and is removed", entry.path().display());
                    problems.extend(mounts::remove_tree(&entry.path()).err());
                }
            }
        }
        problems
    }
}

/// The group of `securityContext.fsGroup`.
pub fn fs_group(pod: &Pod) -> Option<u32> {
    let group = pod.spec.security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// The sub path with the container's variables in it. A variable that is not there or empty is an error, unlike elsewhere.
fn sub_path_of(mount: &VolumeMount, env: &[(String, String)]) -> Result<String, VolumeError> {
    if mount.sub_path_expr.is_empty() {
        return Ok(mount.sub_path.clone());
    }
    let mut missing = Vec::new();
    let expanded = env::expand_with(&mount.sub_path_expr, |name| {
        let value = env.iter().find(|(known, value)| known == name && !value.is_empty());
        if value.is_none() {
            missing.push(name.to_string());
        }
        Some(value.map(|(_, value)| value.clone()).unwrap_or_default())
    });
    match missing.is_empty() {
        true => Ok(expanded),
        false => Err(VolumeError::SubPathVariables(missing.join(", "))),
    }
}

/// A limit that an emptyDir sets for itself, in bytes.
pub fn size_limit(empty: &EmptyDir) -> Option<u64> {
    super::quantity::parse_units(&empty.size_limit)
        .and_then(|bytes| u64::try_from(bytes).ok())
        .filter(|b| *b > 0)
}
