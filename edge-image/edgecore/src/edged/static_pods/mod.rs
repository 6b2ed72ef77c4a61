//! Static pods: files in a folder of the node that run with no cloud at all, and their mirrors in the cloud, for people to see.
//!
//! Invariants
//! - A folder that cannot be read, or is not there any more, is not an empty one: its pods go on. So does the pod of a file that
//!   became unreadable; only a file that is gone stops its pod.
//! - One bad file is told by name and line, and keeps no other file's pod from running.
//! - A mirror never runs, and what happens to it never touches its pod.
//!
//! Start at [`StaticPods`]; mirrors in [`mirror`].
//! Source: the Kubernetes documentation "Create static Pods".

mod file;
pub mod mirror;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    sync::Arc,
};

use serde_json::Value;

pub use file::fuzz_static_pod;

use super::{limits, manager::Wanted, pod::Pod};
use crate::watched_folder::{self, Content, Limits, Reading, Stamp};

/// Kind of the local records: the pod of each file, as it last ran.
pub const KIND: &str = "staticpod";

/// A pod of the folder, with the name, uid and annotations that it has here.
#[derive(Clone, Debug, PartialEq)]
pub struct StaticPod {
    /// What a mirror shows.
    pub object: Value,
    pub pod: Arc<Pod>,
}

impl StaticPod {
    pub fn uid(&self) -> &str {
        &self.pod.metadata.uid
    }

    pub fn wanted(&self) -> Wanted {
        let metadata = &self.pod.metadata;
        Wanted {
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
            uid: metadata.uid.clone(),
            deleting: false,
            pod: Ok(self.pod.clone()),
        }
    }
}

/// What changed with a reading.
#[derive(Debug, Default, PartialEq)]
pub struct Changes {
    pub pods: bool,
    /// Files whose record is to be written, and those whose record is to go.
    pub store: Vec<(String, Value)>,
    pub forget: Vec<String>,
}

#[derive(Debug, Default)]
struct File {
    stamp: Stamp,
    pod: Option<StaticPod>,
    problem: Option<String>,
}

#[derive(Debug, Default)]
pub struct StaticPods {
    node: String,
    files: BTreeMap<String, File>,
    folder_problem: Option<String>,
    read: bool,
}

impl StaticPods {
    /// `stored`: what ran before, by file name.
    pub fn new(node: &str, stored: impl IntoIterator<Item = (String, Value)>) -> StaticPods {
        let kept = |(name, object): (String, Value)| {
            let pod = file::finished(object).ok()?;
            Some((name, File { pod: Some(pod), ..File::default() }))
        };
        StaticPods {
            node: node.into(),
            files: stored.into_iter().filter_map(kept).collect(),
            folder_problem: None,
            read: false,
        }
    }

    pub fn pods(&self) -> impl Iterator<Item = &StaticPod> {
        self.files.values().filter_map(|file| file.pod.as_ref())
    }

    /// The folder was really read in this life: what is not among the pods is gone.
    pub fn is_read(&self) -> bool {
        self.read
    }

    /// What is wrong, in lines that name the file and the remedy.
    pub fn problems(&self) -> Vec<String> {
        let files = self.files.values().filter_map(|file| file.problem.clone());
        self.folder_problem.iter().cloned().chain(files).collect()
    }

    pub fn stamps(&self) -> BTreeMap<String, Stamp> {
        self.files.iter().map(|(name, file)| (name.clone(), file.stamp)).collect()
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
        self.folder_problem = None;
        self.read = true;
        let mut changes = Changes::default();
        let gone: Vec<String> =
            self.files.keys().filter(|name| !reading.files.contains_key(*name)).cloned().collect();
        for name in gone {
            let file = self.files.remove(&name);
            changes.pods |= file.is_some_and(|file| file.pod.is_some());
            changes.forget.push(name);
        }
        for (name, (stamp, content)) in reading.files {
            let path = folder.join(&name);
            let result = match content {
                Content::Same => continue,
                Content::Read(bytes) => file::parse(&bytes, &self.node, stamp.1),
                Content::Unreadable(why) => Err(why),
            };
            let file = self.files.entry(name.clone()).or_default();
            file.stamp = stamp;
            match result {
                Ok(pod) => {
                    file.problem = None;
                    if file.pod.as_ref().is_none_or(|known| known.uid() != pod.uid()) {
                        changes.pods = true;
                        changes.store.push((name, pod.object.clone()));
                        file.pod = Some(pod);
                    }
                }
                Err(why) => {
                    let stays =
                        if file.pod.is_some() { "; the pod that it described before goes on" } else { "" };
                    file.problem = Some(format!("{}: {why}{stays}", path.display()));
                }
            }
        }
        self.refuse_twins(folder);
        changes
    }

    /// A folder that was never there has no pods; one that had some is missed.
    fn fail(&mut self, folder: &Path, error: &io::Error) {
        let missing = error.kind() == io::ErrorKind::NotFound;
        if missing && self.pods().next().is_none() {
            self.folder_problem = None;
            self.read = true;
            return;
        }
        self.folder_problem = Some(format!(
            "cannot read {} ({error}); its pods go on as they are: make it readable, or make an empty folder to stop them",
            folder.display()
        ));
    }

    /// Of two files with one pod name the first one runs.
    fn refuse_twins(&mut self, folder: &Path) {
        let mut names = BTreeSet::new();
        for (name, file) in &mut self.files {
            let Some(pod) = &file.pod else { continue };
            if !names.insert(pod.pod.full_name()) {
                file.problem = Some(format!(
                    "{}: pod {} is in another file already; rename one",
                    folder.join(name).display(),
                    pod.pod.full_name()
                ));
                file.pod = None;
                // Looked at again when either file changes.
                file.stamp = Stamp::default();
            }
        }
    }
}

/// Looks at the folder. Files that are as `known` are not read again. Blocks.
pub fn read(folder: &Path, known: &BTreeMap<String, Stamp>) -> io::Result<Reading> {
    let limits = Limits {
        files_max: limits::STATIC_PODS_MAX,
        file_bytes_max: limits::STATIC_POD_BYTES_MAX,
        holds: "a pod",
    };
    watched_folder::read(folder, known, limits)
}
