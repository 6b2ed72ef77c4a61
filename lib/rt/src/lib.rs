//! What every program of ours runs on: supervised tasks, drain, bounded channels, clocks, back-off, logging, atomic files.
//!
//! Not here: product policy, protocols, sockets.
//!
//! Invariants
//! - Only this crate spawns; every task has a name and a rule for what happens when it ends.
//! - A task that keeps failing is restarted at a bounded rate and its last errors can be asked for.
//! - Every channel is bounded, and its constructor says what happens when it is full.
//!
//! Start at [`Supervisor`]; a `main` is: [`log::init`], [`identity_line`], [`runtime`], supervisor, [`shutdown_signal`], drain.

mod backoff;
pub mod chan;
mod clock;
mod drain;
mod error;
pub mod fault;
mod file;
mod gauges;
mod io;
pub mod limits;
pub mod log;
mod pace;
mod signal;
mod supervise;
mod tasks;

pub use backoff::Backoff;
pub use clock::{Clock, SimClock, SystemClock};
pub use drain::Drain;
pub use error::error_chain;
pub use file::{FileError, atomic_write, atomic_write_private};
pub use gauges::{Gauge, gauges};
pub use io::{BoxIo, Io};
pub use pace::Pace;
pub use signal::shutdown_signal;
pub use supervise::{Policy, Restart, RestartPolicy, Supervisor, TaskError, TaskState, TaskStatus};
pub use tasks::{TaskGroup, TooManyTasks, blocking};

use std::{future::Future, pin::Pin};

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One thread with timers and I/O: what the device's programs run on.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().max_blocking_threads(limits::BLOCKING_THREADS_MAX).build()
}

/// The first line of a program's log: who runs here.
pub fn identity_line(name: &str, version: &str) -> String {
    let (arch, os) = (std::env::consts::ARCH, std::env::consts::OS);
    format!("{name} {version} {os}/{arch} pid {}", std::process::id())
}

/// For jitter and names; not for keys.
pub fn random_u64() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // Each RandomState is keyed from the system's random numbers and a counter; no dependency is needed for this quality.
    std::hash::RandomState::new().build_hasher().finish()
}
