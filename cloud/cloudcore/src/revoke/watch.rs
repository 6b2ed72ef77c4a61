//! Follows the entries.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::Method;
use serde::Deserialize;

use super::{Entry, Revocations};
use crate::api::ApiError;
use crate::cluster::informer::{Lines, escape};
use crate::limits::{API_TIME_MAX, WATCH_SECONDS};
use crate::shared::{ConfigMap, Shared, SharedError};

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    event_type: String,
    object: ConfigMap,
}

/// One list and its watch; over when the watch ends.
pub(super) async fn follow(revocations: &Revocations) -> Result<(), SharedError> {
    let (maps, version) = revocations.shared.list().await?;
    // By the config map's name: a deleted one may come without its value.
    let mut entries = BTreeMap::new();
    for map in &maps {
        take(&mut entries, map);
    }
    revocations.replace(entries.values().cloned());
    let path = format!(
        "{}?watch=true&{}&timeoutSeconds={WATCH_SECONDS}&resourceVersion={}",
        Shared::folder(),
        revocations.shared.selector(),
        escape(&version)
    );
    let failed = |error| SharedError::Read("the watch of revoked nodes".into(), error);
    let open = revocations.api.open(Method::GET, &path, "application/json", Bytes::new());
    let opened = tokio::time::timeout(API_TIME_MAX, open).await.unwrap_or(Err(ApiError::Timeout));
    let mut lines = Lines::new(opened.map_err(failed)?);
    while let Some(line) = lines.next().await.map_err(failed)? {
        let event: Event = serde_json::from_slice(&line).map_err(|error| failed(ApiError::Json(error)))?;
        match event.event_type.as_str() {
            "ADDED" | "MODIFIED" => take(&mut entries, &event.object),
            "DELETED" => drop(entries.remove(&event.object.metadata.name)),
            // An error ends the watch: the next list tells what was missed.
            _ => return Ok(()),
        }
        revocations.replace(entries.values().cloned());
    }
    Ok(())
}

/// A damaged entry is the one before it, if there was one: nobody comes in by damage.
fn take(entries: &mut BTreeMap<String, Entry>, map: &ConfigMap) {
    match map.value::<Entry>() {
        Ok(entry) => drop(entries.insert(map.metadata.name.clone(), entry)),
        Err(error) => tracing::error!("a revocation cannot be read: {}", rt::error_chain(&error)),
    }
}
