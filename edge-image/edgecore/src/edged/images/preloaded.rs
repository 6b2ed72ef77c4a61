//! The folder of archives that a node was shipped with: which images they hold.
//!
//! Not here: the import. Invariant: an archive is read again only when it changed, so that asking for an image that no archive holds
//! costs a look at the folder.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use super::archive::{self, ArchivedImage, is_archive};
use crate::edged::limits;

/// What an archive held when it had this length and time.
type Read = ((u64, SystemTime), Result<Vec<Arc<ArchivedImage>>, String>);

#[derive(Debug, Default)]
pub struct Preloaded {
    archives: BTreeMap<PathBuf, Read>,
}

impl Preloaded {
    /// The images by name, and one text per archive that is of no use. Blocking.
    pub fn look(&mut self, dir: &Path) -> (BTreeMap<String, Arc<ArchivedImage>>, Vec<String>) {
        let (mut images, mut problems) = (BTreeMap::new(), Vec::new());
        // No folder: nothing is preloaded.
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let named = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()).is_some_and(is_archive);
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(named).collect();
        paths.sort();
        if paths.len() > limits::PRELOADED_ARCHIVES_MAX {
            let (count, max) = (paths.len(), limits::PRELOADED_ARCHIVES_MAX);
            problems.push(format!(
                "{} holds {count} image archives, only the first {max} are used",
                dir.display()
            ));
            paths.truncate(max);
        }
        let mut before = std::mem::take(&mut self.archives);
        for path in paths {
            let stamp = std::fs::metadata(&path).map_or((0, SystemTime::UNIX_EPOCH), |data| {
                (data.len(), data.modified().unwrap_or(SystemTime::UNIX_EPOCH))
            });
            let held = before.remove(&path).filter(|(old, _)| *old == stamp).unwrap_or_else(|| {
                let found = archive::read(&path).map(|found| found.into_iter().map(Arc::new).collect());
                (stamp, found.map_err(|error| error.to_string()))
            });
            match &held.1 {
                Ok(found) => images.extend(found.iter().map(|image| (image.name.clone(), image.clone()))),
                Err(problem) => problems.push(problem.clone()),
            }
            self.archives.insert(path, held);
        }
        (images, problems)
    }
}
