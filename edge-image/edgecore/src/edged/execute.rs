//! Carries out one step of a pod against the runtime, the disk and meta. Every step can be repeated.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::{join, join3};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{
    Settings, cgroup,
    cri::{Cri, CriError, adopted, messages as cri},
    device_plugin::{self, host::Plugins},
    events::Recorder,
    figures, hooks,
    images::{Images, pull::Want, repair, runtime_error},
    limits, logs, node_side,
    observed::{Sandbox, label},
    pod::{Container, Pod},
    probe::check::Checker,
    record::{KIND, Record},
    render::{
        self, NodeSetup, Parts,
        security::{self, ImageUser},
    },
    stop::{self, Deadlines},
    tokens::Tokens,
    volumes::{Places, VolumeError},
    worker::{RUN_ERROR, Retry, Work, WorkError},
};
use crate::contract::Handles;

/// A step and what it is about, as it was when the step was decided.
pub struct Job {
    pub record: Record,
    pub pod: Option<Arc<Pod>>,
    pub work: Work,
    pub host_ip: String,
    /// The pod's address; empty before there is a sandbox.
    pub ip: String,
    /// Of a pod for which the runtime is called for the first time.
    pub arrival: Option<Arrival>,
}

/// Of a pod that came while the agent runs.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub at: Instant,
    /// Since then, for the volumes to be filled.
    pub waited: Duration,
}

pub struct Executor {
    pub cri: Cri,
    pub images: Images,
    pub handles: Handles,
    pub events: Recorder,
    pub settings: Settings,
    pub node: NodeSetup,
    pub places: Places,
    pub deadlines: Deadlines,
    pub tokens: Tokens,
    /// Shared by probes and hooks.
    pub checker: Checker,
    pub plugins: Arc<Plugins>,
    prepares: Semaphore,
    starts: Semaphore,
    stops: Semaphore,
}

/// Reasons of steps that need an image's files.
const MADE_OF_IMAGES: [&str; 3] = ["FailedCreatePodSandBox", "CreateContainerError", RUN_ERROR];

type Done = Result<(), WorkError>;

impl Executor {
    pub fn new(cri: Cri, images: Images, handles: Handles, settings: Settings) -> Executor {
        let node = NodeSetup {
            node_name: handles.node_name.to_string(),
            cgroups: cgroup::Cgroups::new(settings.policy.cgroups.clone()),
            log_dir: settings.log_dir.clone(),
            memory_bytes: i64::try_from(settings.policy.capacity.memory_bytes).unwrap_or(i64::MAX),
            cluster_domain: settings.cluster_domain.clone(),
            seccomp_dir: settings.kubelet_dir.join("seccomp"),
            seccomp_default: settings.policy.seccomp_default,
        };
        let places = settings.places();
        let plugins = Arc::new(Plugins::new(&settings.kubelet_dir));
        let checker = Checker::new(cri.clone());
        let events = Recorder::new(handles.uplink.clone(), handles.node_name.clone(), settings.report_events);
        let deadlines = Deadlines::default();
        let tokens = Tokens::new(handles.clone());
        Executor {
            cri,
            images,
            handles,
            events,
            settings,
            node,
            places,
            plugins,
            deadlines,
            tokens,
            checker,
            prepares: Semaphore::new(limits::PREPARES_MAX),
            starts: Semaphore::new(limits::STARTS_MAX),
            stops: Semaphore::new(limits::STOPS_MAX),
        }
    }

    /// Carries out a step. One that fails as a damaged image would make it fail has the image repaired, and is tried again.
    pub async fn execute(self: Arc<Self>, job: Job) -> Done {
        let image = self.image_of(&job).await;
        match (self.clone().step(job).await, image) {
            (Err(error), Some(image))
                if MADE_OF_IMAGES.contains(&error.reason)
                    && repair::is_suspect(&error.message)
                    && Box::pin(self.images.heal(&image)).await =>
            {
                Err(WorkError { retry: Retry::After(limits::REPAIR_RETRY), ..error })
            }
            (result, _) => result,
        }
    }

