//! Folders and files that a pod's containers see: emptyDir, hostPath, config maps, secrets, the downward API, /etc/hosts.
//!
//! Not here: fetching objects (`sources`). Everything of a pod lies in one folder per incarnation below the kubelet folder, and
//! secrets in one below the run folder, which is in RAM on the device. Invariant: nothing outside of these two is ever removed,
//! and a mounted file system inside them is unmounted first, never emptied.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt, symlink},
    path::{Component, Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{
    pod::{EmptyDir, HostPath, Pod, Volume, VolumeMount},
    quantity,
    record::Record,
};

/// Where the volumes of the node are.
#[derive(Clone, Debug)]
pub struct Places {
    /// `/var/lib/kubelet/pods`.
    pub pods_dir: PathBuf,
    /// `/run/kinglet/volumes`.
    pub run_dir: PathBuf,
}

/// A file of a config map, secret, downward API or projected volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub path: String,
    pub mode: u32,
    pub data: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("volume {volume}: cannot {action} {path} ({source})")]
    Io { volume: String, action: &'static str, path: PathBuf, source: io::Error },
    #[error("volume {volume}: host path {path} is not a {expected}; correct the path or its type")]
    HostPath { volume: String, path: String, expected: &'static str },
    #[error(
        "volume {volume} has a type that this node does not offer; it offers emptyDir, hostPath, configMap, secret, downwardAPI, projected"
    )]
    Unsupported { volume: String },
    #[error("volume {volume}: path {path:?} leads out of the volume")]
    Escape { volume: String, path: String },
}

impl Places {
    pub fn pod_dir(&self, record: &Record) -> PathBuf {
        self.pods_dir.join(&record.incarnation)
    }

    fn secret_dir(&self, record: &Record) -> PathBuf {
        self.run_dir.join(&record.incarnation)
    }

    /// Where a volume is on the host.
    pub fn volume(&self, record: &Record, volume: &Volume) -> Result<PathBuf, VolumeError> {
        let in_pod = |plugin: &str| self.pod_dir(record).join("volumes").join(plugin).join(&volume.name);
        if let Some(host) = &volume.host_path {
            return Ok(PathBuf::from(&host.path));
        }
        if volume.empty_dir.is_some() {
            return Ok(in_pod("kubernetes.io~empty-dir"));
        }
        if volume.config_map.is_some() {
            return Ok(in_pod("kubernetes.io~configmap"));
        }
        if volume.downward_api.is_some() {
            return Ok(in_pod("kubernetes.io~downward-api"));
        }
        if volume.secret.is_some() || volume.projected.is_some() {
            return Ok(self.secret_dir(record).join(&volume.name));
        }
        Err(VolumeError::Unsupported { volume: volume.name.clone() })
    }

    /// Makes what needs no object from the cloud. Can be repeated.
    pub fn prepare(&self, pod: &Pod, record: &Record) -> Result<(), VolumeError> {
        let group = pod.spec.security_context.as_ref().and_then(|security| security.fs_group);
        for volume in &pod.spec.volumes {
            let path = self.volume(record, volume)?;
            if let Some(host) = &volume.host_path {
                check_host_path(&volume.name, host)?;
            } else {
                make_dir(&volume.name, &path)?;
            }
            if let Some(empty) = &volume.empty_dir {
                prepare_empty_dir(&volume.name, &path, empty, group)?;
            }
        }
        Ok(())
    }

