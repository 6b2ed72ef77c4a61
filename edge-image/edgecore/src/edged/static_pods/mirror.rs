//! Mirrors of static pods in the cloud: made when they are missing, made again when somebody deleted them, removed with their pod.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::{Value, json};

use super::StaticPod;
use crate::edged::{limits, pod::Pod};

/// Marks a mirror; its value is the hash of the pod that it shows.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

/// A mirror as the cloud has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub hash: String,
    pub deleting: bool,
}

impl Mirror {
    /// `None`: not a mirror.
    pub fn of(pod: &Pod) -> Option<Mirror> {
        let hash = pod.metadata.annotations.get(MIRROR)?.clone();
        Some(Mirror {
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            hash,
            deleting: pod.metadata.deletion_timestamp.is_some(),
        })
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Create {
        namespace: String,
        name: String,
        object: Value,
    },
    Delete {
        namespace: String,
        name: String,
        uid: String,
    },
    /// Tell the pod's status again: the mirror knows nothing yet.
    Tell {
        uid: String,
    },
}

#[derive(Debug, Default)]
pub struct Mirrors {
    known: BTreeMap<(String, String), Mirror>,
    /// When something was last asked for a name.
    asked: BTreeMap<(String, String), Duration>,
    /// Static uid -> uid of its mirror.
    bound: BTreeMap<String, String>,
}

impl Mirrors {
    /// The uid under which the cloud knows a static pod.
    pub fn uid_of(&self, static_uid: &str) -> Option<&str> {
        self.bound.get(static_uid).map(String::as_str)
    }

    /// What the cloud has now.
    pub fn set(&mut self, mirrors: impl IntoIterator<Item = Mirror>) {
        let before = std::mem::take(&mut self.known);
        for mirror in mirrors {
            self.known.insert((mirror.namespace.clone(), mirror.name.clone()), mirror);
        }
        // What was asked for and came is not waited for any more.
        self.asked.retain(|place, _| before.get(place) == self.known.get(place));
    }

    /// `pods_known`: the folder was read, so a mirror without a pod is one too many. `node_uid`: of the Node object, if known.
    pub fn follow<'a>(
        &mut self,
        now: Duration,
        pods: impl Iterator<Item = &'a StaticPod>,
        pods_known: bool,
        node: (&str, &str),
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut places = BTreeSet::new();
        let mut bound = BTreeMap::new();
        for pod in pods {
            let metadata = &pod.pod.metadata;
            let place = (metadata.namespace.clone(), metadata.name.clone());
            places.insert(place.clone());
            match self.known.get(&place).cloned() {
                Some(mirror) if mirror.hash == pod.uid() && !mirror.deleting => {
                    if self.bound.get(pod.uid()) != Some(&mirror.uid) {
                        actions.push(Action::Tell { uid: pod.uid().into() });
                    }
                    bound.insert(pod.uid().to_string(), mirror.uid);
                }
                // Of an older content, or being deleted by somebody: it goes, and a new one comes.
                Some(mirror) => self.delete(now, mirror, &mut actions),
                None if self.may_ask(now, &place) => {
                    let (namespace, name) = place;
                    actions.push(Action::Create { namespace, name, object: show(pod, node) });
                }
                None => {}
            }
        }
        let orphans: Vec<Mirror> = self
            .known
            .iter()
            .filter(|(place, _)| pods_known && !places.contains(*place))
            .map(|(_, mirror)| mirror.clone())
            .collect();
        for mirror in orphans {
            self.delete(now, mirror, &mut actions);
        }
        self.bound = bound;
        actions
    }

    fn delete(&mut self, now: Duration, mirror: Mirror, actions: &mut Vec<Action>) {
        let place = (mirror.namespace, mirror.name);
        if self.may_ask(now, &place) {
            let (namespace, name) = place;
            actions.push(Action::Delete { namespace, name, uid: mirror.uid });
        }
    }

    /// Once, and again after a while: the cloud may have refused, or may be another one.
    fn may_ask(&mut self, now: Duration, place: &(String, String)) -> bool {
        let waits = self.asked.get(place).is_some_and(|at| now.saturating_sub(*at) < limits::MIRROR_RETRY);
        if !waits {
            self.asked.insert(place.clone(), now);
        }
        !waits
    }
}

/// The object that is sent to the cloud.
fn show(pod: &StaticPod, (node, node_uid): (&str, &str)) -> Value {
    let mut object = pod.object.clone();
    let metadata = &mut object["metadata"];
    metadata["annotations"][MIRROR] = json!(pod.uid());
    if let Some(fields) = metadata.as_object_mut() {
        fields.remove("uid");
    }
    if !node_uid.is_empty() {
        metadata["ownerReferences"] = json!([{ "apiVersion": "v1", "kind": "Node", "name": node, "uid": node_uid, "controller": true }]);
    }
    object
}
