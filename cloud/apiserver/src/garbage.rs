//! Garbage collection by owner references: what belongs to something that is gone goes too.

use std::collections::HashSet;
use std::sync::Arc;

use kapi::kinds::{self, KINDS};
use kapi::{Kind, meta};
use serde_json::{Value, json};
use store::Record;

use crate::Api;
use crate::bootstrap::allow;
use crate::internal::CallError;

struct Dependent {
    kind: &'static Kind,
    record: Arc<Record>,
}

/// Uids that objects name as their owners. Only when one of these goes is there anything to collect, so that a deletion
/// normally costs nothing.
#[derive(Debug, Default)]
pub(crate) struct Owners(HashSet<String>);

impl Owners {
    pub fn note(&mut self, value: &[u8]) {
        const KEY: &[u8] = b"\"ownerReferences\"";
        if value.windows(KEY.len()).any(|window| window == KEY) {
            let owners = meta::view(value).owner_references.unwrap_or_default();
            self.0.extend(owners.into_iter().map(|owner| owner.uid));
        }
    }

    /// Whether the object that is gone may have had dependents. It is asked once: a uid does not come back.
    pub fn take(&mut self, uid: &str) -> bool {
        self.0.remove(uid)
    }
}

fn path(kind: &Kind, record: &Record) -> String {
    let key = &record.key;
    let scope = if kind.namespaced { format!("/namespaces/{}", key.namespace) } else { String::new() };
    format!("/{}{scope}/{}/{}", kind.api_path(), kind.plural, key.name)
}

impl Api {
    /// Objects that name `uid` as an owner.
    fn dependents(&self, uid: &str) -> Vec<Dependent> {
        let mut out = Vec::new();
        for kind in KINDS {
            for record in self.store().list(&kind.resource(), None).records {
                // Most objects do not even contain the uid: they are not parsed.
                let mentions = record.value.windows(uid.len()).any(|window| window == uid.as_bytes());
                let owned = || {
                    let owners = meta::view(&record.value).owner_references.unwrap_or_default();
                    owners.iter().any(|owner| owner.uid == uid)
                };
                if mentions && *record.uid != *uid && owned() {
                    out.push(Dependent { kind, record });
                }
            }
        }
        out
    }

    /// Something with this uid is gone: its dependents go, unless they have another owner that is there.
    pub(crate) async fn collect(&self, uid: &str) -> Result<(), CallError> {
        for dependent in self.dependents(uid) {
            self.collect_one(&dependent).await?;
        }
        Ok(())
    }

    /// After a start: dependents whose owners went while nobody looked.
    pub(crate) async fn collect_all(&self, known: &mut Owners) -> Result<(), CallError> {
        for kind in KINDS {
            for record in self.store().list(&kind.resource(), None).records {
                known.note(&record.value);
                let view = meta::view(&record.value);
                if view.deletion_timestamp.is_some() {
                    self.finish_deletion(&record).await?;
                } else if view.owner_references.is_some_and(|owners| !owners.is_empty()) {
                    self.collect_one(&Dependent { kind, record }).await?;
                }
            }
        }
        Ok(())
    }

    async fn collect_one(&self, dependent: &Dependent) -> Result<(), CallError> {
        let Dependent { kind, record } = dependent;
        let view = meta::view(&record.value);
        let owners = view.owner_references.unwrap_or_default();
        let is_there = |owner: &meta::OwnerView| match kinds::by_name(&owner.api_version, &owner.kind) {
            // A kind that is not served here: nothing is known, so nothing is deleted.
            None => true,
            Some(kind) => {
                let namespace = if kind.namespaced { &*record.key.namespace } else { "" };
                let found = self.store().get(&store::Key::new(&kind.resource(), namespace, &owner.name));
                found.is_some_and(|found| *found.uid == *owner.uid)
            }
        };
        if owners.iter().any(is_there) || view.deletion_timestamp.is_some() {
            return Ok(());
        }
        let body = json!({"propagationPolicy": "Background", "preconditions": {"uid": &*record.uid}});
        match self.call("DELETE", &path(kind, record), Some(&body)).await {
            // Made anew under the same name, which is another object.
            Err(error) if error.is("Conflict") => Ok(()),
            other => allow("NotFound", other),
        }
    }

    /// Carries out the two finalizers of a deletion that are the API's own: `orphan` and `foregroundDeletion`.
    pub(crate) async fn finish_deletion(&self, record: &Arc<Record>) -> Result<(), CallError> {
        let view = meta::view(&record.value);
        let finalizers = view.finalizers.unwrap_or_default();
        let has = |name: &str| finalizers.iter().any(|finalizer| finalizer == name);
        if view.deletion_timestamp.is_none() {
            return Ok(());
        }
        if has("orphan") {
            for dependent in self.dependents(&record.uid) {
                self.drop_owner(&dependent, &record.uid).await?;
            }
            return self.drop_finalizer(record, "orphan").await;
        }
        if has("foregroundDeletion") {
            let dependents = self.dependents(&record.uid);
            for Dependent { kind, record } in &dependents {
                let body = json!({"propagationPolicy": "Foreground", "preconditions": {"uid": &*record.uid}});
                match self.call("DELETE", &path(kind, record), Some(&body)).await {
                    Err(error) if error.is("Conflict") => {}
                    other => allow("NotFound", other)?,
                }
            }
            // Those that have a grace period bring us here again when they go (`finish_owners`).
            if self.dependents(&record.uid).is_empty() {
                return self.drop_finalizer(record, "foregroundDeletion").await;
            }
        }
        Ok(())
    }

    /// A dependent is gone: an owner that waits for its dependents may have waited for this one.
    pub(crate) async fn finish_owners(&self, gone: &Record) -> Result<(), CallError> {
        for owner in meta::view(&gone.value).owner_references.unwrap_or_default() {
            let Some(kind) = kinds::by_name(&owner.api_version, &owner.kind) else { continue };
            let namespace = if kind.namespaced { &*gone.key.namespace } else { "" };
            if let Some(record) = self.store().get(&store::Key::new(&kind.resource(), namespace, &owner.name))
                && *record.uid == *owner.uid
            {
                self.finish_deletion(&record).await?;
            }
        }
        Ok(())
    }

    async fn drop_owner(&self, dependent: &Dependent, uid: &str) -> Result<(), CallError> {
        let Ok(object) = serde_json::from_slice::<Value>(&dependent.record.value) else { return Ok(()) };
        let owners = meta::at(&object, "metadata.ownerReferences").and_then(Value::as_array);
        let left: Vec<&Value> =
            owners.into_iter().flatten().filter(|owner| meta::text(owner, "uid") != uid).collect();
        let patch = json!({"metadata": {"ownerReferences": left}});
        let done = self.call("PATCH", &path(dependent.kind, &dependent.record), Some(&patch)).await;
        allow("NotFound", done)
    }

    async fn drop_finalizer(&self, record: &Arc<Record>, name: &str) -> Result<(), CallError> {
        let Some(kind) = kinds::by_resource(&record.key.kind) else { return Ok(()) };
        let finalizers = meta::view(&record.value).finalizers.unwrap_or_default();
        let left: Vec<&String> = finalizers.iter().filter(|finalizer| *finalizer != name).collect();
        let patch = json!({"metadata": {"finalizers": left}});
        allow("NotFound", self.call("PATCH", &path(kind, record), Some(&patch)).await)
    }
}
