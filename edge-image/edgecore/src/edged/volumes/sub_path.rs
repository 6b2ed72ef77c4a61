//! subPath: a part of a volume, found and mounted so that nothing a container put into the volume can lead out of it.
//!
//! What is found is bound to a place of our own, through its open descriptor: a link that a container swaps in afterwards
//! changes nothing. Kubelet does the same (pkg/volume/util/subpath). The bind also is why a subPath of a config map does not
//! follow its updates.

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, open, openat},
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{FileStat, Mode, fchmod, fstat, mkdirat},
};

use super::{VolumeError, failed, mounts};

/// Whose subPath it is, for the words of errors.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub volume: &'a str,
    pub container: &'a str,
    pub sub_path: &'a str,
}

impl Wanted<'_> {
    /// The path as the API's rules have it: relative, no `..`.
    fn relative(&self) -> Result<&Path, VolumeError> {
        let path = Path::new(self.sub_path);
        if path.is_absolute() {
            return Err(VolumeError::SubPathAbsolute(self.sub_path.into()));
        }
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(VolumeError::SubPathSteps(self.sub_path.into()));
        }
        Ok(path)
    }

    fn escape(&self) -> VolumeError {
        let (volume, container, path) = (self.volume.into(), self.container.into(), self.sub_path.into());
        VolumeError::SubPathEscape { volume, container, path }
    }

    /// Finds the sub path below `base`, makes it as a folder if it is not there, and binds it to `target`.
    pub fn bind(&self, base: &Path, target: &Path) -> Result<(), VolumeError> {
        let relative = self.relative()?;
        let base = base.canonicalize().map_err(failed("look at", base))?;
        if !base.join(relative).exists() {
            make(&base, relative).map_err(|source| VolumeError::SubPathMake {
                volume: self.volume.into(),
                container: self.container.into(),
                source,
            })?;
        }
        let real = base.join(relative).canonicalize().map_err(|_| self.escape())?;
        let inside = real.strip_prefix(&base).map_err(|_| self.escape())?;
        let (found, stat) = descend(&base, inside).map_err(|_| self.escape())?;
        bind(&found, &stat, target)
    }
}

const FLAGS: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Opens a path below `base`, refusing links at every step: the caller has resolved them, and whoever swaps one in loses.
fn descend(base: &Path, inside: &Path) -> io::Result<(OwnedFd, FileStat)> {
    let mut at = open(base, FLAGS | OFlag::O_DIRECTORY, Mode::empty())?;
    for part in inside.components() {
        let Component::Normal(name) = part else { return Err(io::Error::from(io::ErrorKind::InvalidInput)) };
        at = openat(at.as_fd(), name, FLAGS, Mode::empty())?;
        if file_type(&fstat(at.as_fd())?) == libc_type::LINK {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
    }
    let stat = fstat(at.as_fd())?;
    Ok((at, stat))
}

/// Makes the folders that are missing, with the mode of the volume itself (a pod's group must be able to write).
fn make(base: &Path, relative: &Path) -> io::Result<()> {
    let mode = fs::metadata(base)?.mode() & 0o7777;
    let existing = relative.ancestors().find(|part| base.join(part).exists()).unwrap_or(Path::new(""));
    let real = base.join(existing).canonicalize()?;
    let inside = real.strip_prefix(base).map_err(|_| io::Error::from(io::ErrorKind::PermissionDenied))?;
    let (mut at, _) = descend(base, inside)?;
    let missing = relative.strip_prefix(existing).expect("an ancestor is a prefix");
    for part in missing.components() {
        let Component::Normal(name) = part else { continue };
        let bits = Mode::from_bits_truncate(mode);
        mkdirat(at.as_fd(), name, bits)?;
        let opened = openat(
            at.as_fd(),
            name,
            OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        // mkdir is subject to the umask.
        fchmod(opened.as_fd(), bits)?;
        at = opened;
    }
    Ok(())
}

/// Binds what is open to `target`. A bind that is there stays when it is the same, else it is replaced.
fn bind(found: &OwnedFd, stat: &FileStat, target: &Path) -> Result<(), VolumeError> {
    if mounts::is_mount_point(target) {
        if fs::metadata(target).is_ok_and(|old| (old.dev(), old.ino()) == (stat.st_dev, stat.st_ino)) {
            return Ok(());
        }
        // Containers that ended had it; a running one keeps its own.
        umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .map_err(io::Error::from)
            .map_err(failed("unmount", target))?;
    }
    let is_dir = file_type(stat) == libc_type::DIRECTORY;
    if fs::metadata(target).is_ok_and(|old| old.is_dir() != is_dir) {
        let removed = if is_dir { fs::remove_file(target) } else { fs::remove_dir(target) };
        removed.map_err(failed("remove", target))?;
    }
    if is_dir {
        fs::create_dir_all(target).map_err(failed("make", target))?;
    } else {
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(failed("make", parent))?;
        }
        fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(target)
            .map_err(failed("make", target))?;
    }
    let from = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    mount(Some(&from), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(io::Error::from)
        .map_err(failed("bind", target))
}

/// File types in `st_mode` (inode(7)).
mod libc_type {
    pub const MASK: u32 = 0o170_000;
    pub const LINK: u32 = 0o120_000;
    pub const DIRECTORY: u32 = 0o040_000;
}

fn file_type(stat: &FileStat) -> u32 {
    stat.st_mode & libc_type::MASK
}
