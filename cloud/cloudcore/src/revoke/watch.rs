//! Follows the entries.

use std::collections::BTreeMap;

use super::{Entry, Revocations};
use crate::shared::{ConfigMap, News, SharedError};

/// One list and its watch; over when the watch ends.
pub(super) async fn follow(revocations: &Revocations) -> Result<(), SharedError> {
    // By the config map's name: a deleted one may come without its value.
    let mut entries = BTreeMap::new();
    let followed = revocations.shared.follow(|news| {
        match news {
            News::All(maps) => maps.iter().for_each(|map| take(&mut entries, map)),
            News::Set(map) => take(&mut entries, &map),
            News::Gone(name) => drop(entries.remove(&name)),
        }
        revocations.replace(entries.values().cloned());
    });
    followed.await
}

/// A damaged entry is the one before it, if there was one: nobody comes in by damage.
fn take(entries: &mut BTreeMap<String, Entry>, map: &ConfigMap) {
    match map.value::<Entry>() {
        Ok(entry) => drop(entries.insert(map.metadata.name.clone(), entry)),
        Err(error) => tracing::error!("a revocation cannot be read: {}", rt::error_chain(&error)),
    }
}
