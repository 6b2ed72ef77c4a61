//! The long-running tasks of a program: named, restarted at a bounded rate, with their last errors.

use std::{
    collections::VecDeque,
    error::Error,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::task::{JoinError, JoinSet};
use tokio_util::task::AbortOnDropHandle;

use crate::{Backoff, Clock, Drain, SystemClock, error_chain, limits::LAST_ERRORS_LEN};

/// What happens when a task ends before the drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// It is started again.
    Restart(RestartPolicy),
    /// Nothing works without it: the whole program drains and [`Supervisor::run`] returns the error.
    Essential,
    /// It has done its work; an error is only kept and logged.
    Once,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartPolicy {
    /// The first wait; grows to `delay_max` while the task keeps failing. The highest restart rate is `2 / delay_min`.
    pub delay_min: Duration,
    pub delay_max: Duration,
    /// A task that ran so long counts as having worked: its waits start again at `delay_min`.
    pub run_min: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        RestartPolicy {
            delay_min: Duration::from_secs(1),
            delay_max: Duration::from_secs(60),
            run_min: Duration::from_secs(60),
        }
    }
}

/// Decides the waits between restarts; a plain value.
#[derive(Clone, Debug)]
pub struct Restart {
    policy: RestartPolicy,
    backoff: Backoff,
}

impl Restart {
    pub fn new(policy: RestartPolicy) -> Restart {
        Restart { policy, backoff: Backoff::new(policy.delay_min, policy.delay_max) }
    }

    /// The task ended after having run for `ran`.
    pub fn delay(&mut self, ran: Duration, random: u64) -> Duration {
        if ran >= self.policy.run_min {
            self.backoff.reset();
        }
        self.backoff.delay(random)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskState {
    Running,
    /// Waits to be started again.
    Waiting,
    Ended,
}

#[derive(Clone, Debug)]
pub struct TaskStatus {
    pub name: String,
    pub state: TaskState,
    pub restarts: u64,
    /// Unix milliseconds and one line each, oldest first.
    pub last_errors: VecDeque<(u64, String)>,
}

/// An essential task ended.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{task} ended: {error}")]
pub struct TaskError {
    pub task: String,
    pub error: String,
}

type Statuses = Arc<Mutex<Vec<TaskStatus>>>;

/// Owns the tasks of a program. Tasks get a [`Drain`] and return soon after it starts.
pub struct Supervisor {
    drain: Drain,
    tasks: JoinSet<Option<TaskError>>,
    statuses: Statuses,
}

impl Supervisor {
    pub fn new(drain: Drain) -> Supervisor {
        Supervisor { drain, tasks: JoinSet::new(), statuses: Statuses::default() }
    }

    pub fn drain(&self) -> &Drain {
        &self.drain
    }

    /// Starts a task; `start` is called again for each restart.
    pub fn spawn<S, F, E>(&mut self, name: &str, policy: Policy, mut start: S)
    where
        S: FnMut(Drain) -> F + Send + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>> + Send + 'static,
    {
        let status = TaskStatus {
            name: name.to_owned(),
            state: TaskState::Running,
            restarts: 0,
            last_errors: VecDeque::new(),
        };
        let index = {
            let mut statuses = lock(&self.statuses);
            statuses.push(status);
            statuses.len() - 1
        };
        let task =
            Task { name: name.to_owned(), index, statuses: self.statuses.clone(), drain: self.drain.clone() };
        let runs = move |drain: Drain| {
            let run = start(drain);
            async move {
                // A task of its own, so that a panic ends only this run (in programs that unwind).
                match AbortOnDropHandle::new(tokio::spawn(run)).await {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(error)) => Err(error_chain(error.into().as_ref())),
                    Err(error) => Err(format!("panic: {}", panic_text(error))),
                }
            }
        };
        self.tasks.spawn(task.supervise(policy, runs));
    }

    /// What runs, for status pages.
    pub fn statuses(&self) -> impl Fn() -> Vec<TaskStatus> + Send + Sync + 'static {
        let statuses = self.statuses.clone();
        move || lock(&statuses).clone()
    }

    /// Waits for the drain (or starts it, when an essential task ends), then for the tasks, at most `timeout`.
    pub async fn run(mut self, timeout: Duration) -> Result<(), TaskError> {
        let mut result = Ok(());
        while !self.drain.is_draining() {
            tokio::select! {
                () = self.drain.wait() => {}
                Some(ended) = self.tasks.join_next() => {
                    if let Ok(Some(error)) = ended {
                        self.drain.start();
                        result = Err(error);
                    }
                }
            }
        }
        let ended =
            tokio::time::timeout(timeout, async { while self.tasks.join_next().await.is_some() {} }).await;
        if ended.is_err() {
            for status in lock(&self.statuses).iter().filter(|status| status.state == TaskState::Running) {
                tracing::warn!(task = status.name, "did not stop within {timeout:?} and is aborted");
            }
        }
        result
    }
}

struct Task {
    name: String,
    index: usize,
    statuses: Statuses,
    drain: Drain,
}

