//! The disk image: MBR, partitions copied sparsely, block map.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use board_spec::Layout;

use crate::sha256_hex;

pub const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;
const FAT32_LBA: u8 = 0x0c;
const LINUX: u8 = 0x83;

/// Makes an empty image with its partition table. `disk_id` is how the initramfs recognises its disk.
pub fn create(image: &Path, layout: &Layout, disk_id: u32) -> Result<()> {
    let mut file = File::create(image).with_context(|| format!("cannot make {}", image.display()))?;
    file.set_len(u64::from(layout.total_mib()) * MIB)?;
    let mut mbr = [0; 512];
    mbr[440..444].copy_from_slice(&disk_id.to_le_bytes());
    for (index, (start, len)) in layout.partitions().into_iter().enumerate() {
        let entry = &mut mbr[446 + index * 16..][..16];
        entry[0] = if index == 0 { 0x80 } else { 0 };
        // Cylinders are long dead; this value says "use the sector numbers".
        entry[1..4].copy_from_slice(&[0xfe, 0xff, 0xff]);
        entry[4] = if index == 0 { FAT32_LBA } else { LINUX };
        entry[5..8].copy_from_slice(&[0xfe, 0xff, 0xff]);
        entry[8..12].copy_from_slice(&(start * 2048).to_le_bytes());
        entry[12..16].copy_from_slice(&(len * 2048).to_le_bytes());
    }
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    file.write_all(&mbr)?;
    Ok(())
}

/// Copies a file into its partition.
pub fn place_file(image: &Path, part: &Path, offset: u64, room: u64) -> Result<()> {
    let mut from = File::open(part).with_context(|| format!("cannot read {}", part.display()))?;
    let len = from.metadata()?.len();
    ensure!(
        len <= room,
        "{} has {} MB, its partition {} MB: raise the size in board/base.toml",
        part.display(),
        len >> 20,
        room >> 20
    );
    place(image, &mut from, offset)
}

/// Copies bytes into the image at an offset, leaving holes where they are zeros.
pub fn place(image: &Path, from: &mut impl Read, offset: u64) -> Result<()> {
    let mut to = OpenOptions::new().write(true).open(image)?;
    let mut block = vec![0; 1 << 16];
    let mut at = offset;
    loop {
        let n = from.read(&mut block)?;
        if n == 0 {
            return Ok(());
        }
        if block[..n].iter().any(|byte| *byte != 0) {
            to.seek(SeekFrom::Start(at))?;
            to.write_all(&block[..n])?;
        }
        at += n as u64;
    }
}

/// Makes the ext4 data partition from a directory, so that it can grow online to a quarter of a terabyte.
pub fn make_ext4(mke2fs: &Path, from: &Path, out: &Path, mib: u32, uuid: &str, epoch: u64) -> Result<()> {
    let _ = fs::remove_file(out);
    let done = Command::new(mke2fs)
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-L", "kinglet-data", "-U", uuid, "-m", "1", "-J", "size=16"])
        .args(["-O", "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"])
        .arg("-E")
        .arg(format!("root_owner=0:0,hash_seed={uuid},resize=67108864,lazy_itable_init=0,lazy_journal_init=1"))
        .arg("-d")
        .arg(from)
        .arg(out)
        .arg(format!("{mib}M"))
        .env("SOURCE_DATE_EPOCH", epoch.to_string())
        .env("E2FSPROGS_FAKE_TIME", epoch.to_string())
        .output()
        .context("cannot run mke2fs")?;
    ensure!(done.status.success(), "mke2fs failed: {}", String::from_utf8_lossy(&done.stderr).trim());
    Ok(())
}

/// Writes the block map that `bmaptool` reads: which blocks of the image hold data.
pub fn write_bmap(image: &Path, out: &Path) -> Result<()> {
    let mut file = File::open(image)?;
    let len = file.metadata()?.len();
    let blocks = len.div_ceil(BLOCK as u64);
    let ranges = ranges(&mut file)?;
    let mapped: u64 = ranges.iter().map(|(first, last, _)| last - first + 1).sum();
    let rows: String = ranges
        .iter()
        .map(|(first, last, sum)| {
            let span = if first == last { first.to_string() } else { format!("{first}-{last}") };
            format!("        <Range chksum=\"{sum}\"> {span} </Range>\n")
        })
        .collect();
    let zero = "0".repeat(64);
    let text = |sum: &str| {
        format!(
            "<?xml version=\"1.0\" ?>\n<bmap version=\"2.0\">\n    <ImageSize> {len} </ImageSize>\n    <BlockSize> {BLOCK} </BlockSize>\n    <BlocksCount> {blocks} </BlocksCount>\n    <MappedBlocksCount> {mapped} </MappedBlocksCount>\n    <ChecksumType> sha256 </ChecksumType>\n    <BmapFileChecksum> {sum} </BmapFileChecksum>\n    <BlockMap>\n{rows}    </BlockMap>\n</bmap>\n"
        )
    };
    // The file's own checksum is taken with zeros in its place.
    fs::write(out, text(&sha256_hex(text(&zero).as_bytes())))?;
    Ok(())
}

/// Runs of blocks that are not all zero: first, last, SHA256.
fn ranges(file: &mut File) -> Result<Vec<(u64, u64, String)>> {
    use sha2::{Digest, Sha256};
    let mut found = Vec::new();
    let mut run: Option<(u64, Sha256)> = None;
    let mut chunk = vec![0; 256 * BLOCK];
    let mut number = 0;
    file.seek(SeekFrom::Start(0))?;
    loop {
        let mut n = 0;
        while n < chunk.len() {
            let more = file.read(&mut chunk[n..])?;
            if more == 0 {
                break;
            }
            n += more;
        }
        if n == 0 {
            break;
        }
        for block in chunk[..n].chunks(BLOCK) {
            if block.iter().any(|byte| *byte != 0) {
                run.get_or_insert_with(|| (number, Sha256::new())).1.update(block);
            } else if let Some((first, hash)) = run.take() {
                found.push((first, number - 1, hex::encode(hash.finalize())));
            }
            number += 1;
        }
    }
    if let Some((first, hash)) = run {
        found.push((first, number - 1, hex::encode(hash.finalize())));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_placed_and_mapped() {
        let dir = tempfile::tempdir().expect("temp dir");
        let image = dir.path().join("a.img");
        let layout = Layout { boot_mib: 64, root_mib: 1, data_mib: 1 };
        create(&image, &layout, 0x1234_5678).expect("created");
        let part = dir.path().join("part");
        fs::write(&part, [7; 5000]).expect("write");
        let (start, len) = layout.partitions()[1];
        place_file(&image, &part, u64::from(start) * MIB, u64::from(len) * MIB).expect("placed");
        let bmap = dir.path().join("a.bmap");
        write_bmap(&image, &bmap).expect("map");
        let text = fs::read_to_string(&bmap).expect("read");
        // Block 0 is the table; the part fills two blocks at 65 MiB.
        assert!(text.contains("> 0 </Range>") && text.contains("> 16640-16641 </Range>"), "{text}");
        fs::write(&part, vec![7; 2 << 20]).expect("write");
        let error = place_file(&image, &part, 0, MIB).expect_err("too large").to_string();
        assert!(error.contains("raise the size"), "{error}");
    }
}
