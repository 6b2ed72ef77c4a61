//! Reads a log back into memory and decides where it ends: an unfinished tail is cut, damage before it is refused.

use std::{
    collections::{BTreeMap, HashSet},
    fmt, io,
    path::PathBuf,
    sync::Arc,
};

use bytes::Bytes;

use crate::{
    Backend, Event, EventKind, Key, OpenError, Record, Upstream,
    format::{
        Body, DiskOp, DiskRecord, FILE_HEADER_LEN, FRAME_HEADER_LEN, FrameHeader, HeaderError, Identity,
        VERSION, decode_body, decode_file_header,
    },
    limits::CHUNK_LEN,
    memory::Memory,
};

pub(crate) const LOG: &str = "store.log";

/// What was found when the store was opened.
#[derive(Clone, Debug, Default)]
pub struct Recovery {
    /// The store had been closed, or was new: nothing can have been lost.
    pub clean: bool,
    /// Revision numbers left out, because they may have been seen before an unclean stop.
    pub skipped: u64,
    pub damage: Option<Damage>,
}

/// An unfinished or damaged end of the log. It was cut off; nothing in it had been acknowledged as durable.
#[derive(Clone, Debug)]
pub struct Damage {
    pub file: PathBuf,
    pub offset: u64,
    pub len: u64,
    /// Where the bytes are kept. None: they were all zero, or could not be saved.
    pub saved_as: Option<PathBuf>,
}

impl fmt::Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.damage, self.clean) {
            (Some(Damage { file, offset, len, saved_as }), _) => {
                write!(
                    f,
                    "{} had an unfinished end: {len} bytes from byte {offset} were cut off",
                    file.display()
                )?;
                if let Some(path) = saved_as {
                    write!(f, " and kept as {}", path.display())?;
                }
                write!(f, "; nothing that had been acknowledged is lost; if it happens again, check the disk")
            }
            (None, true) => write!(f, "the store was closed cleanly"),
            (None, false) => {
                write!(f, "the store was not closed cleanly; {} revisions are left out", self.skipped)
            }
        }
    }
}

pub(crate) struct Replayed {
    pub memory: Memory,
    pub identity: Identity,
    /// Of the next frame.
    pub seq: u64,
    /// End of the last good frame.
    pub len: u64,
    pub limit: u64,
    /// Bytes after `len`.
    pub torn_len: u64,
}

pub(crate) fn replay(
    backend: &mut dyn Backend,
    size: u64,
    history_len_max: usize,
) -> Result<Replayed, OpenError> {
    let file = backend.dir().join(LOG);
    let damaged = |offset, what| OpenError::Damaged { file: file.clone(), offset, what };
    let failed = |source| OpenError::Io { action: "read", file: file.clone(), source };
    let mut reader = Reader { backend, size, buf: Vec::new(), start: 0 };

    // The file came to its name complete and synced, so a short or wrong header is never a torn write.
    let header = reader.bytes(0, FILE_HEADER_LEN).map_err(failed)?;
    let header = header.ok_or_else(|| damaged(0, "shorter than the header"))?;
    let identity =
        decode_file_header(header.try_into().expect("as long as asked for")).map_err(
            |error| match error {
                HeaderError::Magic => OpenError::NotALog { file: file.clone() },
                HeaderError::Checksum => damaged(0, "checksum of the header"),
                HeaderError::Version(found) => {
                    OpenError::Version { file: file.clone(), found, supported: VERSION }
                }
            },
        )?;

    let mut loader = Loader { history_len_max, ..Loader::default() };
    let (mut offset, mut seq) = (FILE_HEADER_LEN as u64, 0);
    while offset < size {
        let Some(frame) =
            reader.frame(offset, identity.salt).map_err(failed)?.filter(|frame| frame.seq == seq)
        else {
            break;
        };
        let body =
            reader.bytes(offset + FRAME_HEADER_LEN as u64, frame.len).map_err(failed)?.unwrap_or_default();
        let body = decode_body(body).ok_or_else(|| damaged(offset, "unknown content"))?;
        loader.take(body).map_err(|what| damaged(offset, what))?;
        offset += (FRAME_HEADER_LEN + frame.len) as u64;
        seq += 1;
    }
    let Some(memory) = loader.memory else { return Err(damaged(offset, "the checkpoint is not complete")) };
    if reader.synced_after(offset, seq, identity.salt).map_err(failed)? {
        return Err(damaged(offset, "checksum"));
    }
    Ok(Replayed {
        limit: loader.limit.max(memory.revision()),
        memory,
        identity,
        seq,
        len: offset,
        torn_len: size - offset,
    })
}

/// Reads ahead in pieces.
struct Reader<'a> {
    backend: &'a mut dyn Backend,
    size: u64,
    buf: Vec<u8>,
    start: u64,
}

