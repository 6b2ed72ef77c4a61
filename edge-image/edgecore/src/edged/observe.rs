//! Looks at the runtime: two list calls, and one status call for each container or sandbox that changed.
//!
//! Invariant: an observation is whole or an error; half of one would read as containers that are gone.

use std::{collections::HashMap, path::Path, sync::Arc};

use super::{
    cri::{Cri, CriError, messages as cri},
    last_words,
    observed::{Container, Observed, Sandbox, State, label, take},
    record::Record,
    volumes::Places,
};

pub struct Observer {
    cri: Cri,
    node_name: String,
    places: Places,
    /// What the look before found. What cannot change while the state stays (start, exit, last words, addresses) is taken over.
    last: Observed,
}

/// A look at the runtime as a whole.
pub struct Look {
    pub observed: Observed,
    /// Why pods cannot have a network, in the runtime's words.
    pub network_problem: Option<String>,
}

impl Observer {
    pub fn new(cri: Cri, node_name: &str, places: Places) -> Observer {
        Observer { cri, node_name: node_name.into(), places, last: Observed::default() }
    }

    pub async fn look(&mut self) -> Result<Look, CriError> {
        let status = self.cri.status(false).await?.status.unwrap_or_default();
        let broken = |c: &&cri::RuntimeCondition| c.r#type == "NetworkReady" && !c.status;
        let network_problem = status.conditions.iter().find(broken).map(|c| c.message.clone());
        self.last = self.observe().await?;
        Ok(Look { observed: self.last.clone(), network_problem })
    }

    async fn observe(&self) -> Result<Observed, CriError> {
        let ours = HashMap::from([(label::NODE.to_string(), self.node_name.clone())]);
        // Containers first: one whose sandbox is listed was there when the sandbox was, so none is missing from the list.
        let containers = self.cri.list_containers(ours.clone()).await?;
        let sandboxes = self.cri.list_pod_sandboxes(ours).await?;
        let known: HashMap<&str, &Arc<Sandbox>> =
            self.last.sandboxes.iter().map(|sandbox| (sandbox.id.as_str(), sandbox)).collect();
        let mut observed = Observed::default();
        for listed in sandboxes {
            let known = known.get(listed.id.as_str()).copied();
            observed.sandboxes.extend(self.sandbox(listed, known).await?);
        }
        let incarnations: HashMap<&str, &str> =
            observed.sandboxes.iter().map(|s| (s.id.as_str(), s.incarnation.as_str())).collect();
        let known: HashMap<&str, &Arc<Container>> =
            self.last.containers.iter().map(|container| (container.id.as_str(), container)).collect();
        for listed in containers {
            let incarnation = incarnations.get(listed.pod_sandbox_id.as_str()).copied().unwrap_or_default();
            let known = known.get(listed.id.as_str()).copied();
            observed.containers.extend(self.container(listed, known, incarnation).await?);
        }
        Ok(observed)
    }

    /// `None`: removed since it was listed.
    async fn sandbox(
        &self,
        listed: cri::PodSandbox,
        known: Option<&Arc<Sandbox>>,
    ) -> Result<Option<Arc<Sandbox>>, CriError> {
        let ready = listed.state == i32::from(cri::PodSandboxState::Ready);
        if let Some(known) = known.filter(|known| known.ready == ready) {
            return Ok(Some(known.clone()));
        }
        let ips = match ready {
            false => Vec::new(),
            true => match self.cri.pod_sandbox_status(&listed.id).await {
                Ok(status) => addresses(status),
                Err(error) if error.is_not_found() => return Ok(None),
                Err(error) => return Err(error),
            },
        };
        let mut labels = listed.labels;
        Ok(Some(Arc::new(Sandbox {
            incarnation: take(&mut labels, label::INCARNATION),
            namespace: take(&mut labels, label::POD_NAMESPACE),
            name: take(&mut labels, label::POD_NAME),
            uid: take(&mut labels, label::POD_UID),
            attempt: listed.metadata.map_or(0, |metadata| metadata.attempt),
            id: listed.id,
            ready,
            ips,
        })))
    }

    /// `None`: removed since it was listed.
    async fn container(
        &self,
        listed: cri::Container,
        known: Option<&Arc<Container>>,
        incarnation: &str,
    ) -> Result<Option<Arc<Container>>, CriError> {
        if let Some(known) = known.filter(|known| known.state == state(listed.state)) {
            return Ok(Some(known.clone()));
        }
        let status = match self.cri.container_status(&listed.id).await {
            Ok(status) => status,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut labels = listed.labels;
        let metadata = listed.metadata.unwrap_or_default();
        let mut container = Container {
            name: take(&mut labels, label::CONTAINER_NAME),
            hash: take(&mut labels, label::CONTAINER_HASH),
            attempt: metadata.attempt,
            sandbox_id: listed.pod_sandbox_id,
            // It may have ended since it was listed.
            state: state(status.state),
            started_at: status.started_at,
            finished_at: status.finished_at,
            exit_code: status.exit_code,
            reason: status.reason,
            message: status.message,
            image: status.image.or(listed.image).map_or(String::new(), |image| image.image),
            image_ref: if status.image_ref.is_empty() { listed.image_ref } else { status.image_ref },
            id: listed.id,
        };
        if container.state == State::Exited {
            let record = Record { incarnation: incarnation.into(), ..Record::default() };
            let file = match labels.get(label::TERMINATION_LOG) {
                Some(of_kubelet) => Path::new(of_kubelet).to_owned(),
                None => self.places.termination_log(&record, &container.name, container.attempt),
            };
            let mut words = last_words::of_file(&file);
            let of_log = labels.contains_key(label::LAST_WORDS) && container.exit_code != 0;
            if words.is_empty() && of_log {
                words = last_words::of_log(Path::new(&status.log_path));
            }
            let between = if words.is_empty() || container.message.is_empty() { "" } else { ": " };
            container.message = format!("{}{between}{words}", container.message);
        }
        Ok(Some(Arc::new(container)))
    }
}

fn state(of_runtime: i32) -> State {
    match cri::ContainerState::try_from(of_runtime) {
        Ok(cri::ContainerState::Created) => State::Created,
        Ok(cri::ContainerState::Running) => State::Running,
        Ok(cri::ContainerState::Exited) => State::Exited,
        _ => State::Unknown,
    }
}

fn addresses(status: cri::PodSandboxStatus) -> Vec<String> {
    let network = status.network.unwrap_or_default();
    let first = Some(network.ip).filter(|ip| !ip.is_empty());
    first.into_iter().chain(network.additional_ips.into_iter().map(|ip| ip.ip)).collect()
}
