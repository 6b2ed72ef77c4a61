//! What a pod's environment and volumes are made of, out of meta: config maps, secrets, claims, and the tokens of `tokens`.
//!
//! The texts of what is missing are kubelet's: users search for them.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use wire::{Message, Operation, Resource};

use super::{
    env::{self, Facts, Sources},
    limits,
    pod::{ClaimVolume, Container, DownwardVolume, KeyToPath, Pod, TokenProjection, Volume},
    tokens::{TokenError, Tokens},
    volumes::{
        Claims, File, LocalVolume,
        claim::{self, Claim, ClaimError},
        set_up_failed,
    },
    worker::{Retry, WorkError},
};
use crate::contract::{Handles, MetaError};

const FILE_MODE_DEFAULT: u32 = 0o644;
/// Of a service account's token where the pod's processes get it through their user or group.
const TOKEN_MODE: u32 = 0o600;
/// The volume that the API server adds to pods. A pod starts without its token when there is no cloud to ask.
const AUTOMATIC: &str = "kube-api-access-";

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

/// Why a source is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    pub text: String,
    pub retry: Retry,
}

impl Missing {
    fn new(text: impl Into<String>) -> Missing {
        Missing { text: text.into(), retry: Retry::Backoff }
    }

    /// As an error of a volume.
    pub fn mount(self, volume: &str) -> WorkError {
        WorkError { reason: "FailedMount", message: set_up_failed(volume, self.text), retry: self.retry }
    }

    /// As an error of a container's environment.
    pub fn config(self) -> WorkError {
        WorkError { reason: "CreateContainerConfigError", message: self.text, retry: self.retry }
    }
}

/// The files of a volume, and what of them could not be had without stopping the pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Files {
    pub files: Vec<File>,
    pub warning: Option<String>,
}

pub struct Fetcher<'a> {
    pub handles: &'a Handles,
    pub tokens: &'a Tokens,
    /// Ask the cloud for what is not stored. Off when only refreshing.
    pub ask: bool,
}

