//! The objects every cluster has: four namespaces, and in each namespace a default service account and the API's CA.

use serde_json::json;

use crate::Api;
use crate::internal::CallError;

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

impl Api {
    pub(crate) async fn bootstrap(&self) -> Result<(), CallError> {
        for name in NAMESPACES {
            if self.store().get(&store::Key::new("namespaces", "", name)).is_none() {
                let body = json!({"metadata": {"name": name}});
                allow("AlreadyExists", self.call("POST", "/api/v1/namespaces", Some(&body)).await)?;
            }
            self.fill_namespace(name).await?;
        }
        Ok(())
    }

    /// Repeatable; it also brings an old CA up to date.
    pub(crate) async fn fill_namespace(&self, namespace: &str) -> Result<(), CallError> {
        let base = format!("/api/v1/namespaces/{namespace}");
        let store = self.store();
        if store.get(&store::Key::new("serviceaccounts", namespace, "default")).is_none() {
            let body = json!({"metadata": {"name": "default"}});
            let made = self.call("POST", &format!("{base}/serviceaccounts"), Some(&body)).await;
            allow("AlreadyExists", made)?;
        }
        let ca = json!({"data": {"ca.crt": self.ca_pem()}});
        let current = store.get(&store::Key::new("configmaps", namespace, "kube-root-ca.crt"));
        let current =
            current.and_then(|record| serde_json::from_slice::<serde_json::Value>(&record.value).ok());
        match current {
            None => {
                let body = json!({"metadata": {"name": "kube-root-ca.crt"}, "data": ca["data"]});
                let made = self.call("POST", &format!("{base}/configmaps"), Some(&body)).await;
                allow("AlreadyExists", made)?;
            }
            Some(object) if object["data"] != ca["data"] => {
                self.call("PATCH", &format!("{base}/configmaps/kube-root-ca.crt"), Some(&ca)).await?;
            }
            Some(_) => {}
        }
        Ok(())
    }
}

/// An error with this reason is as good as success.
pub(crate) fn allow<T>(reason: &str, result: Result<T, CallError>) -> Result<(), CallError> {
    match result {
        Err(error) if !error.is(reason) => Err(error),
        _ => Ok(()),
    }
}
