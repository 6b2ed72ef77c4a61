//! What cloudcore remembers of every node on disk: its valid certificates and what was delivered to it.
//!
//! Small files, one pair per node, so that `cloudcore node reset` works while cloudcore runs: `nodes/<name>.json` is read and
//! written under a file lock; `delivery/<name>.jsonl` is appended to by the node's one session only.
//!
//! Invariants
//! - The delivery file belongs to one generation of the node. A reset makes the next generation, and with it the file void.
//! - A certificate is valid for a node that has a record only while the record lists it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use wire::delivery::Delivered;

use crate::limits::DELIVERY_LINES_SLACK;

/// Certificates of one node that are valid at one time; rotation overlaps. The oldest goes first.
const CERTIFICATES_MAX: usize = 4;

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("cannot {action} {path}")]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("node records cannot be kept")]
    Write(#[source] rt::FileError),
    #[error("{path} is damaged; remove it and run `cloudcore node reset` for this node")]
    Damaged { path: PathBuf, source: serde_json::Error },
    #[error("{0:?} is not a node name (lower case letters, digits, '-' and '.', at most 253)")]
    Name(String),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeRecord {
    /// 0: this cloudcore never admitted the node (it may have joined another one with the same CA).
    pub generation: u64,
    /// SHA-256 of the valid certificates, oldest first.
    pub certificates: Vec<String>,
    /// The store that the edge said it has; empty when it said nothing.
    pub store_id: String,
    /// Id of the join token that the newest certificate was given for.
    pub token_id: String,
    /// The node has used a certificate of this generation.
    pub connected: bool,
}

impl NodeRecord {
    pub fn accepts(&self, fingerprint: &str) -> bool {
        self.generation == 0 || self.certificates.iter().any(|valid| valid == fingerprint)
    }

    pub fn has_certificate(&self) -> bool {
        !self.certificates.is_empty()
    }

    /// The name belongs to a node. Not so for the token that it just got its certificate with: an answer may have been lost,
    /// and the same device asks again.
    pub fn is_taken_for(&self, token_id: &str) -> bool {
        self.has_certificate() && (self.connected || self.token_id != token_id)
    }

    /// A first join, or one that replaces the node: nothing from before counts.
    pub fn admit(&mut self, fingerprint: String, token_id: &str) {
        self.reset();
        self.certificates.push(fingerprint);
        self.token_id = token_id.to_owned();
    }

    /// One more certificate for the same node, beside the one that it showed.
    pub fn rotate(&mut self, shown: &str, fingerprint: String) {
        self.generation = self.generation.max(1);
        if !self.certificates.iter().any(|known| known == shown) {
            self.certificates.push(shown.to_owned());
        }
        self.certificates.push(fingerprint);
        if self.certificates.len() > CERTIFICATES_MAX {
            self.certificates.remove(0);
        }
    }

    pub fn reset(&mut self) {
        *self = NodeRecord { generation: self.generation + 1, ..NodeRecord::default() };
    }

    /// The node is here. Notes which store the edge has. `true`: it is another one than before, so the node has lost what it had.
    pub fn connect_store(&mut self, store_id: &str) -> bool {
        self.connected = self.has_certificate();
        if store_id.is_empty() || self.store_id == store_id {
            return false;
        }
        let lost = !std::mem::replace(&mut self.store_id, store_id.to_owned()).is_empty();
        self.generation += u64::from(lost);
        lost
    }
}

#[derive(Clone, Debug)]
pub struct Records {
    dir: PathBuf,
}

impl Records {
    pub fn open(data_dir: &Path) -> Result<Records, RecordError> {
        for name in ["nodes", "delivery"] {
            let path = data_dir.join(name);
            fs::create_dir_all(&path).map_err(|source| RecordError::File {
                action: "create",
                path,
                source,
            })?;
        }
        Ok(Records { dir: data_dir.to_owned() })
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
    pub fn update<T>(&self, name: &str, change: impl FnOnce(&mut NodeRecord) -> T) -> Result<T, RecordError> {
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
        DeliveryFile::open(self.path("delivery", name, "jsonl")?, generation)
    }

    fn path(&self, folder: &str, name: &str, extension: &str) -> Result<PathBuf, RecordError> {
        if !is_node_name(name) {
            return Err(RecordError::Name(name.into()));
        }
        Ok(self.dir.join(folder).join(format!("{name}.{extension}")))
    }
}

pub fn is_node_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let edges = name.bytes().next().is_some_and(inner) && name.bytes().last().is_some_and(inner);
    edges && name.len() <= 253 && name.bytes().all(|byte| inner(byte) || matches!(byte, b'-' | b'.'))
}

/// A line of the delivery file.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Head { generation: u64 },
    Set { uid: String, resource: String, version: String },
    Forget { uid: String },
}

/// What one node has, as lines appended to a file.
#[derive(Debug)]
pub struct DeliveryFile {
    path: PathBuf,
    file: File,
    generation: u64,
    lines: usize,
    unsynced: bool,
}