impl Fetcher<'_> {
    /// `None`: there is no such object.
    async fn data(&self, namespace: &str, kind: &'static str, name: &str) -> Result<Option<Data>, Missing> {
        let resource = Resource::new(namespace, kind, name);
        let object = if self.ask {
            match self.handles.meta.fetch(&resource).await {
                Ok(object) => Some(object),
                Err(MetaError::NotFound(_)) => None,
                Err(error) => return Err(Missing { text: rt::error_chain(&error), retry: Retry::Soon }),
            }
        } else {
            self.handles.meta.get(&resource)
        };
        let Some(object) = object else { return Ok(None) };
        let data = parse_data(kind, &object.body)
            .map_err(|error| Missing::new(format!("{kind} {namespace}/{name} cannot be read ({error})")))?;
        Ok(Some(data))
    }

    /// All that a container's environment refers to.
    pub async fn environment(&self, pod: &Pod, container: &Container) -> Result<Sources, WorkError> {
        let mut sources = Sources::new();
        for (kind, name) in env::references(container) {
            let data = self.data(&pod.metadata.namespace, kind, &name).await.map_err(Missing::config)?;
            sources.insert(format!("{kind}/{name}"), data);
        }
        Ok(sources)
    }

    /// The files of a volume; `None` for one that is not made of objects.
    pub async fn files(&self, pod: &Pod, volume: &Volume, facts: &Facts) -> Result<Option<Files>, Missing> {
        let mut all = Files::default();
        let files = &mut all.files;
        if let Some(map) = &volume.config_map {
            let wanted = Wanted::new("configmap", &map.name, &map.items, map.default_mode, map.optional);
            files.extend(self.object(pod, wanted).await?);
        } else if let Some(secret) = &volume.secret {
            let (name, mode) = (&secret.secret_name, secret.default_mode);
            let wanted = Wanted::new("secret", name, &secret.items, mode, secret.optional);
            files.extend(self.object(pod, wanted).await?);
        } else if let Some(downward) = &volume.downward_api {
            files.extend(downward_files(pod, downward, downward.default_mode, facts)?);
        } else if volume.projected.is_some() {
            all = self.projected(pod, volume, facts).await?;
        } else {
            return Ok(None);
        }
        let bytes: usize = all.files.iter().map(|file| file.data.len()).sum();
        if bytes > limits::VOLUME_BYTES_MAX {
            let max = limits::VOLUME_BYTES_MAX;
            return Err(Missing::new(format!("its {bytes} bytes are over this node's limit of {max}")));
        }
        Ok(Some(all))
    }

    /// All sources are looked at, so that the text names everything that is missing.
    async fn projected(&self, pod: &Pod, volume: &Volume, facts: &Facts) -> Result<Files, Missing> {
        let Some(projected) = &volume.projected else { return Ok(Files::default()) };
        let mode = projected.default_mode;
        let mut all = Files::default();
        let mut found: Vec<Result<Vec<File>, Missing>> = Vec::new();
        for source in &projected.sources {
            if let Some(map) = &source.config_map {
                // Stock clouds project the cluster's CA into every pod; a node that has not got it yet still runs.
                let optional = map.optional == Some(true) || map.name == "kube-root-ca.crt";
                let wanted = Wanted::new("configmap", &map.name, &map.items, mode, Some(optional));
                found.push(self.object(pod, wanted).await);
            }
            if let Some(secret) = &source.secret {
                let wanted = Wanted::new("secret", &secret.name, &secret.items, mode, secret.optional);
                found.push(self.object(pod, wanted).await);
            }
            if let Some(downward) = &source.downward_api {
                found.push(downward_files(pod, downward, mode, facts));
            }
            if let Some(token) = &source.service_account_token {
                match self.token(pod, token, mode).await {
                    Ok((file, warning)) => {
                        found.push(Ok(vec![file]));
                        all.warning = all.warning.or(warning);
                    }
                    Err(error) if error.is_offline() && volume.name.starts_with(AUTOMATIC) => {
                        all.warning = Some(format!(
                            "failed to fetch token: {error}; the pod runs without it and gets it when the cloud is reachable"
                        ));
                    }
                    Err(error) => {
                        let retry = if error.is_offline() { Retry::Soon } else { Retry::Backoff };
                        let text = format!("failed to fetch token: {error}");
                        found.push(Err(Missing { text, retry }));
                    }
                }
            }
            if source.cluster_trust_bundle.is_some() {
                let text = "projected clusterTrustBundle is not supported on this node; use a config map";
                found.push(Err(Missing::new(text)));
            }
        }
        let mut missing = Vec::new();
        for result in found {
            match result {
                Ok(files) => all.files.extend(files),
                Err(error) => missing.push(error),
            }
        }
        match missing.len() {
            0 => Ok(all),
            1 => Err(missing.remove(0)),
            _ => {
                let texts: Vec<&str> = missing.iter().map(|missing| missing.text.as_str()).collect();
                Err(Missing { text: format!("[{}]", texts.join(", ")), retry: missing[0].retry })
            }
        }
    }

    async fn token(
        &self,
        pod: &Pod,
        token: &TokenProjection,
        mode: Option<u32>,
    ) -> Result<(File, Option<String>), TokenError> {
        let found = self.tokens.get(pod, token).await?;
        let owner = pod.common_user();
        let has_group = super::volumes::fs_group(pod).is_some();
        let mode = if owner.is_some() || has_group { TOKEN_MODE } else { mode.unwrap_or(FILE_MODE_DEFAULT) };
        let file = File { path: token.path.clone(), mode, data: found.token.into_bytes(), owner };
        Ok((file, found.warning))
    }

    async fn object(&self, pod: &Pod, wanted: Wanted<'_>) -> Result<Vec<File>, Missing> {
        let Wanted { kind, name, items, mode, optional } = wanted;
        let data = match self.data(&pod.metadata.namespace, kind, name).await? {
            Some(data) => data,
            None if optional => return Ok(Vec::new()),
            None => return Err(Missing::new(format!("{kind} \"{name}\" not found"))),
        };
        let file = |path: String, mode, data| File { path, mode, data, owner: None };
        if items.is_empty() {
            return Ok(data.into_iter().map(|(path, data)| file(path, mode, data)).collect());
        }
        let mut files = Vec::new();
        for item in items {
            match data.get(&item.key) {
                Some(data) => files.push(file(item.path.clone(), item.mode.unwrap_or(mode), data.clone())),
                None if optional => {}
                None if kind == "secret" => {
                    return Err(Missing::new(format!("references non-existent secret key: {}", item.key)));
                }
                None => {
                    let text = format!("configmap references non-existent config key: {}", item.key);
                    return Err(Missing::new(text));
                }
            }
        }
        Ok(files)
    }

    /// The claims of a pod, resolved to paths of this node; what cannot be is named by its volume.
    pub async fn claims(&self, pod: &Pod) -> (Claims, Vec<WorkError>) {
        let (mut claims, mut problems) = (Claims::new(), Vec::new());
        for volume in &pod.spec.volumes {
            let Some(wanted) = &volume.persistent_volume_claim else { continue };
            match self.claim(pod, wanted).await {
                Ok(local) => {
                    claims.insert(volume.name.clone(), local);
                }
                Err((error, retry)) => {
                    let (name, namespace) = (&volume.name, &pod.metadata.namespace);
                    let message = match &error {
                        ClaimError::NodeAffinity(_) => error.to_string(),
                        _ => format!(
                            "Unable to attach or mount volumes: unmounted volumes=[{name}], unattached volumes=[], failed to \
                             process volumes=[{name}]: error processing PVC {namespace}/{}: {error}",
                            wanted.claim_name
                        ),
                    };
                    problems.push(WorkError { reason: "FailedMount", message, retry });
                }
            }
        }
        (claims, problems)
    }

    async fn claim(&self, pod: &Pod, wanted: &ClaimVolume) -> Result<LocalVolume, (ClaimError, Retry)> {
        let backoff = |error| (error, Retry::Backoff);
        let name = &wanted.claim_name;
        let resource = Resource::new(&pod.metadata.namespace, "persistentvolumeclaim", name);
        let usable = |body: &[u8]| Claim::parse(body).is_ok_and(|claim| claim.is_bound());
        let body = self.newest(&resource, usable, ClaimError::NoClaim(name.clone())).await?;
        let claim = Claim::parse(&body).map_err(backoff)?;
        let volume = claim.volume_name().map_err(backoff)?;
        let resource = Resource::new("null", "persistentvolume", volume);
        let body = self.newest(&resource, |_| true, ClaimError::NoVolume(volume.to_string())).await?;
        let volume = claim::Volume::parse(&body).map_err(backoff)?;
        let labels = self.node_labels();
        volume.resolve(&claim, labels.as_ref(), &self.handles.node_name, wanted.read_only).map_err(backoff)
    }

    /// The stored object if it will do, else the cloud's: a stock cloud does not push claims, so a stored one may be old.
    async fn newest(
        &self,
        resource: &Resource,
        usable: impl Fn(&[u8]) -> bool,
        missing: ClaimError,
    ) -> Result<bytes::Bytes, (ClaimError, Retry)> {
        let stored = self.handles.meta.get(resource);
        if let Some(object) = stored.as_ref().filter(|object| !self.ask || usable(&object.body)) {
            return Ok(object.body.clone());
        }
        if stored.is_some() {
            let now = super::unix_ms();
            let query =
                Message::new(now, wire::source::EDGED, "meta", Operation::QUERY, &resource.to_string());
            // The hub stores an answer before it hands it out. Without one the stored object says what is the matter.
            let _ = self.handles.uplink.request(query, crate::limits::FETCH_TIMEOUT).await;
            return Ok(self.handles.meta.get(resource).or(stored).expect("it was stored").body);
        }
        if !self.ask {
            return Err((missing, Retry::Backoff));
        }
        match self.handles.meta.fetch(resource).await {
            Ok(object) => Ok(object.body),
            Err(MetaError::NotFound(_)) => Err((missing, Retry::Backoff)),
            Err(error) => Err((ClaimError::Unsupported(rt::error_chain(&error)), Retry::Soon)),
        }
    }

    /// The node's labels, if the cloud sent its Node object.
    fn node_labels(&self) -> Option<BTreeMap<String, String>> {
        #[derive(Deserialize)]
        struct Node {
            metadata: Labels,
        }
        #[derive(Deserialize)]
        struct Labels {
            #[serde(default)]
            labels: Option<BTreeMap<String, String>>,
        }
        let object = self.handles.meta.get(&Resource::new("null", "node", &self.handles.node_name))?;
        let node: Node = serde_json::from_slice(&object.body).ok()?;
        Some(node.metadata.labels.unwrap_or_default())
    }
}

