//! The shell around `volumes`, `sources` and `env`: what a pod's containers find on disk and in their environment.

use std::path::PathBuf;

use super::{
    cri::messages as cri,
    dns,
    env::{self, Environment, Facts},
    events::Event,
    execute::{Executor, bug},
    pod::{Container, Pod, Volume},
    record::Record,
    sources::Fetcher,
    volumes::{self, Claims, VolumeError, set_up_failed, support},
    worker::{Retry, WorkError},
};

type Done = Result<(), WorkError>;

impl Executor {
    fn fetcher(&self, ask: bool) -> Fetcher<'_> {
        Fetcher { handles: &self.handles, tokens: &self.tokens, ask }
    }

    /// Sets all volumes up. Each that fails has its event; the pod waits with the first of them.
    pub async fn prepare(&self, pod: &Pod, record: &Record, host_ip: &str) -> Done {
        let (claims, mut problems) = self.fetcher(true).claims(pod).await;
        for container in pod.all_containers() {
            if let Err(error) = support::check_container(pod, container) {
                problems.push(mount_error(error.to_string()));
            }
        }
        let facts = self.facts(host_ip, &[]);
        for volume in &pod.spec.volumes {
            let unresolved = volume.persistent_volume_claim.is_some() && !claims.contains_key(&volume.name);
            if unresolved {
                continue;
            }
            problems.extend(self.set_up(pod, record, volume, &claims, &facts).await.err());
        }
        // The first is told with the step's outcome.
        for problem in problems.iter().skip(1) {
            self.events.pod(record, Event::warning(problem.reason, problem.message.clone()));
        }
        problems.into_iter().next().map_or(Ok(()), Err)
    }

    async fn set_up(
        &self,
        pod: &Pod,
        record: &Record,
        volume: &Volume,
        claims: &Claims,
        facts: &Facts,
    ) -> Done {
        let refused = |error: VolumeError| mount_error(set_up_failed(&volume.name, error));
        let (places, of_pod, of_record) = (self.places.clone(), pod.clone(), record.clone());
        let (wanted, resolved, bytes) = (volume.clone(), claims.clone(), facts.memory_bytes);
        // A volume's files may be many, and have to be given to a group one by one.
        rt::blocking(move || places.set_up(&of_pod, &of_record, &wanted, &resolved, bytes))
            .await
            .map_err(refused)?;
        let files = self.fetcher(true).files(pod, volume, facts).await.map_err(|m| m.mount(&volume.name))?;
        let Some(files) = files else { return Ok(()) };
        if let Some(warning) = &files.warning {
            let text = set_up_failed(&volume.name, warning);
            self.events.pod(record, Event::warning("FailedMount", text));
        }
        self.places.write_files(pod, record, volume, &files.files).map(drop).map_err(refused)
    }

    /// Brings files of config maps, secrets, labels and tokens up to what is known now, in a pod that runs.
    pub async fn refresh(&self, pod: &Pod, record: &Record, ips: &[String], host_ip: &str) {
        let fetcher = self.fetcher(false);
        let facts = self.facts(host_ip, ips);
        for volume in &pod.spec.volumes {
            let problem = match fetcher.files(pod, volume, &facts).await {
                Ok(None) => continue,
                Ok(Some(files)) => match self.places.write_files(pod, record, volume, &files.files) {
                    Ok(_) => files.warning,
                    Err(error) => Some(error.to_string()),
                },
                // An object that was removed stays in pods that run with it, as with kubelet, which tells of it.
                Err(missing) => Some(missing.text),
            };
            if let Some(problem) = problem {
                let text = set_up_failed(&volume.name, problem);
                self.events.pod(record, Event::warning("FailedMount", text));
            }
        }
        self.tokens.store(&pod.metadata.uid).await;
    }

    pub fn facts(&self, host_ip: &str, ips: &[String]) -> Facts {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Facts {
            node_name: self.node.node_name.clone(),
            host_ip: host_ip.into(),
            pod_ips: ips.to_vec(),
            cpu_milli: i64::try_from(cpus * 1000).unwrap_or(i64::MAX),
            memory_bytes: self.node.memory_bytes,
            storage_bytes: disk_bytes(&self.settings.kubelet_dir),
        }
    }

    /// The environment of a container, with events for what is left out of it.
    pub async fn environment(
        &self,
        pod: &Pod,
        container: &Container,
        record: &Record,
        facts: &Facts,
    ) -> Result<Vec<(String, String)>, WorkError> {
        let sources = self.fetcher(true).environment(pod, container).await?;
        let Environment { variables, skipped } =
            env::resolve(pod, container, &sources, facts).map_err(|error| config_error(error.to_string()))?;
        for text in skipped {
            let event = Event::warning("InvalidEnvironmentVariableNames", text);
            self.events.pod(record, event.at(pod.field_path(&container.name)));
        }
        Ok(variables)
    }

    /// Tells what of a pod's names does not fit into a resolv.conf.
    pub fn tell_names(&self, pod: &Pod, record: &Record) {
        for (reason, text) in self.resolver().with_warnings(pod).1 {
            self.events.pod(record, Event::warning(reason, text));
        }
    }

    /// The names that the node's pods resolve with.
    pub fn resolver(&self) -> dns::Resolver {
        let text = std::fs::read_to_string(&self.settings.resolv_conf).unwrap_or_default();
        dns::Resolver {
            host: dns::parse_resolv_conf(&text),
            cluster_dns: self.settings.cluster_dns.clone(),
            cluster_domain: self.settings.cluster_domain.clone(),
        }
    }

    /// What is mounted into a container. A volume that vanished since the pod was prepared is set up again, or named.
    pub async fn mounts(
        &self,
        pod: &Pod,
        container: &Container,
        record: &Record,
        env: &[(String, String)],
        facts: &Facts,
        attempt: u32,
    ) -> Result<Vec<cri::Mount>, WorkError> {
        let refused = |error: VolumeError| config_error(error.to_string());
        support::check_container(pod, container).map_err(refused)?;
        let (claims, problems) = self.fetcher(false).claims(pod).await;
        let mut mounts = Vec::new();
        let mount = |at: &str, from: PathBuf| cri::Mount {
            container_path: at.to_string(),
            host_path: from.display().to_string(),
            readonly: false,
            propagation: cri::MountPropagation::Private.into(),
        };
        for (index, wanted) in container.volume_mounts.iter().enumerate() {
            let volume = pod.spec.volumes.iter().find(|volume| volume.name == wanted.name);
            let volume = volume.ok_or_else(|| bug("a mount that was checked names a volume of the pod"))?;
            let claimed = volume.persistent_volume_claim.is_some();
            if claimed && !claims.contains_key(&volume.name) {
                let problem = problems.iter().find(|p| p.message.contains(&format!("[{}]", volume.name)));
                return Err(config_error(problem.map(|p| p.message.clone()).unwrap_or_default()));
            }
            let base = self.places.volume(record, volume, &claims).map_err(refused)?;
            if claimed || volume.host_path.is_some() || !base.exists() {
                self.set_up(pod, record, volume, &claims, facts).await.map_err(|error| {
                    let reason = "CreateContainerConfigError";
                    WorkError { reason, ..error }
                })?;
            }
            let from = self.places.mount_source(record, &base, container, index, env).map_err(refused)?;
            let files = volume.config_map.is_some()
                || volume.secret.is_some()
                || volume.downward_api.is_some()
                || volume.projected.is_some();
            let of_claim = claims.get(&volume.name).is_some_and(|local| local.read_only);
            let propagation = match wanted.mount_propagation.as_str() {
                "HostToContainer" => cri::MountPropagation::HostToContainer,
                "Bidirectional" => cri::MountPropagation::Bidirectional,
                _ => cri::MountPropagation::Private,
            };
            mounts.push(cri::Mount {
                readonly: wanted.read_only || files || of_claim,
                propagation: propagation.into(),
                ..mount(&wanted.mount_path, from)
            });
        }
        let taken = |path: &str, mounts: &[cri::Mount]| mounts.iter().any(|m| m.container_path == path);
        if !taken("/etc/hosts", &mounts) {
            let host_file = match pod.spec.host_network {
                true => std::fs::read_to_string("/etc/hosts").unwrap_or_default(),
                false => String::new(),
            };
            let domain = self.resolver().domain_of(pod);
            let text = volumes::hosts::render(pod, &domain, &facts.pod_ips, &host_file);
            mounts.push(mount("/etc/hosts", self.places.write_hosts(record, &text).map_err(refused)?));
        }
        let last_words = match container.termination_message_path.as_str() {
            "" => "/dev/termination-log",
            path => path,
        };
        if !taken(last_words, &mounts) {
            let file = self.places.make_termination_log(record, &container.name, attempt);
            mounts.push(mount(last_words, file.map_err(refused)?));
        }
        Ok(mounts)
    }
}

/// The size of the file system that pods write to.
fn disk_bytes(dir: &std::path::Path) -> i64 {
    let exists = dir.ancestors().find(|dir| dir.exists()).unwrap_or(std::path::Path::new("/"));
    let found = nix::sys::statvfs::statvfs(exists);
    found.map_or(0, |fs| i64::try_from(fs.blocks().saturating_mul(fs.fragment_size())).unwrap_or(i64::MAX))
}

fn mount_error(message: String) -> WorkError {
    WorkError { reason: "FailedMount", message, retry: Retry::Backoff }
}

fn config_error(message: String) -> WorkError {
    WorkError { reason: "CreateContainerConfigError", message, retry: Retry::Backoff }
}