    async fn image_of(&self, job: &Job) -> Option<String> {
        match &job.work {
            Work::RunSandbox { .. } => self.images.sandbox_image().await,
            Work::CreateContainer { name, .. } | Work::StartContainer { name, .. } => {
                Some(job.pod.as_ref()?.all_containers().find(|c| c.name == *name)?.image.clone())
            }
            _ => None,
        }
    }

    /// What is awaited here is boxed: most steps wait for their turn, and should be small meanwhile.
    async fn step(self: Arc<Self>, job: Job) -> Done {
        // Before its turn among the starts: a slow registry holds up only the pods that need it.
        if let Work::CreateContainer { name, .. } = &job.work {
            Box::pin(self.obtain_image(&job, name)).await?;
        }
        let gate = match &job.work {
            Work::Persist(_) | Work::Prepare => &self.prepares,
            Work::StopContainers { .. } => &self.stops,
            _ => &self.starts,
        };
        let place = gate.acquire().await.expect("the semaphore is never closed");
        Box::pin(self.carry_out(job, place)).await
    }

    async fn carry_out(self: &Arc<Self>, job: Job, place: SemaphorePermit<'_>) -> Done {
        let Job { record, pod, work, host_ip, ip, arrival } = job;
        let need = || pod.as_ref().ok_or_else(|| bug("a step that starts something has a pod"));
        match work {
            Work::Persist(record) => self.persist(&record).await,
            Work::Prepare => {
                let pod = need()?;
                let (room, volumes) =
                    join(self.make_room(pod, &record), self.prepare(pod, &record, &host_ip)).await;
                volumes.and(room)
            }
            Work::RunSandbox { attempt, unwritten } => {
                let pod = need()?;
                let (ran, stored, ()) = join3(
                    self.run_sandbox(pod, &record, attempt, arrival),
                    self.persist_new(unwritten.as_deref()),
                    self.tokens.store(&pod.metadata.uid),
                )
                .await;
                stored.and(ran)
            }
            Work::RetireSandbox { id } => {
                self.cri.stop_pod_sandbox(&id).await.map_err(|e| runtime_error("KillPodSandboxError", &e))?;
                self.cri.remove_pod_sandbox(&id).await.map_err(|e| runtime_error("KillPodSandboxError", &e))
            }
            Work::StopSandbox { id } => {
                self.cri.stop_pod_sandbox(&id).await.map_err(|e| runtime_error("KillPodSandboxError", &e))
            }
            Work::CreateContainer { sandbox, name, attempt } => {
                let pod = need()?;
                let container = pod.all_containers().find(|c| c.name == name);
                let container = container.ok_or_else(|| bug("a container that is made is in the pod"))?;
                self.create(pod, container, &record, &sandbox, attempt, &host_ip).await
            }
            Work::StartContainer { id, name } => {
                let started = self.cri.start_container(&id).await;
                started.map_err(|e| resync(runtime_error(RUN_ERROR, &e)))?;
                // A hook may take long; other pods start meanwhile.
                drop(place);
                match hooks::Subject::of(&record, need()?, &name, &id, &ip) {
                    Some(subject) => hooks::post_start(self, &subject).await,
                    None => Ok(()),
                }
            }
            Work::StopContainers { stops, grace } => {
                stop::stop_all(self, &record, pod.as_deref(), &ip, &stops, grace).await
            }
            Work::RemoveContainer { id, name, attempt } => {
                self.cri.remove_container(&id).await.map_err(|e| runtime_error("KillContainerError", &e))?;
                logs::remove(&self.pod_logs(&record), &name, attempt);
                let _ = std::fs::remove_file(self.places.termination_log(&record, &name, attempt));
                Ok(())
            }
            Work::CleanUp => self.clean_up(record).await,
            Work::Forget => {
                let dir = self.pod_logs(&record);
                // Logs are no reason to keep a pod.
                let _ = rt::blocking(move || std::fs::remove_dir_all(dir)).await;
                if self.handles.meta.get_local(adopted::KIND, &record.incarnation).is_some() {
                    let _ = self.handles.meta.delete_local(adopted::KIND, &record.incarnation).await;
                }
                let deleted = self.handles.meta.delete_local(KIND, &record.incarnation).await;
                deleted.map_err(|error| store_error(&error))
            }
        }
    }

