//! What a pod's steps are called in `kubectl describe`: kubelet's reasons and messages.
//!
//! Not here: events of images (`images`) and of probes and hooks (`probe`, `hooks`), which are told where they happen.

use super::{Now, RUN_ERROR, Work, WorkError, Worker};
use crate::edged::{backoff::go_duration, events::Event, observed::Container as Seen};

/// Reasons of a failed `CreateContainer` that are not told by the image code.
const OF_CREATION: [&str; 2] = ["CreateContainerConfigError", "CreateContainerError"];

impl Worker {
    pub(super) fn say(&mut self, event: Event) {
        self.events.push(event);
    }

    fn field_path(&self, container: &str) -> String {
        self.spec.as_ref().map_or(String::new(), |pod| pod.field_path(container))
    }

    pub(super) fn say_killing(&mut self, container: &str, message: String) {
        let path = self.field_path(container);
        self.say(Event::normal("Killing", message).at(path));
    }

    pub(super) fn say_sandbox_changed(&mut self) {
        self.say(Event::normal("SandboxChanged", "Pod sandbox changed, it will be killed and re-created."));
    }

    fn has_post_start(&self, container: &str) -> bool {
        let container = self.spec.as_ref().and_then(|pod| pod.all_containers().find(|c| c.name == container));
        container.and_then(|c| c.lifecycle.as_ref()).is_some_and(|hooks| hooks.post_start.is_some())
    }

    /// The newest container of this name ended and waits for its restart.
    pub(super) fn say_backoff(&mut self, now: Now, container: &str) {
        let waits = self.restarts.get(container).is_some_and(|restarts| restarts.is_waiting(now.mono));
        let known = self.spec.as_ref().is_some_and(|pod| pod.all_containers().any(|c| c.name == container));
        if !waits || !known || self.is_deleting() || self.record.ended.is_some() {
            return;
        }
        let message =
            format!("Back-off restarting failed container {container} in pod {}", self.pod_with_uid());
        let path = self.field_path(container);
        self.say(Event::warning("BackOff", message).at(path));
    }

    /// `web_default(uid)`.
    fn pod_with_uid(&self) -> String {
        format!("{}_{}({})", self.record.name, self.record.namespace, self.record.uid)
    }

    /// The message of CrashLoopBackOff for a container that ended, if it has to wait.
    pub fn crash_loop(&self, ended: &Seen) -> Option<String> {
        let delay = self.restarts.get(&ended.name)?.delay_of(&ended.id)?;
        let (delay, pod) = (go_duration(delay), self.pod_with_uid());
        Some(format!("back-off {delay} restarting failed container={} pod={pod}", ended.name))
    }

    pub(super) fn say_outcome(&mut self, work: &Work, result: &Result<(), WorkError>) {
        let event = match (work, result) {
            (Work::CreateContainer { name, .. }, Ok(())) => {
                Event::normal("Created", format!("Created container: {name}")).at(self.field_path(name))
            }
            // With a hook it is told before the hook runs (`hooks`).
            (Work::StartContainer { name, .. }, Ok(())) if !self.has_post_start(name) => {
                Event::normal("Started", format!("Started container {name}")).at(self.field_path(name))
            }
            (Work::CreateContainer { name, .. }, Err(error)) if OF_CREATION.contains(&error.reason) => {
                Event::warning("Failed", format!("Error: {}", error.message)).at(self.field_path(name))
            }
            (Work::StartContainer { name, .. }, Err(error)) if error.reason == RUN_ERROR => {
                Event::warning("Failed", format!("Error: {}", error.message)).at(self.field_path(name))
            }
            (Work::Prepare, Err(error)) if error.reason == "FailedMount" => {
                Event::warning("FailedMount", error.message.clone())
            }
            (Work::Prepare | Work::RunSandbox { .. }, Err(error))
                if error.reason == "FailedCreatePodSandBox" =>
            {
                Event::warning(
                    "FailedCreatePodSandBox",
                    format!("Failed to create pod sandbox: {}", error.message),
                )
            }
            (Work::StopContainers { .. } | Work::RetireSandbox { .. }, Err(error)) => {
                Event::warning("FailedKillPod", format!("error killing pod: {}", error.message))
            }
            _ => return,
        };
        self.say(event);
    }
}
