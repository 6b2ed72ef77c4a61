//! Counts on disk, so that a meter goes on where it was after a power cut: lines of `NAME COUNT`.

use std::{collections::BTreeMap, fs, io, io::Read, path::Path};

use crate::limits::{COUNTS_FILE_BYTES_MAX, HOLDER_LINES_MAX};

/// The counts of the file; none when there is no file. Lines that make no sense are left out.
pub fn load(path: &Path) -> io::Result<BTreeMap<String, u64>> {
    let mut text = Vec::new();
    match fs::File::open(path) {
        Ok(file) => file.take(COUNTS_FILE_BYTES_MAX).read_to_end(&mut text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
    };
    Ok(parse(&text))
}

fn parse(text: &[u8]) -> BTreeMap<String, u64> {
    let text = String::from_utf8_lossy(text);
    let lines = text.lines().filter_map(|line| {
        let (name, count) = line.split_once(' ')?;
        Some((name.to_owned(), count.parse().ok()?))
    });
    lines.take(HOLDER_LINES_MAX).collect()
}

/// Written beside and moved over: a power cut leaves the old file or the new one.
pub fn save(path: &Path, counts: &BTreeMap<String, u64>) -> io::Result<()> {
    let text: String = counts.iter().map(|(name, count)| format!("{name} {count}\n")).collect();
    let beside = path.with_extension("new");
    let mut file = fs::File::create(&beside)?;
    io::Write::write_all(&mut file, text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    if let Some(folder) = path.parent() {
        fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_survive_and_nonsense_does_not_stop_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("counts");
        assert!(load(&path).unwrap().is_empty());
        let counts: BTreeMap<String, u64> =
            [("default/meter/energy".to_owned(), u64::MAX), ("b".into(), 0)].into();
        save(&path, &counts).unwrap();
        assert_eq!(load(&path).unwrap(), counts);
        assert_eq!(
            parse(b"a 1\n\xff\xfe\nb\nc x\nd 18446744073709551616\ne 5"),
            [("a".into(), 1), ("e".into(), 5)].into()
        );
        assert_eq!(parse("x".repeat(9).as_bytes()), BTreeMap::new());
    }
}
