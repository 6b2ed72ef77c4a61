//! Looks at the runtime: two list calls, and one status call for each container or sandbox that changed.
//!
//! Invariant: an observation is whole or an error; half of one would read as containers that are gone.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

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
    /// What cannot change while the state stays: start, exit, last words.
    containers: HashMap<String, (State, Container)>,
    /// Addresses of ready sandboxes.
    addresses: HashMap<String, Vec<String>>,
}

/// A look at the runtime as a whole.
pub struct Look {
    pub observed: Observed,
    /// Why pods cannot have a network, in the runtime's words.
    pub network_problem: Option<String>,
}

impl Observer {
    pub fn new(cri: Cri, node_name: &str, places: Places) -> Observer {
        Observer {
            cri,
            node_name: node_name.into(),
            places,
            containers: HashMap::new(),
            addresses: HashMap::new(),
        }
    }

    pub async fn look(&mut self) -> Result<Look, CriError> {
        let status = self.cri.status(false).await?.status.unwrap_or_default();
        let broken = |c: &&cri::RuntimeCondition| c.r#type == "NetworkReady" && !c.status;
        let network_problem = status.conditions.iter().find(broken).map(|c| c.message.clone());
        Ok(Look { observed: self.observe().await?, network_problem })
    }

    async fn observe(&mut self) -> Result<Observed, CriError> {
        let ours = HashMap::from([(label::NODE.to_string(), self.node_name.clone())]);
        // Containers first: one whose sandbox is listed was there when the sandbox was, so none is missing from the list.
        let containers = self.cri.list_containers(ours.clone()).await?;
        let sandboxes = self.cri.list_pod_sandboxes(ours).await?;
        let mut observed = Observed::default();
        for listed in sandboxes {
            if let Some(sandbox) = self.sandbox(listed).await? {
                observed.sandboxes.push(sandbox);
            }
        }
        let incarnations: HashMap<&str, &str> =
            observed.sandboxes.iter().map(|s| (s.id.as_str(), s.incarnation.as_str())).collect();
        let mut seen = Vec::new();
        for listed in containers {
            let incarnation =
                incarnations.get(listed.pod_sandbox_id.as_str()).copied().unwrap_or_default().to_string();
            if let Some(container) = self.container(listed, incarnation).await? {
                seen.push(container);
            }
        }
        observed.containers = seen;
        self.forget(&observed);
        Ok(observed)
    }

    async fn sandbox(&mut self, listed: cri::PodSandbox) -> Result<Option<Sandbox>, CriError> {
        let mut labels = listed.labels;
        let ready = listed.state == i32::from(cri::PodSandboxState::Ready);
        let ips = match (ready, self.addresses.get(&listed.id)) {
            (false, _) => Vec::new(),
            (true, Some(known)) => known.clone(),
            (true, None) => match self.cri.pod_sandbox_status(&listed.id).await {
                Ok(status) => addresses(status),
                // Removed since it was listed.
                Err(error) if error.is_not_found() => return Ok(None),
                Err(error) => return Err(error),
            },
        };
        if ready {
            self.addresses.insert(listed.id.clone(), ips.clone());
        }
        Ok(Some(Sandbox {
            incarnation: take(&mut labels, label::INCARNATION),
            namespace: take(&mut labels, label::POD_NAMESPACE),
            name: take(&mut labels, label::POD_NAME),
            uid: take(&mut labels, label::POD_UID),
            attempt: listed.metadata.map_or(0, |metadata| metadata.attempt),
            id: listed.id,
            ready,
            ips,
        }))
    }

    async fn container(
        &mut self,
        listed: cri::Container,
        incarnation: String,
    ) -> Result<Option<Container>, CriError> {
        let state = match cri::ContainerState::try_from(listed.state) {
            Ok(cri::ContainerState::Created) => State::Created,
            Ok(cri::ContainerState::Running) => State::Running,
            Ok(cri::ContainerState::Exited) => State::Exited,
            _ => State::Unknown,
        };
        if let Some((known, container)) = self.containers.get(&listed.id)
            && *known == state
        {
            return Ok(Some(container.clone()));
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
            state,
            started_at: status.started_at,
            finished_at: status.finished_at,
            exit_code: status.exit_code,
            reason: status.reason,
            message: status.message,
            image: status.image.or(listed.image).map_or(String::new(), |image| image.image),
            image_ref: if status.image_ref.is_empty() { listed.image_ref } else { status.image_ref },
            id: listed.id,
        };
        if state == State::Exited {
            let record = Record { incarnation, ..Record::default() };
            let file = self.places.termination_log(&record, &container.name, container.attempt);
            let mut words = last_words::of_file(&file);
            let of_log = labels.contains_key(label::LAST_WORDS) && container.exit_code != 0;
            if words.is_empty() && of_log {
                words = last_words::of_log(Path::new(&status.log_path));
            }
            let between = if words.is_empty() || container.message.is_empty() { "" } else { ": " };
            container.message = format!("{}{between}{words}", container.message);
        }
        // The list said running, the status may say exited already: the next look will take it from there.
        if status.state == listed.state {
            self.containers.insert(container.id.clone(), (state, container.clone()));
        }
        Ok(Some(container))
    }

    fn forget(&mut self, observed: &Observed) {
        let containers: HashSet<&str> = observed.containers.iter().map(|c| c.id.as_str()).collect();
        self.containers.retain(|id, _| containers.contains(id.as_str()));
        let ready: HashSet<&str> =
            observed.sandboxes.iter().filter(|s| s.ready).map(|s| s.id.as_str()).collect();
        self.addresses.retain(|id, _| ready.contains(id.as_str()));
    }
}

fn addresses(status: cri::PodSandboxStatus) -> Vec<String> {
    let network = status.network.unwrap_or_default();
    let first = Some(network.ip).filter(|ip| !ip.is_empty());
    first.into_iter().chain(network.additional_ips.into_iter().map(|ip| ip.ip)).collect()
}
