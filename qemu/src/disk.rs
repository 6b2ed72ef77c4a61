//! The boot partition of an image, read and written from outside: what a person does with a card reader.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use board_spec::Window;

/// The name of the file that a person fills in.
pub const PROVISION: &str = "provision.toml";
/// The name of the file that tells how the last boot went.
pub const STATUS: &str = "status.txt";

/// Copies `image` to `to` (sparse, or shared blocks where the file system can), makes it `size_mb` large, as a card larger than the
/// image would be, and writes the provisioning file.
pub fn provision(image: &Path, to: &Path, size_mb: u64, text: &str) -> Result<()> {
    let status = Command::new("cp")
        .args(["--reflink=auto", "--sparse=always"])
        .arg(image)
        .arg(to)
        .status()
        .context("cannot run cp")?;
    ensure!(status.success(), "cannot copy {} to {}", image.display(), to.display());
    let file = OpenOptions::new().write(true).open(to)?;
    if file.metadata()?.len() < size_mb << 20 {
        file.set_len(size_mb << 20)?;
    }
    write_boot_file(to, PROVISION, text.as_bytes())
}

/// Writes a file, by its path, into the boot partition of an image that no machine is using. Folders on the way are made.
pub fn write_boot_file(image: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let fs = open(image, true)?;
    for (at, _) in name.match_indices('/') {
        fs.root_dir().create_dir(&name[..at]).with_context(|| format!("cannot make the folder of {name}"))?;
    }
    let mut file = fs
        .root_dir()
        .create_file(name)
        .with_context(|| format!("cannot make {name} on the boot partition"))?;
    file.truncate()?;
    file.write_all(bytes)?;
    file.flush()?;
    Ok(())
}

/// Reads a text from the boot partition.
pub fn read_boot_file(image: &Path, name: &str) -> Result<String> {
    String::from_utf8(read_boot_bytes(image, name)?).with_context(|| format!("{name} is not text"))
}

/// Reads a file, by its path, from the boot partition.
pub fn read_boot_bytes(image: &Path, name: &str) -> Result<Vec<u8>> {
    let fs = open(image, false)?;
    let mut bytes = Vec::new();
    fs.root_dir()
        .open_file(name)
        .with_context(|| format!("the boot partition of {} has no {name}", image.display()))?
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn open(image: &Path, writable: bool) -> Result<fatfs::FileSystem<Window>> {
    let window = Window::first_partition(image, writable)
        .with_context(|| format!("cannot read {} as a disk image", image.display()))?;
    fatfs::FileSystem::new(window, fatfs::FsOptions::new())
        .with_context(|| format!("{}: the boot partition is not FAT", image.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};

    #[test]
    fn a_boot_file_is_written_and_read_and_the_rest_of_the_disk_is_left_alone() {
        let dir = tempfile::tempdir().expect("temp dir");
        let image = dir.path().join("a.img");
        let mut file = File::create_new(&image).expect("create");
        file.set_len(6 << 20).expect("len");
        let mut mbr = [0; 512];
        mbr[446 + 4] = 0x0c;
        mbr[446 + 8..446 + 12].copy_from_slice(&2048u32.to_le_bytes());
        mbr[446 + 12..446 + 16].copy_from_slice(&8192u32.to_le_bytes());
        mbr[510..].copy_from_slice(&[0x55, 0xaa]);
        file.write_all(&mbr).expect("mbr");
        drop(file);
        fatfs::format_volume(
            Window::first_partition(&image, true).expect("window"),
            fatfs::FormatVolumeOptions::new(),
        )
        .expect("format");

        let copy = dir.path().join("b.img");
        provision(&image, &copy, 16, "cloud = \"a:1\"\n").expect("provisioned");
        assert_eq!(read_boot_file(&copy, PROVISION).expect("read"), "cloud = \"a:1\"\n");
        write_boot_file(&copy, PROVISION, b"x").expect("shorter");
        assert_eq!(read_boot_file(&copy, PROVISION).expect("read"), "x");
        for text in ["kind: Device\n", "kind: Pod\n"] {
            write_boot_file(&copy, "devices/a long name.yaml", text.as_bytes()).expect("in a folder");
            assert_eq!(read_boot_file(&copy, "devices/a long name.yaml").expect("read"), text);
        }
        assert_eq!(fs::metadata(&copy).expect("meta").len(), 16 << 20);
        assert_eq!(fs::read(&copy).expect("read")[5 << 20..].iter().filter(|byte| **byte != 0).count(), 0);
        let error = read_boot_file(&image, PROVISION).expect_err("the original is untouched").to_string();
        assert!(error.contains("has no provision.toml"), "{error}");
    }
}
