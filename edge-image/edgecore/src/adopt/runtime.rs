//! What runs here, bound to the pods that the database knows.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use crate::edged::{
    cri::{
        Cri, CriError,
        adopted::{Adopted, KubeletStatus},
        messages::{Container, ContainerState, PodSandbox, PodSandboxState},
    },
    observed::label,
    pod::Pod,
    record::Record,
};

const TERMINATION_PATH: &str = "io.kubernetes.container.terminationMessagePath";
const TERMINATION_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";

/// All that the runtime has.
#[derive(Debug, Default)]
pub struct Running {
    pub sandboxes: Vec<PodSandbox>,
    pub containers: Vec<Container>,
    /// By container id.
    pub details: HashMap<String, KubeletStatus>,
}

impl Running {
    pub async fn look(cri: &Cri) -> Result<Running, CriError> {
        let containers = cri.list_containers(HashMap::new()).await?;
        let sandboxes = cri.list_pod_sandboxes(HashMap::new()).await?;
        let mut details = HashMap::new();
        for container in &containers {
            match cri.kubelet_status(&container.id).await {
                Ok(status) => drop(details.insert(container.id.clone(), status)),
                // Removed since it was listed.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Running { sandboxes, containers, details })
    }
}

/// A pod that runs here.
#[derive(Debug, PartialEq)]
pub struct Bound {
    pub record: Record,
    pub adopted: Adopted,
    pub containers_running: usize,
}

#[derive(Debug, Default, PartialEq)]
pub struct Binding {
    pub bound: Vec<Bound>,
    /// Pods that run and that nobody knows, as `namespace/name`.
    pub unknown: Vec<String>,
}

/// `pods`: of the database. `statics`: of the folder of static pods; their uids are made from the file, differently by everyone,
/// so they are bound by name, as pods of another cloud whose record the agent binds anew.
pub fn bind(running: &Running, pods: &[Arc<Pod>], statics: &[Arc<Pod>], node: &str, cloud: &str) -> Binding {
    let mut binding = Binding::default();
    let mut by_uid: BTreeMap<&str, Vec<&PodSandbox>> = BTreeMap::new();
    for sandbox in &running.sandboxes {
        if let Some(uid) = sandbox.labels.get(label::POD_UID)
            && !sandbox.labels.contains_key(label::NODE)
        {
            by_uid.entry(uid).or_default().push(sandbox);
        }
    }
    for (uid, sandboxes) in by_uid {
        let of = |name: &str| sandboxes[0].labels.get(name).map_or("", String::as_str);
        let (namespace, name) = (of(label::POD_NAMESPACE), of(label::POD_NAME));
        let named = |pod: &&Arc<Pod>| pod.metadata.namespace == namespace && pod.metadata.name == name;
        let of_cloud = pods.iter().find(|pod| pod.metadata.uid == uid);
        let of_file = statics.iter().find(named);
        let (pod, cloud) = match (of_cloud, of_file) {
            (Some(pod), _) => (pod, cloud),
            (None, Some(pod)) => (pod, "static pods of KubeEdge"),
            (None, None) => {
                let ready = |sandbox: &&PodSandbox| sandbox.state == i32::from(PodSandboxState::Ready);
                if sandboxes.iter().any(ready) {
                    binding.unknown.push(format!("{namespace}/{name}"));
                }
                continue;
            }
        };
        let record = Record {
            incarnation: uid.into(),
            namespace: namespace.into(),
            name: name.into(),
            uid: uid.into(),
            cloud: Some(cloud.into()),
            spec_hash: pod.spec_hash(),
            grace_s: pod.grace().as_secs(),
            start_time: sandboxes.iter().map(|sandbox| sandbox.created_at).min().unwrap_or(0) / 1_000_000_000,
            next_sandbox: sandboxes
                .iter()
                .filter_map(|s| s.metadata.as_ref())
                .map(|m| m.attempt + 1)
                .max()
                .unwrap_or(0),
            ..Record::default()
        };
        binding.bound.push(bound(running, pod, record, &sandboxes, node));
    }
    binding
}

fn bound(running: &Running, pod: &Pod, record: Record, sandboxes: &[&PodSandbox], node: &str) -> Bound {
    let ours = HashMap::from([
        (label::NODE.to_owned(), node.to_owned()),
        (label::INCARNATION.to_owned(), record.incarnation.clone()),
    ]);
    let mut adopted = Adopted::default();
    let mut containers_running = 0;
    for sandbox in sandboxes {
        adopted.labels.insert(sandbox.id.clone(), ours.clone());
    }
    for container in &running.containers {
        if !sandboxes.iter().any(|sandbox| sandbox.id == container.pod_sandbox_id) {
            continue;
        }
        let mut labels = ours.clone();
        let name = container.labels.get(label::CONTAINER_NAME).map_or("", String::as_str);
        if let Some(spec) = pod.all_containers().find(|spec| spec.name == name) {
            labels.insert(label::CONTAINER_HASH.into(), spec.hash());
        }
        if let Some(details) = running.details.get(&container.id) {
            labels.extend(last_words(details));
        }
        containers_running += usize::from(container.state == i32::from(ContainerState::Running));
        adopted.labels.insert(container.id.clone(), labels);
    }
    Bound { record, adopted, containers_running }
}

/// Where a container leaves its last words: the mount at the path that the kubelet noted.
fn last_words(details: &KubeletStatus) -> Vec<(String, String)> {
    let mut labels = Vec::new();
    if details.annotations.get(TERMINATION_POLICY).is_some_and(|policy| policy == "FallbackToLogsOnError") {
        labels.push((label::LAST_WORDS.into(), "log".into()));
    }
    let path = details.annotations.get(TERMINATION_PATH);
    let mount = path.and_then(|path| details.mounts.iter().find(|mount| mount.container_path == *path));
    labels.extend(mount.map(|mount| (label::TERMINATION_LOG.to_owned(), mount.host_path.clone())));
    labels
}
