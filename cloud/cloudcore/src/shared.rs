//! What replicas of cloudcore share: small values as config maps in KubeEdge's namespace, written only where nobody else wrote
//! meanwhile.
//!
//! Not here: what is in them (`records`, `join::tokens`, `identity`). The label `kinglet.dev/record` says which kind of value a
//! config map holds.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::Method;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::api::{Api, ApiError};
use crate::cluster::informer::{Lines, escape};
use crate::limits::{API_TIME_MAX, LIST_PAGE_LEN, WATCH_SECONDS};

/// KubeEdge's namespace; its Secrets are in it too.
pub const NAMESPACE: &str = "kubeedge";
pub const LABEL: &str = "kinglet.dev/record";
const KEY: &str = "value";
/// A write is tried again when another cloudcore changed the value at the same moment.
const WRITES_MAX: usize = 16;

/// Makes the namespace if it is not there.
pub async fn ensure_namespace(api: &Api) -> Result<(), ApiError> {
    match api.get(&format!("/api/v1/namespaces/{NAMESPACE}")).await {
        Err(error) if error.is_not_found() => {}
        other => return other.map(drop),
    }
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    match api.post("/api/v1/namespaces", namespace.to_string()).await {
        Err(error) if !error.is_conflict() => Err(error),
        _ => Ok(()),
    }
}

#[derive(Clone)]
pub struct Shared {
    api: Api,
    /// Of the label.
    what: &'static str,
}

