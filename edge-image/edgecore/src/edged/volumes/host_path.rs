//! hostPath volumes: the checks of each type, as kubelet makes them when it sets the volume up.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt},
    path::{Component, Path},
};

use super::{VolumeError, failed};
use crate::edged::pod::HostPath;

/// Checks the path, and makes what `...OrCreate` asks for. Can be repeated.
pub fn check(host: &HostPath) -> Result<(), VolumeError> {
    let path = Path::new(&host.path);
    if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
        return Err(VolumeError::HostPathForm(host.path.clone()));
    }
    // A path that cannot even be looked at is not there, as far as the types go.
    let kind = fs::metadata(path).ok().map(|metadata| metadata.file_type());
    let is = |test: fn(&fs::FileType) -> bool| kind.as_ref().is_some_and(test);
    let must = |right: bool, expected| match right {
        true => Ok(()),
        false => Err(VolumeError::HostPathType { path: host.path.clone(), expected }),
    };
    match host.path_type.as_str() {
        "" => Ok(()),
        "DirectoryOrCreate" if kind.is_none() => {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(failed("make", path))
        }
        "DirectoryOrCreate" | "Directory" => must(is(fs::FileType::is_dir), "directory"),
        // The folder of the file is not made (Kubernetes' documentation of hostPath says so).
        "FileOrCreate" if kind.is_none() => make_file(path).map_err(failed("make", path)),
        // kubelet takes everything but a folder for a file.
        "FileOrCreate" | "File" => must(kind.is_some_and(|kind| !kind.is_dir()), "file"),
        "Socket" => must(is(FileTypeExt::is_socket), "socket file"),
        "CharDevice" => must(is(FileTypeExt::is_char_device), "character device"),
        "BlockDevice" => must(is(FileTypeExt::is_block_device), "block device"),
        other => Err(VolumeError::HostPathUnknownType(other.into())),
    }
}

fn make_file(path: &Path) -> io::Result<()> {
    fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o644).open(path).map(drop)
}
