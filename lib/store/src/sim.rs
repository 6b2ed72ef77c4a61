//! A disk that can cut the power: it keeps apart what was synced and what was only written.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::Backend;

/// Small and repeatable (xorshift64*); for tests.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// 0 up to, not including, `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        (self.number() >> 16) % end.max(1)
    }
}

/// What of the unsynced changes is there after a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    LoseAll,
    KeepAll,
    /// Any of them, in part, by sectors; names up to any point.
    Random(u64),
}

/// A folder in memory. Clones mean the same disk.
#[derive(Clone, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

#[derive(Clone, Default)]
struct State {
    files: Vec<SimFile>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// All states of the names since the last `sync_dir`.
    pending_names: Vec<BTreeMap<String, usize>>,
    ops: u64,
    fail_from: Option<u64>,
    ignore_sync: bool,
    ignore_sync_dir: bool,
    fail_syncs: bool,
    /// Bytes that all files may have together.
    space: Option<u64>,
}

#[derive(Clone, Default)]
struct SimFile {
    content: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write { offset: usize, data: Vec<u8> },
    SetLen(usize),
}

const SECTOR_LEN: usize = 512;

impl SimDisk {
    pub fn new() -> SimDisk {
        SimDisk::default()
    }

    /// A disk with one durable file.
    pub fn with_file(name: &str, content: &[u8]) -> SimDisk {
        let disk = SimDisk::new();
        let file = SimFile { content: content.to_vec(), durable: content.to_vec(), pending: Vec::new() };
        let mut state = disk.lock();
        state.files.push(file);
        state.names.insert(name.to_owned(), 0);
        state.durable_names = state.names.clone();
        drop(state);
        disk
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changing operations so far.
    pub fn ops(&self) -> u64 {
        self.lock().ops
    }

    /// The operation with this number (from 0) and all later ones fail; it itself may be done in part.
    pub fn fail_from(&self, op: u64) {
        self.lock().fail_from = Some(op);
    }

    /// Syncs of files, of the folder, or of both succeed without effect: the mutations that the crash test has to notice.
    pub fn ignore_syncs(&self, files: bool, dir: bool) {
        let mut state = self.lock();
        (state.ignore_sync, state.ignore_sync_dir) = (files, dir);
    }

    /// Syncs fail.
    pub fn fail_syncs(&self, fail: bool) {
        self.lock().fail_syncs = fail;
    }

    pub fn limit_space(&self, space: Option<u64>) {
        self.lock().space = space;
    }

    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.lock();
        state.names.get(name).map(|file| state.files[*file].content.clone())
    }

    /// The same disk for the next process: unsynced changes are visible, and still unsynced.
    pub fn after_kill(&self) -> SimDisk {
        let mut state = self.lock().clone();
        state.fail_from = None;
        state.ops = 0;
        SimDisk(Arc::new(Mutex::new(state)))
    }

    /// What the next boot finds.
    pub fn after_power_cut(&self, cut: Cut) -> SimDisk {
        let state = self.lock();
        let mut rng = Rng::new(match cut {
            Cut::Random(seed) => seed,
            _ => 0,
        });
        let files = state.files.iter().map(|file| {
            let content = match cut {
                Cut::LoseAll => file.durable.clone(),
                Cut::KeepAll => file.content.clone(),
                Cut::Random(_) => file.torn(&mut rng),
            };
            SimFile { durable: content.clone(), content, pending: Vec::new() }
        });
        let files = files.collect();
        let names = match cut {
            Cut::LoseAll => state.durable_names.clone(),
            Cut::KeepAll => state.names.clone(),
            Cut::Random(_) => {
                let kept = rng.below(state.pending_names.len() as u64 + 1) as usize;
                let kept = kept.checked_sub(1).map(|last| &state.pending_names[last]);
                kept.unwrap_or(&state.durable_names).clone()
            }
        };
        let after = State {
            files,
            durable_names: names.clone(),
            names,
            ignore_sync: state.ignore_sync,
            ..State::default()
        };
        SimDisk(Arc::new(Mutex::new(after)))
    }
}

