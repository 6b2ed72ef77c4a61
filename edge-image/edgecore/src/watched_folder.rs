//! A folder of descriptions that people write on the node (static pods, devices), looked at now and then.
//!
//! Is: one look at it, which reads only the files that changed. Is not: what their content means, and what happens when it cannot be
//! read; but whoever uses it keeps to one rule: a folder that cannot be read is not an empty one.
//!
//! It is polled, not watched with inotify: a poll costs some microseconds, sees a folder that appears later or is mounted over, and
//! works on every file system, USB sticks included.

use std::{collections::BTreeMap, fs, io, path::Path, time::UNIX_EPOCH};

/// What tells that a file was written: size, seconds, nanoseconds, inode.
pub type Stamp = (u64, u64, u32, u64);

/// One look at the folder: by file name its content, unless it is as it was.
#[derive(Debug, Default)]
pub struct Reading {
    pub files: BTreeMap<String, (Stamp, Content)>,
}

#[derive(Debug)]
pub enum Content {
    Same,
    Read(Vec<u8>),
    Unreadable(String),
}

/// What is taken at most, and what a file is about, for errors.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// More make the whole look fail: then nothing changes.
    pub files_max: usize,
    /// A larger file is told as unreadable.
    pub file_bytes_max: u64,
    /// As in "it cannot be a pod".
    pub holds: &'static str,
}

/// Looks at the folder. Files that are as `known` are not read again. Blocks.
pub fn read(folder: &Path, known: &BTreeMap<String, Stamp>, limits: Limits) -> io::Result<Reading> {
    use std::os::unix::fs::MetadataExt;
    let mut reading = Reading::default();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        // Editors and `kubectl cp` write hidden files first.
        if name.starts_with('.') || name.ends_with('~') || !is_description(&name) {
            continue;
        }
        // Follows links: a mounted config map's files are links.
        let Ok(metadata) = fs::metadata(entry.path()) else { continue };
        if !metadata.is_file() {
            continue;
        }
        if reading.files.len() >= limits.files_max {
            return Err(io::Error::other(format!("it has more than {} files", limits.files_max)));
        }
        let since = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        let stamp = (metadata.len(), since.as_secs(), since.subsec_nanos(), metadata.ino());
        let content = if known.get(&name) == Some(&stamp) {
            Content::Same
        } else if metadata.len() > limits.file_bytes_max {
            let (is, most, holds) = (metadata.len(), limits.file_bytes_max, limits.holds);
            Content::Unreadable(format!("it has {is} bytes, more than {most}; it cannot be {holds}"))
        } else {
            match fs::read(entry.path()) {
                Ok(bytes) => Content::Read(bytes),
                Err(error) => Content::Unreadable(format!("cannot be read ({error})")),
            }
        };
        reading.files.insert(name, (stamp, content));
    }
    Ok(reading)
}

fn is_description(name: &str) -> bool {
    [".yaml", ".yml", ".json"].iter().any(|ending| name.ends_with(ending)) || !name.contains('.')
}
