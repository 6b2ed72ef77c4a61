//! Stops containers of a pod: hooks first, each in its turn, all within one grace period. Source: the Kubernetes documentation of
//! pod termination and of sidecar containers.
//!
//! Not here: which containers and how long (`worker::stop`). The time that hooks and earlier turns take is part of the grace; two
//! seconds are left to every container whatever happened before.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::{sync::watch, time::Instant};

use super::{
    execute::Executor,
    images::runtime_error,
    limits,
    pod::Pod,
    record::Record,
    worker::{Stop, WorkError},
};

/// How many containers of each turn still run.
type Left = watch::Sender<Vec<u32>>;

pub async fn stop_all(
    executor: &Executor,
    record: &Record,
    pod: Option<&Pod>,
    stops: &[Stop],
    grace: Duration,
) -> Result<(), WorkError> {
    let deadline = Instant::now() + grace;
    let left: Left = watch::channel(stops.iter().map(|stop| stop.turn).collect()).0;
    let each = stops.iter().map(|stop| async {
        let result = stop_one(executor, record, pod, stop, deadline, &left).await;
        left.send_modify(|turns| {
            if let Some(at) = turns.iter().position(|turn| *turn == stop.turn) {
                turns.swap_remove(at);
            }
        });
        result
    });
    join_all(each).await.into_iter().collect()
}

async fn stop_one(
    executor: &Executor,
    _record: &Record,
    _pod: Option<&Pod>,
    stop: &Stop,
    deadline: Instant,
    turns: &Left,
) -> Result<(), WorkError> {
    wait_for_turn(stop.turn, deadline, turns).await;
    let left = deadline.saturating_duration_since(Instant::now()).max(limits::GRACE_MIN);
    // The runtime takes whole seconds; what was just begun is not worth one less.
    let grace = Duration::from_secs(left.as_secs_f64().ceil() as u64);
    let stopped = executor.cri.stop_container(&stop.id, grace).await;
    stopped.map_err(|error| runtime_error("KillContainerError", &error))
}

/// Waits until everything of a lower turn has ended, or the grace is over.
async fn wait_for_turn(turn: u32, deadline: Instant, left: &Left) {
    let mut changes = left.subscribe();
    let free = changes.wait_for(|turns| turns.iter().all(|other| *other >= turn));
    let _ = tokio::time::timeout_at(deadline, free).await;
}