impl Task {
    async fn supervise<S, F>(self, policy: Policy, mut start: S) -> Option<TaskError>
    where
        S: FnMut(Drain) -> F,
        F: Future<Output = Result<(), String>>,
    {
        let mut restart = match policy {
            Policy::Restart(policy) => Some(Restart::new(policy)),
            Policy::Essential | Policy::Once => None,
        };
        loop {
            let started = Instant::now();
            let result = start(self.drain.clone()).await;
            if let Err(error) = &result {
                self.failed(error);
            }
            if self.drain.is_draining() {
                self.set(TaskState::Ended);
                return None;
            }
            let Some(restart) = &mut restart else {
                self.set(TaskState::Ended);
                let error = result.err().unwrap_or_else(|| "it returned before it was asked to".to_owned());
                return (policy == Policy::Essential).then_some(TaskError { task: self.name, error });
            };
            self.set(TaskState::Waiting);
            let delay = restart.delay(started.elapsed(), crate::random_u64());
            if !self.drain.sleep(delay).await {
                self.set(TaskState::Ended);
                return None;
            }
            let mut statuses = lock(&self.statuses);
            let status = &mut statuses[self.index];
            (status.restarts, status.state) = (status.restarts + 1, TaskState::Running);
        }
    }

    fn set(&self, state: TaskState) {
        lock(&self.statuses)[self.index].state = state;
    }

    fn failed(&self, error: &str) {
        tracing::error!(task = self.name, "{error}");
        let errors = &mut lock(&self.statuses)[self.index].last_errors;
        if errors.len() == LAST_ERRORS_LEN {
            errors.pop_front();
        }
        errors.push_back((SystemClock::new().now_ms(), error.to_owned()));
    }
}

fn lock(statuses: &Mutex<Vec<TaskStatus>>) -> MutexGuard<'_, Vec<TaskStatus>> {
    statuses.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn panic_text(error: JoinError) -> String {
    let Ok(payload) = error.try_into_panic() else { return "the task was aborted".to_owned() };
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a text".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: RestartPolicy = RestartPolicy {
        delay_min: Duration::from_millis(1),
        delay_max: Duration::from_millis(2),
        run_min: Duration::from_secs(3600),
    };

    #[test]
    fn waits_grow_until_a_run_was_long_enough() {
        let mut restart = Restart::new(RestartPolicy::default());
        let mut highest = |ran| restart.delay(Duration::from_secs(ran), u64::MAX).as_secs_f64().round();
        assert_eq!([highest(0), highest(1), highest(59), highest(60), highest(0)], [1., 2., 4., 1., 2.]);
    }

    #[test]
    fn failing_and_panicking_tasks_are_started_again_and_their_errors_kept() {
        crate::runtime().unwrap().block_on(async {
            let mut supervisor = Supervisor::new(Drain::new());
            let (statuses, drain) = (supervisor.statuses(), supervisor.drain().clone());
            let mut run = 0;
            supervisor.spawn("worker", Policy::Restart(FAST), move |drain| {
                run += 1;
                async move {
                    match run {
                        1 => anyhow::bail!("first failure"),
                        2 => panic!("second failure"),
                        _ => {
                            drain.start();
                            Ok(())
                        }
                    }
                }
            });
            supervisor.run(Duration::from_secs(5)).await.unwrap();
            assert!(drain.is_draining());
            let status = &statuses()[0];
            let errors: Vec<&str> = status.last_errors.iter().map(|(_, error)| &**error).collect();
            assert_eq!(errors, ["first failure", "panic: second failure"]);
            assert_eq!((status.restarts, status.state), (2, TaskState::Ended));
        });
    }

    #[test]
    fn the_program_drains_when_an_essential_task_ends() {
        crate::runtime().unwrap().block_on(async {
            let mut supervisor = Supervisor::new(Drain::new());
            supervisor.spawn("other", Policy::Restart(FAST), |drain| async move {
                drain.wait().await;
                anyhow::Ok(())
            });
            supervisor.spawn("listener", Policy::Essential, |_| async {
                Err(anyhow::anyhow!("port 10000 is taken"))
            });
            let error = supervisor.run(Duration::from_secs(5)).await.unwrap_err();
            assert_eq!(error.to_string(), "listener ended: port 10000 is taken");
        });
    }

    #[test]
    fn a_group_refuses_more_tasks_than_it_may_have() {
        crate::runtime().unwrap().block_on(async {
            let group = crate::TaskGroup::new("connection", 2, Drain::new());
            for _ in 0..2 {
                let drain = group.drain().clone();
                let task = async move {
                    drain.wait().await;
                    Err::<(), _>("peer went away")
                };
                group.spawn(task).unwrap();
            }
            let refused = group.spawn(async { Ok::<(), &str>(()) }).unwrap_err();
            assert_eq!(refused.to_string(), "2 connection tasks run already; try again later");
            assert!(!group.wait(Duration::ZERO).await);
            group.drain().start();
            assert!(group.wait(Duration::from_secs(5)).await);
            group.spawn(async { Ok::<(), &str>(()) }).unwrap();
        });
    }
}
