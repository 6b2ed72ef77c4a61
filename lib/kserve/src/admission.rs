//! What a pod gets from its service account when it is made: the name `default`, the account's pull secrets, and the volume with
//! its token, the API's certificate and the namespace.
//!
//! Upstream's admission plugin `ServiceAccount` does this. Off unless [`Options::service_accounts`](crate::Options) is set: it
//! needs somebody who makes the account `default` in every namespace.

use std::time::Duration;

use kapi::{ApiError, Kind, kinds, meta};
use serde_json::{Value, json};

use crate::backend::Backend;
use crate::object::key;
use crate::server::Server;
use crate::write::generated_name;

/// Where programs look for the token.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Mirror pods are a node's own, and need no account.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// How long a pod waits for the account `default` of a namespace that was made a moment ago.
const ACCOUNT_WAITS: u32 = 20;
const ACCOUNT_WAIT: Duration = Duration::from_millis(50);
/// Upstream's: a token that is asked for so long is for clients that may not renew it (see `tokens`).
pub(crate) const TOKEN_SECONDS: i64 = 3607;

impl<B: Backend> Server<B> {
    /// Completes a pod that is being made.
    pub(crate) async fn admit_pod(&self, kind: &Kind, pod: &mut Value) -> Result<(), ApiError> {
        let annotations = meta::at(pod, "metadata.annotations");
        let mirror = annotations.is_some_and(|annotations| annotations.get(MIRROR).is_some());
        if !self.inner.options.service_accounts || mirror {
            return Ok(());
        }
        let namespace = meta::text(pod, "metadata.namespace").to_string();
        let named = [meta::text(pod, "spec.serviceAccountName"), meta::text(pod, "spec.serviceAccount")];
        let name = named.into_iter().find(|name| !name.is_empty()).unwrap_or("default").to_string();
        let Some(account) = self.account(&namespace, &name).await else {
            let why = format!(
                "error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found"
            );
            return Err(ApiError::forbidden(Some(kind), meta::text(pod, "metadata.name"), why));
        };
        let spec = meta::child(pod, "spec");
        spec.insert("serviceAccountName".into(), name.clone().into());
        spec.insert("serviceAccount".into(), name.into());
        let secrets =
            account.get("imagePullSecrets").and_then(Value::as_array).filter(|list| !list.is_empty());
        let none = |value: Option<&Value>| value.and_then(Value::as_array).is_none_or(Vec::is_empty);
        if let Some(secrets) = secrets.filter(|_| none(spec.get("imagePullSecrets"))) {
            spec.insert("imagePullSecrets".into(), secrets.clone().into());
        }
        let wish = |object: Option<&Value>| object.and_then(Value::as_bool);
        let mounts = wish(spec.get("automountServiceAccountToken"))
            .or(wish(account.get("automountServiceAccountToken")))
            .unwrap_or(true);
        if mounts && self.inner.options.tokens.is_some() {
            mount_token(spec, &(self.inner.options.uid)());
        }
        Ok(())
    }

    async fn account(&self, namespace: &str, name: &str) -> Option<Value> {
        let accounts = kinds::by_path("", "v1", "serviceaccounts").expect("the table has service accounts");
        let key = key(accounts, namespace, name);
        let attempts = if name == "default" { ACCOUNT_WAITS } else { 1 };
        for attempt in 0..attempts {
            if attempt > 0 {
                tokio::time::sleep(ACCOUNT_WAIT).await;
            }
            if let Some(record) = self.inner.backend.get(&key) {
                return serde_json::from_slice(&record.value).ok();
            }
        }
        None
    }
}

/// Adds the volume, and mounts it where a container has nothing at the place yet.
fn mount_token(spec: &mut serde_json::Map<String, Value>, uid: &str) {
    let name = generated_name("kube-api-access-", uid);
    let mut used = false;
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(container) = container.as_object_mut() else { continue };
            let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
            let Some(mounts) = mounts.as_array_mut() else { continue };
            if mounts.iter().any(|mount| meta::text(mount, "mountPath") == MOUNT_PATH) {
                continue;
            }
            mounts.push(json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH}));
            used = true;
        }
    }
    if !used {
        return;
    }
    let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
    if let Some(volumes) = volumes.as_array_mut() {
        let namespace = json!({"apiVersion": "v1", "fieldPath": "metadata.namespace"});
        volumes.push(json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
            {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": namespace}]}},
        ]}}));
    }
}
