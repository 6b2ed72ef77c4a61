//! Files that are replaced whole or not at all, also by a power cut.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}")]
pub struct FileError {
    pub action: &'static str,
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

/// Replaces a file (mode 0644). Its folder must exist. When it returns, the new content is durable.
pub fn atomic_write(path: &Path, content: &[u8]) -> Result<(), FileError> {
    replace(path, content, 0o644)
}

/// The same for secrets: mode 0600 from the first byte on.
pub fn atomic_write_private(path: &Path, content: &[u8]) -> Result<(), FileError> {
    replace(path, content, 0o600)
}

fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| FileError { action, path, source }
    };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    // The process id keeps two programs that write the same file apart; a rest of a killed one is overwritten or harmless.
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));

    let write = || {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()
    };
    if let Err(error) = write().and_then(|()| fs::rename(&temporary, path)) {
        let _ = fs::remove_file(&temporary);
        return Err(failed("write", path)(error));
    }
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync the folder", dir))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn content_is_replaced_and_secrets_are_for_the_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        atomic_write(&path, b"long first content").unwrap();
        atomic_write_private(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = atomic_write(Path::new("/nowhere/at/all"), b"").unwrap_err();
        assert!(
            crate::error_chain(&error).starts_with("cannot write /nowhere/at/all: No such file"),
            "{error}"
        );
    }
}