    pub fn pod_logs(&self, record: &Record) -> PathBuf {
        self.node.log_dir.join(render::log_dir_name(record))
    }

    /// A sandbox that could not be made is tried again with the record, which then is stored already.
    async fn persist_new(&self, record: Option<&Record>) -> Done {
        let Some(record) = record else { return Ok(()) };
        let stored = self.handles.meta.get_local(KIND, &record.incarnation);
        let same =
            |body: Bytes| serde_json::from_slice::<Record>(&body).is_ok_and(|stored| stored == *record);
        if stored.is_some_and(same) { Ok(()) } else { self.persist(record).await }
    }

    async fn persist(&self, record: &Record) -> Done {
        let body = serde_json::to_vec(record).expect("a record serialises without error");
        let begun = Instant::now();
        let put = self
            .handles
            .meta
            .put_local(KIND, &record.incarnation, body.into_boxed_slice().into(), true)
            .await;
        figures::record_written(begun.elapsed());
        put.map_err(|error| store_error(&error))
    }

    async fn run_sandbox(&self, pod: &Pod, record: &Record, attempt: u32, arrival: Option<Arrival>) -> Done {
        let broken = |message| WorkError { reason: "FailedCreatePodSandBox", message, retry: Retry::Backoff };
        render::check_sandbox(pod, &self.node).map_err(broken)?;
        let config = self.sandbox_config(pod, record, attempt);
        if let Some(Arrival { at, waited }) = arrival {
            figures::pod_start(at.elapsed(), at.elapsed().saturating_sub(waited));
        }
        self.images.ensure_sandbox_image().await?;
        let ran = self.cri.run_pod_sandbox(config).await;
        ran.map(|_| ()).map_err(|error| sandbox_error(&error))
    }

    /// What a sandbox is put into: the folder of its logs and the pod's group.
    async fn make_room(&self, pod: &Pod, record: &Record) -> Done {
        self.tell_names(pod, record);
        let dir = self.pod_logs(record);
        let made = std::fs::create_dir_all(&dir).map_err(|error| WorkError {
            reason: "FailedCreatePodSandBox",
            message: format!("cannot make the log folder {} ({error})", dir.display()),
            retry: Retry::Backoff,
        });
        self.limit_pod(pod, record).await;
        made
    }

    /// The pod's group with its limits. A group that cannot be limited is told of, and the pod runs without.
    async fn limit_pod(&self, pod: &Pod, record: &Record) {
        let (cgroups, pod, incarnation) =
            (self.node.cgroups.clone(), pod.clone(), record.incarnation.clone());
        let applied = rt::blocking(move || cgroups.apply_pod(&pod, &incarnation)).await;
        node_side::tell_cgroups(&self.handles, &self.events, applied);
    }

    fn sandbox_config(&self, pod: &Pod, record: &Record, attempt: u32) -> cri::PodSandboxConfig {
        render::sandbox(pod, record, attempt, &self.node, &self.resolver())
    }