#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    #[error("{0} cannot be read from the Kubernetes API")]
    Read(String, #[source] ApiError),
    #[error("{0} cannot be written to the Kubernetes API")]
    Write(String, #[source] ApiError),
    #[error("config map {NAMESPACE}/{0} is damaged; remove it")]
    Damaged(String, #[source] serde_json::Error),
    #[error("config map {NAMESPACE}/{0} is changed by others all the time")]
    Contended(String),
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub struct ConfigMap {
    pub metadata: Metadata,
    data: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    pub name: String,
    pub resource_version: String,
}

impl ConfigMap {
    pub fn value<T: DeserializeOwned>(&self) -> Result<T, SharedError> {
        let text = self.data.get(KEY).map_or("null", String::as_str);
        serde_json::from_str(text).map_err(|error| SharedError::Damaged(self.metadata.name.clone(), error))
    }
}

/// What [`Shared::follow`] tells.
pub enum News {
    All(Vec<ConfigMap>),
    Set(ConfigMap),
    /// By the config map's name: a deleted one may come without its value.
    Gone(String),
}

impl Shared {
    pub fn new(api: Api, what: &'static str) -> Shared {
        Shared { api, what }
    }

    /// The name of the config map for a key; keys of any length and with any characters that names may have.
    fn name(&self, key: &str) -> String {
        let plain = format!("kinglet-{}-{key}", self.what);
        match plain.len() <= 253 {
            true => plain,
            false => format!("kinglet-{}-{}", self.what, pki::sha256_hex(key.as_bytes())),
        }
    }

    fn folder() -> String {
        format!("/api/v1/namespaces/{NAMESPACE}/configmaps")
    }

    /// The query part of a list of these values.
    fn selector(&self) -> String {
        format!("labelSelector=kinglet.dev%2Frecord%3D{}", self.what)
    }

    async fn read(&self, key: &str) -> Result<Option<ConfigMap>, SharedError> {
        let name = self.name(key);
        match self.api.get(&format!("{}/{name}", Shared::folder())).await {
            Ok(body) => serde_json::from_slice(&body)
                .map(Some)
                .map_err(|error| SharedError::Read(name, ApiError::Json(error))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(SharedError::Read(name, error)),
        }
    }

    pub async fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, SharedError> {
        self.read(key).await?.map(|map| map.value()).transpose()
    }

    /// Reads, changes and writes a value, as one step for everybody else. `change` gets `None` when there is none, gives what is to
    /// be kept (`None`: as it is) and an answer; it may be asked more than once.
    pub async fn update<T, R>(
        &self,
        key: &str,
        mut change: impl FnMut(Option<T>) -> (Option<T>, R),
    ) -> Result<R, SharedError>
    where
        T: DeserializeOwned + Serialize,
    {
        let name = self.name(key);
        for _ in 0..WRITES_MAX {
            let now = self.read(key).await?;
            let version = now.as_ref().map(|map| map.metadata.resource_version.clone());
            let (kept, answer) = change(now.map(|map| map.value()).transpose()?);
            let Some(kept) = kept else { return Ok(answer) };
            let body = self.render(&name, version.as_deref(), &kept);
            let written = match version {
                Some(_) => self.api.put(&format!("{}/{name}", Shared::folder()), body).await,
                None => self.api.post(&Shared::folder(), body).await,
            };
            match written {
                Ok(_) => return Ok(answer),
                Err(error) if error.is_conflict() => {}
                Err(error) if version.is_some() && error.is_not_found() => {}
                Err(error) => return Err(SharedError::Write(name, error)),
            }
        }
        Err(SharedError::Contended(name))
    }

    fn render<T: Serialize>(&self, name: &str, version: Option<&str>, value: &T) -> String {
        let text = serde_json::to_string(value).expect("what is shared serialises without error");
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": {LABEL: self.what}, "resourceVersion": version},
            "data": {KEY: text},
        })
        .to_string()
    }

    /// All of them. At most a few thousand are expected; they are read page by page.
    pub async fn list(&self) -> Result<(Vec<ConfigMap>, String), SharedError> {
        #[derive(Deserialize)]
        struct List {
            metadata: ListMeta,
            items: Option<Vec<ConfigMap>>,
        }
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        struct ListMeta {
            resource_version: String,
            #[serde(rename = "continue")]
            next: Option<String>,
        }
        let (mut all, mut next) = (Vec::new(), String::new());
        loop {
            let path = format!("{}?{}&limit={LIST_PAGE_LEN}{next}", Shared::folder(), self.selector());
            let failed = |error| SharedError::Read(format!("the list of {}s", self.what), error);
            let body = self.api.get(&path).await.map_err(failed)?;
            let page: List = serde_json::from_slice(&body).map_err(|error| failed(ApiError::Json(error)))?;
            all.extend(page.items.unwrap_or_default());
            match page.metadata.next.filter(|token| !token.is_empty()) {
                Some(token) => next = format!("&continue={}", escape(&token)),
                None => return Ok((all, page.metadata.resource_version)),
            }
        }
    }

    /// Tells all values, and then each change; over when the watch ends. The next call tells what was missed meanwhile.
    pub async fn follow(&self, mut tell: impl FnMut(News)) -> Result<(), SharedError> {
        let (maps, version) = self.list().await?;
        tell(News::All(maps));
        let path = format!(
            "{}?watch=true&{}&timeoutSeconds={WATCH_SECONDS}&resourceVersion={}",
            Shared::folder(),
            self.selector(),
            escape(&version)
        );
        let failed = |error| SharedError::Read(format!("the watch of {}s", self.what), error);
        let open = self.api.open(Method::GET, &path, "application/json", Bytes::new());
        let opened = tokio::time::timeout(API_TIME_MAX, open).await.unwrap_or(Err(ApiError::Timeout));
        let mut lines = Lines::new(opened.map_err(failed)?);
        while let Some(line) = lines.next().await.map_err(failed)? {
            #[derive(Deserialize)]
            struct Event {
                #[serde(rename = "type")]
                event_type: String,
                object: ConfigMap,
            }
            let event: Event = serde_json::from_slice(&line).map_err(|e| failed(ApiError::Json(e)))?;
            match event.event_type.as_str() {
                "ADDED" | "MODIFIED" => tell(News::Set(event.object)),
                "DELETED" => tell(News::Gone(event.object.metadata.name)),
                // An error ends the watch: the next list tells what was missed.
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    /// Removes a value; `false`: there was none.
    pub async fn delete(&self, key: &str) -> Result<bool, SharedError> {
        self.remove(&self.name(key)).await
    }

    /// Removes a config map of a list; `false`: there was none.
    pub async fn remove(&self, name: &str) -> Result<bool, SharedError> {
        match self.api.delete(&format!("{}/{name}", Shared::folder()), "{}").await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(SharedError::Write(name.into(), error)),
        }
    }
}
