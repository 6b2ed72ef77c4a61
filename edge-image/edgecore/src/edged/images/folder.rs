//! Archives that appear in a folder (a USB stick, a share in the LAN): imported once they no longer grow.
//!
//! Not here: the import itself. Invariant: a file that changed since the last look is not read; one that was judged is not judged
//! again before it changes.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::archive::is_archive;
use crate::edged::limits;

#[derive(Clone, Debug, PartialEq)]
struct Seen {
    bytes: u64,
    modified: SystemTime,
    judged: bool,
    problem: Option<String>,
}

#[derive(Debug, Default)]
pub struct Watcher {
    files: BTreeMap<PathBuf, Seen>,
}

impl Watcher {
    /// Archives that stayed as they were since the last look, each once. Blocking.
    pub fn look(&mut self, folders: &[PathBuf]) -> Vec<PathBuf> {
        let mut found = BTreeMap::new();
        for path in folders.iter().flat_map(|folder| archives(folder)).take(limits::PRELOADED_ARCHIVES_MAX) {
            let Ok(data) = std::fs::metadata(&path) else { continue };
            let modified = data.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let seen = Seen { bytes: data.len(), modified, judged: false, problem: None };
            found.insert(path, seen);
        }
        let mut ready = Vec::new();
        for (path, seen) in &mut found {
            let Some(before) = self.files.get(path) else { continue };
            if (before.bytes, before.modified) == (seen.bytes, seen.modified) {
                *seen = Seen { judged: true, ..before.clone() };
                if !before.judged {
                    ready.push(path.clone());
                }
            }
        }
        self.files = found;
        ready
    }

    pub fn judged(&mut self, path: &Path, problem: Option<String>) {
        if let Some(seen) = self.files.get_mut(path) {
            seen.problem = problem;
        }
    }

    pub fn problems(&self) -> Vec<String> {
        self.files.values().filter_map(|seen| seen.problem.clone()).collect()
    }
}

fn archives(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries
        .take(limits::ARCHIVE_ENTRIES_MAX)
        .map(|entry| entry.path())
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(is_archive))
        .collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_when_it_stopped_growing_and_once() {
        let dir = tempfile::tempdir().unwrap();
        let (folders, path) = ([dir.path().to_owned(), dir.path().join("absent")], dir.path().join("a.tar"));
        let mut watcher = Watcher::default();
        std::fs::write(&path, "part").unwrap();
        std::fs::write(dir.path().join("notes.txt"), "no archive").unwrap();
        assert!(watcher.look(&folders).is_empty(), "just appeared");
        std::fs::write(&path, "part and more").unwrap();
        assert!(watcher.look(&folders).is_empty(), "still growing");
        assert_eq!(watcher.look(&folders), std::slice::from_ref(&path));
        watcher.judged(&path, Some("broken".into()));
        assert!(watcher.look(&folders).is_empty());
        assert_eq!(watcher.problems(), ["broken"]);
        std::fs::write(&path, "copied once more").unwrap();
        assert!(watcher.look(&folders).is_empty() && watcher.problems().is_empty());
        assert_eq!(watcher.look(&folders), std::slice::from_ref(&path));
        std::fs::remove_file(&path).unwrap();
        assert!(watcher.look(&folders).is_empty());
    }
}
