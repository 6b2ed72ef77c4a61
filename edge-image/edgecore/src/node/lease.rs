//! The node's lease: asked for, made when absent, renewed with the version that the cloud last returned.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use wire::Operation;

use super::ApiError;

#[derive(Debug)]
pub struct Lease {
    node: String,
    known: Known,
    renewed: Option<Instant>,
    owner: Option<Value>,
}

#[derive(Debug)]
enum Known {
    /// Ask first.
    Nothing,
    Absent,
    /// The object as the cloud last returned it.
    Object(Value),
}

pub enum Next {
    Done,
    Again,
    Failed(ApiError),
}

impl Lease {
    pub fn new(node: &str) -> Lease {
        Lease { node: node.into(), known: Known::Nothing, renewed: None, owner: None }
    }

    /// After a loss of the link another cloud may be there: ask again, and renew at once.
    pub fn forget(&mut self) {
        self.known = Known::Nothing;
        self.renewed = None;
    }

    /// After a pause in which it may have run out.
    pub fn renew_now(&mut self) {
        self.renewed = None;
    }

    /// The Node object owns the lease, so that deleting the node deletes it.
    pub fn owner_is(&mut self, node: &Value) {
        if let Some(uid) = node.pointer("/metadata/uid") {
            self.owner = Some(json!({"apiVersion": "v1", "kind": "Node", "name": self.node, "uid": uid}));
        }
    }

    /// Kubernetes renews after a quarter of the duration.
    pub fn pause(&self, now: Instant, lease_seconds: u32) -> Duration {
        let every = Duration::from_secs(u64::from(lease_seconds)) / 4;
        self.renewed
            .map_or(every, |at| (at + every).saturating_duration_since(now))
            .max(Duration::from_millis(100))
    }

    pub fn is_due(&self, now: Instant, lease_seconds: u32) -> bool {
        let every = Duration::from_secs(u64::from(lease_seconds)) / 4;
        self.renewed.is_none_or(|at| now >= at + every)
    }

    /// The next message: operation and content.
    pub fn request(&self, now: jiff::Timestamp, lease_seconds: u32) -> (&'static str, Value) {
        let spec = json!({
            "holderIdentity": self.node,
            "leaseDurationSeconds": lease_seconds,
            "renewTime": now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
        });
        match &self.known {
            Known::Nothing => (Operation::QUERY, Value::Null),
            Known::Absent => {
                let mut metadata = json!({"name": self.node, "namespace": "kube-node-lease"});
                if let Some(owner) = &self.owner {
                    metadata["ownerReferences"] = json!([owner]);
                }
                let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec});
                (Operation::INSERT, lease)
            }
            Known::Object(lease) => {
                let mut lease = lease.clone();
                lease["spec"] = spec;
                if let Some(metadata) = lease["metadata"].as_object_mut() {
                    metadata.remove("managedFields");
                }
                (Operation::UPDATE, lease)
            }
        }
    }

    pub fn answered(&mut self, operation: &str, answer: Result<Value, ApiError>, now: Instant) -> Next {
        match answer {
            Ok(object) if object.get("metadata").is_some() => {
                self.known = Known::Object(object);
                if operation == Operation::QUERY {
                    return Next::Again;
                }
                self.renewed = Some(now);
                Next::Done
            }
            // On the compact lane a renewal is only confirmed; the object that we know stays.
            Ok(Value::String(_)) if operation == Operation::UPDATE => {
                self.renewed = Some(now);
                Next::Done
            }
            Ok(_) => {
                self.known = Known::Nothing;
                Next::Failed(ApiError { message: "the answer is not a lease".into(), ..ApiError::default() })
            }
            Err(error) if error.reason == "NotFound" && operation != Operation::INSERT => {
                self.known = Known::Absent;
                Next::Again
            }
            Err(error) if ["Conflict", "AlreadyExists"].contains(&error.reason.as_str()) => {
                self.known = Known::Nothing;
                Next::Again
            }
            Err(error) => {
                self.known = Known::Nothing;
                Next::Failed(error)
            }
        }
    }
}
