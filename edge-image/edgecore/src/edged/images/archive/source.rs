//! The tar of an archive, whatever it is packed in: read and seeked as if it lay there plain.
//!
//! Invariants: nothing is unpacked to disk, and no more than a window is held; a packed archive that would never end is refused.
//! Going back in a packed one unpacks it from its start: whoever reads it goes forward.

use std::io::{Error, ErrorKind, Read, Result, Seek, SeekFrom};

use flate2::read::MultiGzDecoder;

use crate::edged::limits::{ARCHIVE_UNPACKED_BYTES_MAX, CONTENT_CHUNK_BYTES};

/// Ends of names of files that are looked at as image archives. Some are listed only to be refused with a remedy.
const ENDINGS: [&str; 8] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.xz", ".txz", ".tar.bz2"];
/// So many bytes tell what something is packed in.
pub const MAGIC_BYTES: u64 = 6;
const GZIP: &[u8] = &[0x1f, 0x8b];
pub const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// What else people pack archives with: how it begins, its name, and what unpacks it.
const OTHERS: [(&[u8], &str, &str); 3] = [
    (ZSTD, "zstd", "unpack it first (zstd -d)"),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz", "unpack it first (xz -d)"),
    (b"BZh", "bzip2", "unpack it first (bzip2 -d)"),
];

/// True when the file's name says that it is an image archive.
pub fn is_archive(name: &str) -> bool {
    ENDINGS.iter().any(|ending| name.len() > ending.len() && name.ends_with(ending))
}

pub fn is_gzip(bytes: &[u8]) -> bool {
    bytes.starts_with(GZIP)
}

/// What an archive is packed in that is not read here, and the remedy.
pub fn foreign(bytes: &[u8]) -> Option<(&'static str, &'static str)> {
    OTHERS.iter().find(|(magic, ..)| bytes.starts_with(magic)).map(|(_, name, remedy)| (*name, *remedy))
}

pub enum Source<F> {
    Plain(F),
    Gzip {
        /// `None` only while it is begun anew.
        decoder: Option<MultiGzDecoder<F>>,
        at: u64,
    },
}

impl<F: Read + Seek> Source<F> {
    /// With the first bytes of the file, for whoever asks what it is.
    pub fn open(mut file: F) -> Result<(Source<F>, Vec<u8>)> {
        let mut first = Vec::new();
        file.by_ref().take(MAGIC_BYTES).read_to_end(&mut first)?;
        file.rewind()?;
        let source = match is_gzip(&first) {
            true => Source::Gzip { decoder: Some(MultiGzDecoder::new(file)), at: 0 },
            false => Source::Plain(file),
        };
        Ok((source, first))
    }

    pub fn is_packed(&self) -> bool {
        matches!(self, Source::Gzip { .. })
    }
}

impl<F: Read> Read for Source<F> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        match self {
            Source::Plain(file) => file.read(buffer),
            Source::Gzip { decoder, at } => {
                let read = decoder.as_mut().map_or(Ok(0), |decoder| decoder.read(buffer))?;
                *at += read as u64;
                if *at > ARCHIVE_UNPACKED_BYTES_MAX {
                    let text = format!("it unpacks to more than {ARCHIVE_UNPACKED_BYTES_MAX} bytes");
                    return Err(Error::new(ErrorKind::InvalidData, text));
                }
                Ok(read)
            }
        }
    }
}

impl<F: Read + Seek> Seek for Source<F> {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        let target = match (&*self, to) {
            (Source::Gzip { .. }, SeekFrom::Start(target)) => target,
            (Source::Gzip { at, .. }, SeekFrom::Current(by)) => {
                at.checked_add_signed(by).ok_or(ErrorKind::InvalidInput)?
            }
            // How long it is shows only at its end.
            (Source::Gzip { .. }, SeekFrom::End(_)) => return Err(ErrorKind::Unsupported.into()),
            (Source::Plain(_), to) => {
                let Source::Plain(file) = self else { return Err(ErrorKind::Unsupported.into()) };
                return file.seek(to);
            }
        };
        self.go(target)
    }
}

impl<F: Read + Seek> Source<F> {
    /// In a packed archive.
    fn go(&mut self, target: u64) -> Result<u64> {
        if let Source::Gzip { decoder, at } = self
            && target < *at
            && let Some(old) = decoder.take()
        {
            let mut file = old.into_inner();
            file.rewind()?;
            (*decoder, *at) = (Some(MultiGzDecoder::new(file)), 0);
        }
        let mut skipped = vec![0; CONTENT_CHUNK_BYTES];
        loop {
            let Source::Gzip { at, .. } = self else { return Err(ErrorKind::Unsupported.into()) };
            let left = target - *at;
            if left == 0 {
                return Ok(target);
            }
            let part = left.min(skipped.len() as u64) as usize;
            if self.read(&mut skipped[..part])? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