    /// The host path of a mount, with its sub path.
    pub fn mount_source(
        &self,
        record: &Record,
        volume: &Volume,
        mount: &VolumeMount,
    ) -> Result<PathBuf, VolumeError> {
        let base = self.volume(record, volume)?;
        if mount.sub_path.is_empty() {
            return Ok(base);
        }
        let escape = || VolumeError::Escape { volume: volume.name.clone(), path: mount.sub_path.clone() };
        let relative = Path::new(&mount.sub_path);
        if relative.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
            return Err(escape());
        }
        let path = base.join(relative);
        if !path.exists() {
            // Whatever a container put there: only a folder that resolves into the volume is made.
            let parent = deepest_existing(&path);
            if !resolves_into(&parent, &base) {
                return Err(escape());
            }
            make_dir(&volume.name, &path)?;
        }
        if resolves_into(&path, &base) { Ok(path) } else { Err(escape()) }
    }

    /// Writes the files of a volume whole or not at all, through a link that is moved; unchanged files are not written.
    pub fn write_files(
        &self,
        record: &Record,
        volume: &Volume,
        files: &[File],
        group: Option<i64>,
    ) -> Result<(), VolumeError> {
        let dir = self.volume(record, volume)?;
        make_dir(&volume.name, &dir)?;
        let current = dir.join("..data");
        let safe = |path: &str| {
            let path = Path::new(path);
            !path.as_os_str().is_empty() && path.components().all(|part| matches!(part, Component::Normal(_)))
        };
        if let Some(bad) = files.iter().find(|file| !safe(&file.path) || file.path.starts_with("..")) {
            return Err(VolumeError::Escape { volume: volume.name.clone(), path: bad.path.clone() });
        }
        if current.exists()
            && files.iter().all(|f| fs::read(current.join(&f.path)).is_ok_and(|old| old == f.data))
            && count(&current) == files.len()
        {
            return Ok(());
        }
        let failed = |action, path: &Path| {
            let (volume, path) = (volume.name.clone(), path.to_owned());
            move |source| VolumeError::Io { volume, action, path, source }
        };
        let name = format!("..{:016x}", rt::random_u64());
        let fresh = dir.join(&name);
        for file in files {
            let path = fresh.join(&file.path);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(failed("make", parent))?;
            }
            fs::write(&path, &file.data).map_err(failed("write", &path))?;
            let mut mode = file.mode & 0o777;
            if let Some(group) = group.and_then(|group| u32::try_from(group).ok()) {
                mode |= 0o040;
                std::os::unix::fs::chown(&path, None, Some(group)).map_err(failed("chown", &path))?;
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(failed("chmod", &path))?;
        }
        fs::create_dir_all(&fresh).map_err(failed("make", &fresh))?;
        let old = fs::read_link(&current).ok();
        let next = dir.join("..data_tmp");
        let _ = fs::remove_file(&next);
        symlink(&name, &next).and_then(|()| fs::rename(&next, &current)).map_err(failed("link", &current))?;
        for file in files {
            let first = file.path.split('/').next().unwrap_or_default();
            let link = dir.join(first);
            if fs::symlink_metadata(&link).is_err() {
                symlink(Path::new("..data").join(first), &link).map_err(failed("link", &link))?;
            }
        }
        remove_stale_links(&dir);
        if let Some(old) = old {
            let _ = fs::remove_dir_all(dir.join(old));
        }
        Ok(())
    }

    /// /etc/hosts of a pod with its own network.
    pub fn write_hosts(&self, pod: &Pod, record: &Record, ips: &[String]) -> Result<PathBuf, VolumeError> {
        let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
        for ip in ips {
            text.push_str(&format!("{ip}\t{}\n", pod.hostname()));
        }
        for alias in &pod.spec.host_aliases {
            text.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.join(" ")));
        }
        self.write_own(record, "etc-hosts", text.as_bytes())
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

    fn write_own(&self, record: &Record, name: &str, data: &[u8]) -> Result<PathBuf, VolumeError> {
        let path = self.pod_dir(record).join(name);
        make_dir(name, path.parent().unwrap_or(&self.pods_dir))?;
        fs::write(&path, data).map_err(|source| VolumeError::Io {
            volume: name.to_string(),
            action: "write",
            path: path.clone(),
            source,
        })?;
        Ok(path)
    }

    /// Removes all volumes of a pod.
    pub fn clean_up(&self, record: &Record) -> Result<(), VolumeError> {
        for dir in [self.pod_dir(record), self.secret_dir(record)] {
            remove_tree(&dir)?;
        }
        Ok(())
    }
}

fn make_dir(volume: &str, path: &Path) -> Result<(), VolumeError> {
    fs::create_dir_all(path).map_err(|source| VolumeError::Io {
        volume: volume.to_string(),
        action: "make",
        path: path.to_owned(),
        source,
    })
}