impl SimFile {
    fn torn(&self, rng: &mut Rng) -> Vec<u8> {
        let mut content = self.durable.clone();
        for change in &self.pending {
            match (rng.below(4), change) {
                (0, _) => {}
                (1, Change::Write { offset, data }) => {
                    for (i, sector) in data.chunks(SECTOR_LEN).enumerate() {
                        let len = rng.below(sector.len() as u64 + 1) as usize;
                        match rng.below(3) {
                            0 => {}
                            1 => write(&mut content, offset + i * SECTOR_LEN, sector),
                            _ => write(&mut content, offset + i * SECTOR_LEN, &sector[..len]),
                        }
                    }
                }
                (_, change) => change.apply(&mut content),
            }
        }
        content
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Change::Write { offset, data } => write(content, *offset, data),
            Change::SetLen(len) => content.resize(*len, 0),
        }
    }
}

fn write(content: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(data);
}

fn power_is_cut() -> io::Error {
    io::Error::other("the power is cut (simulated)")
}

impl State {
    fn file(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Whether this operation still gets through: `Err` for those after the cut, `Ok(false)` for the one in which it happens.
    fn step(&mut self) -> io::Result<bool> {
        let op = self.ops;
        self.ops += 1;
        match self.fail_from {
            Some(fail) if op > fail => Err(power_is_cut()),
            Some(fail) => Ok(op < fail),
            None => Ok(true),
        }
    }

    fn change(&mut self, name: &str, change: Change) -> io::Result<()> {
        let alive = self.step()?;
        let file = self.file(name)?;
        change.apply(&mut self.files[file].content);
        self.files[file].pending.push(change);
        if alive { Ok(()) } else { Err(power_is_cut()) }
    }

    fn rename(&mut self, change: impl FnOnce(&mut State) -> io::Result<()>) -> io::Result<()> {
        let alive = self.step()?;
        change(self)?;
        self.pending_names.push(self.names.clone());
        if alive { Ok(()) } else { Err(power_is_cut()) }
    }

    fn used(&self) -> u64 {
        self.names.values().map(|file| self.files[*file].content.len() as u64).sum()
    }
}

impl Backend for SimDisk {
    fn dir(&self) -> PathBuf {
        PathBuf::from("simulated")
    }

    fn names(&mut self) -> io::Result<Vec<String>> {
        Ok(self.lock().names.keys().cloned().collect())
    }

    fn len(&mut self, name: &str) -> io::Result<Option<u64>> {
        let state = self.lock();
        Ok(state.names.get(name).map(|file| state.files[*file].content.len() as u64))
    }

    fn read_at(&mut self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let state = self.lock();
        let content = &state.files[state.file(name)?].content;
        let end = offset as usize + buf.len();
        let part = content.get(offset as usize..end).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(part);
        Ok(())
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        let mut state = self.lock();
        if state.names.contains_key(name) {
            return state.change(name, Change::SetLen(0));
        }
        state.rename(|state| {
            state.files.push(SimFile::default());
            state.names.insert(name.to_owned(), state.files.len() - 1);
            Ok(())
        })
    }

    fn write_at(&mut self, name: &str, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        let file = state.file(name)?;
        let grows = (offset as usize + data.len()).saturating_sub(state.files[file].content.len()) as u64;
        let free = state.space.map_or(u64::MAX, |space| space.saturating_sub(state.used()));
        if grows > free {
            // As real disks do: a part is written.
            let part = data[..data.len() - (grows - free) as usize].to_vec();
            state.change(name, Change::Write { offset: offset as usize, data: part })?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.change(name, Change::Write { offset: offset as usize, data: data.to_vec() })
    }

    fn set_len(&mut self, name: &str, len: u64) -> io::Result<()> {
        self.lock().change(name, Change::SetLen(len as usize))
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        let mut state = self.lock();
        let file = state.file(name)?;
        if !state.step()? {
            return Err(power_is_cut());
        }
        if state.fail_syncs {
            return Err(io::Error::other("sync failed (simulated)"));
        }
        if !state.ignore_sync {
            let file = &mut state.files[file];
            file.durable = file.content.clone();
            file.pending.clear();
        }
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.lock().rename(|state| {
            let file = state.file(from)?;
            state.names.remove(from);
            state.names.insert(to.to_owned(), file);
            Ok(())
        })
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.lock().rename(|state| {
            let file = state.file(name)?;
            state.names.retain(|_, other| *other != file);
            Ok(())
        })
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        let mut state = self.lock();
        if !state.step()? {
            return Err(power_is_cut());
        }
        if !state.ignore_sync_dir {
            state.durable_names = state.names.clone();
            state.pending_names.clear();
        }
        Ok(())
    }
}
