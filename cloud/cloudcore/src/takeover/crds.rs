//! The kinds of ours and of KubeEdge that we work with, as CustomResourceDefinitions in a cluster.
//!
//! What is there already and serves our version is left as it is, whoever made it, so that a KubeEdge cloudcore goes on working on
//! it. A definition of ours is brought to a newer revision, never to an older one.

use std::time::Duration;

use kapi::{Kind, crd};
use serde_json::Value;

use crate::api::{Api, ApiError};

const FOLDER: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
/// How long a new kind may take until it is served.
const SERVED_WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum CrdError {
    #[error("the CustomResourceDefinition {0} cannot be read")]
    Read(String, #[source] ApiError),
    #[error(
        "the CustomResourceDefinition {0} is not there and cannot be made; give cloudcore the right to, or apply the files of cloud/deploy/crds with kubectl"
    )]
    Apply(String, #[source] ApiError),
    #[error(
        "the CustomResourceDefinition {0} does not serve {1}, which KubeEdge serves since v1.15; update KubeEdge's definitions first"
    )]
    Version(String, &'static str),
    #[error("the kind {0} was made but is not served after {within_s} s", within_s = SERVED_WITHIN.as_secs())]
    NotServed(String),
}

/// What is to be done about one kind.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    Make,
    /// It is ours and older.
    Renew,
}

/// Makes what is missing; all kinds are served when it returns.
pub async fn ensure(api: &Api) -> Result<(), CrdError> {
    for kind in crd::kinds() {
        let name = kind.resource();
        let served = is_served(api, kind).await?;
        let path = format!("{FOLDER}/{name}");
        let found = match api.get(&path).await {
            Ok(body) => Some(serde_json::from_slice(&body).unwrap_or(Value::Null)),
            Err(error) if error.is_not_found() => None,
            // Not ours to look at; that it is served is enough.
            Err(ApiError::Refused { code: 403, .. }) if served => continue,
            Err(error) => return Err(CrdError::Read(name, error)),
        };
        let step = match &found {
            // An API that has the kind of itself: the embedded one.
            None if served => Step::Nothing,
            None => Step::Make,
            Some(found) => step(found, kind)?,
        };
        if step == Step::Nothing {
            continue;
        }
        let force = step == Step::Renew;
        let definition = crd::definition(kind).to_string();
        api.apply(&path, definition, force).await.map_err(|error| CrdError::Apply(name.clone(), error))?;
        tracing::info!("CustomResourceDefinition {name} (revision {}) applied", crd::REVISION);
        wait_served(api, kind).await?;
    }
    Ok(())
}

fn step(found: &Value, kind: &Kind) -> Result<Step, CrdError> {
    let revision = found["metadata"]["annotations"][crd::REVISION_ANNOTATION].as_str();
    if let Some(revision) = revision.and_then(|text| text.parse::<u64>().ok()) {
        return Ok(if revision < crd::REVISION { Step::Renew } else { Step::Nothing });
    }
    let versions = found["spec"]["versions"].as_array();
    let serves = versions
        .is_some_and(|all| all.iter().any(|one| one["name"] == kind.version && one["served"] == true));
    if serves { Ok(Step::Nothing) } else { Err(CrdError::Version(kind.resource(), kind.version)) }
}

async fn is_served(api: &Api, kind: &Kind) -> Result<bool, CrdError> {
    match api.get(&format!("/{}", kind.api_path())).await {
        Ok(body) => {
            let list: Value = serde_json::from_slice(&body).unwrap_or_default();
            Ok(list["resources"]
                .as_array()
                .is_some_and(|all| all.iter().any(|one| one["name"] == kind.plural)))
        }
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(CrdError::Read(kind.resource(), error)),
    }
}

async fn wait_served(api: &Api, kind: &Kind) -> Result<(), CrdError> {
    let wait = async {
        loop {
            // The list of resources may tell it a moment before requests are answered.
            let listed = api.get(&format!("/{}/{}?limit=1", kind.api_path(), kind.plural)).await;
            match listed {
                Ok(_) => return,
                Err(ApiError::Refused { code: 403, .. }) => return,
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    };
    let served = tokio::time::timeout(SERVED_WITHIN, wait).await;
    served.map_err(|_| CrdError::NotServed(kind.resource()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_others_made_stays_and_ours_only_rises() {
        let kind = crd::kinds().next().unwrap();
        let ours = |revision: u64| {
            let mut definition = crd::definition(kind);
            definition["metadata"]["annotations"][crd::REVISION_ANNOTATION] = revision.to_string().into();
            step(&definition, kind).unwrap()
        };
        assert_eq!(ours(crd::REVISION), Step::Nothing);
        assert_eq!(ours(crd::REVISION + 1), Step::Nothing, "a newer cloudcore was here");
        assert_eq!(ours(crd::REVISION - 1), Step::Renew);
        let others =
            |version: &str| step(&json!({"spec": {"versions": [{"name": version, "served": true}]}}), kind);
        assert_eq!(others("v1beta1").unwrap(), Step::Nothing);
        assert!(matches!(others("v1alpha2"), Err(CrdError::Version(..))));
    }
}