impl Reader<'_> {
    /// None: the file ends before.
    fn bytes(&mut self, offset: u64, len: usize) -> io::Result<Option<&[u8]>> {
        let end = offset + len as u64;
        if end > self.size {
            return Ok(None);
        }
        if offset < self.start || end > self.start + self.buf.len() as u64 {
            let wanted = len.max(CHUNK_LEN).min((self.size - offset) as usize);
            self.buf.clear();
            self.buf.resize(wanted, 0);
            self.start = offset;
            self.backend.read_at(LOG, offset, &mut self.buf)?;
        }
        let at = (offset - self.start) as usize;
        Ok(Some(&self.buf[at..at + len]))
    }

    /// The header of a complete and unharmed frame.
    fn frame(&mut self, offset: u64, salt: u64) -> io::Result<Option<FrameHeader>> {
        let Some(header) = self.bytes(offset, FRAME_HEADER_LEN)?.and_then(FrameHeader::decode) else {
            return Ok(None);
        };
        let body = self.bytes(offset + FRAME_HEADER_LEN as u64, header.len)?;
        Ok(body.filter(|body| header.matches(salt, body)).map(|_| header))
    }

    /// Whether a good frame after `offset` says that the file had been durable beyond it: then this is no torn tail. A good
    /// frame alone proves nothing, because a disk may write later blocks first.
    fn synced_after(&mut self, offset: u64, seq: u64, salt: u64) -> io::Result<bool> {
        for at in offset + 1..self.size.saturating_sub(FRAME_HEADER_LEN as u64) {
            let header = self.bytes(at, FRAME_HEADER_LEN)?.and_then(FrameHeader::decode);
            let proves =
                |header: FrameHeader| header.seq > seq && header.synced > offset && header.synced <= at;
            if header.is_some_and(proves) && self.frame(at, salt)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

#[derive(Default)]
struct Loader {
    history_len_max: usize,
    base: BTreeMap<Key, Arc<Record>>,
    memory: Option<Memory>,
    limit: u64,
    /// Kinds, namespaces and clouds: few texts in many records.
    texts: HashSet<Arc<str>>,
}

impl Loader {
    fn take(&mut self, body: Body<'_>) -> Result<(), &'static str> {
        match (body, self.memory.take()) {
            (Body::Base { records }, None) => {
                for record in records {
                    let record = self.record(record);
                    self.base.insert(record.key.clone(), Arc::new(record));
                }
            }
            (Body::Mark { revision, limit }, None) => {
                self.memory =
                    Some(Memory::new(revision, std::mem::take(&mut self.base), self.history_len_max));
                self.limit = limit;
            }
            (Body::Mark { revision, limit }, Some(mut memory))
                if revision >= memory.revision() && limit >= revision =>
            {
                memory.jump(revision);
                self.limit = limit;
                self.memory = Some(memory);
            }
            (Body::Commit { first, ops }, Some(mut memory)) if first == memory.revision() + 1 => {
                for (revision, op) in (first..).zip(ops) {
                    let event = self.event(&memory, revision, op)?;
                    memory.apply(Arc::new(event));
                }
                self.memory = Some(memory);
            }
            _ => return Err("content out of order"),
        }
        Ok(())
    }

    fn event(&mut self, memory: &Memory, revision: u64, op: DiskOp<'_>) -> Result<Event, &'static str> {
        match op {
            DiskOp::Put(record) => {
                let record = Record { revision, ..self.record(record) };
                let previous = memory.get(&record.key).cloned();
                Ok(Event { kind: EventKind::Put, revision, record: Arc::new(record), previous })
            }
            DiskOp::Delete { kind, namespace, name } => {
                let previous = memory.get(&self.key(kind, namespace, name)).cloned();
                let previous = previous.ok_or("deletion of an object that does not exist")?;
                let record = Arc::new(Record { revision, ..Record::clone(&previous) });
                Ok(Event { kind: EventKind::Delete, revision, record, previous: Some(previous) })
            }
        }
    }

    fn record(&mut self, record: DiskRecord<'_>) -> Record {
        let uid: Arc<str> = record.uid.into();
        let upstream = record.upstream.map(|upstream| Upstream {
            id: self.text(upstream.id),
            uid: if upstream.uid == record.uid { uid.clone() } else { upstream.uid.into() },
            resource_version: upstream.resource_version.into(),
        });
        Record {
            key: self.key(record.kind, record.namespace, record.name),
            uid,
            revision: record.revision,
            upstream,
            key_id: record.key_id,
            value: Bytes::copy_from_slice(record.value),
        }
    }

    fn key(&mut self, kind: &str, namespace: &str, name: &str) -> Key {
        Key { kind: self.text(kind), namespace: self.text(namespace), name: name.into() }
    }

    fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(text) = self.texts.get(text) {
            return text.clone();
        }
        let text: Arc<str> = text.into();
        self.texts.insert(text.clone());
        text
    }
}
