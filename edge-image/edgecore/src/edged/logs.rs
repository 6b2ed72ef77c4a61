//! Log files of containers: the runtime writes them, this keeps them small and removes them.
//!
//! What bounds them, from a container outwards: a log is renamed at a look that finds it over `bytes_max`; a container keeps
//! `bytes_max * files_max`, however large a single file had become between two looks; a pod keeps four containers' worth. Looks are
//! 10 s apart, and 1 s while a log grows so fast that it would be over its size at the next one. What is written between looks is
//! over the bounds: there the node's disk threshold is what stops a pod (`pressure`). The oldest renamed file goes first; a file that
//! is being written is never removed, and of the newest renamed one the end stays, however large it had become.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead, Seek},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use super::limits::{LOG_CHECK, LOG_CHECK_FAST, LOGS_PER_POD, USAGE_FILES_MAX};

/// When a log is renamed, and how many files of it are kept, the current one included.
#[derive(Clone, Copy, Debug)]
pub struct Rotation {
    pub bytes_max: u64,
    pub files_max: usize,
}

impl Rotation {
    fn container_bytes(self) -> u64 {
        self.bytes_max.saturating_mul(self.files_max as u64)
    }
}

/// `<pod folder>/<container>/<attempt>.log`.
pub fn path(pod_dir: &Path, container: &str, attempt: u32) -> PathBuf {
    pod_dir.join(container).join(format!("{attempt}.log"))
}

/// A pod's logs: its folder, the containers that write, by id, and the logs of those that ended.
#[derive(Clone, Debug)]
pub struct PodLogs {
    pub dir: PathBuf,
    pub writers: Vec<(String, PathBuf)>,
    pub ended: Vec<PathBuf>,
}

/// Looks at the logs of all pods, and remembers how long they were.
#[derive(Debug, Default)]
pub struct Keeper {
    lengths: BTreeMap<PathBuf, u64>,
    looked: Option<Instant>,
}

/// What a look did, and when the next one is due.
pub struct Looked {
    /// Renamed: the runtime must open them anew.
    pub renamed: Vec<(String, PathBuf)>,
    /// Folders of pods to be thinned out after that: what the runtime writes until then goes to the renamed files.
    pub crowded: Vec<PathBuf>,
    pub next: Duration,
}

impl Keeper {
    /// Blocking.
    pub fn look(&mut self, now: Instant, pods: &[PodLogs], rotation: Rotation) -> Looked {
        let since = self.looked.replace(now).map_or(LOG_CHECK, |before| now.duration_since(before));
        let before = std::mem::take(&mut self.lengths);
        let mut looked = Looked { renamed: Vec::new(), crowded: Vec::new(), next: LOG_CHECK };
        for pod in pods {
            let mut crowded = false;
            for (id, path) in &pod.writers {
                let length = fs::metadata(path).map_or(0, |data| data.len());
                let known = before.get(path).copied();
                // A log that was made anew since is shorter than it was.
                let grown = length.checked_sub(known.unwrap_or(0)).unwrap_or(length);
                let by_next = grown as f64 * LOG_CHECK.as_secs_f64() / since.as_secs_f64().max(0.1);
                if by_next > rotation.bytes_max as f64 {
                    looked.next = LOG_CHECK_FAST;
                }
                let renamed = rotate(path, rotation);
                if renamed {
                    looked.renamed.push((id.clone(), path.clone()));
                }
                crowded |= renamed || known.is_none();
                self.lengths.insert(path.clone(), if renamed { 0 } else { length });
            }
            for path in &pod.ended {
                // It wrote more than it may have between two looks, and ended.
                if fs::metadata(path).is_ok_and(|data| data.len() > rotation.container_bytes()) {
                    cut(path, rotation.bytes_max);
                }
            }
            if crowded {
                looked.crowded.push(pod.dir.clone());
            }
        }
        looked
    }
}

/// Renames a log that is too large, dropping the oldest. True when it did: the runtime must then open it anew.
fn rotate(path: &Path, rotation: Rotation) -> bool {
    if !fs::metadata(path).is_ok_and(|metadata| metadata.len() > rotation.bytes_max) {
        return false;
    }
    let last = rotation.files_max.saturating_sub(1).max(1);
    for n in (1..last).rev() {
        let _ = fs::rename(kept(path, n), kept(path, n + 1));
    }
    fs::rename(path, kept(path, 1)).is_ok()
}

fn kept(path: &Path, n: usize) -> PathBuf {
    PathBuf::from(format!("{}.{n}", path.display()))
}

/// Undoes the last renaming, of a log that the runtime still writes: it would grow under a name that nobody looks at.
pub fn rename_back(path: &Path) {
    if !path.exists() {
        let _ = fs::rename(kept(path, 1), path);
    }
}

