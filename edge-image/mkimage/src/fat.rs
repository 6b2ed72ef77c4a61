//! The boot partition: a FAT file system, made without mounting it.

use std::io::{Cursor, Write};

use anyhow::{Context, Result};

/// As large as FAT32 allows on a partition of this size: fewer clusters, faster loading by simple boot loaders.
const CLUSTER: u32 = 2048;

/// Formats `len` bytes and fills them with files, whose paths may have directories. In memory, because the crate reads and writes the
/// allocation table four bytes at a time; zeros cost nothing there.
pub fn make(len: u64, volume_id: u32, files: &[(String, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut volume = Cursor::new(vec![0; usize::try_from(len)?]);
    let options = fatfs::FormatVolumeOptions::new()
        .fat_type(fatfs::FatType::Fat32)
        .bytes_per_cluster(CLUSTER)
        .volume_id(volume_id)
        .volume_label(*b"KINGLET    ");
    fatfs::format_volume(&mut volume, options).context("cannot format the boot partition")?;
    volume.set_position(0);
    let fs = fatfs::FileSystem::new(&mut volume, fatfs::FsOptions::new())
        .context("cannot open the boot partition")?;
    for (path, bytes) in files {
        let mut dir = fs.root_dir();
        let mut parts: Vec<&str> = path.split('/').collect();
        let name = parts.pop().context("an empty file name")?;
        for part in parts {
            dir = dir.create_dir(part)?;
        }
        let mut file =
            dir.create_file(name).with_context(|| format!("cannot make {path} on the boot partition"))?;
        file.write_all(bytes).with_context(|| format!("{path} does not fit on the boot partition"))?;
        file.flush()?;
    }
    fs.unmount()?;
    Ok(volume.into_inner())
}
