//! The shell's part of pods: reads them and their records from meta, and tells the cloud of them.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use wire::{Message, Operation};

use super::Shell;
use crate::{
    contract::{Handles, Object, PodStatus, Report},
    edged::{
        execute::Arrival,
        figures,
        manager::{Input, Wanted},
        pod::{CONFIG_SOURCE, Pod, PodError},
        record::{KIND, Record},
        status, unix_ms,
    },
};

impl Shell {
    pub(super) fn desired(&mut self) {
        self.find_host();
        self.doorman.look(&self.handles, &mut self.manager);
        let objects = self.handles.meta.list("pod");
        let mut wanted = Vec::with_capacity(objects.len());
        let mut parsed = BTreeMap::new();
        let now = Instant::now();
        for object in objects {
            if self.up && !self.parsed.contains_key(&object.uid) {
                self.arrived.insert(object.uid.clone(), Arrival { at: now, waited: Duration::ZERO });
            }
            let entry = match self.parsed.remove(&object.uid) {
                Some((version, known)) if version == object.resource_version => (version, known),
                known => {
                    if known.is_some() {
                        self.upkeep.renewed.insert(object.uid.clone());
                    }
                    (object.resource_version.clone(), parse(&object))
                }
            };
            wanted.push(entry.1.clone());
            parsed.insert(object.uid.clone(), entry);
        }
        self.parsed = parsed;
        self.arrived.retain(|uid, _| self.parsed.contains_key(uid));
        self.upkeep.renewed.retain(|uid| self.parsed.contains_key(uid));
        let wanted = self.statics.join(wanted);
        self.handle(Input::Desired(wanted));
        self.follow_mirrors();
    }

    pub(super) fn report(&mut self, namespace: &str, name: &str, uid: &str, status: &Value) {
        if let Some(at) = self.event_at.take() {
            figures::event_to_status(at.elapsed());
        }
        let patch = serde_json::to_vec(status).expect("a status serialises").into_boxed_slice().into();
        self.handles.statuses.put(namespace, name, PodStatus { uid: uid.into(), patch });
        // A static pod is known to the cloud by its mirror, and told of when there is one.
        let Some(uid) = self.statics.cloud_uid(uid) else { return };
        let record = Record { uid: uid.into(), ..Record::default() };
        let resource = format!("{namespace}/podpatch/{name}");
        let message = Message::new(unix_ms(), wire::source::EDGED, "meta", Operation::PATCH, &resource)
            .with_content(&status::patch(&record, status));
        let key = format!("podstatus/{namespace}/{name}");
        self.handles.uplink.report(Report { key, message, durable: false });
    }

    pub(super) fn report_gone(&self, namespace: &str, name: &str, uid: &str) {
        self.handles.statuses.remove(namespace, name, uid);
        let resource = format!("{namespace}/pod/{name}");
        let message = Message::new(unix_ms(), wire::source::EDGED, "meta", Operation::DELETE, &resource)
            .with_content(&json!({ "gracePeriodSeconds": 0, "preconditions": { "uid": uid } }));
        let key = format!("poddelete/{namespace}/{name}/{uid}");
        self.handles.uplink.report(Report { key, message, durable: true });
    }
}

pub(super) fn records(handles: &Handles) -> Vec<Record> {
    let mut records = Vec::new();
    for (name, body) in handles.meta.list_local(KIND) {
        match serde_json::from_slice::<Record>(&body) {
            Ok(record) if record.incarnation == name => records.push(record),
            // Without its record a pod is adopted by its labels; see `manager`.
            _ => tracing::error!("record {KIND}/{name} cannot be read; its pod is adopted from the runtime"),
        }
    }
    records
}

fn parse(object: &Object) -> Wanted {
    let pod = Pod::parse(&object.body).and_then(|mut pod| {
        // Only a file of this node makes a pod static, and with that critical.
        pod.metadata.annotations.remove(CONFIG_SOURCE);
        // The store's key is what everything else goes by.
        let named =
            pod.metadata.name == object.resource.name && pod.metadata.namespace == object.resource.namespace;
        if named {
            Ok(Arc::new(pod))
        } else {
            Err(PodError::Missing("metadata.name and namespace that match its resource"))
        }
    });
    let deleting = match &pod {
        Ok(pod) => pod.metadata.deletion_timestamp.is_some(),
        Err(_) => is_deleted(&object.body),
    };
    Wanted {
        namespace: object.resource.namespace.clone(),
        name: object.resource.name.clone(),
        uid: object.uid.clone(),
        deleting,
        pod,
    }
}

/// Of an object that is not a pod that can be run.
fn is_deleted(body: &[u8]) -> bool {
    let object: Value = serde_json::from_slice(body).unwrap_or_default();
    object.pointer("/metadata/deletionTimestamp").is_some_and(|time| !time.is_null())
}
