//! Node tasks of a KubeEdge cloud: images are pulled ahead of their pods; everything else is answered with what to do instead.
//!
//! Not here: the update of the device. A job of the cloud must end, so every task is answered, whatever it asks for.
//!
//! Source: KubeEdge v1.23.1 `edge/pkg/taskmanager`; two generations are on the wire (reference kubeedge-wire.md section 4, "Node
//! task"): v1alpha2 sends a job's first action and is told of each action that follows, v1alpha1 asks for one state at a time.
//!
//! Invariants: at most [`RUNNING_MAX`] tasks at once, a task that runs already is not begun again (a cloud sends each twice).
//!
//! Start at [`Runner`]; what a message asks for is decided in [`request`].

mod check;
mod request;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rt::{Drain, TaskGroup};
use wire::{Message, Operation, source};

pub use request::fuzz_task;
use request::{Answer, Asked, ImageResult, Prepull, Step};

use crate::contract::{Handles, ImagePuller, NodeTasks};

/// A further task is refused; pulls wait for each other anyhow.
const RUNNING_MAX: usize = 8;
/// Between two answers of one job: a stock cloud works on several at a time, and a job whose last answer it takes first never ends.
const ANSWERS_APART: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub struct Runner {
    handles: Handles,
    puller: Arc<dyn ImagePuller>,
    group: TaskGroup,
    /// What runs, by resource and operation.
    running: Arc<Mutex<BTreeSet<(String, String)>>>,
}

impl Runner {
    pub fn new(handles: Handles, puller: Arc<dyn ImagePuller>, drain: Drain) -> Runner {
        let group = TaskGroup::new("node task", RUNNING_MAX, drain);
        Runner { handles, puller, group, running: Arc::default() }
    }

    fn answer(&self, answer: Answer) {
        let now_ms = jiff::Timestamp::now().as_millisecond();
        let message = Message::new(now_ms, source::WEBSOCKET, "hub", &answer.operation, &answer.resource);
        self.handles.uplink.send(message.with_content(&answer.content));
    }

    async fn prepull(&self, task: &Prepull) {
        if task.steps.contains(&Step::Check) {
            let checked = check::check(&task.check_items).await;
            let failed = checked.is_err();
            self.answer(task.checked(&self.handles.node_name, checked));
            if failed {
                return;
            }
        }
        if !task.steps.contains(&Step::Pull) {
            return;
        }
        let checked = tokio::time::Instant::now();
        let mut results = Vec::new();
        for image in &task.images {
            let mut pulled = Err(String::new());
            for _ in 0..=task.retry_times {
                pulled = self.puller.pull(image, task.secret.as_ref()).await;
                if pulled.is_ok() {
                    break;
                }
            }
            results.push(ImageResult { image: image.clone(), problem: pulled.err() });
        }
        if task.steps.contains(&Step::Check) {
            tokio::time::sleep_until(checked + ANSWERS_APART).await;
        }
        self.answer(task.pulled(&self.handles.node_name, &results));
    }

    fn set_running(&self, key: &(String, String), runs: bool) -> bool {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if runs { running.insert(key.clone()) } else { running.remove(key) }
    }
}

impl NodeTasks for Runner {
    fn run(&self, message: &Message) {
        let route = &message.route;
        let task = match request::read(message, &self.handles.node_name) {
            Asked::Prepull(task) => task,
            Asked::Refuse(answer) => return self.answer(answer),
            Asked::Nothing => return,
        };
        let key = (route.resource.clone(), route.operation.clone());
        if !self.set_running(&key, true) {
            return;
        }
        tracing::info!(target: "tasks", "{} {}: {} images", route.operation, route.resource, task.images.len());
        let runner = self.clone();
        let refusal = task.refused(&self.handles.node_name, "this node has too many tasks; try again later");
        let ours = key.clone();
        let work = async move {
            let drain = runner.group.drain().clone();
            drain.or(runner.prepull(&task)).await;
            runner.set_running(&ours, false);
            Ok::<(), Infallible>(())
        };
        if self.group.spawn(work).is_err() {
            self.set_running(&key, false);
            self.answer(refusal);
        }
    }
}

/// What a cloud's job is called on the wire when it is told of.
const STATUS: &str = Operation::UPDATE_NODE_ACTION_STATUS;
