//! The controllers of the API itself: one loop over all changes, and a sweep of old events.

use std::collections::BTreeSet;

use kapi::kinds::KINDS;
use kapi::{meta, time};
use rt::Drain;
use serde_json::{Value, json};
use store::{Durability, Event, EventKind, Expect, Op};
use tokio::time::{Instant, timeout_at};

use crate::Api;
use crate::bootstrap::allow;
use crate::garbage::Owners;
use crate::internal::CallError;
use crate::limits::{EVENT_AGE_MAX, EVENT_SWEEP_EVERY, NAMESPACE_RETRY_EVERY};

pub(crate) async fn run(api: &Api, drain: Drain) -> Result<(), CallError> {
    let mut sweep_at = Instant::now();
    while !drain.is_draining() {
        // First what is there, then what changes: also after a watch that fell behind.
        let revision = api.store().revision();
        let mut terminating = BTreeSet::new();
        for record in api.store().list("namespaces", None).records {
            note_namespace(&record.key.name, &record.value, &mut terminating);
            if !terminating.contains(&*record.key.name) {
                api.fill_namespace(&record.key.name).await?;
            }
        }
        let mut owners = Owners::default();
        api.collect_all(&mut owners).await?;
        let Ok(mut watch) = api.store().watch(None, revision) else { continue };
        loop {
            for namespace in terminating.clone() {
                if api.empty_namespace(&namespace).await? {
                    terminating.remove(&namespace);
                }
            }
            if Instant::now() >= sweep_at {
                api.sweep_events().await;
                sweep_at = Instant::now() + EVENT_SWEEP_EVERY;
            }
            let wake_at = if terminating.is_empty() {
                sweep_at
            } else {
                sweep_at.min(Instant::now() + NAMESPACE_RETRY_EVERY)
            };
            match drain.or(timeout_at(wake_at, watch.next())).await {
                None | Some(Ok(Ok(None))) => return Ok(()),
                Some(Err(_)) => {}
                Some(Ok(Ok(Some(event)))) => react(api, &event, &mut terminating, &mut owners).await?,
                Some(Ok(Err(behind))) => {
                    tracing::warn!("the API's controllers start again: {behind}");
                    break;
                }
            }
        }
    }
    Ok(())
}

async fn react(
    api: &Api,
    event: &Event,
    terminating: &mut BTreeSet<String>,
    owners: &mut Owners,
) -> Result<(), CallError> {
    let key = &event.record.key;
    if &*key.kind == "namespaces" {
        match event.kind {
            EventKind::Put => {
                note_namespace(&key.name, &event.record.value, terminating);
                if event.previous.is_none() {
                    // The namespace may be gone again by now.
                    let filled = api.fill_namespace(&key.name).await;
                    if let Err(error) = filled
                        && !error.is("NotFound")
                        && !error.is("Forbidden")
                    {
                        return Err(error);
                    }
                }
            }
            EventKind::Delete => {
                terminating.remove(&*key.name);
            }
        }
    }
    match event.kind {
        EventKind::Delete => {
            if owners.take(&event.record.uid) {
                api.collect(&event.record.uid).await?;
            }
            api.finish_owners(&event.record).await
        }
        EventKind::Put => {
            owners.note(&event.record.value);
            api.finish_deletion(&event.record).await
        }
    }
}

fn note_namespace(name: &str, value: &[u8], terminating: &mut BTreeSet<String>) {
    if meta::view(value).deletion_timestamp.is_some() {
        terminating.insert(name.to_string());
    }
}

impl Api {
    /// Deletes what is in a namespace that is going away. True when it is gone.
    async fn empty_namespace(&self, namespace: &str) -> Result<bool, CallError> {
        let mut left = 0;
        for kind in KINDS.iter().filter(|kind| kind.namespaced) {
            let found = self.store().list(&kind.resource(), Some(namespace)).records;
            if found.is_empty() {
                continue;
            }
            let path = format!("/{}/namespaces/{namespace}/{}", kind.api_path(), kind.plural);
            let fresh = found.iter().any(|record| meta::view(&record.value).deletion_timestamp.is_none());
            if fresh {
                self.call("DELETE", &path, None).await?;
            }
            left += self.store().list(&kind.resource(), Some(namespace)).records.len();
        }
        if left > 0 {
            return Ok(false);
        }
        let Some(record) = self.store().get(&store::Key::new("namespaces", "", namespace)) else {
            return Ok(true);
        };
        let Ok(mut object) = serde_json::from_slice::<Value>(&record.value) else { return Ok(true) };
        meta::child(&mut object, "spec").insert("finalizers".into(), json!([]));
        let path = format!("/api/v1/namespaces/{namespace}/finalize");
        match self.call("PUT", &path, Some(&object)).await {
            // Somebody wrote in between: looked at again soon.
            Err(error) if error.is("Conflict") => Ok(false),
            other => allow("NotFound", other).map(|()| true),
        }
    }

    /// Removes events that were last seen long ago. They are hints, so a failure is only logged.
    async fn sweep_events(&self) {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let oldest = now.saturating_sub(EVENT_AGE_MAX.as_secs()) as i64;
        for record in self.store().list("events", None).records {
            let Ok(event) = serde_json::from_slice::<Value>(&record.value) else { continue };
            let seen =
                ["lastTimestamp", "eventTime", "series.lastObservedTime", "metadata.creationTimestamp"]
                    .iter()
                    .filter_map(|path| time::parse(meta::text(&event, path)))
                    .max();
            if seen.is_none_or(|seen| seen >= oldest) {
                continue;
            }
            let op = Op::Delete(record.key.clone(), Expect::Revision(record.revision));
            if let Err(error) = self.store().commit(vec![op], Durability::Lazy).await {
                tracing::warn!("an old event stays: {error}");
            }
        }
    }
}
