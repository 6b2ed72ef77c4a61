//! The handle that programs use, and the writer thread behind it.

use std::{
    collections::VecDeque,
    future::Future,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::{
    Backend, CommitError, Compacted, Durability, FileBackend, Key, Op, OpenError, Record, Recovery, Snapshot,
    Value, Watch,
    engine::{Engine, Request},
    limits::{BATCH_LEN_MAX, HISTORY_LEN, QUEUE_LEN_MAX, REVISION_BLOCK, REWRITE_LEN_MIN},
    watch::Shared,
};

#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of recent events kept, in memory and in the log, for watches that resume.
    pub history_len_max: usize,
    /// A log below this size is not rewritten; above it, when it is twice as long as its live content.
    pub rewrite_len_min: u64,
    /// After this time lazy commits are durable.
    pub lazy_max: Duration,
    /// Revisions reserved at a time; an unclean stop leaves out at most so many.
    pub revision_block: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            history_len_max: HISTORY_LEN,
            rewrite_len_min: REWRITE_LEN_MIN,
            lazy_max: Duration::from_secs(60),
            revision_block: REVISION_BLOCK,
        }
    }
}

/// What a commit did.
#[derive(Clone, Debug)]
pub struct Committed {
    /// Of the last operation; the store's revision if nothing was to do.
    pub revision: u64,
    /// One for each operation; for a deletion the last state, with the deletion's revision. Deletions of what did not exist
    /// are left out.
    pub records: Vec<Arc<Record>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    pub revision: u64,
    /// A watch can resume after this revision or later.
    pub history_oldest: u64,
    pub records: usize,
    pub log_len: u64,
    /// Since the start, checkpoints included.
    pub bytes_written: u64,
    pub syncs: u64,
    pub commits: u64,
    pub rewrites: u64,
}

/// A handle; clones are cheap and mean the same store. When the last one is dropped the log is synced and marked clean.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
    permits: Arc<Semaphore>,
    epoch: String,
    recovery: Recovery,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Store {
    /// Opens the store in a folder, which is made if it is missing. Blocks while the log is read.
    pub fn open(dir: &Path, options: Options) -> Result<Store, OpenError> {
        Store::open_with(Box::new(FileBackend::open(dir)?), options)
    }

    pub fn open_with(backend: Box<dyn Backend>, options: Options) -> Result<Store, OpenError> {
        let dir = backend.dir();
        let lazy_max = options.lazy_max;
        let (engine, recovery) = Engine::open(backend, options)?;
        let (shared, epoch) = (engine.shared().clone(), engine.epoch());
        let queue = Arc::new(Queue::default());
        let writer = std::thread::Builder::new().name("store".to_owned()).spawn({
            let queue = queue.clone();
            move || write(engine, &queue, lazy_max)
        });
        let writer =
            writer.map_err(|source| OpenError::Io { action: "start the writer of", file: dir, source })?;
        let (permits, writer) = (Arc::new(Semaphore::new(QUEUE_LEN_MAX)), Mutex::new(Some(writer)));
        Ok(Store { inner: Arc::new(Inner { shared, queue, permits, epoch, recovery, writer }) })
    }

    pub fn get(&self, key: &Key) -> Option<Arc<Record>> {
        self.inner.shared.memory().get(key).cloned()
    }

    /// Objects of a kind, of one namespace or of all.
    pub fn list(&self, kind: &str, namespace: Option<&str>) -> Snapshot {
        self.inner.shared.memory().list(kind, namespace)
    }

    /// All operations or none. Each gets a revision of its own, in order. Preconditions are checked at the moment of applying;
    /// the change is visible to readers when it is as durable as asked, and then the future resolves. The commit happens also
    /// if the future is dropped, once it was accepted (at once, unless `QUEUE_LEN_MAX` commits wait: then when polled).
    pub fn commit(
        &self,
        ops: Vec<Op>,
        durability: Durability,
    ) -> impl Future<Output = Result<Committed, CommitError>> + Send + 'static {
        let (reply, answer) = oneshot::channel();
        let request = Request { ops, durability, reply, permit: None };
        let inner = self.inner.clone();
        let waiting = match inner.permits.clone().try_acquire_owned() {
            Ok(permit) => {
                inner.queue.push(request, permit);
                None
            }
            Err(_) => Some(request),
        };
        async move {
            if let Some(request) = waiting {
                let permit = inner.permits.clone().acquire_owned().await.map_err(|_| CommitError::Closed)?;
                inner.queue.push(request, permit);
            }
            answer.await.unwrap_or(Err(CommitError::Closed))
        }
    }

    /// Events after a revision: one that a list or an event gave, also before a restart.
    pub fn watch(&self, kind: Option<&str>, after: u64) -> Result<Watch, Compacted> {
        Watch::new(self.inner.shared.clone(), kind, after)
    }

    pub fn revision(&self) -> u64 {
        self.inner.shared.memory().revision()
    }

    /// A uuid made with the store: another one means another history.
    pub fn epoch(&self) -> &str {
        &self.inner.epoch
    }

    /// Makes everything shown so far durable.
    pub fn sync(&self) -> impl Future<Output = Result<(), CommitError>> + Send + 'static {
        let commit = self.commit(Vec::new(), Durability::Sync);
        async move { commit.await.map(|_| ()) }
    }

    /// Syncs, marks the log clean and ends the writer; watches end, later commits fail. Blocks for that one sync.
    pub fn close(&self) {
        self.inner.close();
    }

    /// What opening found.
    pub fn recovery(&self) -> &Recovery {
        &self.inner.recovery
    }

    pub fn stats(&self) -> Stats {
        let (memory, counters) = (self.inner.shared.memory(), &self.inner.shared.counters);
        Stats {
            revision: memory.revision(),
            history_oldest: memory.floor(),
            records: memory.records_count(),
            log_len: counters.log_len.load(Ordering::Relaxed),
            bytes_written: counters.bytes_written.load(Ordering::Relaxed),
            syncs: counters.syncs.load(Ordering::Relaxed),
            commits: counters.commits.load(Ordering::Relaxed),
            rewrites: counters.rewrites.load(Ordering::Relaxed),
        }
    }
}

