//! The state that readers share with the writer, and the watch on it.

use std::sync::{
    Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::watch;

use crate::{Compacted, Event, memory::Memory};

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    pub revision: u64,
    pub closed: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub bytes_written: AtomicU64,
    pub syncs: AtomicU64,
    pub commits: AtomicU64,
    pub rewrites: AtomicU64,
    pub log_len: AtomicU64,
}

impl Counters {
    pub fn add(counter: &AtomicU64, value: u64) {
        counter.fetch_add(value, Ordering::Relaxed);
    }
}

pub(crate) struct Shared {
    memory: RwLock<Memory>,
    progress: watch::Sender<Progress>,
    pub counters: Counters,
}

impl Shared {
    pub fn new(memory: Memory) -> Shared {
        let progress = Progress { revision: memory.revision(), closed: false };
        let progress = watch::Sender::new(progress);
        Shared { memory: RwLock::new(memory), progress, counters: Counters::default() }
    }

    /// No code that could panic runs under the write lock, so a poisoned lock still guards a sound value.
    pub fn memory(&self) -> RwLockReadGuard<'_, Memory> {
        self.memory.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn memory_mut(&self) -> RwLockWriteGuard<'_, Memory> {
        self.memory.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the watches, after the memory was changed.
    pub fn publish(&self) {
        let revision = self.memory().revision();
        self.progress.send_modify(|progress| progress.revision = revision);
    }

    pub fn close(&self) {
        self.progress.send_modify(|progress| progress.closed = true);
    }

    pub fn subscribe(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }
}

/// Events in the order of their revisions, without gaps. It holds nothing back: a reader that is slower than the history is
/// long gets [`Compacted`].
pub struct Watch {
    shared: Arc<Shared>,
    progress: watch::Receiver<Progress>,
    kind: Option<Arc<str>>,
    position: u64,
}

impl Watch {
    pub(crate) fn new(shared: Arc<Shared>, kind: Option<&str>, after: u64) -> Result<Watch, Compacted> {
        let progress = shared.subscribe();
        shared.memory().resumable(after)?;
        Ok(Watch { shared, progress, kind: kind.map(Arc::from), position: after })
    }

    /// The revision up to which everything was handed out (or is of other kinds): what a bookmark says.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next event, or None if there is none yet.
    pub fn try_next(&mut self) -> Result<Option<Arc<Event>>, Compacted> {
        let memory = self.shared.memory();
        if self.position < memory.floor() {
            return Err(Compacted { oldest: memory.floor() });
        }
        let wanted =
            |event: &&Arc<Event>| self.kind.as_ref().is_none_or(|kind| *kind == event.record.key.kind);
        let event = memory.events_after(self.position).find(wanted).cloned();
        self.position = event.as_ref().map_or(memory.revision(), |event| event.revision);
        Ok(event)
    }

    /// Waits for the next event. None: the store was closed. Safe to drop at any time.
    pub async fn next(&mut self) -> Result<Option<Arc<Event>>, Compacted> {
        loop {
            let closed = self.progress.borrow_and_update().closed;
            if let Some(event) = self.try_next()? {
                return Ok(Some(event));
            }
            if closed || self.progress.changed().await.is_err() {
                return Ok(None);
            }
        }
    }
}
