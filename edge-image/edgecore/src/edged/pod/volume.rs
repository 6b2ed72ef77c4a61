//! Volumes of a pod.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    FieldRef, ResourceFieldRef,
    decode::{list, null_default, quantity},
};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Volume {
    pub name: String,
    pub empty_dir: Option<Box<EmptyDir>>,
    pub host_path: Option<Box<HostPath>>,
    pub config_map: Option<Box<ConfigMapVolume>>,
    pub secret: Option<Box<SecretVolume>>,
    #[serde(rename = "downwardAPI")]
    pub downward_api: Option<Box<DownwardVolume>>,
    pub projected: Option<Box<ProjectedVolume>>,
    pub persistent_volume_claim: Option<Box<ClaimVolume>>,
    pub image: Option<Box<ImageVolume>>,
    /// Types that this node does not offer, by name (`csi`, `nfs`, `ephemeral`, ...): kept so that the refusal can name them.
    #[serde(flatten, skip_serializing)]
    pub other: BTreeMap<String, serde::de::IgnoredAny>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClaimVolume {
    pub claim_name: String,
    pub read_only: bool,
}

/// An image's content as a volume (Kubernetes 1.31).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ImageVolume {
    pub reference: String,
    pub pull_policy: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EmptyDir {
    pub medium: String,
    #[serde(deserialize_with = "quantity")]
    pub size_limit: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostPath {
    pub path: String,
    #[serde(rename = "type", deserialize_with = "null_default")]
    pub path_type: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct KeyToPath {
    pub key: String,
    pub path: String,
    pub mode: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConfigMapVolume {
    pub name: String,
    #[serde(deserialize_with = "list")]
    pub items: Vec<KeyToPath>,
    pub default_mode: Option<u32>,
    pub optional: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SecretVolume {
    pub secret_name: String,
    /// Projected secrets call it so.
    pub name: String,
    #[serde(deserialize_with = "list")]
    pub items: Vec<KeyToPath>,
    pub default_mode: Option<u32>,
    pub optional: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DownwardVolume {
    #[serde(deserialize_with = "list")]
    pub items: Vec<DownwardFile>,
    pub default_mode: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DownwardFile {
    pub path: String,
    pub field_ref: Option<FieldRef>,
    pub resource_field_ref: Option<ResourceFieldRef>,
    pub mode: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProjectedVolume {
    #[serde(deserialize_with = "list")]
    pub sources: Vec<ProjectedSource>,
    pub default_mode: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProjectedSource {
    pub config_map: Option<Box<ConfigMapVolume>>,
    pub secret: Option<Box<SecretVolume>>,
    #[serde(rename = "downwardAPI")]
    pub downward_api: Option<Box<DownwardVolume>>,
    pub service_account_token: Option<Box<TokenProjection>>,
    /// Not offered; kept so that the refusal can name it.
    #[serde(skip_serializing)]
    pub cluster_trust_bundle: Option<serde::de::IgnoredAny>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TokenProjection {
    pub path: String,
    pub audience: String,
    pub expiration_seconds: Option<i64>,
}
