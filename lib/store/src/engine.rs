//! The writer: one group of commits at a time is decided, written, synced if asked for, then shown and answered.
//!
//! A plain value over a [`Backend`]; the thread around it is in `store`.

use std::{io, path::PathBuf, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::{
    Backend, CommitError, Committed, Durability, Event, Op, OpenError, Options, Recovery,
    checkpoint::{NEW, write_checkpoint},
    format::{Body, Identity, encode_frame},
    limits::{CHUNK_LEN, DAMAGED_FILES_MAX},
    memory::Memory,
    plan::{Plan, disk_op},
    replay::{Damage, LOG, replay},
    watch::{Counters, Shared},
};

#[cfg(test)]
mod crash;
#[cfg(test)]
mod tests;

const DAMAGED_SUFFIX: &str = ".damaged";

pub(crate) struct Request {
    pub ops: Vec<Op>,
    pub durability: Durability,
    pub reply: oneshot::Sender<Result<Committed, CommitError>>,
    /// The place in the queue, given back with the answer.
    pub permit: Option<OwnedSemaphorePermit>,
}

impl Request {
    fn answer(self, result: Result<Committed, CommitError>) {
        // Who does not wait for the answer any more does not need it.
        let _ = self.reply.send(result);
    }
}

pub(crate) struct Engine {
    backend: Box<dyn Backend>,
    shared: Arc<Shared>,
    identity: Identity,
    /// Of the next frame.
    seq: u64,
    len: u64,
    synced: u64,
    /// Revisions up to here may be shown.
    limit: u64,
    /// The file cannot be appended to (its state is unknown); it has to be rewritten from memory first.
    broken: bool,
    rewrite_at: u64,
    options: Options,
}

type Decided = (Request, Result<Vec<Arc<Event>>, CommitError>);

/// A group that was decided, but not written yet.
#[derive(Default)]
struct Group {
    answers: Vec<Decided>,
    bytes: Vec<u8>,
    seq: u64,
    limit: u64,
    sync: bool,
}

impl Engine {
    pub fn open(mut backend: Box<dyn Backend>, options: Options) -> Result<(Engine, Recovery), OpenError> {
        let dir = backend.dir();
        let failed = |action, name: &str| {
            let file = dir.join(name);
            move |source| OpenError::Io { action, file, source }
        };
        if backend.len(NEW).map_err(failed("look for", NEW))?.is_some() {
            backend.remove(NEW).map_err(failed("remove", NEW))?;
        }
        let Some(size) = backend.len(LOG).map_err(failed("look for", LOG))? else {
            let identity = Identity { epoch: *uuid::Uuid::new_v4().as_bytes(), salt: 0 };
            let memory = Memory::new(1, Default::default(), options.history_len_max);
            let mut engine = Engine::new(backend, memory, identity, options);
            engine.write_new().map_err(|(action, source)| failed(action, LOG)(source))?;
            return Ok((engine, Recovery { clean: true, ..Recovery::default() }));
        };
        let replayed = replay(&mut *backend, size, options.history_len_max)?;
        let mut engine = Engine::new(backend, replayed.memory, replayed.identity, options);
        (engine.seq, engine.len, engine.limit) = (replayed.seq, replayed.len, replayed.limit);
        let recovery =
            engine.recover(replayed.torn_len).map_err(|(action, source)| failed(action, LOG)(source))?;
        Ok((engine, recovery))
    }

    fn new(backend: Box<dyn Backend>, memory: Memory, identity: Identity, options: Options) -> Engine {
        let limit = memory.revision();
        let rewrite_at = options.rewrite_len_min.max(2 * memory.live_len());
        let shared = Arc::new(Shared::new(memory));
        Engine {
            backend,
            shared,
            identity,
            seq: 0,
            len: 0,
            synced: 0,
            limit,
            broken: false,
            rewrite_at,
            options,
        }
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub fn epoch(&self) -> String {
        uuid::Uuid::from_bytes(self.identity.epoch).to_string()
    }

    /// Whether something was shown that a power cut could still take back.
    pub fn dirty(&self) -> bool {
        self.broken || self.len > self.synced
    }

    /// Cuts a torn tail off and goes past the reserved revisions. Afterwards the log is durable as it was read.
    fn recover(&mut self, torn_len: u64) -> Result<Recovery, (&'static str, io::Error)> {
        let revision = self.shared.memory().revision();
        let clean = torn_len == 0 && self.limit == revision;
        let mut recovery = Recovery { clean, ..Recovery::default() };
        if torn_len > 0 {
            recovery.damage = Some(self.cut(torn_len)?);
            // The torn part can have held a newer mark: not more revisions than it had bytes, and a block beyond.
            self.limit += torn_len + self.options.revision_block;
        }
        if !clean {
            recovery.skipped = self.limit - revision;
            self.shared.memory_mut().jump(self.limit + 1);
            self.shared.publish();
            self.limit += 1;
            match self.append_mark() {
                Ok(()) => {}
                // A full disk must not keep the node from starting: it is readable, and the first commit tries again.
                Err(error) if is_full(&error) => self.broken = true,
                Err(error) => return Err(("write", error)),
            }
        }
        // What a killed process left in the page cache was read above and is shown from now on.
        self.backend.sync(LOG).map_err(|error| ("sync", error))?;
        self.backend.sync_dir().map_err(|error| ("sync the folder of", error))?;
        self.synced = self.len;
        Ok(recovery)
    }

    /// Saves the bytes after the last good frame beside the log, then cuts them off.
    fn cut(&mut self, torn_len: u64) -> Result<Damage, (&'static str, io::Error)> {
        let saved_as = match self.save_tail(torn_len) {
            Ok(saved_as) => saved_as,
            Err(error) => {
                tracing::error!(%error, "the damaged end of the log could not be saved");
                None
            }
        };
        self.backend.set_len(LOG, self.len).map_err(|error| ("cut the damaged end off", error))?;
        Ok(Damage { file: self.backend.dir().join(LOG), offset: self.len, len: torn_len, saved_as })
    }

    fn save_tail(&mut self, torn_len: u64) -> io::Result<Option<PathBuf>> {
        let number =
            |name: &str| name.strip_prefix("store-")?.strip_suffix(DAMAGED_SUFFIX)?.parse::<u64>().ok();
        let mut numbers: Vec<u64> = self.backend.names()?.iter().filter_map(|name| number(name)).collect();
        numbers.sort_unstable();
        let name = |number| format!("store-{number}{DAMAGED_SUFFIX}");
        let saved = name(numbers.last().map_or(1, |last| last + 1));
        let (mut zero, mut done) = (true, 0);
        while done < torn_len {
            let mut piece = vec![0; CHUNK_LEN.min((torn_len - done) as usize)];
            self.backend.read_at(LOG, self.len + done, &mut piece)?;
            if zero && piece.iter().any(|byte| *byte != 0) {
                zero = false;
                self.backend.create(&saved)?;
            }
            if !zero {
                self.backend.write_at(&saved, done, &piece)?;
            }
            done += piece.len() as u64;
        }
        if zero {
            return Ok(None);
        }
        self.backend.sync(&saved)?;
        self.backend.sync_dir()?;
        let excess = (numbers.len() + 1).saturating_sub(DAMAGED_FILES_MAX);
        for old in numbers.into_iter().take(excess) {
            self.backend.remove(&name(old))?;
        }
        Ok(Some(self.backend.dir().join(saved)))
    }

    fn append_mark(&mut self) -> io::Result<()> {
        let mark = Body::Mark { revision: self.shared.memory().revision(), limit: self.limit };
        let mut bytes = Vec::new();
        encode_frame(&mut bytes, self.identity.salt, self.seq, self.synced, &mark);
        self.append(&bytes)?;
        self.seq += 1;
        Ok(())
    }

    /// Decides, writes, shows and answers one group. An empty request that is `Sync` makes everything durable.
    pub fn run(&mut self, batch: Vec<Request>) {
        if self.broken
            && let Err(error) = self.rewrite()
        {
            return batch.into_iter().for_each(|request| request.answer(Err(error.clone())));
        }
        let group = self.decide(batch);
        match self.write(&group) {
            Ok(()) => self.show(group.answers),
            // Also those that were refused: the reason may have been a change that did not happen now.
            Err(error) => {
                group.answers.into_iter().for_each(|(request, _)| request.answer(Err(error.clone())))
            }
        }
        if self.len >= self.rewrite_at
            && let Err(error) = self.rewrite()
        {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the log could not be rewritten and keeps growing"
            );
            self.rewrite_at = self.len + self.len / 4;
        }
    }

    fn decide(&self, batch: Vec<Request>) -> Group {
        let memory = self.shared.memory();
        let mut plan = Plan::new(&memory);
        let mut group = Group { limit: self.limit, seq: self.seq, ..Group::default() };
        for mut request in batch {
            let result = plan.stage(std::mem::take(&mut request.ops));
            group.sync |= request.durability == Durability::Sync && result.is_ok();
            group.answers.push((request, result));
        }
        let mut put = |body: &Body<'_>| {
            encode_frame(&mut group.bytes, self.identity.salt, group.seq, self.synced, body);
            group.seq += 1;
        };
        if plan.revision > self.limit {
            // Nobody may see a number that a power cut could make free again.
            group.limit = plan.revision + self.options.revision_block;
            group.sync = true;
            put(&Body::Mark { revision: memory.revision(), limit: group.limit });
        }
        for (_, result) in &group.answers {
            if let Ok(events) = result
                && let Some(first) = events.first()
            {
                let ops = events.iter().map(|event| disk_op(event)).collect();
                put(&Body::Commit { first: first.revision, ops });
            }
        }
        group
    }

    fn write(&mut self, group: &Group) -> Result<(), CommitError> {
        if !group.bytes.is_empty()
            && let Err(error) = self.append(&group.bytes)
        {
            return Err(self.error("write", error));
        }
        if group.sync {
            self.sync()?;
        }
        (self.seq, self.limit) = (group.seq, group.limit);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.backend.write_at(LOG, self.len, bytes) {
            // A part may be there; the next frame has to follow the last good one, also after a power cut.
            let cut = self.backend.set_len(LOG, self.len).and_then(|()| self.backend.sync(LOG));
            self.broken = cut.is_err();
            return Err(error);
        }
        self.len += bytes.len() as u64;
        Counters::add(&self.shared.counters.bytes_written, bytes.len() as u64);
        self.count_len();
        Ok(())
    }

    /// Makes durable what was shown.
    pub fn sync(&mut self) -> Result<(), CommitError> {
        if self.broken {
            return self.rewrite();
        }
        if !self.dirty() {
            return Ok(());
        }
        if let Err(error) = self.backend.sync(LOG) {
            // The kernel may have dropped the pages and call the next sync a success, so this file is not trusted again.
            self.broken = true;
            return Err(self.error("sync", error));
        }
        self.synced = self.len;
        Counters::add(&self.shared.counters.syncs, 1);
        Ok(())
    }

    fn show(&mut self, answers: Vec<Decided>) {
        let mut memory = self.shared.memory_mut();
        for (_, result) in &answers {
            for event in result.iter().flatten() {
                memory.apply(event.clone());
            }
        }
        let now = memory.revision();
        drop(memory);
        self.shared.publish();
        Counters::add(&self.shared.counters.commits, answers.len() as u64);
        for (request, result) in answers {
            request.answer(result.map(|events| Committed {
                revision: events.last().map_or(now, |event| event.revision),
                records: events.into_iter().map(|event| event.record.clone()).collect(),
            }));
        }
    }

    /// Marks a clean stop: everything is durable and no number is in use that is not in the log.
    pub fn close(&mut self) -> Result<(), CommitError> {
        let revision = self.shared.memory().revision();
        if self.limit == revision && !self.dirty() && !self.broken {
            return Ok(());
        }
        self.limit = revision;
        if self.broken {
            return self.rewrite();
        }
        self.append_mark().map_err(|error| self.error("write", error))?;
        self.sync()
    }

    /// A new log with only what is live and the history; it replaces the old one atomically.
    fn rewrite(&mut self) -> Result<(), CommitError> {
        self.write_new().map_err(|(action, error)| self.error(action, error))
    }

    fn write_new(&mut self) -> Result<(), (&'static str, io::Error)> {
        let identity = Identity { salt: uuid::Uuid::new_v4().as_u64_pair().0, ..self.identity.clone() };
        let shared = self.shared.clone();
        let written = write_checkpoint(&mut *self.backend, &shared.memory(), &identity, self.limit);
        let (len, seq) = match written {
            Ok(written) => written,
            Err(error) => {
                let _ = self.backend.remove(NEW);
                return Err(("rewrite", error));
            }
        };
        // From here on it is not known which of the two files has the name after a power cut, until the folder is synced.
        self.broken = true;
        self.backend.rename(NEW, LOG).map_err(|error| ("replace", error))?;
        self.backend.sync_dir().map_err(|error| ("sync the folder of", error))?;
        self.broken = false;
        (self.identity, self.seq, self.len, self.synced) = (identity, seq, len, len);
        self.rewrite_at = self.options.rewrite_len_min.max(2 * len);
        Counters::add(&self.shared.counters.bytes_written, len);
        Counters::add(&self.shared.counters.syncs, 1);
        Counters::add(&self.shared.counters.rewrites, 1);
        self.count_len();
        Ok(())
    }

    fn count_len(&self) {
        self.shared.counters.log_len.store(self.len, std::sync::atomic::Ordering::Relaxed);
    }

    fn error(&self, action: &'static str, error: io::Error) -> CommitError {
        let dir = self.backend.dir();
        match is_full(&error) {
            true => CommitError::Full { dir },
            false => CommitError::Io { action, dir, source: Arc::new(error) },
        }
    }
}

pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
