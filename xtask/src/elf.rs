//! Is a program static? Read from its ELF program headers (System V ABI, chapter 5).

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

const PT_INTERP: u32 = 3;
const HEADER_LEN: usize = 56;

/// An error when the program asks for a dynamic loader, or is no 64-bit little-endian ELF.
pub fn check_static(program: &Path) -> Result<()> {
    let bytes = std::fs::read(program).with_context(|| format!("read {}", program.display()))?;
    if has_interpreter(&bytes).with_context(|| program.display().to_string())? {
        bail!("{} is not static: it asks for a dynamic loader", program.display());
    }
    Ok(())
}

fn has_interpreter(elf: &[u8]) -> Result<bool> {
    ensure!(elf.len() >= 64 && elf.starts_with(b"\x7fELF\x02\x01"), "not a 64-bit little-endian ELF file");
    let offset = u64::from_le_bytes(elf[32..40].try_into()?) as usize;
    let count = u16::from_le_bytes(elf[56..58].try_into()?) as usize;
    let table = elf.get(offset..).context("program headers lie outside the file")?;
    ensure!(table.len() >= count * HEADER_LEN, "program headers are cut off");
    let kinds = table
        .chunks_exact(HEADER_LEN)
        .take(count)
        .map(|header| u32::from_le_bytes([header[0], header[1], header[2], header[3]]));
    Ok(kinds.into_iter().any(|kind| kind == PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_is_dynamic_and_garbage_is_an_error() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(has_interpreter(&own).unwrap(), "built for a glibc host");
        assert!(has_interpreter(b"\x7fELF").is_err());
        assert!(has_interpreter(&own[..4096]).is_ok_and(|dynamic| dynamic));
    }
}
