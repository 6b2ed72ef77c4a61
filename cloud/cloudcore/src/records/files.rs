//! Node records and delivery records in the data directory.
//!
//! Small files, one pair per node, so that `cloudcore node reset` works while cloudcore runs: `nodes/<name>.json` is read and
//! written under a file lock; `delivery/<name>.jsonl` is appended to by the node's one session only.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use rt::BoxFuture;
use serde::{Deserialize, Serialize};
use wire::delivery::{Delivered, Known};

use super::{DeliveryRecords, NodeRecord, RecordError, is_node_name};
use crate::contract::NodeDesired;
use crate::limits::DELIVERY_LINES_SLACK;

#[derive(Clone, Debug)]
pub struct Files {
    dir: PathBuf,
}

impl Files {
    pub fn open(data_dir: &Path) -> Result<Files, RecordError> {
        for name in ["nodes", "delivery"] {
            let path = data_dir.join(name);
            fs::create_dir_all(&path).map_err(|source| RecordError::File {
                action: "create",
                path,
                source,
            })?;
        }
        Ok(Files { dir: data_dir.to_owned() })
    }

    pub fn nodes(&self) -> Result<BTreeMap<String, NodeRecord>, RecordError> {
        let path = self.dir.join("nodes");
        let failed = |source| RecordError::File { action: "list", path: path.clone(), source };
        let mut nodes = BTreeMap::new();
        for entry in fs::read_dir(&path).map_err(failed)? {
            let file = entry.map_err(failed)?.file_name();
            if let Some(name) = file.to_str().and_then(|name| name.strip_suffix(".json")) {
                nodes.insert(name.to_owned(), self.node(name)?);
            }
        }
        Ok(nodes)
    }

    pub fn node(&self, name: &str) -> Result<NodeRecord, RecordError> {
        let path = self.path("nodes", name, "json")?;
        match fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|source| RecordError::Damaged { path, source })
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(NodeRecord::default()),
            Err(source) => Err(RecordError::File { action: "read", path, source }),
        }
    }

    /// Reads, changes and writes a node's record; durable when it returns. Other processes wait.
    pub fn update<T>(
        &self,
        name: &str,
        mut change: impl FnMut(&mut NodeRecord) -> T,
    ) -> Result<T, RecordError> {
        let path = self.path("nodes", name, "json")?;
        let lock_path = self.dir.join("nodes/.lock");
        let lock = File::create(&lock_path).and_then(|file| file.lock().map(|()| file));
        let _lock = lock.map_err(|source| RecordError::File { action: "lock", path: lock_path, source })?;
        let before = self.node(name)?;
        let mut record = before.clone();
        let result = change(&mut record);
        if record != before {
            let text = serde_json::to_vec(&record).expect("a node record serialises without error");
            rt::atomic_write_private(&path, &text).map_err(RecordError::Write)?;
        }
        Ok(result)
    }

    /// The delivery records of this generation of the node.
    pub fn delivery(&self, name: &str, generation: u64) -> Result<DeliveryFile, RecordError> {
        let mut file = DeliveryFile::new(self.path("delivery", name, "jsonl")?, generation);
        file.loaded = file.load()?;
        Ok(file)
    }

    fn path(&self, folder: &str, name: &str, extension: &str) -> Result<PathBuf, RecordError> {
        if !is_node_name(name) {
            return Err(RecordError::Name(name.into()));
        }
        Ok(self.dir.join(folder).join(format!("{name}.{extension}")))
    }
}

/// A line of the delivery file.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Head { generation: u64 },
    Set { uid: String, resource: String, version: String },
    Forget { uid: String },
}

/// What one node has, as lines appended to a file, which is open only while it is read or written: a hub has many nodes, and a process
/// few descriptors.
#[derive(Debug)]
pub struct DeliveryFile {
    path: PathBuf,
    generation: u64,
    lines: usize,
    unsynced: bool,
    loaded: Known,
}

impl DeliveryFile {
    fn new(path: PathBuf, generation: u64) -> DeliveryFile {
        DeliveryFile { path, generation, lines: usize::MAX, unsynced: false, loaded: Known::default() }
    }

    fn open(&self) -> Result<File, RecordError> {
        let open = OpenOptions::new().read(true).append(true).create(true).open(&self.path);
        open.map_err(|source| RecordError::File { action: "open", path: self.path.clone(), source })
    }

    /// The records. The file is written anew with just these when there is much else in it, or a torn line.
    fn load(&mut self) -> Result<Known, RecordError> {
        let (records, lines) = self.read()?;
        self.lines = lines;
        DeliveryRecords::tidy(self, &records)?;
        Ok(records)
    }

