//! Which of several replicas does what a cluster needs done once: the holder of a Lease.
//!
//! The replica that holds a node's link does everything for that node; the holder of the Lease does the rest, which is little and
//! may be done twice or late: removing what is recorded of nodes that are gone.

use std::time::Duration;

use rt::Drain;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::api::{Api, ApiError};
use crate::limits::{LEADER_LEASE, SWEEP_EVERY};
use crate::records::Records;
use crate::shared::NAMESPACE;

const NAME: &str = "kinglet-cloudcore";

/// What is known of the Lease. A clock of another machine is never trusted: silence is measured here.
#[derive(Debug)]
struct Candidate {
    identity: String,
    /// The Lease's resourceVersion when it last changed, and when that was seen.
    seen: Option<(String, Instant)>,
}

/// What to do about the Lease as it is.
#[derive(Debug, PartialEq, Eq)]
enum Move {
    /// Write it with our name.
    Write,
    Wait,
}

impl Candidate {
    fn judge(&mut self, now: Instant, version: &str, holder: &str) -> Move {
        if holder == self.identity || holder.is_empty() {
            return Move::Write;
        }
        match &self.seen {
            Some((seen, at)) if seen == version => match now - *at >= LEADER_LEASE {
                true => Move::Write,
                false => Move::Wait,
            },
            _ => {
                self.seen = Some((version.to_owned(), now));
                Move::Wait
            }
        }
    }
}

/// Holds the Lease whenever it can, and does the duties while it does. Gives the Lease back at the drain.
pub async fn run(api: Api, records: Records, drain: Drain) {
    let mut candidate = Candidate { identity: uuid::Uuid::new_v4().to_string(), seen: None };
    let (mut leads, mut swept) = (false, None::<Instant>);
    loop {
        match step(&api, &mut candidate).await {
            Ok(now) => {
                if now != leads {
                    tracing::info!(
                        "this cloudcore {} the cluster's duties",
                        if now { "takes" } else { "has left" }
                    );
                }
                leads = now;
            }
            Err(error) => {
                leads = false;
                tracing::debug!("lease {NAME}: {}", error.line());
            }
        }
        if leads && swept.is_none_or(|at| at.elapsed() >= SWEEP_EVERY) {
            swept = Some(Instant::now());
            match records.sweep().await {
                Ok(0) => {}
                Ok(count) => tracing::info!("{count} delivery records of nodes that are gone were removed"),
                Err(error) => tracing::warn!("records of gone nodes stay: {}", rt::error_chain(&error)),
            }
        }
        let wait: Duration = LEADER_LEASE / 3;
        if drain.or(tokio::time::sleep(wait)).await.is_none() {
            break;
        }
    }
    if leads {
        // Another one need not wait then.
        drop(write(&api, &candidate.identity, "", None).await);
    }
}

/// One look at the Lease; `true`: it is ours.
async fn step(api: &Api, candidate: &mut Candidate) -> Result<bool, ApiError> {
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases");
    let lease = match api.get(&format!("{path}/{NAME}")).await {
        Ok(body) => serde_json::from_slice::<Value>(&body).map_err(ApiError::Json)?,
        Err(error) if error.is_not_found() => {
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": NAME, "namespace": NAMESPACE},
                "spec": spec(&candidate.identity),
            });
            return match api.post(&path, lease.to_string()).await {
                Err(error) if !error.is_conflict() => Err(error),
                answer => Ok(answer.is_ok()),
            };
        }
        Err(error) => return Err(error),
    };
    let version = lease["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
    match candidate.judge(Instant::now(), version, holder) {
        Move::Wait => Ok(false),
        Move::Write => match write(api, &candidate.identity, &candidate.identity, Some(version)).await {
            // Another one was faster.
            Err(error) if error.is_conflict() => Ok(false),
            Err(error) => Err(error),
            Ok(()) => Ok(true),
        },
    }
}

/// `version`: only if the Lease is still that one.
async fn write(api: &Api, identity: &str, holder: &str, version: Option<&str>) -> Result<(), ApiError> {
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{NAME}");
    let mut spec = spec(identity);
    spec["holderIdentity"] = holder.into();
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "resourceVersion": version}, "spec": spec,
    });
    api.put(&path, lease.to_string()).await.map(drop)
}

fn spec(identity: &str) -> Value {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    json!({"holderIdentity": identity, "leaseDurationSeconds": LEADER_LEASE.as_secs(), "renewTime": now})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_over_only_after_it_was_silent_here() {
        let mut candidate = Candidate { identity: "b".into(), seen: None };
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!(candidate.judge(at(0), "1", "a"), Move::Wait);
        assert_eq!(candidate.judge(at(10), "2", "a"), Move::Wait, "it is renewed");
        assert_eq!(candidate.judge(at(20), "2", "a"), Move::Wait);
        assert_eq!(candidate.judge(at(25), "2", "a"), Move::Write);
        assert_eq!(candidate.judge(at(26), "3", "b"), Move::Write);
        assert_eq!(candidate.judge(at(27), "4", ""), Move::Write, "it was given back");
    }
}
