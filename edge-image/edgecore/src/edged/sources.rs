//! Objects that a pod's environment and volumes are made of, out of meta: config maps, secrets, the service account's token.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::json;
use wire::{Message, Operation, Resource};

use super::{
    env::{self, Facts, Sources},
    limits,
    pod::{Container, DownwardVolume, KeyToPath, Pod, TokenProjection, Volume},
    volumes::File,
    worker::{Retry, WorkError},
};
use crate::contract::{Handles, MetaError};

const FILE_MODE_DEFAULT: u32 = 0o644;
const TOKEN_WAIT: Duration = Duration::from_secs(10);
const TOKEN_SECONDS_DEFAULT: i64 = 3600;

type Data = BTreeMap<String, Vec<u8>>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    #[serde(default)]
    data: Option<BTreeMap<String, String>>,
    #[serde(default)]
    binary_data: Option<BTreeMap<String, String>>,
}

/// Reads the data of a config map or secret. Total; entries that are not base64 where they must be are left out.
pub fn parse_data(kind: &str, body: &[u8]) -> Result<Data, serde_json::Error> {
    let stored: Stored = serde_json::from_slice(body)?;
    let binary = |map: BTreeMap<String, String>| {
        map.into_iter().filter_map(|(key, value)| Some((key, STANDARD.decode(value).ok()?))).collect::<Data>()
    };
    let data = stored.data.unwrap_or_default();
    let mut all = match kind {
        "secret" => binary(data),
        _ => data.into_iter().map(|(key, value)| (key, value.into_bytes())).collect(),
    };
    all.extend(binary(stored.binary_data.unwrap_or_default()));
    Ok(all)
}

pub struct Fetcher<'a> {
    pub handles: &'a Handles,
    /// Ask the cloud for what is not stored. Off when only refreshing.
    pub ask: bool,
}

