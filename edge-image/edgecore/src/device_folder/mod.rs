//! Devices from a folder of the node (`modules.deviceTwin.deviceFolder`): Device and DeviceModel files that work with no cloud at all.
//!
//! Is: what the files say, and [`Overlay`], which shows it to the modules as if the cloud had delivered it. Is not: what a Device means
//! (`twin`), nor how it is driven (the mapper).
//!
//! Invariants
//! - A folder that cannot be read, or is not there any more, is not an empty one: its devices go on. So do those of a file that became
//!   unreadable or makes no sense; only a file that is gone, or that no longer says a device, removes it.
//! - One bad file is told by name and line, and keeps no other file's devices from working.
//! - On this node an object of the folder hides the cloud's object of the same kind, namespace and name: whoever laid the file there
//!   stands beside the wires. The cloud's desired values for it do nothing, its values are reported to the cloud all the same, and a
//!   condition says so. A device that the cloud does not have is not reported to it.
//!
//! Start at [`DeviceFolder`]; the task is [`run`].

mod file;
mod overlay;
mod shell;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
};

use bytes::Bytes;
use wire::Resource;

pub use file::fuzz_device_file;
pub use overlay::Overlay;
pub use shell::{Shared, open, run};

use crate::{
    contract::Object,
    limits,
    watched_folder::{self, Content, Limits, Reading, Stamp},
};

/// Kind of the local records: the objects of each file, as they last made sense.
pub const KIND: &str = "devicefile";

/// What changed with a reading.
#[derive(Debug, Default, PartialEq)]
pub struct Changes {
    pub objects: bool,
    /// Files whose record is to be written, and those whose record is to go.
    pub store: Vec<(String, Bytes)>,
    pub forget: Vec<String>,
}

#[derive(Debug, Default)]
struct File {
    stamp: Stamp,
    objects: Vec<Object>,
    problem: Option<String>,
}

#[derive(Debug, Default)]
pub struct DeviceFolder {
    node: String,
    files: BTreeMap<String, File>,
    problem: Option<String>,
}

impl DeviceFolder {
    /// `stored`: the records of the last run, by file name.
    pub fn new(node: &str, stored: impl IntoIterator<Item = (String, Bytes)>) -> DeviceFolder {
        let kept = |(name, record): (String, Bytes)| {
            let objects = file::kept(&record)
                .inspect_err(|why| tracing::error!("record {KIND}/{name}: {why}; the file says it again"))
                .ok()?;
            Some((name, File { objects, ..File::default() }))
        };
        DeviceFolder {
            node: node.into(),
            files: stored.into_iter().filter_map(kept).collect(),
            problem: None,
        }
    }

    pub fn stamps(&self) -> BTreeMap<String, Stamp> {
        self.files.iter().map(|(name, file)| (name.clone(), file.stamp)).collect()
    }

    /// What is to be kept of each file that makes sense.
    fn records(&self) -> Vec<(String, Bytes)> {
        let good = self.files.iter().filter(|(_, file)| file.problem.is_none());
        good.map(|(name, file)| (name.clone(), file::record(&file.objects))).collect()
    }

    /// The file is there, or nobody can say whether it is.
    fn has_file(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// What the files say. Of two files with one object the first by name counts.
    pub fn objects(&self) -> BTreeMap<Resource, Object> {
        let mut objects = BTreeMap::new();
        for object in self.files.values().flat_map(|file| &file.objects) {
            objects.entry(object.resource.clone()).or_insert_with(|| object.clone());
        }
        objects
    }

    /// What is wrong, in lines that name the file and the remedy.
    pub fn problems(&self, folder: &Path) -> Vec<String> {
        let mut problems: Vec<String> = self.problem.iter().cloned().collect();
        let mut seen = BTreeSet::new();
        for (name, file) in &self.files {
            problems.extend(file.problem.clone());
            for object in &file.objects {
                if !seen.insert(&object.resource) {
                    let (path, resource) = (folder.join(name), &object.resource);
                    problems.push(format!(
                        "{}: {} {}/{} is in another file already, which counts; rename one",
                        path.display(),
                        resource.kind,
                        resource.namespace,
                        resource.name
                    ));
                }
            }
        }
        problems
    }

    /// Takes a look at the folder. `folder` only names it in errors.
    pub fn take(&mut self, folder: &Path, reading: io::Result<Reading>) -> Changes {
        let reading = match reading {
            Ok(reading) => reading,
            Err(error) => {
                self.fail(folder, &error);
                return Changes::default();
            }
        };
        self.problem = None;
        let mut changes = Changes::default();
        let gone: Vec<String> =
            self.files.keys().filter(|name| !reading.files.contains_key(*name)).cloned().collect();
        for name in gone {
            changes.objects |= self.files.remove(&name).is_some_and(|file| !file.objects.is_empty());
            changes.forget.push(name);
        }
        for (name, (stamp, content)) in reading.files {
            let result = match content {
                Content::Same => continue,
                Content::Read(bytes) => file::parse(&bytes, &self.node),
                Content::Unreadable(why) => Err(why),
            };
            let file = self.files.entry(name.clone()).or_default();
            file.stamp = stamp;
            match result {
                Ok(objects) => {
                    file.problem = None;
                    if file::record(&file.objects) != file::record(&objects) {
                        changes.objects = true;
                        changes.store.push((name, file::record(&objects)));
                        file.objects = objects;
                    }
                }
                Err(why) => {
                    let stays = if file.objects.is_empty() { "" } else { "; what it said before goes on" };
                    file.problem = Some(format!("{}: {why}{stays}", folder.join(&name).display()));
                }
            }
        }
        changes
    }

    /// A folder that was never there has no devices; one that had some is missed.
    fn fail(&mut self, folder: &Path, error: &io::Error) {
        let empty = self.files.values().all(|file| file.objects.is_empty());
        self.problem = (error.kind() != io::ErrorKind::NotFound || !empty).then(|| {
            format!(
                "cannot read {} ({error}); its devices go on as they are: make it readable, or make an empty folder to remove them",
                folder.display()
            )
        });
    }
}

/// Looks at the folder. Blocks.
pub fn read(folder: &Path, known: &BTreeMap<String, Stamp>) -> io::Result<Reading> {
    let limits = Limits {
        files_max: limits::DEVICE_FILES_MAX,
        file_bytes_max: limits::DEVICE_FILE_BYTES_MAX,
        holds: "a device",
    };
    watched_folder::read(folder, known, limits)
}

/// The block of a Pi's `config.txt` that the folder's files ask for ([`pins::block`]). Files that make no sense have no say: the agent
/// names them.
pub fn pins(folder: &Path) -> Result<Vec<u8>, String> {
    let reading = match read(folder, &BTreeMap::new()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Reading::default(),
        reading => reading.map_err(|error| format!("cannot read {}: {error}", folder.display()))?,
    };
    let mut values = Vec::new();
    for (_, content) in reading.files.into_values() {
        if let Content::Read(bytes) = content {
            values.extend(file::values(&bytes).unwrap_or_default());
        }
    }
    Ok(::pins::block(&::pins::power_on(&values)))
}