impl DeliveryFile {
    fn open(path: PathBuf, generation: u64) -> Result<DeliveryFile, RecordError> {
        let at = |action: &'static str| {
            let path = path.clone();
            move |source| RecordError::File { action, path, source }
        };
        let file = OpenOptions::new().read(true).append(true).create(true).open(&path).map_err(at("open"))?;
        Ok(DeliveryFile { file, path, generation, lines: usize::MAX, unsynced: false })
    }

    /// The records. The file is written anew with just these when there is much else in it, or a torn line.
    pub fn load(&mut self) -> Result<BTreeMap<String, Delivered>, RecordError> {
        let (records, lines) = self.read()?;
        self.lines = lines;
        self.tidy(&records)?;
        Ok(records)
    }

    /// The records and the number of lines; `usize::MAX` lines when the file must not be appended to.
    fn read(&mut self) -> Result<(BTreeMap<String, Delivered>, usize), RecordError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| RecordError::File { action: "read", path, source }
        };
        self.file.rewind().map_err(failed(&self.path))?;
        let mut records = BTreeMap::new();
        let mut reader = BufReader::new(&self.file);
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
                    records.insert(uid, Delivered { resource, version });
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

    fn compact(&mut self, records: &BTreeMap<String, Delivered>) -> Result<(), RecordError> {
        let mut text = render(&Line::Head { generation: self.generation });
        for (uid, delivered) in records {
            text.extend(render(&set_line(uid, delivered)));
        }
        let at = |action: &'static str| {
            let path = self.path.clone();
            move |source| RecordError::File { action, path, source }
        };
        rt::atomic_write_private(&self.path, &text).map_err(RecordError::Write)?;
        self.file = OpenOptions::new().read(true).append(true).open(&self.path).map_err(at("open"))?;
        self.lines = 0;
        self.unsynced = false;
        Ok(())
    }

    /// `durable`: on disk when it returns; else with the next durable one, or soon by the kernel.
    pub fn record(&mut self, uid: &str, delivered: &Delivered, durable: bool) -> Result<(), RecordError> {
        self.append(&set_line(uid, delivered), durable)
    }

    pub fn forget(&mut self, uid: &str) -> Result<(), RecordError> {
        self.append(&Line::Forget { uid: uid.into() }, false)
    }

    fn append(&mut self, line: &Line, durable: bool) -> Result<(), RecordError> {
        let at = |path: &Path, action: &'static str| {
            let path = path.to_owned();
            move |source| RecordError::File { action, path, source }
        };
        self.file.write_all(&render(line)).map_err(at(&self.path, "write"))?;
        self.unsynced = true;
        self.lines = self.lines.saturating_add(1);
        if durable {
            self.file.sync_data().map_err(at(&self.path, "sync"))?;
            self.unsynced = false;
        }
        Ok(())
    }

    /// Writes the file anew when most of its lines are out of date.
    pub fn tidy(&mut self, records: &BTreeMap<String, Delivered>) -> Result<(), RecordError> {
        if self.lines > records.len() + DELIVERY_LINES_SLACK { self.compact(records) } else { Ok(()) }
    }
}

impl Drop for DeliveryFile {
    fn drop(&mut self) {
        if self.unsynced {
            // Lost lines only mean that objects are sent once more.
            drop(self.file.sync_data());
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
        let records = Records::open(dir.path()).unwrap();
        let mut file = records.delivery("pi", 1).unwrap();
        assert!(file.load().unwrap().is_empty());
        file.record("a", &delivered("0"), true).unwrap();
        file.record("a", &delivered("7"), false).unwrap();
        file.record("b", &delivered("8"), false).unwrap();
        file.forget("b").unwrap();
        drop(file);
        let path = dir.path().join("delivery/pi.jsonl");
        let mut torn = OpenOptions::new().append(true).open(path).unwrap();
        torn.write_all(b"{\"uid\":\"c\",\"resour").unwrap();
        let loaded = records.delivery("pi", 1).unwrap().load().unwrap();
        assert_eq!(loaded, BTreeMap::from([("a".into(), delivered("7"))]));
        assert_eq!(
            records.delivery("pi", 1).unwrap().load().unwrap(),
            loaded,
            "also after the file was written anew"
        );
    }

    #[test]
    fn a_reset_voids_delivery_records_and_certificates() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        assert!(
            records.node("pi").unwrap().accepts("old"),
            "a node of an earlier cloudcore with the same CA"
        );
        records.update("pi", |node| node.admit("old".into(), "t")).unwrap();
        let node = records.node("pi").unwrap();
        assert!(node.accepts("old") && !node.accepts("other"));
        let mut file = records.delivery("pi", node.generation).unwrap();
        file.load().unwrap();
        file.record("a", &delivered("7"), true).unwrap();
        records.update("pi", NodeRecord::reset).unwrap();
        let node = records.node("pi").unwrap();
        assert!(!node.accepts("old") && !node.has_certificate());
        assert!(records.delivery("pi", node.generation).unwrap().load().unwrap().is_empty());
    }

    #[test]
    fn another_store_on_the_node_is_a_new_generation() {
        let mut node = NodeRecord::default();
        node.admit("c".into(), "t");
        assert!(
            node.is_taken_for("other") && !node.is_taken_for("t"),
            "a lost answer may be asked for again"
        );
        assert!(!node.connect_store("s1"), "the first store is no loss");
        assert!(!node.connect_store("s1") && !node.connect_store(""));
        let before = node.generation;
        assert!(node.connect_store("s2"));
        assert_eq!(node.generation, before + 1);
        assert!(node.accepts("c"), "the certificate stays valid");
        assert!(node.is_taken_for("t"), "a connected node keeps its name");
    }

    #[test]
    fn names_stay_inside_their_folder() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        for name in ["", "..", "../x", "a/b", "Pi", "-a", "a b", &"a".repeat(254)] {
            assert!(matches!(records.node(name), Err(RecordError::Name(_))), "{name}");
        }
    }
}