impl Fetcher<'_> {
    /// `None`: there is no such object.
    async fn data(&self, namespace: &str, kind: &'static str, name: &str) -> Result<Option<Data>, WorkError> {
        let resource = Resource::new(namespace, kind, name);
        let object = if self.ask {
            match self.handles.meta.fetch(&resource).await {
                Ok(object) => Some(object),
                Err(MetaError::NotFound(_)) => None,
                Err(error) => return Err(failed(rt::error_chain(&error), Retry::Soon)),
            }
        } else {
            self.handles.meta.get(&resource)
        };
        let Some(object) = object else { return Ok(None) };
        let data = parse_data(kind, &object.body).map_err(|error| {
            failed(format!("{kind} {namespace}/{name} cannot be read ({error})"), Retry::Backoff)
        })?;
        Ok(Some(data))
    }

    /// All that a container's environment refers to.
    pub async fn environment(&self, pod: &Pod, container: &Container) -> Result<Sources, WorkError> {
        let mut sources = Sources::new();
        for (kind, name) in env::references(container) {
            let data = self.data(&pod.metadata.namespace, kind, &name).await;
            // The same trouble has another name when it is about the environment.
            let data = data.map_err(|error| WorkError { reason: "CreateContainerConfigError", ..error })?;
            sources.insert(format!("{kind}/{name}"), data);
        }
        Ok(sources)
    }

    /// The files of a volume; `None` for one that is not made of objects.
    pub async fn files(
        &self,
        pod: &Pod,
        volume: &Volume,
        facts: &Facts,
    ) -> Result<Option<Vec<File>>, WorkError> {
        let mut files = Vec::new();
        if let Some(map) = &volume.config_map {
            let mode = map.default_mode.unwrap_or(FILE_MODE_DEFAULT);
            let optional = map.optional == Some(true);
            files.extend(self.object(pod, "configmap", &map.name, &map.items, mode, optional).await?);
        } else if let Some(secret) = &volume.secret {
            let mode = secret.default_mode.unwrap_or(FILE_MODE_DEFAULT);
            let optional = secret.optional == Some(true);
            files.extend(
                self.object(pod, "secret", &secret.secret_name, &secret.items, mode, optional).await?,
            );
        } else if let Some(downward) = &volume.downward_api {
            files.extend(downward_files(pod, downward, facts)?);
        } else if let Some(projected) = &volume.projected {
            let mode = projected.default_mode.unwrap_or(FILE_MODE_DEFAULT);
            for source in &projected.sources {
                if let Some(map) = &source.config_map {
                    // Stock clouds project the cluster's CA into every pod; a node that has not got it yet still runs.
                    let optional = map.optional == Some(true) || map.name == "kube-root-ca.crt";
                    files.extend(self.object(pod, "configmap", &map.name, &map.items, mode, optional).await?);
                }
                if let Some(secret) = &source.secret {
                    let optional = secret.optional == Some(true);
                    files.extend(
                        self.object(pod, "secret", &secret.name, &secret.items, mode, optional).await?,
                    );
                }
                if let Some(downward) = &source.downward_api {
                    files.extend(downward_files(pod, downward, facts)?);
                }
                if let Some(token) = source.service_account_token.as_ref().filter(|_| self.ask) {
                    files.extend(self.token(pod, token).await.map(|data| File {
                        path: token.path.clone(),
                        mode,
                        data,
                    }));
                }
            }
        } else {
            return Ok(None);
        }
        let bytes: usize = files.iter().map(|file| file.data.len()).sum();
        if bytes > limits::VOLUME_BYTES_MAX {
            let text = format!(
                "volume {} has {bytes} bytes, over the limit of {}",
                volume.name,
                limits::VOLUME_BYTES_MAX
            );
            return Err(failed(text, Retry::Backoff));
        }
        Ok(Some(files))
    }

    async fn object(
        &self,
        pod: &Pod,
        kind: &'static str,
        name: &str,
        items: &[KeyToPath],
        mode: u32,
        optional: bool,
    ) -> Result<Vec<File>, WorkError> {
        let namespace = &pod.metadata.namespace;
        let data = match self.data(namespace, kind, name).await {
            Err(_) | Ok(None) if optional => return Ok(Vec::new()),
            Err(error) => return Err(error),
            Ok(None) => {
                return Err(failed(
                    format!("{kind} {namespace}/{name} does not exist; create it"),
                    Retry::Backoff,
                ));
            }
            Ok(Some(data)) => data,
        };
        if items.is_empty() {
            return Ok(data.into_iter().map(|(path, data)| File { path, mode, data }).collect());
        }
        let mut files = Vec::new();
        for item in items {
            match data.get(&item.key) {
                Some(data) => {
                    files.push(File {
                        path: item.path.clone(),
                        mode: item.mode.unwrap_or(mode),
                        data: data.clone(),
                    });
                }
                None if optional => {}
                None => {
                    let text = format!("{kind} {namespace}/{name} has no key {}; add it", item.key);
                    return Err(failed(text, Retry::Backoff));
                }
            }
        }
        Ok(files)
    }

    /// Best effort: a pod that needs no token must start without a cloud.
    async fn token(&self, pod: &Pod, token: &TokenProjection) -> Option<Vec<u8>> {
        let account = match pod.spec.service_account_name.as_str() {
            "" => "default",
            name => name,
        };
        let metadata = &pod.metadata;
        let audiences: Vec<&str> =
            Some(token.audience.as_str()).filter(|audience| !audience.is_empty()).into_iter().collect();
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "metadata": { "name": account, "namespace": metadata.namespace },
            "spec": {
                "audiences": audiences,
                "expirationSeconds": token.expiration_seconds.unwrap_or(TOKEN_SECONDS_DEFAULT),
                "boundObjectRef": { "kind": "Pod", "apiVersion": "v1", "name": metadata.name, "uid": metadata.uid },
            },
        });
        let resource = format!("{}/serviceaccounttoken/{account}", metadata.namespace);
        let message =
            Message::new(super::unix_ms(), wire::source::EDGED, "meta", Operation::QUERY, &resource)
                .with_content(&request);
        let answer = self.handles.uplink.request(message, TOKEN_WAIT).await.ok()?;
        let answer: serde_json::Value = answer.content_as().ok()?;
        Some(answer.pointer("/status/token")?.as_str()?.as_bytes().to_vec())
    }
}

fn downward_files(pod: &Pod, volume: &DownwardVolume, facts: &Facts) -> Result<Vec<File>, WorkError> {
    let mode = volume.default_mode.unwrap_or(FILE_MODE_DEFAULT);
    let render = |item: &super::pod::DownwardFile| {
        let value = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => env::field_value(pod, field, facts),
            (None, Some(resource)) => env::resource_value(pod, &pod.spec.containers[0], resource),
            (None, None) => Ok(String::new()),
        };
        let value = value.map_err(|error| failed(error.to_string(), Retry::Backoff))?;
        Ok(File { path: item.path.clone(), mode: item.mode.unwrap_or(mode), data: value.into_bytes() })
    };
    volume.items.iter().map(render).collect()
}

fn failed(message: String, retry: Retry) -> WorkError {
    WorkError { reason: "FailedMount", message, retry }
}
