//! Which cloud this is: what nodes pin when they join.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::api::{Api, ApiError};
use crate::shared::{Shared, SharedError};

/// Kept in the data directory with the embedded API; a cluster's is the uid of its namespace `kube-system`, the same for all replicas
/// and for a cloudcore that is installed anew. Another one is another cloud: a node that joined this one refuses its desired state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    pub cluster_uid: String,
    /// Rises when the store was replaced by an older state (a restored backup), which nodes must not take for deletions.
    pub store_epoch: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("cannot read {0}")]
    Read(String, #[source] std::io::Error),
    #[error("{0} is damaged; restore it from a backup: without it joined nodes refuse this cloud")]
    Damaged(String, #[source] serde_json::Error),
    #[error("cannot write {0}")]
    Write(String, #[source] rt::FileError),
    #[error("cannot read the namespace kube-system, by whose uid nodes know this cluster")]
    Cluster(#[source] ApiError),
    #[error("cannot read the epoch of the cluster's store")]
    Epoch(#[source] SharedError),
}

/// What is shared of the identity: raised by whoever restores an older state of the cluster.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Epoch {
    store_epoch: u64,
}

impl Identity {
    pub fn load_or_make(data_dir: &Path) -> Result<Identity, IdentityError> {
        let path = data_dir.join("identity.json");
        let name = path.display().to_string();
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| IdentityError::Damaged(name, error)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let identity = Identity { cluster_uid: uuid::Uuid::new_v4().to_string(), store_epoch: 1 };
                let text = serde_json::to_vec(&identity).expect("an identity serialises without error");
                rt::atomic_write(&path, &text).map_err(|error| IdentityError::Write(name, error))?;
                Ok(identity)
            }
            Err(error) => Err(IdentityError::Read(name, error)),
        }
    }

    pub async fn of_cluster(api: &Api) -> Result<Identity, IdentityError> {
        let body = api.get("/api/v1/namespaces/kube-system").await.map_err(IdentityError::Cluster)?;
        let namespace: serde_json::Value =
            serde_json::from_slice(&body).map_err(|error| IdentityError::Cluster(ApiError::Json(error)))?;
        let cluster_uid = namespace["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let shared = Shared::new(api.clone(), "cloud");
        let epoch = |known: Option<Epoch>| match known {
            Some(epoch) => (None, epoch.store_epoch),
            None => (Some(Epoch { store_epoch: 1 }), 1),
        };
        let store_epoch = shared.update("epoch", epoch).await.map_err(IdentityError::Epoch)?;
        Ok(Identity { cluster_uid, store_epoch })
    }

    /// `<cluster uid>.<store epoch>`
    pub fn header(&self) -> String {
        format!("{}.{}", self.cluster_uid, self.store_epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_and_damage_is_not_a_new_identity() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::load_or_make(dir.path()).unwrap();
        assert_eq!(Identity::load_or_make(dir.path()).unwrap(), first);
        std::fs::write(dir.path().join("identity.json"), "{").unwrap();
        assert!(matches!(Identity::load_or_make(dir.path()), Err(IdentityError::Damaged(..))));
    }
}
