//! Lets containerd start again after a power cut damaged its databases: they are moved aside, and edged imports the images anew.
//!
//! Runs before containerd, never beside it: `edgecore runtime start` in the image (init starts containerd through it), `edgecore
//! runtime check` as ExecStartPre of a systemd unit or by hand. Not here: repair of single images (`edged::images::repair`).
//!
//! Invariants: a database that can be walked is not touched, unless containerd kept crashing on it; what is moved aside is moved
//! once per boot at most because of crashes; images and containers are the only things lost, and both come back from pods.

pub mod bolt;
#[cfg(test)]
mod tests;

use std::{
    ffi::OsString,
    fs, io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Where containerd keeps what is in its namespaces.
const META: &str = "io.containerd.metadata.v1.bolt/meta.db";
const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1.overlayfs";
/// containerd that was started so often within `CRASH_WINDOW` does not get on with its databases.
const STARTS_MAX: usize = 5;
const CRASH_WINDOW: Duration = Duration::from_secs(180);

#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    #[error("cannot move {path} aside; do it by hand and start containerd again")]
    Move { path: PathBuf, source: io::Error },
    #[error("cannot start {program}")]
    Exec { program: String, source: io::Error },
}

/// Moves damaged databases below containerd's `root` aside. Returns what was done, a line each.
pub fn check(root: &Path) -> Result<Vec<String>, GuardError> {
    let mut done = Vec::new();
    let meta = root.join(META);
    if let Err(problem) = bolt::check(&meta) {
        move_aside(&meta)?;
        done.push(format!("{} {problem}; moved aside, images and containers are made anew", meta.display()));
    }
    let layers = root.join(SNAPSHOTTER).join("metadata.db");
    if let Err(problem) = bolt::check(&layers) {
        drop_layers(root)?;
        done.push(format!("{} {problem}; all layers are unpacked anew", layers.display()));
    }
    remove_aside(root);
    Ok(done)
}

/// Checks, then becomes `command`. `state` is a folder in RAM that remembers the starts of this boot.
pub fn start(root: &Path, state: &Path, command: &[OsString]) -> GuardError {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let result = match note_start(state, now) {
        true => give_up(root),
        false => check(root),
    };
    match result {
        Ok(lines) => lines.iter().for_each(|line| tracing::error!("{line}")),
        // containerd may start all the same, and else says why not.
        Err(error) => tracing::error!("{}", rt::error_chain(&error)),
    }
    let [program, arguments @ ..] = command else {
        return GuardError::Exec {
            program: String::new(),
            source: io::Error::from(io::ErrorKind::InvalidInput),
        };
    };
    let source = Command::new(program).args(arguments).exec();
    GuardError::Exec { program: program.to_string_lossy().into_owned(), source }
}

/// True when containerd was started too often lately and its databases were not yet given up since the boot.
fn note_start(state: &Path, now: Duration) -> bool {
    let path = state.join("containerd-starts");
    let text = fs::read_to_string(&path).unwrap_or_default();
    let given_up = text.lines().any(|line| line == "given up");
    let mut starts: Vec<u64> = text.lines().filter_map(|line| line.parse().ok()).collect();
    starts.retain(|start| now.as_secs().abs_diff(*start) < CRASH_WINDOW.as_secs());
    starts.push(now.as_secs());
    let give_up = starts.len() >= STARTS_MAX && !given_up;
    let mut lines: Vec<String> = starts.iter().map(u64::to_string).collect();
    if give_up || given_up {
        lines.push("given up".into());
    }
    let _ = fs::create_dir_all(state);
    let _ = fs::write(&path, lines.join("\n"));
    give_up
}

/// Both databases look whole and containerd does not live with them.
fn give_up(root: &Path) -> Result<Vec<String>, GuardError> {
    move_aside(&root.join(META))?;
    drop_layers(root)?;
    remove_aside(root);
    Ok(vec![format!(
        "containerd ended {STARTS_MAX} times within {} s; its databases in {} were moved aside",
        CRASH_WINDOW.as_secs(),
        root.display()
    )])
}

/// Without its database a layer has no name, and its folder is in the way of the next one.
fn drop_layers(root: &Path) -> Result<(), GuardError> {
    move_aside(&root.join(SNAPSHOTTER))
}

fn move_aside(path: &Path) -> Result<(), GuardError> {
    let to = PathBuf::from(format!("{}.damaged", path.display()));
    let _ = fs::remove_dir_all(&to);
    match fs::rename(path, &to) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(GuardError::Move { path: path.into(), source })
        }
        _ => Ok(()),
    }
}

/// The small database stays for who wants to look at it; layers take too much room.
fn remove_aside(root: &Path) {
    let _ = fs::remove_dir_all(root.join(format!("{SNAPSHOTTER}.damaged")));
}
