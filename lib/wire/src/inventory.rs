//! All that belongs on a node, in one message: what a node has beyond it goes, also when nobody remembers having sent it.
//!
//! The cloud tells its deletes one by one, from its records. An inventory is for when those were lost: it follows, on the compact
//! lane, once per link that does not continue an earlier one, when everything else was acknowledged.
//!
//! Invariant: missing data is never an empty desired state. An inventory is taken only whole (count and digest fit), and only if it
//! lists the node's own Node: a cloud that knows no such node knows nothing of its pods.

use serde::{Deserialize, Serialize};

use crate::{Resource, delivery::Target};

/// Operation and type word of the message.
pub const INVENTORY: &str = "inventory";

/// Kinds that are deleted for not being listed. Config maps and secrets that a pod asked for need not be listed, and go with time.
pub const KINDS: [&str; 3] = ["pod", "device", "devicemodel"];

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// The newest version among the objects, for a person who compares logs.
    pub revision: u64,
    pub count: usize,
    /// FNV-1a over revision, resources and uids; against accidents, not against the cloud.
    pub digest: String,
    /// `<namespace>/<type>/<name>` and uid, sorted.
    pub objects: Vec<(String, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InventoryError {
    #[error("it says {said} objects and has {found}")]
    Count { said: usize, found: usize },
    #[error("its digest does not fit")]
    Digest,
    #[error("it does not list the node {0} itself")]
    NoNode(String),
}

impl Inventory {
    pub fn new<'a>(targets: impl IntoIterator<Item = &'a Target>) -> Inventory {
        let mut revision = 0;
        let mut objects = Vec::new();
        for target in targets {
            revision = revision.max(target.version.parse().unwrap_or(0));
            objects.push((target.resource.clone(), target.uid.clone()));
        }
        objects.sort();
        Inventory { revision, count: objects.len(), digest: digest(revision, &objects), objects }
    }

    /// It is whole, and of this node.
    pub fn check(&self, node: &str) -> Result<(), InventoryError> {
        if self.count != self.objects.len() {
            return Err(InventoryError::Count { said: self.count, found: self.objects.len() });
        }
        if self.digest != digest(self.revision, &self.objects) {
            return Err(InventoryError::Digest);
        }
        let own = own(node);
        match self.objects.iter().any(|(resource, _)| *resource == own) {
            true => Ok(()),
            false => Err(InventoryError::NoNode(node.into())),
        }
    }

    /// True for an object that the node has and that belongs on it no more.
    pub fn lacks(&self, resource: &Resource, uid: &str) -> bool {
        let text = resource.to_string();
        KINDS.contains(&resource.kind.as_str())
            && !self.objects.iter().any(|(name, listed)| *name == text && listed == uid)
    }
}

/// Whether the targets are known well enough for an inventory that a node takes: while its Node is not there, as at its first join,
/// there is nothing to tell.
pub fn is_whole(targets: &[Target]) -> bool {
    targets.iter().any(|target| target.resource.starts_with(&own("")))
}

fn own(node: &str) -> String {
    format!("null/node/{node}")
}

fn digest(revision: u64, objects: &[(String, String)]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut feed = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    feed(&revision.to_le_bytes());
    for (resource, uid) in objects {
        feed(resource.as_bytes());
        feed(b"\n");
        feed(uid.as_bytes());
        feed(b"\n");
    }
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(resource: &str, uid: &str) -> Target {
        Target { uid: uid.into(), resource: resource.into(), version: "7".into(), rank: 0 }
    }

    #[test]
    fn only_a_whole_inventory_of_this_node_is_taken() {
        let whole = Inventory::new(&[target("null/node/a", "n"), target("default/pod/web", "u")]);
        assert_eq!(whole.check("a"), Ok(()));
        assert!(!whole.lacks(&Resource::new("default", "pod", "web"), "u"));
        assert!(whole.lacks(&Resource::new("default", "pod", "web"), "another"));
        assert!(whole.lacks(&Resource::new("default", "pod", "old"), "o"));
        assert!(
            !whole.lacks(&Resource::new("default", "secret", "old"), "o"),
            "not of a kind that is listed whole"
        );

        let mut cut = whole.clone();
        cut.objects.pop();
        assert_eq!(cut.check("a"), Err(InventoryError::Count { said: 2, found: 1 }));
        cut.count = 1;
        assert_eq!(cut.check("a"), Err(InventoryError::Digest));
        assert_eq!(whole.check("b"), Err(InventoryError::NoNode("b".into())));
        assert_eq!(
            Inventory::new(&[]).check("a"),
            Err(InventoryError::NoNode("a".into())),
            "nothing is not an order"
        );
    }
}
