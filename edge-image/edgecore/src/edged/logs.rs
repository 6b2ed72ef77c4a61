//! Log files of containers: the runtime writes them, this keeps them small and removes them.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// When a log is renamed, and how many files of it are kept, the current one included.
#[derive(Clone, Copy, Debug)]
pub struct Rotation {
    pub bytes_max: u64,
    pub files_max: usize,
}

/// `<pod folder>/<container>/<attempt>.log`.
pub fn path(pod_dir: &Path, container: &str, attempt: u32) -> PathBuf {
    pod_dir.join(container).join(format!("{attempt}.log"))
}

/// Renames a log that is too large, dropping the oldest. True when it did: the runtime must then open it anew.
pub fn rotate(path: &Path, rotation: Rotation) -> bool {
    if !fs::metadata(path).is_ok_and(|metadata| metadata.len() > rotation.bytes_max) {
        return false;
    }
    let kept = |n: usize| PathBuf::from(format!("{}.{n}", path.display()));
    let last = rotation.files_max.saturating_sub(1).max(1);
    for n in (1..last).rev() {
        let _ = fs::rename(kept(n), kept(n + 1));
    }
    fs::rename(path, kept(1)).is_ok()
}

/// Removes the log of a container that is gone, with its renamed parts.
pub fn remove(pod_dir: &Path, container: &str, attempt: u32) {
    let log = path(pod_dir, container, attempt);
    let name = log.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for entry in fs::read_dir(pod_dir.join(container)).into_iter().flatten().flatten() {
        let found = entry.file_name().to_string_lossy().into_owned();
        if found == name || found.starts_with(&format!("{name}.")) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_renamed_at_its_size_and_the_oldest_part_goes() {
        let dir = tempfile::tempdir().unwrap();
        let log = path(dir.path(), "web", 0);
        fs::create_dir_all(log.parent().unwrap()).unwrap();
        let rotation = Rotation { bytes_max: 10, files_max: 3 };
        fs::write(&log, "0123456789").unwrap();
        assert!(!rotate(&log, rotation), "at the limit, not over it");
        for n in 0..5 {
            fs::write(&log, format!("number {n} is long enough")).unwrap();
            assert!(rotate(&log, rotation));
        }
        let mut names: Vec<_> = fs::read_dir(log.parent().unwrap())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["0.log.1", "0.log.2"]);
        assert!(fs::read_to_string(format!("{}.2", log.display())).unwrap().starts_with("number 3"));
        fs::write(path(dir.path(), "web", 10), "another attempt").unwrap();
        remove(dir.path(), "web", 0);
        assert_eq!(fs::read_dir(log.parent().unwrap()).unwrap().count(), 1);
    }
}