fn prepare_empty_dir(
    volume: &str,
    path: &Path,
    empty: &EmptyDir,
    group: Option<i64>,
) -> Result<(), VolumeError> {
    let failed = |action| {
        let (volume, path) = (volume.to_string(), path.to_owned());
        move |source| VolumeError::Io { volume, action, path, source }
    };
    if empty.medium == "Memory" && !is_mount_point(path) {
        let size = quantity::parse_units(&empty.size_limit).filter(|size| *size > 0);
        let options = size.map_or("mode=0777".to_string(), |size| format!("mode=0777,size={size}"));
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options.as_str()))
            .map_err(io::Error::from)
            .map_err(failed("mount a tmpfs on"))?;
    }
    let mut mode = 0o777;
    if let Some(group) = group.and_then(|group| u32::try_from(group).ok()) {
        mode |= 0o2000;
        std::os::unix::fs::chown(path, None, Some(group)).map_err(failed("chown"))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed("chmod"))
}

fn check_host_path(volume: &str, host: &HostPath) -> Result<(), VolumeError> {
    let path = Path::new(&host.path);
    let wrong =
        |expected| VolumeError::HostPath { volume: volume.to_string(), path: host.path.clone(), expected };
    if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
        return Err(wrong("absolute path without \"..\""));
    }
    let kind = fs::metadata(path).ok().map(|metadata| metadata.file_type());
    let is = |test: fn(&fs::FileType) -> bool| kind.as_ref().is_some_and(test);
    let ok = |right: bool, expected| if right { Ok(()) } else { Err(wrong(expected)) };
    match host.path_type.as_str() {
        "" => Ok(()),
        "DirectoryOrCreate" => match kind {
            None => make_dir(volume, path),
            Some(_) => ok(is(fs::FileType::is_dir), "directory"),
        },
        "Directory" => ok(is(fs::FileType::is_dir), "directory"),
        "FileOrCreate" => match kind {
            None => fs::write(path, b"").map_err(|source| VolumeError::Io {
                volume: volume.to_string(),
                action: "make",
                path: path.to_owned(),
                source,
            }),
            Some(_) => ok(is(fs::FileType::is_file), "file"),
        },
        "File" => ok(is(fs::FileType::is_file), "file"),
        "Socket" => ok(is(FileTypeExt::is_socket), "socket"),
        "CharDevice" => ok(is(FileTypeExt::is_char_device), "character device"),
        "BlockDevice" => ok(is(FileTypeExt::is_block_device), "block device"),
        _ => Err(wrong("path of a type that Kubernetes knows")),
    }
}

fn count(dir: &Path) -> usize {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| if entry.file_type().is_ok_and(|kind| kind.is_dir()) { count(&entry.path()) } else { 1 })
        .sum()
}

/// Links of keys that are gone.
fn remove_stale_links(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let is_ours = !entry.file_name().to_string_lossy().starts_with("..");
        if is_ours && entry.file_type().is_ok_and(|kind| kind.is_symlink()) && !entry.path().exists() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn deepest_existing(path: &Path) -> PathBuf {
    path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/")).to_owned()
}

fn resolves_into(path: &Path, base: &Path) -> bool {
    match (path.canonicalize(), base.canonicalize()) {
        (Ok(path), Ok(base)) => path.starts_with(base),
        _ => false,
    }
}

fn is_mount_point(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| fs::symlink_metadata(path).map(|metadata| metadata.dev()).ok();
    device(path) != path.parent().and_then(device)
}

/// Unmounts what is mounted below, then removes. A mount that stays in use stops the removal: its files are not ours to delete.
fn remove_tree(dir: &Path) -> Result<(), VolumeError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| VolumeError::Io { volume: "of a removed pod".into(), action, path, source }
    };
    let table = fs::read_to_string("/proc/self/mountinfo")
        .map_err(failed("read", Path::new("/proc/self/mountinfo")))?;
    let mut points: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|point| point.starts_with(dir))
        .collect();
    points.sort();
    for point in points.iter().rev() {
        umount2(point, MntFlags::UMOUNT_NOFOLLOW)
            .map_err(io::Error::from)
            .map_err(failed("unmount", point))?;
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", dir)(error)),
        _ => Ok(()),
    }
}
