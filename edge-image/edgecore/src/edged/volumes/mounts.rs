//! The kernel's table of mounts, and removal that never goes through one.

use std::{
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, umount2};

use super::{VolumeError, failed};

const TABLE: &str = "/proc/self/mountinfo";

/// Mount points at or below `dir`, the outer ones first; one that is mounted over appears as often as it is.
pub fn below(dir: &Path) -> Result<Vec<PathBuf>, VolumeError> {
    let text = fs::read(TABLE).map_err(failed("read", Path::new(TABLE)))?;
    let mut points: Vec<PathBuf> =
        mount_points(&text).into_iter().filter(|point| point.starts_with(dir)).collect();
    points.sort();
    Ok(points)
}

/// The mount points of a mountinfo text. Total.
pub fn mount_points(text: &[u8]) -> Vec<PathBuf> {
    let points = text.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    points.map(unescape).collect()
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let octal = field.get(at + 1..at + 4).filter(|_| field[at] == b'\\');
        let digits = octal.filter(|digits| digits.iter().all(|digit| (b'0'..=b'7').contains(digit)));
        match digits {
            Some(digits) => {
                out.push(
                    digits.iter().fold(0_u8, |all, digit| all.wrapping_mul(8).wrapping_add(digit - b'0')),
                );
                at += 4;
            }
            None => {
                out.push(field[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

/// Also true for a bind mount of the same file system, which device numbers do not show.
pub fn is_mount_point(path: &Path) -> bool {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    below(&real).is_ok_and(|points| points.contains(&real))
}

/// Unmounts what is mounted at or below `dir`, the inner ones first.
pub fn unmount_below(dir: &Path) -> Result<(), VolumeError> {
    for point in below(dir)?.iter().rev() {
        umount2(point, MntFlags::UMOUNT_NOFOLLOW)
            .map_err(io::Error::from)
            .map_err(failed("unmount", point))?;
    }
    Ok(())
}

/// Unmounts, then removes. A mount that stays in use stops the removal: its files are not ours to delete.
pub fn remove_tree(dir: &Path) -> Result<(), VolumeError> {
    unmount_below(dir)?;
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", dir)(error)),
        _ => Ok(()),
    }
}
