//! What the cloud was told of a pod, so that it is told of changes only.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::Value;

use super::Action;
use crate::edged::{
    status::{self, NodeFacts, Transitions},
    worker::{Now, Worker},
};

#[derive(Default)]
pub(super) struct Told {
    /// Of the last report: two kilobytes less per pod than the report itself. Taken for another one once in 2^64, it is told with
    /// the next change.
    status: Option<u64>,
    transitions: Transitions,
    gone: bool,
}

fn digest(status: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    status.hash(&mut hasher);
    hasher.finish()
}

/// Reports what changed since the last report.
pub(super) fn tell(worker: &Worker, told: &mut Told, now: Now, node: &NodeFacts, actions: &mut Vec<Action>) {
    let Some(status) = status::render(worker, now, node, &mut told.transitions) else { return };
    let (namespace, name, uid) =
        (worker.record.namespace.clone(), worker.record.name.clone(), worker.record.uid.clone());
    let digest = digest(&status);
    if told.status != Some(digest) {
        told.status = Some(digest);
        actions.push(Action::Report {
            namespace: namespace.clone(),
            name: name.clone(),
            uid: uid.clone(),
            status,
        });
    }
    if worker.is_deleting() && worker.is_cleaned() && !told.gone {
        told.gone = true;
        actions.push(Action::ReportGone { namespace, name, uid });
    }
}
