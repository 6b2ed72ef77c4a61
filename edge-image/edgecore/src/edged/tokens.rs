//! Tokens of service accounts: asked from the cloud for one pod, kept durably, renewed in time, and never taken away.
//!
//! Not here: the files (`sources`, `volumes`), which lie in RAM. The record in the store is what lets a pod start with its token
//! after a reboot without a cloud; it is as safe as the store's folder (mode 0600) until the board has a sealer.
//!
//! Invariants
//! - A token is of one pod (bound to its uid) and goes with it.
//! - A token that expired while there was no cloud stays until a new one is there: the file must not vanish under a pod.
//!
//! When to renew is kubelet's rule (pkg/kubelet/token): at 80 % of the lifetime or after 24 h, with up to 10 s of jitter.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use wire::{Message, Operation};

use super::{
    figures,
    pod::{Pod, TokenProjection},
    unix_ms,
};
use crate::contract::{Condition, Handles, UplinkError};

/// Kind of the local records.
pub const KIND: &str = "podtoken";

const WAIT: Duration = Duration::from_secs(10);
const SECONDS_DEFAULT: i64 = 3600;
const AGE_MAX_S: i64 = 24 * 3600;
const JITTER_MAX_S: u64 = 10;
/// A longer token is refused: it would be written to flash with every renewal.
const TOKEN_BYTES_MAX: usize = 16 * 1024;
const EXPIRED: &str = "ServiceAccountTokenExpired";

/// A token that was given out, as it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Entry {
    pub pod_uid: String,
    pub namespace: String,
    pub pod: String,
    pub account: String,
    pub token: String,
    /// Unix seconds, by the cloud's clock.
    pub expires: i64,
    pub lifetime_s: i64,
}

/// A token for a pod, now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub token: String,
    /// It should have been renewed and could not be.
    pub warning: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the cloud cannot be reached ({0})")]
    Offline(String),
    #[error("{0}")]
    Refused(String),
}

impl TokenError {
    pub fn is_offline(&self) -> bool {
        matches!(self, TokenError::Offline(_))
    }
}

/// Whether a token is to be renewed. `jitter_s` keeps the pods of a node from asking in the same second.
pub fn is_due(expires: i64, lifetime_s: i64, now: i64, jitter_s: i64) -> bool {
    let issued = expires - lifetime_s;
    now > issued + AGE_MAX_S - jitter_s || now > expires - lifetime_s / 5 - jitter_s
}

impl Kept {
    fn of(entry: &Entry) -> Kept {
        let Entry { expires, lifetime_s, .. } = *entry;
        Kept { pod_uid: entry.pod_uid.clone(), expires, lifetime_s, unstored: None }
    }

    fn is_due(&self, now: i64, jitter_s: i64) -> bool {
        is_due(self.expires, self.lifetime_s, now, jitter_s)
    }

    fn has_expired(&self, now: i64) -> bool {
        now >= self.expires
    }
}

impl Entry {
    /// Reads a kept token. Total.
    pub fn parse(body: &[u8]) -> Option<Entry> {
        let entry: Entry = serde_json::from_slice(body).ok()?;
        (!entry.token.is_empty() && entry.token.len() <= TOKEN_BYTES_MAX && entry.lifetime_s > 0)
            .then_some(entry)
    }

    /// Reads the cloud's TokenRequest with its status.
    fn from_answer(pod: &Pod, answer: &Value) -> Option<Entry> {
        let token = answer.pointer("/status/token")?.as_str()?.to_string();
        let expires = answer.pointer("/status/expirationTimestamp")?.as_str()?;
        let expires = expires.parse::<jiff::Timestamp>().ok()?.as_second();
        let lifetime_s = answer.pointer("/spec/expirationSeconds").and_then(Value::as_i64);
        let lifetime_s = lifetime_s.filter(|seconds| (1..=1 << 32).contains(seconds))?;
        let fits = !token.is_empty() && token.len() <= TOKEN_BYTES_MAX && !token.contains(['\n', '\r']);
        fits.then(|| Entry {
            pod_uid: pod.metadata.uid.clone(),
            namespace: pod.metadata.namespace.clone(),
            pod: pod.metadata.name.clone(),
            account: pod.service_account().to_string(),
            token,
            expires,
            lifetime_s,
        })
    }
}