/// Removes the oldest renamed files of a pod until each container and the pod are within their bounds. Blocking.
pub fn thin_out(pod_dir: &Path, rotation: Rotation) {
    let mut all = Vec::new();
    for container in fs::read_dir(pod_dir).into_iter().flatten().flatten().take(USAGE_FILES_MAX) {
        let files = fs::read_dir(container.path()).into_iter().flatten().flatten().take(USAGE_FILES_MAX);
        let mut own: Vec<_> = files.filter_map(|file| Part::of(file.path())).collect();
        drop_oldest(&mut own, rotation.container_bytes(), rotation);
        all.append(&mut own);
    }
    drop_oldest(&mut all, rotation.container_bytes().saturating_mul(LOGS_PER_POD), rotation);
}

/// A log, or a renamed part of one.
struct Part {
    path: PathBuf,
    bytes: u64,
    modified: SystemTime,
    /// Of a renamed one; the highest is the oldest.
    number: Option<u32>,
}

impl Part {
    fn of(path: PathBuf) -> Option<Part> {
        let data = fs::metadata(&path).ok()?;
        let number = path.extension()?.to_str()?.parse().ok();
        let modified = data.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        Some(Part { path, bytes: data.len(), modified, number })
    }
}

fn drop_oldest(parts: &mut Vec<Part>, bytes_max: u64, rotation: Rotation) {
    let mut bytes: u64 = parts.iter().map(|part| part.bytes).sum();
    parts.sort_by_key(|part| (part.modified, std::cmp::Reverse(part.number)));
    parts.retain_mut(|part| {
        let Some(number) = part.number.filter(|_| bytes > bytes_max) else { return true };
        let before = part.bytes;
        // What was written last is what people look for.
        let stays = number == 1 && before > rotation.bytes_max;
        part.bytes = match stays {
            true => cut(&part.path, rotation.bytes_max).unwrap_or(before),
            false if fs::remove_file(&part.path).is_ok() => 0,
            false => before,
        };
        bytes -= before.saturating_sub(part.bytes);
        part.bytes > 0
    });
}

/// Keeps the last whole lines of a file that nobody writes, at most `bytes`; what is left of it.
fn cut(path: &Path, bytes: u64) -> Option<u64> {
    let kept = PathBuf::from(format!("{}.cut", path.display()));
    let copy = || -> io::Result<u64> {
        let mut file = io::BufReader::new(fs::File::open(path)?);
        let begin = file.get_ref().metadata()?.len().saturating_sub(bytes);
        file.seek(io::SeekFrom::Start(begin.saturating_sub(1)))?;
        if begin > 0 {
            file.skip_until(b'\n')?;
        }
        let copied = io::copy(&mut file, &mut fs::File::create(&kept)?)?;
        fs::rename(&kept, path)?;
        Ok(copied)
    };
    copy().inspect_err(|_| drop(fs::remove_file(&kept))).ok()
}

