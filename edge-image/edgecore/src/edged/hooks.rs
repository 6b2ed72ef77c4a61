//! postStart and preStop: what a container is told right after its start and right before its end.
//!
//! Rules and texts of kubelet (lifecycle/handlers.go, kuberuntime_container.go): any HTTP answer is a success, a hook is run at
//! least once, its output stands in no event, for it may be secret. A postStart hook that fails ends its container; a preStop
//! hook that fails or takes too long does not keep its container from ending.

use std::{pin::pin, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    events::Event,
    execute::Executor,
    limits,
    pod::{Container, LifecycleHandler, Pod},
    probe::{check, http},
    record::Record,
    stop,
    worker::{Retry, Stop, WorkError},
};

const USER_AGENT: &str = "kube-lifecycle/1.32";
/// Reason of a container that waits because its hook failed.
pub const POST_START_ERROR: &str = "PostStartHookError";

/// The container that a hook is about.
pub struct Subject<'a> {
    pub record: &'a Record,
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub id: &'a str,
    /// The pod's address.
    pub ip: &'a str,
}

impl<'a> Subject<'a> {
    /// `None` when the pod's spec has no such container.
    pub fn of(record: &'a Record, pod: &'a Pod, name: &str, id: &'a str, ip: &'a str) -> Option<Subject<'a>> {
        let container = pod.all_containers().find(|container| container.name == name)?;
        Some(Subject { record, pod, container, id, ip })
    }

    fn post_start(&self) -> Option<&'a LifecycleHandler> {
        self.container.lifecycle.as_ref()?.post_start.as_ref()
    }

    fn pre_stop(&self) -> Option<&'a LifecycleHandler> {
        self.container.lifecycle.as_ref()?.pre_stop.as_ref()
    }

    fn tell(&self, executor: &Executor, event: Event) {
        executor.events.pod(self.record, event.at(self.pod.field_path(&self.container.name)));
    }
}

/// Runs the hook of a container that was just started. Until it ends the container is not told as running. When it fails, the
/// container is stopped.
pub async fn post_start(executor: &Executor, subject: &Subject<'_>) -> Result<(), WorkError> {
    let Some(handler) = subject.post_start() else { return Ok(()) };
    let name = &subject.container.name;
    subject.tell(executor, Event::normal("Started", format!("Started container {name}")));
    let ran = tokio::time::timeout(limits::POST_START_MAX, run(executor, handler, subject)).await;
    let Err(message) =
        ran.unwrap_or_else(|_| Err(format!("the hook did not end within {:?}", limits::POST_START_MAX)))
    else {
        return Ok(());
    };
    tracing::info!(pod = subject.pod.full_name(), "{message}");
    subject.tell(executor, Event::warning("FailedPostStartHook", "PostStartHook failed"));
    subject.tell(executor, Event::normal("Killing", "FailedPostStartHook"));
    let stops = [Stop { id: subject.id.into(), name: name.clone(), turn: 0 }];
    let (record, pod) = (subject.record, Some(subject.pod));
    stop::stop_all(executor, record, pod, subject.ip, &stops, subject.pod.grace()).await?;
    // How long the next start waits is for the container's restarts to say.
    Err(WorkError { reason: POST_START_ERROR, message, retry: Retry::After(Duration::ZERO) })
}

/// Runs the hook of a container that is about to be stopped, until `deadline` at most.
pub async fn pre_stop(executor: &Executor, subject: &Subject<'_>, deadline: &mut watch::Receiver<Instant>) {
    let Some(handler) = subject.pre_stop() else { return };
    let mut hook = pin!(run(executor, handler, subject));
    loop {
        let until = *deadline.borrow_and_update();
        tokio::select! {
            ran = &mut hook => {
                if let Err(message) = ran {
                    tracing::info!(pod = subject.pod.full_name(), "{message}");
                    subject.tell(executor, Event::warning("FailedPreStopHook", "PreStopHook failed"));
                }
                return;
            }
            // With its container the hook ends too.
            () = sleep_until(until) => {
                return tracing::info!(pod = subject.pod.full_name(), "the preStop hook took the whole grace period");
            }
            Ok(()) = deadline.changed() => {}
        }
    }
}

/// The error is kubelet's message, which also stands in the container's waiting state.
async fn run(executor: &Executor, handler: &LifecycleHandler, subject: &Subject<'_>) -> Result<(), String> {
    let pod = &subject.pod.metadata;
    let whose = format!(
        "for Container {:?} in Pod \"{}_{}({})\" failed - error: ",
        subject.container.name, pod.name, pod.namespace, pod.uid
    );
    if let Some(exec) = &handler.exec {
        // Go prints a list so.
        let told = |error: String, printed: &[u8]| {
            let printed = check::shown(printed, limits::PROBE_TEXT_BYTES_MAX);
            format!("Exec lifecycle hook ([{}]) {whose}{error}, message: {printed:?}", exec.command.join(" "))
        };
        let ran = executor.cri.exec_sync(subject.id, exec.command.clone(), Duration::ZERO).await;
        let ran = ran.map_err(|error| {
            told(format!("rpc error: code = {:?} desc = {}", error.code, error.message), b"")
        })?;
        if ran.exit_code == 0 {
            return Ok(());
        }
        let errors = check::shown(&ran.stderr, limits::PROBE_TEXT_BYTES_MAX);
        let error = format!("command '{}' exited with {}: {errors}", exec.command.join(" "), ran.exit_code);
        return Err(told(error, &[ran.stdout, ran.stderr].concat()));
    }
    if let Some(get) = &handler.http_get {
        let told = |error: String| format!("HTTP lifecycle hook ({}) {whose}{error}", get.path);
        let mut request =
            check::http_request(get, subject.container, subject.ip, USER_AGENT).map_err(told)?;
        let tls = executor.checker.tls();
        let answer = http::get(&request, limits::POST_START_MAX, tls).await;
        // Before hooks could ask by HTTPS the scheme was ignored; pods that rely on it still work.
        let answer = match answer {
            Err(error) if request.tls && error.ends_with(http::PLAIN_ANSWER) => {
                request.tls = false;
                http::get(&request, limits::POST_START_MAX, None).await
            }
            other => other,
        };
        return answer.map(|_| ()).map_err(told);
    }
    if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    Err("Cannot run handler: invalid handler: it has none of exec, httpGet and sleep".into())
}
