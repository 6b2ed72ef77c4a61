//! Space: of file systems by one call, of folders by a bounded walk.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::{DirEntryExt, MetadataExt},
    path::{Path, PathBuf},
};

/// A file system, in bytes and inodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileSystem {
    pub capacity: u64,
    /// For those without special rights.
    pub available: u64,
    pub used: u64,
    pub inodes: u64,
    pub inodes_free: u64,
    /// Tells file systems apart.
    pub id: u64,
}

impl FileSystem {
    pub fn inodes_used(&self) -> u64 {
        self.inodes.saturating_sub(self.inodes_free)
    }
}

/// The file system that holds `path`, or will hold it once it is made.
pub fn file_system(path: &Path) -> Option<FileSystem> {
    let found =
        path.ancestors().find_map(|at| Some((nix::sys::statvfs::statvfs(at).ok()?, fs::metadata(at).ok()?)));
    let (vfs, metadata) = found?;
    let block = vfs.fragment_size();
    let bytes = |blocks: u64| blocks.saturating_mul(block);
    Some(FileSystem {
        capacity: bytes(vfs.blocks()),
        available: bytes(vfs.blocks_available()),
        used: bytes(vfs.blocks().saturating_sub(vfs.blocks_free())),
        inodes: vfs.files(),
        inodes_free: vfs.files_free(),
        id: metadata.dev(),
    })
}

/// What the files below a folder take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FolderUsage {
    pub bytes: u64,
    pub inodes: u64,
    /// False: there were more than `entries_max` entries, and the figures are too low.
    pub complete: bool,
}

impl FolderUsage {
    pub fn add(&mut self, other: FolderUsage) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.inodes = self.inodes.saturating_add(other.inodes);
        self.complete &= other.complete;
    }
}

/// As `du -sx`: blocks taken, files with several names once, no other file systems, symbolic links not followed. Reads the disk:
/// call it through `rt::blocking`.
pub fn folder(path: &Path, entries_max: usize) -> FolderUsage {
    let mut usage = FolderUsage { complete: true, ..FolderUsage::default() };
    let Ok(top) = fs::symlink_metadata(path) else { return usage };
    let mut linked = HashSet::new();
    count(&top, &mut linked, &mut usage);
    let mut folders: Vec<PathBuf> = if top.is_dir() { vec![path.to_owned()] } else { Vec::new() };
    let mut entries = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            entries += 1;
            if entries > entries_max {
                usage.complete = false;
                return usage;
            }
            if linked.contains(&entry.ino()) {
                continue;
            }
            // `DirEntry::metadata` does not follow links.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.dev() != top.dev() {
                continue;
            }
            count(&metadata, &mut linked, &mut usage);
            if metadata.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    usage
}

fn count(metadata: &fs::Metadata, linked: &mut HashSet<u64>, usage: &mut FolderUsage) {
    if !metadata.is_dir() && metadata.nlink() > 1 && !linked.insert(metadata.ino()) {
        return;
    }
    usage.bytes = usage.bytes.saturating_add(metadata.blocks().saturating_mul(512));
    usage.inodes += 1;
}
