//! What a person may lay on the boot partition besides `provision.toml`: `devices/` (Devices and their models) and `manifests/` (static
//! pods), which are taken over at each boot; and the levels of GPIO lines that follow from the devices, in a Pi's `config.txt`.
//!
//! Invariants
//! - A folder that is not there, or cannot be read, changes nothing; one that is there is the whole truth, also when it is empty.
//! - Of `config.txt` only our own block is written, in place, and only when it differs ([`pins::find_block`]).

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::limits::{EXTRA_BYTES_MAX, EXTRA_FILES_MAX};

/// Folders of the boot partition, and where edgecore looks for them.
pub const FOLDERS: [(&str, &str); 2] =
    [("devices", "/var/lib/kinglet/devices"), ("manifests", "/var/etc/kubeedge/manifests")];
pub const DEVICES: &str = FOLDERS[0].1;
pub const CONFIG: &str = "config.txt";

/// The files of one folder.
type Files = Vec<(String, Vec<u8>)>;

/// The descriptions in `folder`; `None` when there is no such folder.
pub fn read(folder: &Path) -> io::Result<Option<Files>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let is_description = [".yaml", ".yml", ".json"].iter().any(|ending| name.ends_with(ending));
        // Finders and editors leave hidden files beside the ones they copy.
        if name.starts_with('.') || !is_description {
            continue;
        }
        if entry.metadata()?.len() > EXTRA_BYTES_MAX {
            return Err(io::Error::other(format!("{name} is larger than {} kB", EXTRA_BYTES_MAX >> 10)));
        }
        if files.len() >= EXTRA_FILES_MAX {
            return Err(io::Error::other(format!("more than {EXTRA_FILES_MAX} files")));
        }
        files.push((name, fs::read(entry.path())?));
    }
    Ok(Some(files))
}

/// Makes `folder` hold these files and no others. Returns how many were written or removed.
pub fn write(folder: &Path, files: &Files) -> io::Result<usize> {
    fs::create_dir_all(folder)?;
    let mut changes = 0;
    for (name, bytes) in files {
        let path = folder.join(name);
        if fs::read(&path).ok().as_ref() == Some(bytes) {
            continue;
        }
        // Hidden until it is whole; edgecore leaves hidden files alone.
        let partial = folder.join(format!(".{name}"));
        let mut file = fs::File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, &path)?;
        changes += 1;
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let is_wanted =
            entry.file_name().to_str().is_some_and(|name| files.iter().any(|(have, _)| have == name));
        if !is_wanted && entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
            changes += 1;
        }
    }
    Ok(changes)
}

/// Whether any device or static pod is there to work for.
pub fn is_any() -> bool {
    FOLDERS.iter().any(|(_, to)| fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_some()))
}

/// Our block of a `config.txt`; `None` where there is none.
pub fn block(config: &Path) -> io::Result<Option<(u64, Vec<u8>)>> {
    let bytes = match fs::read(config) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes?,
    };
    Ok(pins::find_block(&bytes).map(|at| (at as u64, bytes[at..].to_vec())))
}

/// Overwrites the block where it lies, when `wanted` is one and another. Returns whether it did.
pub fn write_block(config: &Path, wanted: &[u8]) -> io::Result<bool> {
    let is_block = wanted.len() == pins::BLOCK_BYTES && wanted.starts_with(pins::MARK.as_bytes());
    let Some((at, _)) = block(config)?.filter(|(_, have)| is_block && have != wanted) else {
        return Ok(false);
    };
    // Opened without truncation: the same clusters are written again.
    let file = fs::OpenOptions::new().write(true).open(config)?;
    file.write_all_at(wanted, at)?;
    file.sync_all()?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_folder_that_is_there_is_the_whole_truth_and_one_that_is_not_changes_nothing() {
        let dir = std::env::temp_dir().join(format!("kinglet-extras-{}", std::process::id()));
        let (from, to) = (dir.join("from"), dir.join("to"));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&from).unwrap();
        assert_eq!(read(&dir.join("none")).unwrap(), None);
        fs::write(from.join("lamp.yaml"), "a").unwrap();
        fs::write(from.join("._lamp.yaml"), "finder").unwrap();
        fs::write(from.join("readme.txt"), "no").unwrap();
        let files = read(&from).unwrap().unwrap();
        assert_eq!(files, [("lamp.yaml".to_owned(), b"a".to_vec())]);
        assert_eq!(write(&to, &files).unwrap(), 1);
        assert_eq!(write(&to, &files).unwrap(), 0, "nothing is written twice");
        fs::rename(from.join("lamp.yaml"), from.join("light.yml")).unwrap();
        assert_eq!(write(&to, &read(&from).unwrap().unwrap()).unwrap(), 2);
        assert_eq!(read(&to).unwrap().unwrap(), [("light.yml".to_owned(), b"a".to_vec())]);
        fs::write(from.join("big.json"), vec![0; EXTRA_BYTES_MAX as usize + 1]).unwrap();
        assert!(read(&from).unwrap_err().to_string().contains("big.json is larger than 256 kB"));

        let config = dir.join(CONFIG);
        assert_eq!(block(&config).unwrap(), None);
        let none = BTreeMap::new();
        let whole = pins::with_block("arm_64bit=1\n", &none);
        fs::write(&config, &whole).unwrap();
        assert!(!write_block(&config, &pins::block(&none)).unwrap(), "as it is");
        let mut wanted = pins::block(&none);
        wanted[pins::MARK.len()..pins::MARK.len() + 14].copy_from_slice(b"gpio=17=op,dh\n");
        assert!(write_block(&config, &wanted).unwrap());
        let now = fs::read(&config).unwrap();
        assert!(now.starts_with(b"arm_64bit=1\n") && now.ends_with(&wanted) && now.len() == whole.len());
        assert!(!write_block(&config, b"short").unwrap(), "what is no block is not written");
        fs::write(&config, [&now[..], b"dtparam=audio=on\n"].concat()).unwrap();
        assert!(!write_block(&config, &pins::block(&none)).unwrap(), "somebody edited the end");
        fs::remove_dir_all(&dir).unwrap();
    }
}
