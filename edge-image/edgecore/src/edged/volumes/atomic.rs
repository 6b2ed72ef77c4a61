//! Files of config maps, secrets, the downward API and projections: all of them change in one moment, by moving a link.
//!
//! ```text
//! <volume>/key            -> ..data/key
//! <volume>/..data         -> ..2026_11_21_08_00_00.0123456789
//! <volume>/..2026_.../key
//! ```
//!
//! The layout is kubelet's (pkg/volume/util/atomic_writer.go): programs watch `..data`. Nothing is synced: a folder that a power
//! cut left half-written is found by comparing it, file by file, before a pod starts again, and written anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt, chown, symlink},
    path::{Component, Path, PathBuf},
};

use super::{VolumeError, failed, ownership};

/// A file of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct File {
    pub path: String,
    pub mode: u32,
    pub data: Vec<u8>,
    /// The user that it belongs to; root when `None`.
    pub owner: Option<u32>,
}

const CURRENT: &str = "..data";
const NEXT: &str = "..data_tmp";

/// Brings the volume to hold these files and no others. True when something had to be written.
pub fn write(dir: &Path, files: &[File], group: Option<u32>) -> Result<bool, VolumeError> {
    // Of two files with one path the later one counts, as in a projection's list of sources.
    let files: BTreeMap<&str, &File> = files.iter().map(|file| (file.path.as_str(), file)).collect();
    if let Some(bad) = files.keys().find(|path| !is_safe(path)) {
        return Err(VolumeError::FileName((*bad).into()));
    }
    if !dir.exists() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(failed("make", dir))?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).map_err(failed("chmod", dir))?;
    }
    let current = dir.join(CURRENT);
    let old = fs::read_link(&current).ok();
    sweep(dir, old.as_deref());
    let changed = !holds(&current, &files, group);
    if changed {
        let name = folder_name();
        write_folder(&dir.join(&name), &files)?;
        if let Some(group) = group {
            // Of the whole volume: this may be its first time.
            ownership::give(dir, group, true)?;
        }
        let next = dir.join(NEXT);
        symlink(&name, &next).and_then(|()| fs::rename(&next, &current)).map_err(failed("link", &current))?;
    }
    let visible: BTreeSet<&str> = files.keys().filter_map(|path| path.split('/').next()).collect();
    for first in &visible {
        let link = dir.join(first);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(CURRENT).join(first), &link).map_err(failed("link", &link))?;
        }
    }
    remove_stale_links(dir, &visible);
    if let Some(old) = old.filter(|_| changed) {
        let _ = fs::remove_dir_all(dir.join(old));
    }
    Ok(changed)
}

/// Relative, inside the volume, and apart from the names that the layout uses.
fn is_safe(path: &str) -> bool {
    let mut parts = Path::new(path).components();
    !path.is_empty()
        && !path.starts_with("..")
        && path.len() <= 255
        && parts.all(|part| matches!(part, Component::Normal(_)))
}

fn folder_name() -> String {
    let now = jiff::Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S");
    format!("{now}.{:010}", rt::random_u64() % 10_000_000_000)
}

fn write_folder(fresh: &Path, files: &BTreeMap<&str, &File>) -> Result<(), VolumeError> {
    fs::DirBuilder::new().mode(0o755).create(fresh).map_err(failed("make", fresh))?;
    for (path, file) in files {
        let path = fresh.join(path);
        if let Some(parent) = path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(parent)
                .map_err(failed("make", parent))?;
        }
        fs::write(&path, &file.data).map_err(failed("write", &path))?;
        if let Some(owner) = file.owner {
            chown(&path, Some(owner), None).map_err(failed("chown", &path))?;
        }
        let mode = fs::Permissions::from_mode(file.mode & 0o777);
        fs::set_permissions(&path, mode).map_err(failed("chmod", &path))?;
    }
    Ok(())
}

/// Whether the folder has exactly these files, with their content, mode and owner.
fn holds(current: &Path, files: &BTreeMap<&str, &File>, group: Option<u32>) -> bool {
    use std::os::unix::fs::MetadataExt;
    if !current.is_dir() {
        return false;
    }
    let same = |(path, file): (&&str, &&File)| {
        let path = current.join(path);
        let Ok(metadata) = fs::symlink_metadata(&path) else { return false };
        let mode = file.mode & 0o777 | if group.is_some() { 0o440 } else { 0 };
        metadata.is_file()
            && metadata.len() == file.data.len() as u64
            && metadata.permissions().mode() & 0o777 == mode
            && file.owner.is_none_or(|owner| metadata.uid() == owner)
            && group.is_none_or(|group| metadata.gid() == group)
            && fs::read(&path).is_ok_and(|data| data == file.data)
    };
    files.iter().all(same) && count(current) == files.len()
}

fn count(dir: &Path) -> usize {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| if entry.file_type().is_ok_and(|kind| kind.is_dir()) { count(&entry.path()) } else { 1 })
        .sum()
}

/// Removes what an interrupted write left behind.
fn sweep(dir: &Path, current: Option<&Path>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = PathBuf::from(entry.file_name());
        let ours = entry.file_name().to_string_lossy().starts_with("..");
        if !ours || name == Path::new(CURRENT) || current == Some(name.as_path()) {
            continue;
        }
        let path = entry.path();
        let removed = match entry.file_type() {
            Ok(kind) if kind.is_dir() => fs::remove_dir_all(&path),
            _ => fs::remove_file(&path),
        };
        if let Err(error) = removed
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("{} stays: {error}", path.display());
        }
    }
}

/// Links of keys that are gone.
fn remove_stale_links(dir: &Path, visible: &BTreeSet<&str>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        if is_link && !name.starts_with("..") && !visible.contains(&*name) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