/// A config map or secret as a volume names it.
struct Wanted<'a> {
    kind: &'static str,
    name: &'a str,
    items: &'a [KeyToPath],
    mode: u32,
    optional: bool,
}

impl<'a> Wanted<'a> {
    fn new(
        kind: &'static str,
        name: &'a str,
        items: &'a [KeyToPath],
        mode: Option<u32>,
        optional: Option<bool>,
    ) -> Wanted<'a> {
        let (mode, optional) = (mode.unwrap_or(FILE_MODE_DEFAULT), optional == Some(true));
        Wanted { kind, name, items, mode, optional }
    }
}

fn downward_files(
    pod: &Pod,
    volume: &DownwardVolume,
    mode: Option<u32>,
    facts: &Facts,
) -> Result<Vec<File>, Missing> {
    let mode = mode.unwrap_or(FILE_MODE_DEFAULT);
    let render = |item: &super::pod::DownwardFile| {
        let value = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => env::field_value(pod, field, facts),
            (None, Some(resource)) => env::resource_value(pod, None, resource, facts),
            (None, None) => Ok(String::new()),
        };
        let value = value.map_err(|error| Missing::new(error.to_string()))?;
        let (path, mode) = (item.path.clone(), item.mode.unwrap_or(mode));
        Ok(File { path, mode, data: value.into_bytes(), owner: None })
    };
    volume.items.iter().map(render).collect()
}
