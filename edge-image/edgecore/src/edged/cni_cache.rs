//! Files of the network plugins that a power cut left half written: they block the removal of sandboxes and keep addresses taken.
//!
//! Looked at once, when the agent starts. Only a file that cannot be read as what it is, and is older than this boot, is removed:
//! a plugin that runs now may be writing its own. Source: libcni keeps results as JSON in `results`, host-local keeps one file for
//! each address in `networks/<name>`, named by it and holding the container's id.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::limits::{CNI_CACHE_BYTES_MAX, CNI_CACHE_FILES_MAX};

/// Removes what is damaged below `/var/lib/cni` (`dir`). Returns what was removed.
pub fn clean(dir: &Path, booted: SystemTime) -> Vec<PathBuf> {
    let mut removed = Vec::new();
    let networks = files(&dir.join("networks")).into_iter().flat_map(|folder| files(&folder));
    let results = files(&dir.join("results")).into_iter().filter(|path| !is_result(path));
    let addresses = networks.filter(|path| is_damaged_address(path));
    for path in results.chain(addresses).take(CNI_CACHE_FILES_MAX) {
        let old = fs::metadata(&path).and_then(|data| data.modified()).is_ok_and(|time| time < booted);
        if old && fs::remove_file(&path).is_ok() {
            removed.push(path);
        }
    }
    removed
}

/// When this machine started, by the wall clock of now.
pub fn boot_time() -> Option<SystemTime> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let seconds = text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(UNIX_EPOCH + Duration::from_secs(seconds))
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.take(CNI_CACHE_FILES_MAX).map(|entry| entry.path()).collect()
}

fn is_result(path: &Path) -> bool {
    let small = fs::metadata(path).is_ok_and(|data| data.is_file() && data.len() <= CNI_CACHE_BYTES_MAX);
    let read = |path: &Path| serde_json::from_slice::<serde_json::Value>(&fs::read(path).ok()?).ok();
    // What is not a file, or too large to be one of these, is not ours to judge.
    !small || read(path).is_some_and(|value| value.is_object())
}

/// An address that nobody's id stands behind. Locks and `last_reserved_ip` have other names.
fn is_damaged_address(path: &Path) -> bool {
    let named =
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.parse::<IpAddr>().is_ok());
    let id = |text: String| {
        let id = text.lines().next().unwrap_or_default().trim().to_string();
        !id.is_empty()
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
    };
    named
        && fs::metadata(path).is_ok_and(|data| data.len() <= CNI_CACHE_BYTES_MAX)
        && !fs::read_to_string(path).is_ok_and(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_damaged_and_older_than_the_boot_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("results")).unwrap();
        fs::create_dir_all(path("networks/kinglet")).unwrap();
        for (name, text) in [
            ("results/whole", r#"{"kind":"cniCacheV1"}"#),
            ("results/cut", r#"{"kind":"cniCa"#),
            ("results/empty", ""),
            ("networks/kinglet/10.42.0.2", "abc123\r\neth0"),
            ("networks/kinglet/10.42.0.3", ""),
            ("networks/kinglet/10.42.0.4", "\0\0\0\0"),
            ("networks/kinglet/last_reserved_ip.0", ""),
            ("networks/kinglet/lock", ""),
        ] {
            fs::write(path(name), text).unwrap();
        }
        let hour = Duration::from_secs(3600);
        assert!(clean(dir.path(), SystemTime::now() - hour).is_empty(), "written since the boot");
        let mut removed = clean(dir.path(), SystemTime::now() + hour);
        removed.sort();
        let expected =
            ["networks/kinglet/10.42.0.3", "networks/kinglet/10.42.0.4", "results/cut", "results/empty"];
        assert_eq!(removed, expected.map(path));
        assert!(path("results/whole").exists() && path("networks/kinglet/lock").exists());
        assert!(boot_time().is_some_and(|time| time < SystemTime::now()));
    }
}
