//! The wish to stop, handed to every task.

use std::{future::Future, time::Duration};

use tokio_util::sync::CancellationToken;

/// Clones mean the same wish. A task finishes what it must, then returns.
#[derive(Clone, Debug, Default)]
pub struct Drain(CancellationToken);

impl Drain {
    pub fn new() -> Drain {
        Drain::default()
    }

    /// Everything that has this drain or a child of it is to stop.
    pub fn start(&self) {
        self.0.cancel();
    }

    pub fn is_draining(&self) -> bool {
        self.0.is_cancelled()
    }

    pub async fn wait(&self) {
        self.0.cancelled().await
    }

    /// Stops with its parent, and can be stopped alone.
    pub fn child(&self) -> Drain {
        Drain(self.0.child_token())
    }

    /// The future's output, or None if the drain came first.
    pub async fn or<F: Future>(&self, future: F) -> Option<F::Output> {
        self.0.run_until_cancelled(future).await
    }

    /// Sleeps; false if the drain came first.
    pub async fn sleep(&self, duration: Duration) -> bool {
        self.or(tokio::time::sleep(duration)).await.is_some()
    }
}
