//! Many short tasks of one kind: connections, sessions, requests.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::sync::Semaphore;

use crate::{Drain, error_chain, supervise::panic_text};

/// The bound is reached. What could not be started must be refused to whoever asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{max} {name} tasks run already; try again later")]
pub struct TooManyTasks {
    pub name: &'static str,
    pub max: usize,
}

/// Runs work that waits for a disk (sync, a folder of archives) beside the runtime's one thread. Dropped, it still ends. The
/// runtime bounds how many run at once; more wait.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// A bounded number of tasks with one name. An error or a panic of one is logged and ends only that one.
#[derive(Clone)]
pub struct TaskGroup {
    name: &'static str,
    max: usize,
    places: Arc<Semaphore>,
    drain: Drain,
}

impl TaskGroup {
    pub fn new(name: &'static str, max: usize, drain: Drain) -> TaskGroup {
        TaskGroup { name, max, places: Arc::new(Semaphore::new(max)), drain }
    }

    /// For the tasks to watch.
    pub fn drain(&self) -> &Drain {
        &self.drain
    }

    pub fn running(&self) -> usize {
        self.max - self.places.available_permits()
    }

    pub fn spawn<F, E>(&self, task: F) -> Result<(), TooManyTasks>
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        let refused = TooManyTasks { name: self.name, max: self.max };
        let place = self.places.clone().try_acquire_owned().map_err(|_| refused)?;
        let name = self.name;
        // Outside of what waits for it, which would keep room for a whole task besides the one that runs.
        let task = tokio::spawn(task);
        tokio::spawn(async move {
            let _place = place;
            match task.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(task = name, "{}", error_chain(error.into().as_ref())),
                Err(error) => tracing::error!(task = name, "panic: {}", panic_text(error)),
            }
        });
        Ok(())
    }

    /// Waits until all have ended; false if some still run after `timeout`.
    pub async fn wait(&self, timeout: Duration) -> bool {
        tokio::time::timeout(timeout, self.places.acquire_many(self.max as u32)).await.is_ok()
    }
}