/// What an answer of the cloud means.
fn read_answer(pod: &Pod, answer: &Message) -> Result<Entry, TokenError> {
    let content: Value = answer.content_as().unwrap_or_default();
    if let Some(entry) = Entry::from_answer(pod, &content) {
        return Ok(entry);
    }
    let text = content.as_str().or_else(|| content.pointer("/ErrStatus/message")?.as_str());
    let text = text.unwrap_or("the cloud answered with something that is not a token");
    Err(TokenError::Refused(text.chars().take(300).collect()))
}

/// Any bytes as a record or as the cloud's answer.
pub fn fuzz(data: &[u8]) {
    let entry = Entry::parse(data).map(|entry| Kept::of(&entry));
    let _ = entry.map(|entry| (entry.is_due(0, 0), entry.has_expired(i64::MAX)));
    if let Ok(message) = Message::decode(data) {
        let _ = read_answer(&Pod::default(), &message);
    }
}

pub struct Tokens {
    handles: Handles,
    /// By [`key`].
    kept: Mutex<BTreeMap<String, Kept>>,
}

/// What is asked of a token time and again; the token itself is in the store.
struct Kept {
    pod_uid: String,
    expires: i64,
    lifetime_s: i64,
    /// Not in the store yet.
    unstored: Option<Entry>,
}

impl Tokens {
    pub fn new(handles: Handles) -> Tokens {
        let mut kept = BTreeMap::new();
        for (name, body) in handles.meta.list_local(KIND) {
            match Entry::parse(&body) {
                Some(entry) => drop(kept.insert(name, Kept::of(&entry))),
                None => tracing::warn!("record {KIND}/{name} cannot be read; the token is asked for again"),
            }
        }
        Tokens { handles, kept: Mutex::new(kept) }
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<String, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, key: &str) -> Option<Entry> {
        let unstored = self.kept().get(key)?.unstored.clone();
        unstored.or_else(|| Entry::parse(&self.handles.meta.get_local(KIND, key)?))
    }

    /// The kept token, or a new one when there is none or it is due.
    pub async fn get(&self, pod: &Pod, wanted: &TokenProjection) -> Result<Found, TokenError> {
        let key = key(pod, wanted);
        let now = unix_ms() / 1000;
        let kept = self.entry(&key);
        let jitter_s = (rt::random_u64() % JITTER_MAX_S) as i64;
        if let Some(entry) = kept.as_ref().filter(|e| !is_due(e.expires, e.lifetime_s, now, jitter_s)) {
            return Ok(Found { token: entry.token.clone(), warning: None });
        }
        let begun = Instant::now();
        match self.request(pod, wanted).await {
            Ok(entry) => {
                let token = entry.token.clone();
                self.keep(key, entry, kept.is_none()).await;
                figures::token_obtained(begun.elapsed());
                Ok(Found { token, warning: None })
            }
            Err(error) => {
                let Some(entry) = kept else { return Err(error) };
                let account = format!("{}/{}", entry.namespace, entry.account);
                let warning = (now >= entry.expires).then(|| {
                    format!("token of service account {account} expired and refresh failed: {error}; the old one is kept")
                });
                Ok(Found { token: entry.token, warning })
            }
        }
    }

    /// Whether a token of the pod should be renewed, or is not there yet.
    pub fn is_due(&self, pod: &Pod) -> bool {
        let now = unix_ms() / 1000;
        let kept = self.kept();
        projections(pod).any(|wanted| kept.get(&key(pod, wanted)).is_none_or(|entry| entry.is_due(now, 0)))
    }