/// Removes the log of a container that is gone, with its renamed parts.
pub fn remove(pod_dir: &Path, container: &str, attempt: u32) {
    let log = path(pod_dir, container, attempt);
    let name = log.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for entry in fs::read_dir(pod_dir.join(container)).into_iter().flatten().flatten() {
        let found = entry.file_name().to_string_lossy().into_owned();
        if found == name || found.starts_with(&format!("{name}.")) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Removes folders `<namespace>_<name>_<uid>` of pods that are not `known` by their uid or incarnation. Others stay: they are
/// nobody's of ours. Blocking.
pub fn clean_orphans(log_dir: &Path, known: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(log_dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let parts: Vec<&str> = name.to_str().unwrap_or_default().split('_').collect();
        let [_, _, uid] = parts[..] else { continue };
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) || known(uid) {
            continue;
        }
        match fs::remove_dir_all(entry.path()) {
            Ok(()) => tracing::info!("{} belongs to no pod any more and is removed", entry.path().display()),
            Err(error) => {
                tracing::warn!("the logs of a pod that is gone stay: {}: {error}", entry.path().display())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROTATION: Rotation = Rotation { bytes_max: 10, files_max: 3 };

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn pod(dir: &Path, containers: &[&str]) -> PodLogs {
        let writer = |name: &&str| {
            fs::create_dir_all(dir.join(name)).unwrap();
            (format!("id-{name}"), path(dir, name, 0))
        };
        PodLogs { dir: dir.into(), writers: containers.iter().map(writer).collect(), ended: Vec::new() }
    }

    fn look_and_thin_out(keeper: &mut Keeper, now: Instant, pods: &[PodLogs]) -> Looked {
        let looked = keeper.look(now, pods, ROTATION);
        looked.crowded.iter().for_each(|dir| thin_out(dir, ROTATION));
        looked
    }

    #[test]
    fn of_a_log_that_grew_far_over_its_size_between_two_looks_the_end_stays() {
        let dir = tempfile::tempdir().unwrap();
        let mut pods = [pod(dir.path(), &["web"])];
        let (log, mut keeper) = (pods[0].writers[0].1.clone(), Keeper::default());
        let lines: String = (0..100).map(|n| format!("{n:02}\n")).collect();
        fs::write(&log, &lines).unwrap();
        assert_eq!(look_and_thin_out(&mut keeper, Instant::now(), &pods).renamed.len(), 1);
        assert_eq!(fs::read_to_string(kept(&log, 1)).unwrap(), "97\n98\n99\n");
        // Its container ended before anybody looked.
        pods[0].writers.clear();
        fs::write(&log, &lines).unwrap();
        pods[0].ended.push(log.clone());
        look_and_thin_out(&mut keeper, Instant::now(), &pods);
        assert_eq!(fs::read_to_string(&log).unwrap(), "97\n98\n99\n");
        assert_eq!(names(log.parent().unwrap()), ["0.log", "0.log.1"]);
    }

    #[test]
    fn a_log_is_renamed_at_its_size_and_the_oldest_part_goes() {
        let dir = tempfile::tempdir().unwrap();
        let pods = [pod(dir.path(), &["web"])];
        let (log, mut keeper, mut now) = (&pods[0].writers[0].1, Keeper::default(), Instant::now());
        let mut look = || {
            now += LOG_CHECK;
            look_and_thin_out(&mut keeper, now, &pods)
        };
        fs::write(log, "0123456789").unwrap();
        let looked = look();
        assert!(looked.renamed.is_empty() && looked.next == LOG_CHECK, "at the limit, not over it");
        for n in 0..5 {
            fs::write(log, format!("number {n} 01")).unwrap();
            assert_eq!(look().renamed, [("id-web".to_string(), log.clone())]);
        }
        assert_eq!(names(log.parent().unwrap()), ["0.log.1", "0.log.2"]);
        assert!(fs::read_to_string(kept(log, 2)).unwrap().starts_with("number 3"));
        rename_back(log);
        assert_eq!(names(log.parent().unwrap()), ["0.log", "0.log.2"]);
        fs::write(path(dir.path(), "web", 10), "another attempt").unwrap();
        remove(dir.path(), "web", 0);
        assert_eq!(names(log.parent().unwrap()), ["10.log"]);
    }

    #[test]
    fn a_fast_writer_is_looked_at_oftener_and_keeps_no_more_than_a_slow_one() {
        let dir = tempfile::tempdir().unwrap();
        let pods = [pod(dir.path(), &["web"])];
        let (log, mut keeper, mut now) = (&pods[0].writers[0].1, Keeper::default(), Instant::now());
        let mut bytes = Vec::new();
        for n in 0..40 {
            fs::write(log, vec![b'x'; 25]).unwrap();
            let looked = look_and_thin_out(&mut keeper, now, &pods);
            assert_eq!(looked.next, LOG_CHECK_FAST, "look {n}");
            now += looked.next;
            let folder = fs::read_dir(log.parent().unwrap()).unwrap();
            bytes.push(folder.map(|file| file.unwrap().metadata().unwrap().len()).sum::<u64>());
        }
        assert!(bytes.iter().all(|bytes| *bytes <= ROTATION.container_bytes()), "{bytes:?}");
        fs::write(log, "slow").unwrap();
        assert_eq!(keeper.look(now, &pods, ROTATION).next, LOG_CHECK_FAST, "4 bytes in a second");
        now += LOG_CHECK;
        assert_eq!(keeper.look(now, &pods, ROTATION).next, LOG_CHECK);
    }

    #[test]
    fn a_pod_of_many_containers_keeps_four_containers_worth_and_what_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let many: Vec<String> = (0..9).map(|n| format!("c{n}")).collect();
        let pods = [pod(dir.path(), &many.iter().map(String::as_str).collect::<Vec<_>>())];
        let (mut keeper, mut now) = (Keeper::default(), Instant::now());
        for _ in 0..4 {
            for (_, log) in &pods[0].writers {
                fs::write(log, "0123456789a").unwrap();
            }
            look_and_thin_out(&mut keeper, now, &pods);
            now += LOG_CHECK;
        }
        for (_, log) in &pods[0].writers {
            fs::write(log, "current").unwrap();
        }
        keeper.lengths.clear();
        look_and_thin_out(&mut keeper, now, &pods);
        let (mut bytes, mut current) = (0, 0);
        for (_, log) in &pods[0].writers {
            current += usize::from(log.exists());
            let folder = fs::read_dir(log.parent().unwrap()).unwrap();
            bytes += folder.map(|file| file.unwrap().metadata().unwrap().len()).sum::<u64>();
        }
        assert_eq!(current, 9);
        assert!(bytes <= LOGS_PER_POD * ROTATION.container_bytes() && bytes > 9 * 7, "{bytes}");
    }

    #[test]
    fn folders_of_pods_that_nobody_knows_go_and_foreign_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["default_web_uid-1", "default_old_uid-2", "audit", "a_b", "a_b_c_d"] {
            fs::create_dir_all(dir.path().join(name).join("c")).unwrap();
        }
        fs::write(dir.path().join("some_file_x"), "").unwrap();
        fs::write(dir.path().join("default_old_uid-2/c/0.log"), "last words").unwrap();
        std::os::unix::fs::symlink(dir.path().join("audit"), dir.path().join("x_link_uid-3")).unwrap();
        clean_orphans(dir.path(), |uid| uid == "uid-1");
        assert_eq!(
            names(dir.path()),
            ["a_b", "a_b_c_d", "audit", "default_web_uid-1", "some_file_x", "x_link_uid-3"]
        );
        clean_orphans(&dir.path().join("absent"), |_| false);
    }
}
