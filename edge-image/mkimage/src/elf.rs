//! As much of ELF as packing needs: which libraries a program wants, and a kernel module's `.modinfo`.

use anyhow::{Context, Result, ensure};

/// More entries than any file here has; a damaged header must not make us loop for long.
const ENTRIES_MAX: u16 = 4096;

const LOAD: u32 = 1;
const DYNAMIC: u32 = 2;
const INTERP: u32 = 3;
const AARCH64: u16 = 183;

/// What the dynamic section of a program says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Linkage {
    pub needed: Vec<String>,
    pub interpreter: Option<String>,
    pub is_aarch64: bool,
}

pub fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF\x02\x01")
}

/// Reads a 64-bit little-endian ELF file.
pub fn linkage(bytes: &[u8]) -> Result<Linkage> {
    ensure!(is_elf(bytes), "not a 64-bit ELF file");
    let mut found = Linkage { is_aarch64: u16_at(bytes, 18)? == AARCH64, ..Linkage::default() };
    let mut loads = Vec::new();
    let mut dynamic = None;
    for header in table(bytes, u64_at(bytes, 32)?, u16_at(bytes, 54)?, u16_at(bytes, 56)?) {
        let header = header?;
        let (kind, offset, address, size) =
            (u32_at(header, 0)?, u64_at(header, 8)?, u64_at(header, 16)?, u64_at(header, 32)?);
        match kind {
            LOAD => loads.push((address, offset, size)),
            DYNAMIC => dynamic = Some(slice(bytes, offset, size)?),
            INTERP => found.interpreter = Some(text_at(bytes, usize::try_from(offset)?)?),
            _ => {}
        }
    }
    let Some(dynamic) = dynamic else { return Ok(found) };
    let mut names = Vec::new();
    let mut strings = None;
    for entry in dynamic.chunks_exact(16) {
        match (u64_at(entry, 0)?, u64_at(entry, 8)?) {
            (0, _) => break,
            (1, name) => names.push(name),
            (5, address) => strings = Some(address),
            _ => {}
        }
    }
    if names.is_empty() {
        return Ok(found);
    }
    let strings = strings.context("no string table")?;
    let base = loads
        .iter()
        .find(|(address, _, size)| (*address..address.saturating_add(*size)).contains(&strings))
        .map(|(address, offset, _)| strings - address + offset)
        .context("the string table is not loaded")?;
    for name in names {
        found.needed.push(text_at(bytes, usize::try_from(base.saturating_add(name))?)?);
    }
    Ok(found)
}

/// The `key=value` strings of a kernel module.
pub fn modinfo(bytes: &[u8]) -> Result<Vec<(String, String)>> {
    ensure!(is_elf(bytes), "not a kernel module");
    let (offset, size, count, names) =
        (u64_at(bytes, 40)?, u16_at(bytes, 58)?, u16_at(bytes, 60)?, u16_at(bytes, 62)?);
    let sections: Vec<&[u8]> = table(bytes, offset, size, count).collect::<Result<_>>()?;
    let names = sections.get(usize::from(names)).context("no section names")?;
    let names = slice(bytes, u64_at(names, 24)?, u64_at(names, 32)?)?;
    for section in sections {
        if text_at(names, u32_at(section, 0)? as usize)? == ".modinfo" {
            let body = slice(bytes, u64_at(section, 24)?, u64_at(section, 32)?)?;
            return Ok(body
                .split(|byte| *byte == 0)
                .filter_map(|pair| {
                    let (key, value) = std::str::from_utf8(pair).ok()?.split_once('=')?;
                    Some((key.to_owned(), value.to_owned()))
                })
                .collect());
        }
    }
    anyhow::bail!("the module has no .modinfo")
}

/// Total for any input: what the fuzz test drives.
pub fn fuzz_elf(data: &[u8]) {
    let _ = linkage(data);
    let _ = modinfo(data);
}

fn table(bytes: &[u8], offset: u64, size: u16, count: u16) -> impl Iterator<Item = Result<&[u8]>> {
    (0..count.min(ENTRIES_MAX)).map(move |index| {
        slice(bytes, offset.saturating_add(u64::from(size) * u64::from(index)), u64::from(size))
    })
}

fn slice(bytes: &[u8], offset: u64, size: u64) -> Result<&[u8]> {
    let start = usize::try_from(offset)?;
    let end = start.checked_add(usize::try_from(size)?).context("offset overflow")?;
    bytes.get(start..end).context("the file is cut short")
}

fn text_at(bytes: &[u8], offset: usize) -> Result<String> {
    let rest = bytes.get(offset..).context("the file is cut short")?;
    let end = rest.iter().position(|byte| *byte == 0).context("unterminated string")?;
    Ok(String::from_utf8_lossy(&rest[..end]).into_owned())
}

fn array<const N: usize>(bytes: &[u8], offset: usize) -> Result<[u8; N]> {
    bytes
        .get(offset..offset.saturating_add(N))
        .and_then(|part| part.try_into().ok())
        .context("the file is cut short")
}

fn u16_at(bytes: &[u8], offset: usize) -> Result<u16> {
    Ok(u16::from_le_bytes(array(bytes, offset)?))
}

fn u32_at(bytes: &[u8], offset: usize) -> Result<u32> {
    Ok(u32::from_le_bytes(array(bytes, offset)?))
}

fn u64_at(bytes: &[u8], offset: usize) -> Result<u64> {
    Ok(u64::from_le_bytes(array(bytes, offset)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test program itself is an ELF file that links libc.
    fn own() -> Vec<u8> {
        std::fs::read(std::env::current_exe().expect("path")).expect("read")
    }

    #[test]
    fn this_program_needs_libc() {
        let found = linkage(&own()).expect("read");
        assert!(found.needed.iter().any(|name| name.starts_with("libc.so")), "{found:?}");
        assert!(found.interpreter.is_some_and(|path| path.contains("ld-linux")));
    }

    #[test]
    fn damaged_files_are_errors_never_panics() {
        let good = own();
        let head = &good[..good.len().min(8192)];
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        for _ in 0..5000 {
            let mut bytes = head[..usize::try_from(next()).unwrap_or(0) % head.len()].to_vec();
            for _ in 0..next() % 8 {
                let len = bytes.len().clamp(1, 128);
                let at = usize::try_from(next()).unwrap_or(0) % len;
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = (next() & 0xff) as u8;
                }
            }
            fuzz_elf(&bytes);
        }
    }
}
