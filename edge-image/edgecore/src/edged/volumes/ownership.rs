//! fsGroup: the files of a volume belong to a group that all of the pod's processes are in.
//!
//! Source of the masks: kubelet's pkg/volume/volume_linux.go, documented as "Configure volume permission and ownership change
//! policy for Pods".

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, lchown},
    path::Path,
};

use super::{VolumeError, failed};

const READ_WRITE: u32 = 0o660;
const READ_ONLY: u32 = 0o440;
const FOLDER: u32 = 0o2110;

fn mask(read_only: bool, folder: bool) -> u32 {
    let files = if read_only { READ_ONLY } else { READ_WRITE };
    if folder { files | FOLDER } else { files }
}

/// Gives everything below `root` to the group. Links are not followed, and no other file system is entered.
pub fn give(root: &Path, group: u32, read_only: bool) -> Result<(), VolumeError> {
    let device = fs::symlink_metadata(root).map_err(failed("look at", root))?.dev();
    // Depth is bounded by the path length that the kernel takes, the list by what is in one folder.
    let mut folders = vec![root.to_owned()];
    give_one(root, group, read_only)?;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(failed("read", &folder))? {
            let path = entry.map_err(failed("read", &folder))?.path();
            // A running pod may remove its files meanwhile.
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if metadata.dev() != device {
                continue;
            }
            match give_one(&path, group, read_only) {
                Err(VolumeError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                other => other?,
            }
            if metadata.is_dir() {
                folders.push(path);
            }
        }
    }
    Ok(())
}

fn give_one(path: &Path, group: u32, read_only: bool) -> Result<(), VolumeError> {
    let metadata = fs::symlink_metadata(path).map_err(failed("look at", path))?;
    let had = metadata.permissions().mode() & 0o7777;
    let wanted = had | mask(read_only, metadata.is_dir());
    // Nothing is written when nothing changes: flash wears, and OnRootMismatch is not the default.
    if metadata.gid() != group {
        lchown(path, None, Some(group)).map_err(failed("chown", path))?;
    } else if had == wanted {
        return Ok(());
    }
    if metadata.is_symlink() {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(wanted)).map_err(failed("chmod", path))
}

/// With fsGroupChangePolicy `OnRootMismatch`: whether the root already is as [`give`] would leave it.
pub fn root_matches(root: &Path, group: u32, read_only: bool) -> bool {
    let Ok(metadata) = fs::symlink_metadata(root) else { return false };
    let wanted = mask(read_only, true);
    metadata.is_dir() && metadata.gid() == group && metadata.permissions().mode() & wanted == wanted
}
