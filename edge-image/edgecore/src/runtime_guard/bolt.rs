//! Whether a bbolt database can be opened and walked: containerd keeps its metadata in such files, and crashes on a damaged one.
//!
//! Reads only; knows nothing of what is stored. Total: whatever the bytes, it answers. Source: bbolt's page layout (`page.go`,
//! `meta`), little-endian as on every machine that we run on.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
const PAGE_HEADER: usize = 16;
const META_BYTES: usize = 64;
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const ELEMENT: usize = 16;
/// Marks a leaf's value as a bucket.
const IS_BUCKET: u32 = 1;
/// Larger databases are taken for whole: containerd's has a few megabytes.
const PAGES_MAX: u64 = 65536;
/// A value may span pages; one of this many bytes is no metadata.
const RUN_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// `Err` says what is wrong. A missing file is whole: containerd makes a new one.
pub fn check(path: &Path) -> Result<(), String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("cannot be opened ({error})")),
    };
    let bytes = file.metadata().map_err(|error| format!("cannot be read ({error})"))?.len();
    if bytes == 0 {
        // containerd makes it anew.
        return Ok(());
    }
    let meta = newest_meta(&file)?;
    if meta.high_water.checked_mul(meta.page_size).is_none_or(|needed| needed > bytes) {
        return Err(format!("is cut off: it has {bytes} bytes, {} pages are in use", meta.high_water));
    }
    Walk { file, meta, seen: 0 }.walk()
}

#[derive(Clone, Copy, Debug)]
struct Meta {
    page_size: u64,
    root: u64,
    high_water: u64,
    transaction: u64,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// FNV-1a with 64 bits.
fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

fn newest_meta(file: &File) -> Result<Meta, String> {
    // The second page begins where the machine's page ends.
    let places = [0, 4096, 16384, 65536];
    let metas = places.iter().filter_map(|at| read_meta(file, *at));
    metas.max_by_key(|meta| meta.transaction).ok_or_else(|| "has no valid meta page".to_string())
}

fn read_meta(file: &File, at: u64) -> Option<Meta> {
    let mut page = [0; PAGE_HEADER + META_BYTES];
    file.read_exact_at(&mut page, at).ok()?;
    let meta = &page[PAGE_HEADER..];
    let page_size = u64::from(u32_at(meta, 8)?);
    let valid = u32_at(meta, 0)? == MAGIC
        && u32_at(meta, 4)? == VERSION
        && checksum(&meta[..META_BYTES - 8]) == u64_at(meta, META_BYTES - 8)?
        && page_size.is_power_of_two()
        && (1024..=65536).contains(&page_size);
    valid.then_some(())?;
    Some(Meta {
        page_size,
        root: u64_at(meta, 16)?,
        high_water: u64_at(meta, 40)?,
        transaction: u64_at(meta, 48)?,
    })
}

struct Walk {
    file: File,
    meta: Meta,
    seen: u64,
}

impl Walk {
    fn walk(mut self) -> Result<(), String> {
        let mut pages = vec![self.meta.root];
        while let Some(page) = pages.pop() {
            self.seen += 1;
            if self.seen > self.meta.high_water {
                return Err("has a page in two places".into());
            }
            if self.seen > PAGES_MAX {
                return Ok(());
            }
            let bytes = self.read(page)?;
            elements(&bytes, &mut pages, true).ok_or_else(|| format!("has a damaged page {page}"))?;
        }
        Ok(())
    }

    /// A page with what overflows into the pages behind it.
    fn read(&self, page: u64) -> Result<Vec<u8>, String> {
        let damaged = || format!("has a damaged page {page}");
        if page < 2 || page >= self.meta.high_water {
            return Err(format!("names page {page}, which is not in use"));
        }
        let mut header = [0; PAGE_HEADER];
        let at = page * self.meta.page_size;
        self.file.read_exact_at(&mut header, at).map_err(|_| damaged())?;
        let overflow = u64::from(u32_at(&header, 12).unwrap_or(0));
        let length = (overflow + 1) * self.meta.page_size;
        if u64_at(&header, 0) != Some(page)
            || length > RUN_BYTES_MAX
            || page + overflow >= self.meta.high_water
        {
            return Err(damaged());
        }
        let mut bytes = vec![0; length as usize];
        self.file.read_exact_at(&mut bytes, at).map_err(|_| damaged())?;
        Ok(bytes)
    }
}

/// Checks the elements of a page and names the pages below it. `None`: damaged.
fn elements(page: &[u8], below: &mut Vec<u64>, inline_allowed: bool) -> Option<()> {
    let (flags, count) = (u16_at(page, 8)?, usize::from(u16_at(page, 10)?));
    match flags {
        BRANCH if count > 0 => {}
        LEAF => {}
        _ => return None,
    }
    let mut previous: Option<&[u8]> = None;
    for n in 0..count {
        let element = PAGE_HEADER + n * ELEMENT;
        let at = |offset: usize| u32_at(page, element + offset);
        let (kind, position, key_length, value_length) = match flags {
            BRANCH => (0, at(0)?, at(4)?, 0),
            _ => (at(0)?, at(4)?, at(8)?, at(12)?),
        };
        let key_start = element.checked_add(position as usize)?;
        let value_start = key_start.checked_add(key_length as usize)?;
        let key = page.get(key_start..value_start)?;
        let value = page.get(value_start..value_start.checked_add(value_length as usize)?)?;
        if previous.is_some_and(|previous| previous >= key) {
            return None;
        }
        previous = Some(key);
        if flags == BRANCH {
            below.push(u64_at(page, element + 8)?);
        } else if kind & IS_BUCKET != 0 {
            match u64_at(value, 0)? {
                // A small bucket lies in its value.
                0 if inline_allowed => elements(value.get(16..)?, below, false)?,
                0 => return None,
                root => below.push(root),
            }
        }
    }
    Some(())
}

/// Entry for a fuzzer: a database of any bytes.
pub fn fuzz_bolt(data: &[u8]) {
    let _ = elements(data, &mut Vec::new(), true);
    if let Ok(mut file) =
        nix::sys::memfd::memfd_create(c"fuzz", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).map(File::from)
    {
        let written = std::io::Write::write_all(&mut file, data);
        if written.is_ok()
            && let Ok(meta) = newest_meta(&file)
        {
            let _ = Walk { file, meta, seen: 0 }.walk();
        }
    }
}
