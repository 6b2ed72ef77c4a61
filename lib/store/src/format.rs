//! The bytes on the disk: file header, frames, bodies. Described in docs/disk.md.

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::{Record, Upstream, limits::FRAME_LEN_MAX};

pub(crate) const VERSION: u32 = 1;

/// CRC-32 of the block `format` in docs/disk.md. Changing the format means changing both, [`VERSION`] and the sample in
/// tests/vectors; samples of released versions stay.
#[cfg(test)]
pub(crate) const FORMAT_HASH: u32 = 0x7e9c_cab3;

pub(crate) const FILE_MAGIC: [u8; 8] = *b"KINGLOG\n";
pub(crate) const FILE_HEADER_LEN: usize = 64;
const FRAME_MAGIC: [u8; 4] = [0xF7, b'K', b'L', 0x1A];
pub(crate) const FRAME_HEADER_LEN: usize = 28;

/// Who the log is. The salt is new with every rewrite and goes into every checksum, so that a frame of another file, or one
/// inside a stored value, is never taken for one of this file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub epoch: [u8; 16],
    pub salt: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderError {
    Magic,
    Version(u32),
    Checksum,
}

pub(crate) fn encode_file_header(identity: &Identity) -> [u8; FILE_HEADER_LEN] {
    let mut header = [0; FILE_HEADER_LEN];
    header[..8].copy_from_slice(&FILE_MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..32].copy_from_slice(&identity.epoch);
    header[32..40].copy_from_slice(&identity.salt.to_le_bytes());
    let crc = crc32fast::hash(&header[..60]);
    header[60..].copy_from_slice(&crc.to_le_bytes());
    header
}

pub(crate) fn decode_file_header(header: &[u8; FILE_HEADER_LEN]) -> Result<Identity, HeaderError> {
    if header[..8] != FILE_MAGIC {
        return Err(HeaderError::Magic);
    }
    if u32_at(header, 60) != crc32fast::hash(&header[..60]) {
        return Err(HeaderError::Checksum);
    }
    match u32_at(header, 8) {
        VERSION => {
            let mut epoch = [0; 16];
            epoch.copy_from_slice(&header[16..32]);
            Ok(Identity { epoch, salt: u64_at(header, 32) })
        }
        version => Err(HeaderError::Version(version)),
    }
}

/// What precedes each body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub len: usize,
    /// Counts the frames of the file.
    pub seq: u64,
    /// The file was durable up to this offset when the frame was written: what tells a torn tail from damage.
    pub synced: u64,
    pub crc: u32,
}

impl FrameHeader {
    /// None: not a frame, or of a length that is never written.
    pub fn decode(bytes: &[u8]) -> Option<FrameHeader> {
        if bytes.len() < FRAME_HEADER_LEN || bytes[..4] != FRAME_MAGIC {
            return None;
        }
        let len = u32_at(bytes, 4) as usize;
        let header =
            FrameHeader { len, seq: u64_at(bytes, 8), synced: u64_at(bytes, 16), crc: u32_at(bytes, 24) };
        (len <= FRAME_LEN_MAX).then_some(header)
    }

    pub fn matches(&self, salt: u64, body: &[u8]) -> bool {
        self.crc == checksum(salt, self.seq, self.synced, body)
    }
}

fn checksum(salt: u64, seq: u64, synced: u64, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(&(body.len() as u32).to_le_bytes());
    hasher.update(&seq.to_le_bytes());
    hasher.update(&synced.to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}

/// Appends a frame to `out`. The caller has bounded the body (`plan`).
pub(crate) fn encode_frame(out: &mut Vec<u8>, salt: u64, seq: u64, synced: u64, body: &Body<'_>) {
    let start = out.len();
    out.resize(start + FRAME_HEADER_LEN, 0);
    let taken = std::mem::take(out);
    *out = postcard::to_extend(body, taken).expect("bodies are plain data and a Vec takes any length");
    fill_frame_header(out, start, salt, seq, synced);
}

#[cfg(test)]
pub(crate) fn encode_raw_frame(out: &mut Vec<u8>, salt: u64, seq: u64, synced: u64, body: &[u8]) {
    let start = out.len();
    out.resize(start + FRAME_HEADER_LEN, 0);
    out.extend_from_slice(body);
    fill_frame_header(out, start, salt, seq, synced);
}

fn fill_frame_header(out: &mut [u8], start: usize, salt: u64, seq: u64, synced: u64) {
    let len = out.len() - start - FRAME_HEADER_LEN;
    let crc = checksum(salt, seq, synced, &out[start + FRAME_HEADER_LEN..]);
    let header = &mut out[start..start + FRAME_HEADER_LEN];
    header[..4].copy_from_slice(&FRAME_MAGIC);
    header[4..8].copy_from_slice(&(len as u32).to_le_bytes());
    header[8..16].copy_from_slice(&seq.to_le_bytes());
    header[16..24].copy_from_slice(&synced.to_le_bytes());
    header[24..].copy_from_slice(&crc.to_le_bytes());
}

/// postcard; the order of variants and fields is the format.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Body<'a> {
    /// The store is at `revision`; numbers up to `limit` may be in use without being in the log. The first mark of a file
    /// ends its checkpoint; a later one with a higher revision than the log leaves a gap that no watch may resume in.
    Mark { revision: u64, limit: u64 },
    /// Operation i has revision `first + i`.
    Commit {
        first: u64,
        #[serde(borrow)]
        ops: Vec<DiskOp<'a>>,
    },
    /// Live objects, only before the first mark.
    Base {
        #[serde(borrow)]
        records: Vec<DiskRecord<'a>>,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum DiskOp<'a> {
    Put(#[serde(borrow)] DiskRecord<'a>),
    Delete { kind: &'a str, namespace: &'a str, name: &'a str },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DiskRecord<'a> {
    pub kind: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    pub uid: &'a str,
    pub revision: u64,
    #[serde(borrow)]
    pub upstream: Option<DiskUpstream<'a>>,
    pub key_id: u8,
    #[serde(serialize_with = "as_bytes")]
    pub value: &'a [u8],
}

/// The same bytes as serde's default, but not written one at a time.
fn as_bytes<S: serde::Serializer>(value: &&[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(value)
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DiskUpstream<'a> {
    pub id: &'a str,
    pub uid: &'a str,
    pub resource_version: &'a str,
}

pub(crate) fn decode_body(bytes: &[u8]) -> Option<Body<'_>> {
    match postcard::take_from_bytes(bytes) {
        Ok((body, [])) => Some(body),
        _ => None,
    }
}

impl<'a> From<&'a Record> for DiskRecord<'a> {
    fn from(record: &'a Record) -> DiskRecord<'a> {
        DiskRecord {
            kind: &record.key.kind,
            namespace: &record.key.namespace,
            name: &record.key.name,
            uid: &record.uid,
            revision: record.revision,
            upstream: record.upstream.as_ref().map(DiskUpstream::from),
            key_id: record.key_id,
            value: &record.value,
        }
    }
}

impl<'a> From<&'a Upstream> for DiskUpstream<'a> {
    fn from(upstream: &'a Upstream) -> DiskUpstream<'a> {
        DiskUpstream { id: &upstream.id, uid: &upstream.uid, resource_version: &upstream.resource_version }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Fuzz entry: a log of any bytes opens or is refused, without panic and without allocating more than it is long.
pub fn fuzz_log(data: &[u8]) {
    let disk = crate::sim::SimDisk::with_file(crate::replay::LOG, data);
    let _ = crate::engine::Engine::open(Box::new(disk), crate::Options::default());
}
