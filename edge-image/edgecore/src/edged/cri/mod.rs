//! A client of the Container Runtime Interface v1: one method per call that edged makes, each with a deadline.
//!
//! Not here: what to run (`worker`), how a pod becomes a configuration (`render`), image import (`images`).
//! Invariants: no call waits for ever; an error names the call. The channel connects when first used and again after containerd
//! was restarted, so a client is made once and kept.

pub mod adopted;
pub mod images;
pub mod messages;
pub mod stats;
pub mod streaming;

use std::{collections::HashMap, path::PathBuf, time::Duration};

use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use messages::*;
use streaming::{AttachRequest, ExecRequest, PortForwardRequest, StreamingUrl};
use tokio::net::UnixStream;
use tonic::{
    Code, Status,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use super::{figures, limits};

/// A call that failed. `code` decides what to do, `message` is the runtime's own text.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{call}: {message}")]
pub struct CriError {
    pub call: &'static str,
    pub code: Code,
    pub message: String,
}

impl CriError {
    /// What was asked for is not there; for stop and remove that is success.
    pub fn is_not_found(&self) -> bool {
        self.code == Code::NotFound
    }

    /// No answer: the socket is missing, refused or went away. Says nothing about whether the call was carried out.
    pub fn is_unavailable(&self) -> bool {
        matches!(self.code, Code::Unavailable | Code::Cancelled)
    }
}

/// Opens a channel to a unix socket, `/run/...` or `unix:///run/...`. Connects when first used.
pub fn channel(endpoint: &str) -> Channel {
    let path = PathBuf::from(endpoint.strip_prefix("unix://").unwrap_or(endpoint));
    let connector = tower::service_fn(move |_: http::Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The authority is never resolved; HTTP/2 wants one.
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector)
}

#[derive(Clone)]
pub struct Cri {
    channel: Channel,
    /// What runs here without labels of ours.
    book: adopted::Book,
}

impl Cri {
    pub fn new(channel: Channel) -> Cri {
        Cri { channel, book: adopted::Book::default() }
    }

    /// The same, which shows what a kubelet made and this node took over as its own.
    pub fn with_adopted(self, book: adopted::Book) -> Cri {
        Cri { book, ..self }
    }

    async fn call<Q, A>(&self, path: &'static str, request: Q, deadline: Duration) -> Result<A, CriError>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        self.call_for(path, request, deadline, limits::CRI_ANSWER_BYTES_MAX).await
    }

    /// A larger answer is the error `OutOfRange`.
    async fn call_for<Q, A>(
        &self,
        path: &'static str,
        request: Q,
        deadline: Duration,
        bytes_max: usize,
    ) -> Result<A, CriError>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let call = path.rsplit('/').next().unwrap_or(path);
        let begun = std::time::Instant::now();
        let work = async {
            let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(bytes_max);
            grpc.ready().await.map_err(|error| Status::unavailable(chain(&error)))?;
            let codec: ProstCodec<Q, A> = ProstCodec::default();
            grpc.unary(tonic::Request::new(request), PathAndQuery::from_static(path), codec).await
        };
        let answer = tokio::time::timeout(deadline, work).await;
        figures::runtime_call(call, begun.elapsed(), !matches!(answer, Ok(Ok(_))));
        match answer {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(CriError { call, code: status.code(), message: text(&status) }),
            Err(_) => {
                let message = format!("the runtime did not answer within {} s", deadline.as_secs());
                Err(CriError { call, code: Code::DeadlineExceeded, message })
            }
        }
    }

    pub async fn version(&self) -> Result<VersionResponse, CriError> {
        let request = VersionRequest { version: "0.1.0".into() };
        self.call("/runtime.v1.RuntimeService/Version", request, limits::CRI_QUICK).await
    }

    /// The runtime's conditions; with `verbose` also its configuration as JSON in `info["config"]`.
    pub async fn status(&self, verbose: bool) -> Result<StatusResponse, CriError> {
        self.call("/runtime.v1.RuntimeService/Status", StatusRequest { verbose }, limits::CRI_QUICK).await
    }

    /// True: systemd. Runtimes before 2023 (containerd 1.x) do not know this call.
    pub async fn cgroup_driver(&self) -> Result<bool, CriError> {
        let answer: RuntimeConfigResponse =
            self.call("/runtime.v1.RuntimeService/RuntimeConfig", Empty {}, limits::CRI_QUICK).await?;
        Ok(answer.linux.is_some_and(|linux| linux.cgroup_driver == 0))
    }

    pub async fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<String, CriError> {
        let request = RunPodSandboxRequest { config: Some(config) };
        let answer: SandboxId =
            self.call("/runtime.v1.RuntimeService/RunPodSandbox", request, limits::CRI_SLOW).await?;
        Ok(answer.pod_sandbox_id)
    }

    /// Idempotent; kills what runs in it and gives its address back to the network plugin.
    pub async fn stop_pod_sandbox(&self, id: &str) -> Result<(), CriError> {
        let request = SandboxId { pod_sandbox_id: id.into() };
        gone_is_fine(self.call("/runtime.v1.RuntimeService/StopPodSandbox", request, limits::CRI_SLOW).await)
    }

    /// Idempotent; removes its containers too.
    pub async fn remove_pod_sandbox(&self, id: &str) -> Result<(), CriError> {
        let request = SandboxId { pod_sandbox_id: id.into() };
        gone_is_fine(
            self.call("/runtime.v1.RuntimeService/RemovePodSandbox", request, limits::CRI_SLOW).await,
        )
    }

    pub async fn pod_sandbox_status(&self, id: &str) -> Result<PodSandboxStatus, CriError> {
        let request = SandboxId { pod_sandbox_id: id.into() };
        let answer: PodSandboxStatusResponse =
            self.call("/runtime.v1.RuntimeService/PodSandboxStatus", request, limits::CRI_QUICK).await?;
        Ok(answer.status.unwrap_or_default())
    }

    pub async fn list_pod_sandboxes(
        &self,
        labels: HashMap<String, String>,
    ) -> Result<Vec<PodSandbox>, CriError> {
        let asked = self.book.ask(labels.clone());
        let request = ListPodSandboxRequest { filter: Some(PodSandboxFilter { label_selector: asked }) };
        let answer: ListPodSandboxResponse =
            self.call("/runtime.v1.RuntimeService/ListPodSandbox", request, limits::CRI_QUICK).await?;
        Ok(self.book.dress(answer.items, &labels, adopted::of_sandbox))
    }

    pub async fn create_container(&self, request: CreateContainerRequest) -> Result<String, CriError> {
        let answer: ContainerId =
            self.call("/runtime.v1.RuntimeService/CreateContainer", request, limits::CRI_SLOW).await?;
        Ok(answer.container_id)
    }

    pub async fn start_container(&self, id: &str) -> Result<(), CriError> {
        let request = ContainerId { container_id: id.into() };
        let answer: Result<Empty, _> =
            self.call("/runtime.v1.RuntimeService/StartContainer", request, limits::CRI_SLOW).await;
        answer.map(|_| ())
    }

    /// SIGTERM, then SIGKILL after `grace`. Idempotent.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), CriError> {
        let timeout = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        let request = StopContainerRequest { container_id: id.into(), timeout };
        let deadline = grace + limits::CRI_SLOW;
        gone_is_fine(self.call("/runtime.v1.RuntimeService/StopContainer", request, deadline).await)
    }

    /// Idempotent.
    pub async fn remove_container(&self, id: &str) -> Result<(), CriError> {
        let request = ContainerId { container_id: id.into() };
        gone_is_fine(self.call("/runtime.v1.RuntimeService/RemoveContainer", request, limits::CRI_SLOW).await)
    }

    pub async fn list_containers(&self, labels: HashMap<String, String>) -> Result<Vec<Container>, CriError> {
        let asked = self.book.ask(labels.clone());
        let request = ListContainersRequest { filter: Some(ContainerFilter { label_selector: asked }) };
        let answer: ListContainersResponse =
            self.call("/runtime.v1.RuntimeService/ListContainers", request, limits::CRI_QUICK).await?;
        Ok(self.book.dress(answer.containers, &labels, adopted::of_container))
    }

    pub async fn container_status(&self, id: &str) -> Result<ContainerStatus, CriError> {
        let request = ContainerId { container_id: id.into() };
        let answer: ContainerStatusResponse =
            self.call("/runtime.v1.RuntimeService/ContainerStatus", request, limits::CRI_QUICK).await?;
        Ok(answer.status.unwrap_or_default())
    }

    /// Where the runtime's streaming server waits for the connection of this exec.
    pub async fn exec(&self, request: ExecRequest) -> Result<String, CriError> {
        let answer: StreamingUrl =
            self.call("/runtime.v1.RuntimeService/Exec", request, limits::CRI_QUICK).await?;
        Ok(answer.url)
    }

    pub async fn attach(&self, request: AttachRequest) -> Result<String, CriError> {
        let answer: StreamingUrl =
            self.call("/runtime.v1.RuntimeService/Attach", request, limits::CRI_QUICK).await?;
        Ok(answer.url)
    }

    pub async fn port_forward(&self, request: PortForwardRequest) -> Result<String, CriError> {
        let answer: StreamingUrl =
            self.call("/runtime.v1.RuntimeService/PortForward", request, limits::CRI_QUICK).await?;
        Ok(answer.url)
    }

    /// Runs a command in a container and waits for its end; `DeadlineExceeded` when that takes longer than `time`. A child that
    /// keeps the output open can hold the runtime longer: then the answer is not waited for. Without a time (zero) the caller
    /// ends it by dropping the call, at the latest after `POST_START_MAX`.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        time: Duration,
    ) -> Result<ExecSyncResponse, CriError> {
        let timeout = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        let request = ExecSyncRequest { container_id: id.into(), cmd: command, timeout };
        let time = if time.is_zero() { limits::POST_START_MAX } else { time };
        let deadline = time + limits::EXEC_LATE;
        self.call_for("/runtime.v1.RuntimeService/ExecSync", request, deadline, limits::EXEC_OUTPUT_BYTES_MAX)
            .await
    }

    /// The runtime opens the container's log file anew, after it was renamed.
    pub async fn reopen_container_log(&self, id: &str) -> Result<(), CriError> {
        let request = ContainerId { container_id: id.into() };
        let answer: Result<Empty, _> =
            self.call("/runtime.v1.RuntimeService/ReopenContainerLog", request, limits::CRI_QUICK).await;
        answer.map(|_| ())
    }
}

fn gone_is_fine(answer: Result<Empty, CriError>) -> Result<(), CriError> {
    match answer {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

/// A transport failure hides its cause ("tcp connect error") in the source chain.
fn text(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => chain(source),
        None => status.message().to_string(),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut parts = vec![error.to_string()];
    let mut source = error.source();
    while let Some(cause) = source {
        let part = cause.to_string();
        if parts.last() != Some(&part) {
            parts.push(part);
        }
        source = cause.source();
    }
    parts.join(": ")
}
