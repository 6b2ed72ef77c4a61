//! A folder in which a mount that is made on this machine is also seen in namespaces that were made after it, as on a node where
//! the agent's volumes must reach the container runtime.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Gives a folder a small disk of its own, in memory. Ends with the [`SharedFolder`] that it is in.
pub fn small_disk(path: &Path, megabytes: u32) -> Result<()> {
    let size = format!("size={megabytes}m,mode=0755");
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))
        .with_context(|| format!("cannot mount a small disk on {}", path.display()))
}

/// Unmounts, with everything that was mounted inside, when it ends.
pub struct SharedFolder(PathBuf);

impl SharedFolder {
    pub fn new(path: &Path) -> Result<SharedFolder> {
        std::fs::create_dir_all(path)?;
        let nothing = None::<&str>;
        mount(Some(path), path, nothing, MsFlags::MS_BIND, nothing)
            .with_context(|| format!("cannot bind {} to itself", path.display()))?;
        let folder = SharedFolder(path.to_owned());
        mount(nothing, path, nothing, MsFlags::MS_SHARED, nothing)
            .with_context(|| format!("cannot share {}", path.display()))?;
        Ok(folder)
    }
}

impl Drop for SharedFolder {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
