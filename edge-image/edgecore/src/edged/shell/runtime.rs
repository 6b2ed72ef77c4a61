//! The shell's part of the container runtime: brings it up, looks at it, hears its events, and tells the node how it is.

use std::time::Instant;

use containerd_client::services::v1::{SubscribeRequest, events_client::EventsClient};
use containerd_client::types::Envelope;
use serde_json::Value;
use tonic::Streaming;

use super::{Happening, Shell};
use crate::{
    contract::{Condition, RuntimeStatus},
    edged::{
        cni_cache, cri::CriError, images::RuntimeFacts, limits, manager::Input, observe::Look, worker::Ticket,
    },
};

const UNAVAILABLE: &str = "ContainerRuntimeUnavailable";

impl Shell {
    pub(super) fn clean_cni_cache(&self) {
        let dir = &self.settings.images.cni_dir;
        if let Some(booted) = cni_cache::boot_time().filter(|_| !dir.as_os_str().is_empty()) {
            for path in cni_cache::clean(dir, booted) {
                tracing::warn!("{} was cut off by a power cut; removed", path.display());
            }
        }
    }

    /// Asks a runtime that was away who it is.
    pub(super) fn bring_up(&mut self) {
        self.look_at = Instant::now() + limits::CRI_QUICK + limits::RUNTIME_RETRY;
        let executor = self.executor.clone();
        self.work.push(Box::pin(async move {
            let ask = async {
                let version = executor.cri.version().await?;
                let status = executor.cri.status(true).await?;
                let facts = runtime_facts(status.info.get("config").map_or("", String::as_str));
                executor.images.set_facts(facts.clone()).await;
                Ok((format!("{}://{}", version.runtime_name, version.runtime_version), facts))
            };
            Happening::BroughtUp(ask.await)
        }));
    }

    pub(super) fn brought_up(&mut self, result: Result<(String, RuntimeFacts), CriError>) {
        match result {
            Ok((version, facts)) => {
                tracing::info!("container runtime {version}, layers by {}", facts.snapshotter);
                self.up = true;
                self.version = version;
                let executor = self.executor.clone();
                self.work.push(Box::pin(async move {
                    let boot_id =
                        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
                    executor.images.after_boot(&executor.handles, boot_id.trim()).await;
                    Happening::Preloaded(executor.images.preload().await)
                }));
                self.follow(None);
                self.look();
            }
            Err(error) => self.down(&error),
        }
    }

    fn down(&mut self, error: &CriError) {
        self.up = false;
        self.look_at = Instant::now() + limits::RUNTIME_RETRY;
        let message = remedy(&self.settings.endpoint, error);
        self.tell_runtime(RuntimeStatus::Down { message });
    }

    pub(super) fn look(&mut self) {
        let Some(mut observer) = self.observer.take() else { return };
        self.find_host();
        let poll = match (self.following, self.manager.workers().next().is_some()) {
            (false, true) => limits::POLL_WITHOUT_EVENTS,
            (true, true) => limits::POLL_BUSY,
            (_, false) => limits::POLL_IDLE,
        };
        let now = Instant::now();
        self.look_at = if now < self.settled_at { self.settled_at } else { now + poll };
        let began = self.manager.ticket();
        self.work.push(Box::pin(async move {
            let result = observer.look().await;
            Happening::Looked(observer, began, result)
        }));
        self.keep_up();
    }

    pub(super) fn looked(&mut self, began: Ticket, result: Result<Look, CriError>) {
        match result {
            Ok(look) => {
                self.slow_looks = 0;
                let status = match look.network_problem {
                    None => RuntimeStatus::Ready { version: self.version.clone() },
                    Some(problem) => RuntimeStatus::Down {
                        message: format!(
                            "pods cannot have a network: {problem}; put a network configuration into the runtime's CNI folder (/etc/cni/net.d)"
                        ),
                    },
                };
                self.tell_runtime(status);
                for image in self.suspects.judge(&look.observed) {
                    let executor = self.executor.clone();
                    self.work.push(Box::pin(async move {
                        executor.images.heal(&image).await;
                        Happening::Nothing
                    }));
                }
                self.handle(Input::Observed { began, observed: look.observed });
                // A change of which no status tells.
                self.event_at = None;
                if self.up && !self.following {
                    self.follow(None);
                }
            }
            // A loaded board may be slow once; that is no reason to call the node broken.
            Err(error) if !error.is_unavailable() && self.slow_looks < limits::SLOW_LOOKS_MAX => {
                self.slow_looks += 1;
                tracing::warn!("container runtime: {error}");
                self.look_within(limits::RUNTIME_RETRY);
            }
            Err(error) => self.down(&error),
        }
    }

    fn tell_runtime(&mut self, status: RuntimeStatus) {
        if self.told.as_ref() == Some(&status) {
            return;
        }
        let message = match &status {
            RuntimeStatus::Down { message } => {
                tracing::error!("{message}");
                message.clone()
            }
            _ => String::new(),
        };
        let down = !message.is_empty();
        let reason = if down { "RuntimeNotReady" } else { "RuntimeReady" };
        self.handles.conditions.set(Condition {
            condition_type: UNAVAILABLE.into(),
            status: down,
            reason: reason.into(),
            message,
        });
        self.handles.runtime.send_replace(status.clone());
        self.told = Some(status);
    }

    /// Waits for the next event of the runtime; subscribes first when there is no stream.
    pub(super) fn follow(&mut self, stream: Option<Streaming<Envelope>>) {
        self.following = true;
        let channel = self.channel.clone();
        self.work.push(Box::pin(async move {
            let next = async {
                let mut stream = match stream {
                    Some(stream) => stream,
                    None => {
                        let filters = ["/tasks/exit", "/tasks/oom"]
                            .map(|topic| format!("namespace==k8s.io,topic==\"{topic}\""));
                        let request = SubscribeRequest { filters: filters.to_vec() };
                        EventsClient::new(channel).subscribe(request).await.ok()?.into_inner()
                    }
                };
                stream.message().await.ok()??;
                Some(stream)
            };
            Happening::Event(next.await)
        }));
    }
}

/// What containerd tells of its configuration (1.6 and 1.7, and the CRI plugin of 2.x).
pub fn runtime_facts(config: &str) -> RuntimeFacts {
    let value: Value = serde_json::from_str(config).unwrap_or_default();
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty());
    RuntimeFacts {
        snapshotter: text("/containerd/snapshotter").unwrap_or("overlayfs").to_string(),
        root_dir: text("/containerdRootDir").map(Into::into),
        sandbox_image: text("/sandboxImage").map(str::to_string),
    }
}

/// The line that a person sees when the runtime does not answer.
pub fn remedy(endpoint: &str, error: &CriError) -> String {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    let why = &error.message;
    if !std::path::Path::new(path).exists() {
        return format!(
            "container runtime: {path} does not exist; containerd is not running (on a plain host: systemctl start containerd; on a Kinglet image init starts it again: see status.txt), or correct remoteRuntimeEndpoint in edgecore.yaml"
        );
    }
    if error.code == tonic::Code::Unimplemented {
        return format!(
            "container runtime at {path} has no CRI v1 ({why}); remove \"cri\" from disabled_plugins in /etc/containerd/config.toml and restart it"
        );
    }
    format!(
        "container runtime at {path} does not answer ({why}); look at it (systemctl status containerd) and restart it"
    )
}