    /// The records and the number of lines; `usize::MAX` lines when the file must not be appended to.
    fn read(&mut self) -> Result<(Known, usize), RecordError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| RecordError::File { action: "read", path, source }
        };
        let mut records = Known::default();
        let mut reader = BufReader::new(self.open()?);
        let mut text = String::new();
        let (mut ours, mut lines) = (false, 0_usize);
        loop {
            text.clear();
            if (&mut reader).take(64 * 1024).read_line(&mut text).map_err(failed(&self.path))? == 0 {
                return Ok((records, if ours { lines } else { usize::MAX }));
            }
            lines = lines.saturating_add(1);
            // Only the last line can be torn; it was not acted upon yet.
            match serde_json::from_str::<Line>(&text) {
                Ok(Line::Head { generation }) => ours = generation == self.generation,
                Ok(Line::Set { uid, resource, version }) if ours => {
                    records.insert(&uid, Delivered { resource, version });
                }
                Ok(Line::Forget { uid }) if ours => {
                    records.remove(&uid);
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!("{}: a line is left out: {error}", self.path.display());
                    lines = usize::MAX;
                }
            }
        }
    }

    fn compact(&mut self, records: &Known) -> Result<(), RecordError> {
        let mut text = render(&Line::Head { generation: self.generation });
        for (uid, delivered) in records.iter() {
            text.extend(render(&set_line(uid, delivered)));
        }
        rt::atomic_write_private(&self.path, &text).map_err(RecordError::Write)?;
        self.lines = 0;
        self.unsynced = false;
        Ok(())
    }

    fn append(&mut self, line: &Line, durable: bool) -> Result<(), RecordError> {
        let at = |path: &Path, action: &'static str| {
            let path = path.to_owned();
            move |source| RecordError::File { action, path, source }
        };
        let mut file = self.open()?;
        file.write_all(&render(line)).map_err(at(&self.path, "write"))?;
        self.unsynced = true;
        self.lines = self.lines.saturating_add(1);
        if durable {
            // With it all that was written before.
            file.sync_data().map_err(at(&self.path, "sync"))?;
            self.unsynced = false;
        }
        Ok(())
    }
}

impl DeliveryRecords for DeliveryFile {
    fn loaded(&mut self, _: &NodeDesired) -> Known {
        std::mem::take(&mut self.loaded)
    }

    fn sending(&mut self, _: &str, _: &str) {}

    /// `durable`: on disk when it returns; else with the next durable one, or soon by the kernel.
    fn record(&mut self, uid: &str, delivered: &Delivered, durable: bool) -> Result<(), RecordError> {
        self.append(&set_line(uid, delivered), durable)
    }

    fn forget(&mut self, uid: &str) -> Result<(), RecordError> {
        self.append(&Line::Forget { uid: uid.into() }, false)
    }

    fn kept(&mut self) -> Option<BoxFuture<'static, ()>> {
        None
    }

    /// Writes the file anew when most of its lines are out of date.
    fn tidy(&mut self, records: &Known) -> Result<(), RecordError> {
        if self.lines > records.len() + DELIVERY_LINES_SLACK { self.compact(records) } else { Ok(()) }
    }
}

impl Drop for DeliveryFile {
    fn drop(&mut self) {
        if self.unsynced {
            // Lost lines only mean that objects are sent once more.
            drop(self.open().map(|file| file.sync_data()));
        }
    }
}

fn set_line(uid: &str, delivered: &Delivered) -> Line {
    Line::Set { uid: uid.into(), resource: delivered.resource.clone(), version: delivered.version.clone() }
}

fn render(line: &Line) -> Vec<u8> {
    let mut text = serde_json::to_vec(line).expect("a line serialises without error");
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivered(version: &str) -> Delivered {
        Delivered { resource: "default/pod/web".into(), version: version.into() }
    }

    #[test]
    fn delivery_records_survive_a_restart_and_a_torn_last_line() {
        let dir = tempfile::tempdir().unwrap();
        let records = Files::open(dir.path()).unwrap();
        let mut file = records.delivery("pi", 1).unwrap();
        assert!(file.loaded(&NodeDesired::default()).is_empty());
        file.record("a", &delivered("0"), true).unwrap();
        file.record("a", &delivered("7"), false).unwrap();
        file.record("b", &delivered("8"), false).unwrap();
        file.forget("b").unwrap();
        drop(file);
        let path = dir.path().join("delivery/pi.jsonl");
        let mut torn = OpenOptions::new().append(true).open(path).unwrap();
        torn.write_all(b"{\"uid\":\"c\",\"resour").unwrap();
        let loaded = records.delivery("pi", 1).unwrap().loaded(&NodeDesired::default());
        assert_eq!(loaded, Known::from_iter([("a".into(), delivered("7"))]));
        assert_eq!(
            records.delivery("pi", 1).unwrap().loaded(&NodeDesired::default()),
            loaded,
            "also after the file was written anew"
        );
    }

    #[test]
    fn a_reset_voids_delivery_records_and_certificates() {
        let dir = tempfile::tempdir().unwrap();
        let records = Files::open(dir.path()).unwrap();
        assert!(
            records.node("pi").unwrap().accepts("old"),
            "a node of an earlier cloudcore with the same CA"
        );
        records.update("pi", |node| node.admit("old".into(), "t")).unwrap();
        let node = records.node("pi").unwrap();
        assert!(node.accepts("old") && !node.accepts("other"));
        let mut file = records.delivery("pi", node.generation).unwrap();
        file.record("a", &delivered("7"), true).unwrap();
        records.update("pi", NodeRecord::reset).unwrap();
        let node = records.node("pi").unwrap();
        assert!(!node.accepts("old") && !node.has_certificate());
        assert!(records.delivery("pi", node.generation).unwrap().loaded(&NodeDesired::default()).is_empty());
    }

    #[test]
    fn names_stay_inside_their_folder() {
        let dir = tempfile::tempdir().unwrap();
        let records = Files::open(dir.path()).unwrap();
        for name in ["", "..", "../x", "a/b", "Pi", "-a", "a b", &"a".repeat(254)] {
            assert!(matches!(records.node(name), Err(RecordError::Name(_))), "{name}");
        }
    }
}