    async fn create(
        &self,
        pod: &Pod,
        container: &Container,
        record: &Record,
        sandbox: &Sandbox,
        attempt: u32,
        host_ip: &str,
    ) -> Done {
        let user = self.image_user(pod, container).await?;
        let target = self.target(record, container).await?;
        let ips = if pod.spec.host_network { vec![host_ip.to_string()] } else { sandbox.ips.clone() };
        let facts = self.facts(host_ip, &ips);
        let env = self.environment(pod, container, record, &facts).await?;
        let mounts = self.mounts(pod, container, record, &env, &facts, attempt).await?;
        let devices = self.devices(record, container).await?;
        // Of a volume that was filled late.
        self.tokens.store(&pod.metadata.uid).await;
        let parts = Parts { env, mounts, attempt, user, target, devices };
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(render::container(pod, container, record, &self.node, parts)),
            sandbox_config: Some(self.sandbox_config(pod, record, sandbox.attempt)),
        };
        let created = self.cri.create_container(request).await;
        created.map(|_| ()).map_err(|e| resync(runtime_error("CreateContainerError", &e)))
    }

    async fn obtain_image(&self, job: &Job, container: &str) -> Done {
        let pod = job.pod.as_ref().ok_or_else(|| bug("a step that starts something has a pod"))?;
        let container = pod.all_containers().find(|c| c.name == container);
        let container = container.ok_or_else(|| bug("a container that is made is in the pod"))?;
        let (handles, events, record) = (&self.handles, &self.events, &job.record);
        self.images.ensure(&Want { handles, events, record, pod, container }).await
    }

    /// The user that the image names, if the pod's wishes depend on it; and whether they can be kept.
    async fn image_user(&self, pod: &Pod, container: &Container) -> Result<ImageUser, WorkError> {
        security::check(pod, container).map_err(config_error)?;
        let mut user = ImageUser::default();
        if security::needs_image_user(pod, container) {
            let image = self.cri.image_status(&container.image).await;
            let image = image.map_err(|e| runtime_error("ImageInspectError", &e))?.unwrap_or_default();
            user = ImageUser::new(image.uid.map(|uid| uid.value), image.username);
        }
        security::check_non_root(pod, container, &user).map_err(config_error)?;
        Ok(user)
    }

    /// What device plugins gave, after those that want to have readied it.
    async fn devices(&self, record: &Record, container: &Container) -> Result<render::Devices, WorkError> {
        let meta = &*self.handles.meta;
        let (claims, devices) = device_plugin::of_container(meta, &record.incarnation, &container.name);
        for claim in claims {
            self.plugins.pre_start(&claim.resource, &claim.ids).await.map_err(config_error)?;
        }
        Ok(devices)
    }

    /// The container whose processes an ephemeral container is to see.
    async fn target(&self, record: &Record, container: &Container) -> Result<Option<String>, WorkError> {
        let name = &container.target_container_name;
        if name.is_empty() {
            return Ok(None);
        }
        let labels = HashMap::from([
            (label::INCARNATION.to_string(), record.incarnation.clone()),
            (label::CONTAINER_NAME.to_string(), name.clone()),
        ]);
        let all =
            self.cri.list_containers(labels).await.map_err(|e| runtime_error("CreateContainerError", &e))?;
        let running = i32::from(cri::ContainerState::Running);
        match all.into_iter().find(|container| container.state == running) {
            Some(container) => Ok(Some(container.id)),
            None => Err(config_error(format!("unable to find target container \"{name}\""))),
        }
    }

    async fn clean_up(&self, record: Record) -> Done {
        let (places, cgroups) = (self.places.clone(), self.node.cgroups.clone());
        let uid = record.uid.clone();
        rt::blocking(move || {
            cgroups.remove_pod(&record.incarnation);
            places.clean_up(&record)
        })
        .await
        .map_err(volume_error)?;
        self.tokens.forget(&uid).await;
        Ok(())
    }
}

fn sandbox_error(error: &CriError) -> WorkError {
    let mut failed = runtime_error("FailedCreatePodSandBox", error);
    let text = &error.message;
    // The two that a new machine meets; the runtime's own texts do not say what to do.
    if text.contains("cni plugin not initialized") || text.contains("no network config found") {
        failed.message =
            format!("{text}; put a network configuration into the runtime's CNI folder (/etc/cni/net.d)");
    } else if text.contains("sandbox image") || text.contains("failed to pull image") {
        failed.message =
            format!("{text}; preload the sandbox image or set sandbox_image in containerd's configuration");
    }
    failed
}

fn volume_error(error: VolumeError) -> WorkError {
    WorkError { reason: "FailedMount", message: error.to_string(), retry: Retry::Backoff }
}

fn config_error(message: String) -> WorkError {
    WorkError { reason: "CreateContainerConfigError", message, retry: Retry::After(limits::RESYNC) }
}

fn store_error(error: &crate::contract::MetaError) -> WorkError {
    WorkError { reason: "StoreError", message: rt::error_chain(error), retry: Retry::Soon }
}

/// As a kubelet: the next round comes after a fixed time; containers that end have a back-off of their own.
fn resync(error: WorkError) -> WorkError {
    match error.retry {
        Retry::Backoff => WorkError { retry: Retry::After(limits::RESYNC), ..error },
        _ => error,
    }
}

pub fn bug(message: &str) -> WorkError {
    WorkError { reason: "InternalError", message: message.into(), retry: Retry::Backoff }
}