impl Inner {
    fn close(&self) {
        self.queue.lock().closing = true;
        self.queue.changed.notify_one();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer
            && writer.thread().id() != std::thread::current().id()
        {
            // A panic of the writer was reported when it happened; waiting commits got `Closed`.
            let _ = writer.join();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

/// What waits for the writer; bounded by the permits.
#[derive(Default)]
struct Queue {
    state: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    requests: VecDeque<Request>,
    closing: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, mut request: Request, permit: OwnedSemaphorePermit) {
        request.permit = Some(permit);
        let mut state = self.lock();
        // Else the request is dropped here, and with it the sender: the caller gets `Closed`.
        if !state.closing {
            state.requests.push_back(request);
            self.changed.notify_one();
        }
    }

    /// The next group; empty when the deadline passed; None when closing and everything was taken.
    fn take(&self, deadline: Option<Instant>) -> Option<Vec<Request>> {
        let mut state = self.lock();
        while state.requests.is_empty() {
            if state.closing {
                return None;
            }
            state = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return Some(Vec::new()),
                Some(left) => {
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
        let mut batch = Vec::new();
        let mut len = 0;
        while len < BATCH_LEN_MAX
            && let Some(request) = state.requests.pop_front()
        {
            len += request.ops.iter().map(op_len).sum::<usize>();
            batch.push(request);
        }
        Some(batch)
    }
}

fn op_len(op: &Op) -> usize {
    match op {
        Op::Put(put, _) => match &put.value {
            Value::Bytes(bytes) => bytes.len(),
            // Not known before it is rendered; an object is seldom larger.
            Value::Render(_) => 4096,
        },
        Op::Delete(..) => 0,
    }
}

fn write(mut engine: Engine, queue: &Queue, lazy_max: Duration) {
    // Ends the watches and refuses later commits, also when the writer panics.
    struct End<'a>(Arc<Shared>, &'a Queue);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            let mut state = self.1.lock();
            state.closing = true;
            state.requests.clear();
            self.0.close();
        }
    }
    let _end = End(engine.shared().clone(), queue);
    let mut sync_at = None;
    while let Some(batch) = queue.take(sync_at) {
        match batch.is_empty() {
            true => {
                if let Err(error) = engine.sync() {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "lazy changes are not durable yet"
                    );
                }
                sync_at = None;
            }
            false => engine.run(batch),
        }
        sync_at = engine.dirty().then(|| sync_at.unwrap_or_else(|| Instant::now() + lazy_max));
    }
    if let Err(error) = engine.close() {
        tracing::error!(error = &error as &dyn std::error::Error, "the store was not closed cleanly");
    }
}