    async fn request(&self, pod: &Pod, wanted: &TokenProjection) -> Result<Entry, TokenError> {
        let (metadata, account) = (&pod.metadata, pod.service_account());
        let audiences: Vec<&str> =
            Some(wanted.audience.as_str()).filter(|audience| !audience.is_empty()).into_iter().collect();
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "metadata": { "name": account, "namespace": metadata.namespace },
            "spec": {
                "audiences": audiences,
                "expirationSeconds": wanted.expiration_seconds.unwrap_or(SECONDS_DEFAULT),
                "boundObjectRef": { "kind": "Pod", "apiVersion": "v1", "name": metadata.name, "uid": metadata.uid },
            },
        });
        let resource = format!("{}/serviceaccounttoken/{account}", metadata.namespace);
        let message = Message::new(unix_ms(), wire::source::EDGED, "meta", Operation::QUERY, &resource)
            .with_content(&request);
        let answer = self.handles.uplink.request(message, WAIT).await;
        let answer = answer.map_err(|error| match error {
            UplinkError::Disconnected(why) => TokenError::Offline(why),
            UplinkError::Timeout(_) => TokenError::Offline(error.to_string()),
        })?;
        read_answer(pod, &answer)
    }

    /// A pod's first token is not waited for until it is on the disk, see [`Tokens::store`]. A renewal that a power cut takes back
    /// leaves the token before it, which is good for a while yet.
    async fn keep(&self, key: String, entry: Entry, first: bool) {
        let uid = entry.pod_uid.clone();
        self.kept().insert(key, Kept { unstored: Some(entry.clone()), ..Kept::of(&entry) });
        if !first {
            self.write(&uid, false).await;
        }
        self.tell_expired();
    }

    /// What the store does not have yet of a pod's tokens is made durable, so that the pod has them after a reboot without a cloud.
    pub async fn store(&self, pod_uid: &str) {
        self.write(pod_uid, true).await;
    }

    async fn write(&self, pod_uid: &str, durable: bool) {
        let unstored: Vec<(String, Entry)> = {
            let kept = self.kept();
            let of_pod = kept.iter().filter(|(_, kept)| kept.pod_uid == pod_uid);
            of_pod.filter_map(|(key, kept)| Some((key.clone(), kept.unstored.clone()?))).collect()
        };
        for (key, entry) in unstored {
            let body = serde_json::to_vec(&entry).expect("a token's record serialises without error");
            match self.handles.meta.put_local(KIND, &key, body.into_boxed_slice().into(), durable).await {
                Ok(()) => {
                    if let Some(kept) =
                        self.kept().get_mut(&key).filter(|kept| kept.unstored.as_ref() == Some(&entry))
                    {
                        kept.unstored = None;
                    }
                }
                Err(error) => tracing::warn!(
                    "a service account's token is not kept over a restart: {}",
                    rt::error_chain(&error)
                ),
            }
        }
    }

    /// The tokens of a pod that is gone.
    pub async fn forget(&self, pod_uid: &str) {
        self.retain(|uid| uid != pod_uid).await;
    }

    /// Drops the tokens of pods that are not there any more.
    pub async fn retain(&self, is_there: impl Fn(&str) -> bool) {
        let gone: Vec<String> = {
            let mut kept = self.kept();
            let gone = kept.iter().filter(|(_, entry)| !is_there(&entry.pod_uid)).map(|(key, _)| key.clone());
            let gone: Vec<String> = gone.collect();
            gone.iter().for_each(|key| drop(kept.remove(key)));
            gone
        };
        for key in &gone {
            if let Err(error) = self.handles.meta.delete_local(KIND, key).await {
                tracing::warn!("the token of a pod that is gone stays: {}", rt::error_chain(&error));
            }
        }
        if !gone.is_empty() {
            self.tell_expired();
        }
    }

    /// Raises or clears the node's condition.
    pub fn tell_expired(&self) {
        let now = unix_ms() / 1000;
        let expired: Vec<String> = {
            let kept = self.kept();
            kept.iter().filter(|(_, kept)| kept.has_expired(now)).map(|(key, _)| key.clone()).collect()
        };
        let entries = expired.iter().filter_map(|key| self.entry(key));
        let mut pods: Vec<String> = entries.map(|e| format!("{}/{}", e.namespace, e.pod)).collect();
        pods.dedup();
        let status = !pods.is_empty();
        let message = match status {
            true => format!(
                "tokens of {} pods expired while the cloud could not be reached and are kept: {}; restore the link to the cloud",
                pods.len(),
                pods.iter().take(5).cloned().collect::<Vec<_>>().join(", ")
            ),
            false => String::new(),
        };
        self.handles.conditions.set(Condition {
            condition_type: EXPIRED.into(),
            status,
            reason: if status { "TokensExpired" } else { "TokensValid" }.into(),
            message,
        });
    }
}

/// The tokens that a pod's volumes project.
pub fn projections(pod: &Pod) -> impl Iterator<Item = &TokenProjection> {
    let sources =
        pod.spec.volumes.iter().filter_map(|volume| volume.projected.as_ref()).flat_map(|p| &p.sources);
    sources.filter_map(|source| source.service_account_token.as_deref())
}

/// What a token depends on. Hashed: parts of it are free text, and it is a name in the store.
fn key(pod: &Pod, wanted: &TokenProjection) -> String {
    let parts = [
        pod.metadata.uid.as_str(),
        pod.metadata.namespace.as_str(),
        pod.service_account(),
        &wanted.audience,
        &wanted.expiration_seconds.unwrap_or(SECONDS_DEFAULT).to_string(),
    ];
    hex::encode(&Sha256::digest(parts.join("\0"))[..16])
}

#[cfg(test)]
mod tests;
