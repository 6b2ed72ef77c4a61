//! A whole list of what belongs on the node: what is stored beyond it goes.

use store::{Durability, Expect};
use wire::{
    Message, Resource,
    inventory::{Inventory, KINDS},
};

use super::{MetaStore, object};
use crate::contract::{Applied, MetaError};

impl MetaStore {
    /// Deletes, all in one commit, the objects of this very cloud that a whole inventory of this node does not list.
    pub(super) async fn apply_inventory(
        &self,
        resource: &Resource,
        message: &Message,
    ) -> Result<Applied, MetaError> {
        let Ok(inventory) = message.content_as::<Inventory>() else {
            return Ok(Applied::Ignored("it is not an inventory"));
        };
        if let Err(error) = inventory.check(&resource.name) {
            tracing::error!(target: "meta", "an inventory of the cloud is not taken, nothing is deleted: {error}");
            return Ok(Applied::Ignored("the inventory is not whole"));
        }
        let mut ops = Vec::new();
        for record in KINDS.iter().flat_map(|kind| self.store.list(kind, None).records) {
            let of_this_cloud = record.upstream.as_ref().is_some_and(|upstream| upstream.id == self.cloud_id);
            let stored = object(&record);
            if of_this_cloud && inventory.lacks(&stored.resource, &stored.uid) {
                tracing::warn!(target: "meta", "{} (uid {}) is not in the cloud's inventory and goes", stored.resource, stored.uid);
                ops.push(store::Op::Delete(record.key.clone(), Expect::Revision(record.revision)));
            }
        }
        if ops.is_empty() {
            return Ok(Applied::Unchanged);
        }
        self.commit(ops, Durability::Sync).await?;
        self.changes.send_modify(|n| *n += 1);
        Ok(Applied::Deleted)
    }
}
