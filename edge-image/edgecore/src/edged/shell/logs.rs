//! The shell's part of logs: says which containers write, and has the runtime open anew what was renamed.

use std::time::Instant;

use super::{Happening, Shell};
use crate::edged::{
    logs::{self, Keeper, PodLogs},
    observed::State,
};

impl Shell {
    /// Beside the loop: a disk that is slow must hold up nothing else.
    pub(super) fn watch_logs(&mut self, mut keeper: Keeper) {
        let pods: Vec<PodLogs> = if self.up { self.pod_logs() } else { Vec::new() };
        let (executor, rotation) = (self.executor.clone(), self.settings.log_rotation);
        self.work.push(Box::pin(async move {
            let (keeper, looked) = rt::blocking(move || {
                let looked = keeper.look(Instant::now(), &pods, rotation);
                (keeper, looked)
            })
            .await;
            for (id, path) in looked.renamed {
                if let Err(error) = executor.cri.reopen_container_log(&id).await {
                    tracing::warn!("cannot reopen the log of container {id}: {error}");
                    rt::blocking(move || logs::rename_back(&path)).await;
                }
            }
            if !looked.crowded.is_empty() {
                rt::blocking(move || looked.crowded.iter().for_each(|dir| logs::thin_out(dir, rotation)))
                    .await;
            }
            tokio::time::sleep(looked.next).await;
            Happening::LogsDue(keeper)
        }));
    }

    fn pod_logs(&self) -> Vec<PodLogs> {
        let mut pods = Vec::new();
        for worker in self.manager.workers() {
            let Some(seen) = &worker.seen else { continue };
            let dir = self.executor.pod_logs(&worker.record);
            let (mut writers, mut ended) = (Vec::new(), Vec::new());
            for container in &seen.containers {
                let path = logs::path(&dir, &container.name, container.attempt);
                match container.state {
                    State::Running => writers.push((container.id.clone(), path)),
                    State::Exited => ended.push(path),
                    State::Created | State::Unknown => {}
                }
            }
            pods.push(PodLogs { dir, writers, ended });
        }
        pods
    }
}
