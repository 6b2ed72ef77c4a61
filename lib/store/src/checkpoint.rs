//! Writes the whole state as the beginning of a new log: the objects at the start of the history, then the history.

use std::io;

use crate::{
    Backend,
    format::{Body, DiskOp, DiskRecord, Identity, encode_file_header, encode_frame},
    limits::CHUNK_LEN,
    memory::Memory,
    plan::disk_op,
};

/// Replaces the log by renaming when it is complete and synced.
pub(crate) const NEW: &str = "store.log.new";

/// Writes the whole state to the new file and syncs it. Returns its length and the next frame's number.
pub(crate) fn write_checkpoint(
    backend: &mut dyn Backend,
    memory: &Memory,
    identity: &Identity,
    limit: u64,
) -> io::Result<(u64, u64)> {
    backend.create(NEW)?;
    let mut out = Checkpoint {
        backend,
        salt: identity.salt,
        buf: encode_file_header(identity).to_vec(),
        len: 0,
        seq: 0,
    };
    let (mut records, mut records_len) = (Vec::new(), 0);
    for record in memory.base().into_values() {
        records_len += record.value.len();
        records.push(DiskRecord::from(&**record));
        if records_len >= CHUNK_LEN {
            records_len = 0;
            out.put(&Body::Base { records: std::mem::take(&mut records) })?;
        }
    }
    if !records.is_empty() {
        out.put(&Body::Base { records })?;
    }
    let mut revision = memory.floor();
    out.put(&Body::Mark { revision, limit: revision })?;

    let mut ops: Vec<DiskOp<'_>> = Vec::new();
    let (mut first, mut ops_len) = (revision + 1, 0);
    for event in memory.events_after(revision) {
        let gap = event.revision != revision + 1;
        if (gap || ops_len >= CHUNK_LEN) && !ops.is_empty() {
            out.put(&Body::Commit { first, ops: std::mem::take(&mut ops) })?;
        }
        if gap {
            out.put(&Body::Mark { revision: event.revision - 1, limit: event.revision - 1 })?;
        }
        if ops.is_empty() {
            (first, ops_len) = (event.revision, 0);
        }
        ops_len += event.record.value.len();
        ops.push(disk_op(event));
        revision = event.revision;
    }
    if !ops.is_empty() {
        out.put(&Body::Commit { first, ops })?;
    }
    out.put(&Body::Mark { revision: memory.revision(), limit })?;
    out.flush()?;
    let (len, seq) = (out.len, out.seq);
    backend.sync(NEW)?;
    Ok((len, seq))
}

struct Checkpoint<'a> {
    backend: &'a mut dyn Backend,
    salt: u64,
    buf: Vec<u8>,
    len: u64,
    seq: u64,
}

impl Checkpoint<'_> {
    fn put(&mut self, body: &Body<'_>) -> io::Result<()> {
        encode_frame(&mut self.buf, self.salt, self.seq, 0, body);
        self.seq += 1;
        match self.buf.len() >= CHUNK_LEN {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.backend.write_at(NEW, self.len, &self.buf)?;
        self.len += self.buf.len() as u64;
        self.buf.clear();
        Ok(())
    }
}
