//! Stops containers of a pod: hooks first, each in its turn, all within one grace period. Source: the Kubernetes documentation of
//! pod termination and of sidecar containers.
//!
//! Not here: which containers and how long (`worker::stop`). The time that hooks and earlier turns take is part of the grace; two
//! seconds are left to every container whatever happened before. The grace can be cut while a stop is under way.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{sync::watch, time::Instant};

use super::{
    cri::Cri,
    execute::Executor,
    hooks::{self, Subject},
    images::runtime_error,
    limits,
    pod::Pod,
    record::Record,
    worker::{Stop, WorkError},
};

/// When the grace of each pod that is being stopped is over.
#[derive(Default)]
pub struct Deadlines(Mutex<BTreeMap<String, watch::Sender<Instant>>>);

impl Deadlines {
    /// Gives a stop that is under way less time.
    pub fn hasten(&self, incarnation: &str, grace: Duration) {
        if let Some(deadline) = self.all().get(incarnation) {
            let sooner = Instant::now() + grace;
            deadline.send_if_modified(|deadline| {
                let less = sooner < *deadline;
                *deadline = sooner.min(*deadline);
                less
            });
        }
    }

    fn begin(&self, incarnation: &str, grace: Duration) -> watch::Receiver<Instant> {
        let (tx, rx) = watch::channel(Instant::now() + grace);
        self.all().insert(incarnation.into(), tx);
        rx
    }

    fn end(&self, incarnation: &str) {
        self.all().remove(incarnation);
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<String, watch::Sender<Instant>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The turns of the containers that still run.
type Running = watch::Sender<Vec<u32>>;

/// `pod`: `None` runs no hooks (nobody knows them). `ip`: the pod's address, for hooks.
pub async fn stop_all(
    executor: &Executor,
    record: &Record,
    pod: Option<&Pod>,
    ip: &str,
    stops: &[Stop],
    grace: Duration,
) -> Result<(), WorkError> {
    let deadline = executor.deadlines.begin(&record.incarnation, grace);
    let running: Running = watch::channel(stops.iter().map(|stop| stop.turn).collect()).0;
    let each = stops.iter().map(|stop| async {
        let mut deadline = deadline.clone();
        if let Some(subject) = pod.and_then(|pod| Subject::of(record, pod, &stop.name, &stop.id, ip)) {
            hooks::pre_stop(executor, &subject, &mut deadline).await;
        }
        wait_for_turn(stop.turn, &mut deadline, &running).await;
        let result = stop_one(&executor.cri, &stop.id, deadline).await;
        running.send_modify(|turns| {
            if let Some(at) = turns.iter().position(|turn| *turn == stop.turn) {
                turns.swap_remove(at);
            }
        });
        result
    });
    let result = join_all(each).await.into_iter().collect();
    executor.deadlines.end(&record.incarnation);
    result
}

/// SIGTERM, and SIGKILL when the grace is over. A call with less time takes the place of one that waits: the runtime sends its
/// first signal only once.
async fn stop_one(cri: &Cri, id: &str, mut deadline: watch::Receiver<Instant>) -> Result<(), WorkError> {
    loop {
        let left = deadline.borrow_and_update().saturating_duration_since(Instant::now());
        // The runtime takes whole seconds; what was just begun is not worth one less.
        let grace = Duration::from_secs(left.max(limits::GRACE_MIN).as_secs_f64().ceil() as u64);
        let stop = cri.stop_container(id, grace);
        tokio::select! {
            stopped = stop => return stopped.map_err(|error| runtime_error("KillContainerError", &error)),
            Ok(()) = deadline.changed() => {}
        }
    }
}

/// Waits until everything of a lower turn has ended, or the grace is over.
async fn wait_for_turn(turn: u32, deadline: &mut watch::Receiver<Instant>, running: &Running) {
    let mut changes = running.subscribe();
    loop {
        let until = *deadline.borrow_and_update();
        tokio::select! {
            _ = changes.wait_for(|turns| turns.iter().all(|other| *other >= turn)) => return,
            () = tokio::time::sleep_until(until) => return,
            Ok(()) = deadline.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_turn_waits_for_the_lower_ones_but_not_longer_than_the_grace() {
        let deadlines = Deadlines::default();
        let mut deadline = deadlines.begin("u", Duration::from_secs(30));
        let running: Running = watch::channel(vec![0, 1, 2]).0;
        let begun = Instant::now();
        wait_for_turn(0, &mut deadline, &running).await;
        assert_eq!(begun.elapsed(), Duration::ZERO, "the first turn is free");
        tokio::join!(wait_for_turn(1, &mut deadline, &running), async {
            tokio::time::sleep(Duration::from_secs(4)).await;
            running.send_modify(|turns| turns.retain(|turn| *turn != 0));
        });
        assert_eq!(begun.elapsed(), Duration::from_secs(4), "the one before has ended");
        tokio::join!(wait_for_turn(2, &mut deadline, &running), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            deadlines.hasten("u", Duration::from_secs(100));
            deadlines.hasten("u", Duration::from_secs(5));
        });
        assert_eq!(begun.elapsed(), Duration::from_secs(10), "the grace only gets shorter");
    }
}
