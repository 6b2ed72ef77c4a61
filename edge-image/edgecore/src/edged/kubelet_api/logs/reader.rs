//! Reads a log over all of its files: the renamed ones from the oldest on, then the current one.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use super::{
    Options,
    line::Filter,
    tail::{self, Count},
};
use crate::edged::kubelet_api::limits::{LOG_BLOCK_BYTES, LOG_BLOCKS_PER_STEP, LOG_FILES_MAX};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    More,
    /// All that was written so far is read.
    AtEnd,
    /// As many bytes as were asked for.
    Full,
}

pub struct Reader {
    /// Of the file that the runtime writes now.
    path: PathBuf,
    file: File,
    inode: u64,
    offset: u64,
    filter: Filter,
    block: Vec<u8>,
    follow: bool,
    /// A newer file was seen. The runtime may write a last line to the old one, so it is read to its end once more.
    renamed: bool,
}

impl Reader {
    /// Finds where to begin; reads the disk.
    pub fn open(path: &Path, options: &Options) -> io::Result<Reader> {
        let files = files(path);
        let (path_now, inode, offset) = match options.tail {
            Some(lines) => begin_of_tail(&files, lines, options)?,
            None => {
                // A file that was written for the last time before `since` holds nothing of interest.
                let since = options.since.map_or(i64::MIN, |since| since.as_second());
                let last = files.len().saturating_sub(1);
                let old = |file: &Path| fs::metadata(file).is_ok_and(|metadata| metadata.mtime() < since);
                let first = files.iter().take(last).take_while(|(file, _)| old(file)).count();
                files.get(first).map(|(file, inode)| (file.clone(), *inode, 0)).unwrap_or((path.into(), 0, 0))
            }
        };
        let file = File::open(path_now)?;
        // Renamed between the list and the opening: what was opened is what counts.
        let (opened, offset) = match file.metadata()?.ino() {
            same if same == inode => (same, offset),
            other => (other, 0),
        };
        Ok(Reader {
            path: path.into(),
            file,
            inode: opened,
            offset,
            filter: Filter::new(options),
            block: Vec::new(),
            follow: options.follow,
            renamed: false,
        })
    }

    /// Nothing was written since the end was reached. Costs two system calls and no disk access.
    pub fn is_quiet(&self) -> bool {
        let same = |metadata: fs::Metadata| metadata.ino() == self.inode && metadata.len() == self.offset;
        !self.renamed && fs::metadata(&self.path).is_ok_and(same)
    }

    /// Reads on, up to about a block of output.
    pub fn read(&mut self, out: &mut Vec<u8>) -> io::Result<Step> {
        self.block.resize(LOG_BLOCK_BYTES, 0);
        for _ in 0..LOG_BLOCKS_PER_STEP {
            let n = match self.file.read_at(&mut self.block, self.offset) {
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if n == 0 && !self.next_file()? {
                return Ok(Step::AtEnd);
            }
            self.offset += n as u64;
            self.filter.push(&self.block[..n], out);
            if self.filter.is_full() {
                return Ok(Step::Full);
            }
            if out.len() >= LOG_BLOCK_BYTES / 2 {
                break;
            }
        }
        Ok(Step::More)
    }

    /// Gives the block back while nothing is to be read.
    pub fn rest(&mut self) {
        self.block = Vec::new();
    }

    /// At the end of a file: goes on with the one that followed it. False: there is none.
    fn next_file(&mut self) -> io::Result<bool> {
        // Cut off at the front (a tool that copies and truncates): what is new begins at the beginning.
        if self.file.metadata()?.len() < self.offset {
            self.offset = 0;
            self.filter.begin();
            return Ok(true);
        }
        let files = files(&self.path);
        let next = match files.iter().position(|(_, inode)| *inode == self.inode) {
            Some(at) => at + 1,
            // Ours was removed while we read it; the oldest that is left came after it.
            None => 0,
        };
        let Some((path, inode)) = files.get(next) else { return Ok(false) };
        if self.follow && next + 1 == files.len() && !self.renamed {
            self.renamed = true;
            return Ok(false);
        }
        match File::open(path) {
            Ok(file) if file.metadata()?.ino() == *inode => {
                (self.file, self.inode, self.offset) = (file, *inode, 0);
                self.renamed = false;
                self.filter.begin();
                Ok(true)
            }
            // Renamed again in this moment: look once more at the next call.
            Ok(_) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn begin_of_tail(files: &[(PathBuf, u64)], lines: u64, options: &Options) -> io::Result<(PathBuf, u64, u64)> {
    let mut count = Count::new(lines, options.streams);
    for (path, inode) in files.iter().rev() {
        let file = File::open(path)?;
        let end = file.metadata()?.len();
        if let Some(offset) = tail::find(&file, end, &mut count)? {
            return Ok((path.clone(), *inode, offset));
        }
    }
    let (path, inode) = files.first().cloned().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    Ok((path, inode, 0))
}

/// The files of a log with their inodes, oldest first. Renamed ones carry a number that grows with age (`0.log.2`) or the time
/// of their renaming (`0.log.20261121-101500`), as kubelet's do.
fn files(path: &Path) -> Vec<(PathBuf, u64)> {
    let name = format!("{}.", path.file_name().unwrap_or_default().to_string_lossy());
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut renamed: Vec<(u64, String, PathBuf)> = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let found = entry.file_name().to_string_lossy().into_owned();
        let Some(suffix) = found.strip_prefix(&name) else { continue };
        if suffix.ends_with(".gz") || suffix.ends_with(".tmp") {
            continue;
        }
        // A small number is an age; times sort behind all of them by their text.
        let age = suffix.parse::<u64>().ok().filter(|number| *number < 1_000_000);
        renamed.push((age.map_or(u64::MAX, |age| u64::MAX - 1 - age), suffix.to_string(), entry.path()));
    }
    renamed.sort();
    let skip = renamed.len().saturating_sub(LOG_FILES_MAX - 1);
    let paths = renamed.into_iter().skip(skip).map(|(_, _, path)| path).chain([path.to_owned()]);
    paths.filter_map(|path| fs::metadata(&path).ok().map(|metadata| (path, metadata.ino()))).collect()
}
