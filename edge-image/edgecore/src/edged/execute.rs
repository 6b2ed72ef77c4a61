//! Carries out one step of a pod against the runtime, the disk and meta. Every step can be repeated.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use tokio::sync::Semaphore;

use super::{
    Settings, cgroup,
    cri::{Cri, CriError, messages as cri},
    dns,
    env::{self, Facts},
    events::Recorder,
    images::{Images, pull::Want, runtime_error},
    limits, logs, node_side,
    observed::{Sandbox, label},
    pod::{Container, Pod},
    record::{KIND, Record},
    render::{
        self, NodeSetup, Parts,
        security::{self, ImageUser},
    },
    sources::Fetcher,
    stop::{self, Deadlines},
    volumes::{Places, VolumeError},
    worker::{Retry, Work, WorkError},
};
use crate::contract::Handles;

/// A step and what it is about, as it was when the step was decided.
pub struct Job {
    pub record: Record,
    pub pod: Option<Arc<Pod>>,
    pub work: Work,
    pub host_ip: String,
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
    starts: Semaphore,
    stops: Semaphore,
}

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
        let (starts, stops) = (Semaphore::new(limits::STARTS_MAX), Semaphore::new(limits::STOPS_MAX));
        let events = Recorder::new(handles.uplink.clone(), handles.node_name.clone(), settings.report_events);
        let deadlines = Deadlines::default();
        Executor { cri, images, handles, events, settings, node, places, deadlines, starts, stops }
    }

    pub async fn execute(self: Arc<Self>, job: Job) -> Done {
        // Before its turn among the starts: a slow registry holds up only the pods that need it.
        if let Work::CreateContainer { name, .. } = &job.work {
            self.obtain_image(&job, name).await?;
        }
        let stop = matches!(job.work, Work::StopContainers { .. });
        let gate = if stop { &self.stops } else { &self.starts };
        let _place = gate.acquire().await.expect("the semaphore is never closed");
        let Job { record, pod, work, host_ip } = job;
        let need = || pod.as_ref().ok_or_else(|| bug("a step that starts something has a pod"));
        match work {
            Work::Persist(record) => self.persist(&record).await,
            Work::PrepareVolumes => self.prepare(need()?, &record, &host_ip).await,
            Work::RunSandbox { attempt } => self.run_sandbox(need()?, &record, attempt).await,
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
            Work::StartContainer { id, .. } => {
                let started = self.cri.start_container(&id).await;
                started.map_err(|e| resync(runtime_error("RunContainerError", &e)))
            }
            Work::StopContainers { stops, grace } => {
                stop::stop_all(&self.cri, &self.deadlines, &record.incarnation, &stops, grace).await
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
                let deleted = self.handles.meta.delete_local(KIND, &record.incarnation).await;
                deleted.map_err(|error| store_error(&error))
            }
        }
    }

    pub fn pod_logs(&self, record: &Record) -> PathBuf {
        self.node.log_dir.join(render::log_dir_name(record))
    }

    async fn persist(&self, record: &Record) -> Done {
        let body = serde_json::to_vec(record).expect("a record serialises without error");
        let put = self.handles.meta.put_local(KIND, &record.incarnation, body.into(), true).await;
        put.map_err(|error| store_error(&error))
    }

    async fn prepare(&self, pod: &Pod, record: &Record, host_ip: &str) -> Done {
        self.places.prepare(pod, record).map_err(volume_error)?;
        let fetcher = Fetcher { handles: &self.handles, ask: true };
        let facts = self.facts(host_ip, &[]);
        let group = pod.spec.security_context.as_ref().and_then(|security| security.fs_group);
        for volume in &pod.spec.volumes {
            if let Some(files) = fetcher.files(pod, volume, &facts).await? {
                self.places.write_files(record, volume, &files, group).map_err(volume_error)?;
            }
        }
        Ok(())
    }

    /// Brings files of config maps, secrets and labels up to what is stored now, in a pod that runs.
    pub async fn refresh(&self, pod: &Pod, record: &Record, ips: &[String], host_ip: &str) {
        let fetcher = Fetcher { handles: &self.handles, ask: false };
        let facts = self.facts(host_ip, ips);
        let group = pod.spec.security_context.as_ref().and_then(|security| security.fs_group);
        for volume in &pod.spec.volumes {
            // A token is asked for once; a refresh without the cloud would lose it.
            let tokens =
                volume.projected.iter().flat_map(|p| &p.sources).any(|s| s.service_account_token.is_some());
            if tokens {
                continue;
            }
            // An object that was removed stays in pods that run with it, as with kubelet.
            let Ok(Some(files)) = fetcher.files(pod, volume, &facts).await else { continue };
            if let Err(error) = self.places.write_files(record, volume, &files, group) {
                tracing::warn!("pod {}: {error}", pod.full_name());
            }
        }
    }

    fn facts(&self, host_ip: &str, ips: &[String]) -> Facts {
        Facts { node_name: self.node.node_name.clone(), host_ip: host_ip.into(), pod_ips: ips.to_vec() }
    }

    async fn run_sandbox(&self, pod: &Pod, record: &Record, attempt: u32) -> Done {
        let broken = |message| WorkError { reason: "FailedCreatePodSandBox", message, retry: Retry::Backoff };
        render::check_sandbox(pod, &self.node).map_err(broken)?;
        self.images.ensure_sandbox_image().await?;
        let config = self.sandbox_config(pod, record, attempt);
        let dir = PathBuf::from(&config.log_directory);
        std::fs::create_dir_all(&dir).map_err(|error| WorkError {
            reason: "FailedCreatePodSandBox",
            message: format!("cannot make the log folder {} ({error})", dir.display()),
            retry: Retry::Backoff,
        })?;
        self.limit_pod(pod, record).await;
        let ran = self.cri.run_pod_sandbox(config).await;
        ran.map(|_| ()).map_err(|error| sandbox_error(&error))
    }

    /// The pod's group with its limits. A group that cannot be limited is told of, and the pod runs without.
    async fn limit_pod(&self, pod: &Pod, record: &Record) {
        let (cgroups, pod, incarnation) =
            (self.node.cgroups.clone(), pod.clone(), record.incarnation.clone());
        let applied = rt::blocking(move || cgroups.apply_pod(&pod, &incarnation)).await;
        node_side::tell_cgroups(&self.handles, &self.events, applied);
    }

    fn sandbox_config(&self, pod: &Pod, record: &Record, attempt: u32) -> cri::PodSandboxConfig {
        let text = std::fs::read_to_string(&self.settings.resolv_conf).unwrap_or_default();
        let dns = dns::Resolver {
            host: dns::parse_resolv_conf(&text),
            cluster_dns: self.settings.cluster_dns.clone(),
            cluster_domain: self.settings.cluster_domain.clone(),
        };
        render::sandbox(pod, record, attempt, &self.node, &dns)
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
        let sources = Fetcher { handles: &self.handles, ask: true }.environment(pod, container).await?;
        let env = env::resolve(pod, container, &sources, &self.facts(host_ip, &ips))
            .map_err(|error| config_error(error.to_string()))?;
        let mounts =
            self.mounts(pod, container, record, &ips, attempt).map_err(|e| config_error(e.to_string()))?;
        let devices = Default::default();
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

    fn mounts(
        &self,
        pod: &Pod,
        container: &Container,
        record: &Record,
        ips: &[String],
        attempt: u32,
    ) -> Result<Vec<cri::Mount>, VolumeError> {
        let mut mounts = Vec::new();
        let mount = |at: &str, from: PathBuf| cri::Mount {
            container_path: at.to_string(),
            host_path: from.display().to_string(),
            readonly: false,
            propagation: cri::MountPropagation::Private.into(),
        };
        for wanted in &container.volume_mounts {
            let volume = pod.spec.volumes.iter().find(|volume| volume.name == wanted.name);
            let Some(volume) = volume else { continue };
            let from = self.places.mount_source(record, volume, wanted)?;
            let files = volume.config_map.is_some() || volume.secret.is_some() || volume.projected.is_some();
            let propagation = match wanted.mount_propagation.as_str() {
                "HostToContainer" => cri::MountPropagation::HostToContainer,
                "Bidirectional" => cri::MountPropagation::Bidirectional,
                _ => cri::MountPropagation::Private,
            };
            mounts.push(cri::Mount {
                readonly: wanted.read_only || files,
                propagation: propagation.into(),
                ..mount(&wanted.mount_path, from)
            });
        }
        let taken = |path: &str, mounts: &[cri::Mount]| mounts.iter().any(|m| m.container_path == path);
        if !pod.spec.host_network && !taken("/etc/hosts", &mounts) {
            mounts.push(mount("/etc/hosts", self.places.write_hosts(pod, record, ips)?));
        }
        let last_words = match container.termination_message_path.as_str() {
            "" => "/dev/termination-log",
            path => path,
        };
        if !taken(last_words, &mounts) {
            mounts
                .push(mount(last_words, self.places.make_termination_log(record, &container.name, attempt)?));
        }
        Ok(mounts)
    }

    async fn clean_up(&self, record: Record) -> Done {
        let (places, cgroups) = (self.places.clone(), self.node.cgroups.clone());
        rt::blocking(move || {
            cgroups.remove_pod(&record.incarnation);
            places.clean_up(&record)
        })
        .await
        .map_err(volume_error)
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

fn bug(message: &str) -> WorkError {
    WorkError { reason: "InternalError", message: message.into(), retry: Retry::Backoff }
}
