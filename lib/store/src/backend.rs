//! The seam between the store and a disk: named files in one folder. [`FileBackend`] is the real one, `sim::SimDisk` the one
//! that cuts the power; both pass the same conformance test.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::{OpenError, engine::is_full};

/// Files of one folder. What is not followed by `sync` (content) or `sync_dir` (names) may be lost or torn by a power cut.
pub trait Backend: Send {
    /// For messages.
    fn dir(&self) -> PathBuf;
    fn names(&mut self) -> io::Result<Vec<String>>;
    /// None: no such file.
    fn len(&mut self, name: &str) -> io::Result<Option<u64>>;
    /// Fills `buf` or fails with `UnexpectedEof`.
    fn read_at(&mut self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// An empty file, also where there was one with content.
    fn create(&mut self, name: &str) -> io::Result<()>;
    fn write_at(&mut self, name: &str, offset: u64, data: &[u8]) -> io::Result<()>;
    fn set_len(&mut self, name: &str, len: u64) -> io::Result<()>;
    fn sync(&mut self, name: &str) -> io::Result<()>;
    /// Replaces `to` atomically.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&mut self, name: &str) -> io::Result<()>;
    fn sync_dir(&mut self) -> io::Result<()>;
}

const LOCK: &str = "lock";
/// A file of nothing, given up on a full disk: else nobody could write down that something may be deleted, and the disk would
/// stay full. Made again when there is space.
const BALLAST: &str = "ballast";
const BALLAST_LEN: usize = 1024 * 1024;
/// So much must be free beside it.
const BALLAST_ROOM: u64 = 8 * BALLAST_LEN as u64;
/// Only in a program that the mutation test builds.
const NO_FSYNC: bool = rt::fault::is("no-fsync");

/// A folder on a real file system, locked for this process.
pub struct FileBackend {
    dir: PathBuf,
    /// The file in use, kept open: in practice the log.
    open: Option<(String, File)>,
    /// There is a ballast to give up.
    ballast: bool,
    _lock: File,
}

impl FileBackend {
    /// Makes the folder if it is missing and takes its lock, which ends with the process.
    pub fn open(dir: &Path) -> Result<FileBackend, OpenError> {
        let failed = |action, file: PathBuf| move |source| OpenError::Io { action, file, source };
        make_dir(dir).map_err(failed("make the folder", dir.to_owned()))?;
        let path = dir.join(LOCK);
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(failed("open", path.clone()))?;
        match lock.try_lock() {
            Ok(()) => {
                let mut backend =
                    FileBackend { dir: dir.to_owned(), open: None, ballast: false, _lock: lock };
                backend.take_ballast();
                Ok(backend)
            }
            Err(fs::TryLockError::WouldBlock) => Err(OpenError::Locked { dir: dir.to_owned() }),
            Err(fs::TryLockError::Error(source)) => Err(OpenError::Io { action: "lock", file: path, source }),
        }
    }

    fn file(&mut self, name: &str) -> io::Result<&File> {
        if self.open.as_ref().is_none_or(|(open, _)| open != name) {
            let file = OpenOptions::new().read(true).write(true).open(self.dir.join(name))?;
            self.open = Some((name.to_owned(), file));
        }
        let (_, file) = self.open.as_ref().expect("was opened above");
        Ok(file)
    }

    /// Makes the ballast if it is missing and there is room. Failing costs nothing but the ballast.
    fn take_ballast(&mut self) {
        let path = self.dir.join(BALLAST);
        if fs::metadata(&path).is_ok_and(|metadata| metadata.len() == BALLAST_LEN as u64) {
            self.ballast = true;
            return;
        }
        let room = nix::sys::statvfs::statvfs(&self.dir)
            .is_ok_and(|disk| disk.blocks_available() * disk.fragment_size() >= BALLAST_ROOM);
        // Written, not only made long: a file with holes holds no space.
        self.ballast = room && fs::write(&path, vec![0; BALLAST_LEN]).is_ok();
    }

    /// Gives the ballast up for a write that found no space. False: there was none.
    fn drop_ballast(&mut self) -> bool {
        let dropped = self.ballast && fs::remove_file(self.dir.join(BALLAST)).is_ok();
        self.ballast = false;
        dropped
    }

    fn forget(&mut self, name: &str) {
        self.open.take_if(|(open, _)| open == name);
    }
}

/// Makes a folder and those above it, durably: else a power cut takes the whole store with its folder's name.
fn make_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_dir(parent)?;
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if NO_FSYNC {
        return Ok(());
    }
    File::open(parent)?.sync_all()
}

impl Backend for FileBackend {
    fn dir(&self) -> PathBuf {
        self.dir.clone()
    }

    fn names(&mut self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if let (Ok(name), true) = (entry.file_name().into_string(), entry.file_type()?.is_file()) {
                names.push(name);
            }
        }
        names.retain(|name| name != LOCK && name != BALLAST);
        names.sort();
        Ok(names)
    }

    fn len(&mut self, name: &str) -> io::Result<Option<u64>> {
        match fs::metadata(self.dir.join(name)) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read_at(&mut self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file(name)?.read_exact_at(buf, offset)
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt;
        // Only for the owner: objects can be secrets.
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(self.dir.join(name))?;
        self.open = Some((name.to_owned(), file));
        Ok(())
    }

    fn write_at(&mut self, name: &str, offset: u64, data: &[u8]) -> io::Result<()> {
        match self.file(name)?.write_all_at(data, offset) {
            Err(error) if is_full(&error) && self.drop_ballast() => {
                self.file(name)?.write_all_at(data, offset)
            }
            written => written,
        }
    }

    fn set_len(&mut self, name: &str, len: u64) -> io::Result<()> {
        self.file(name)?.set_len(len)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        if NO_FSYNC {
            return Ok(());
        }
        if !self.ballast {
            self.take_ballast();
        }
        self.file(name)?.sync_data()
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.dir.join(from), self.dir.join(to))?;
        self.forget(to);
        if let Some((open, _)) = &mut self.open
            && open == from
        {
            *open = to.to_owned();
        }
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.forget(name);
        fs::remove_file(self.dir.join(name))
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        if NO_FSYNC {
            return Ok(());
        }
        File::open(&self.dir)?.sync_all()
    }
}
