//! KubeEdge's payloads of device twins, on MQTT and to the cloud (kubeedge-wire.md sections 4.1 and 5).

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Deserializer, Serialize};

pub const DELETED: &str = "deleted";

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ValueMetadata {
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "is_zero")]
    pub timestamp: i64,
    /// Ours, of a wish, to the cloud: `node` when it was made there.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub origin: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TwinValue {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<ValueMetadata>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TypeMetadata {
    #[serde(
        rename = "type",
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub value_type: String,
    /// Ours: whether the value can be trusted (`good`, `stale`, `disconnected`), as its mapper says.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub quality: String,
    /// Ours: why the mapper does not carry out the wish.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub refused: String,
    /// Ours, to the cloud: the model's unit.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub unit: String,
}

impl TypeMetadata {
    pub fn of(value_type: impl Into<String>) -> TypeMetadata {
        TypeMetadata { value_type: value_type.into(), ..TypeMetadata::default() }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    #[serde(default)]
    pub cloud: i64,
    #[serde(default)]
    pub edge: i64,
}

/// One property: what is wanted, what is, and how often either side changed it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MsgTwin {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<TwinValue>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actual: Option<TwinValue>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optional: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<TypeMetadata>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_version: Option<Version>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actual_version: Option<Version>,
}

/// Boxed: a map has room for eleven values, and most devices have few properties.
pub type Twins = BTreeMap<String, Box<MsgTwin>>;

impl MsgTwin {
    pub fn expected_value(&self) -> Option<&str> {
        self.expected.as_ref().and_then(|value| value.value.as_deref())
    }

    pub fn actual_value(&self) -> Option<&str> {
        self.actual.as_ref().and_then(|value| value.value.as_deref())
    }

    pub fn value_type(&self) -> &str {
        self.metadata.as_ref().map_or("", |metadata| &metadata.value_type)
    }

    pub fn is_deleted(&self) -> bool {
        self.value_type() == DELETED
    }

    /// As applications see it: versions are between edge and cloud.
    pub fn without_versions(&self) -> MsgTwin {
        MsgTwin { expected_version: None, actual_version: None, ..self.clone() }
    }
}

/// `twin/update` and `twin/cloud_updated`. A property that is null is to be deleted.
#[derive(Debug, Default, Deserialize)]
pub struct TwinUpdate {
    #[serde(default, deserialize_with = "or_default")]
    pub event_id: String,
    pub twin: Option<BTreeMap<String, Option<MsgTwin>>>,
}

#[derive(Debug, Default, Deserialize)]
pub struct BaseMessage {
    #[serde(default, deserialize_with = "or_default")]
    pub event_id: String,
}

#[derive(Debug, Default, Deserialize)]
pub struct StateUpdate {
    #[serde(default, deserialize_with = "or_default")]
    pub event_id: String,
    #[serde(default, deserialize_with = "or_default")]
    pub state: String,
    /// Ours: why the device is in that state. KubeEdge ignores it.
    #[serde(default, deserialize_with = "or_default")]
    pub reason: String,
}

#[derive(Debug, Serialize)]
pub struct TwinResult<'a, T> {
    pub event_id: &'a str,
    pub timestamp: i64,
    pub twin: T,
}

#[derive(Debug, Serialize)]
pub struct TwinDelta<'a> {
    pub event_id: &'a str,
    pub timestamp: i64,
    pub twin: Twins,
    pub delta: BTreeMap<&'a str, &'a str>,
}

#[derive(Debug, Serialize)]
pub struct TwinDocument {
    pub last: Option<MsgTwin>,
    pub current: Option<MsgTwin>,
}

#[derive(Debug, Serialize)]
pub struct ErrorResult<'a> {
    pub event_id: &'a str,
    pub timestamp: i64,
    pub code: u16,
    pub reason: &'a str,
}

#[derive(Debug, Serialize)]
pub struct StateReport<'a> {
    pub event_id: &'a str,
    pub timestamp: i64,
    pub device: DeviceState<'a>,
}

#[derive(Debug, Serialize)]
pub struct DeviceState<'a> {
    pub name: &'a str,
    pub state: &'a str,
    #[serde(rename = "lastOnlineTime", skip_serializing_if = "str::is_empty")]
    pub last_online_time: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub reason: Cow<'a, str>,
}

/// A device in a membership message.
#[derive(Debug, Serialize)]
pub struct Member<'a> {
    pub id: &'a str,
    pub name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub description: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub state: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub last_online: &'a str,
}

#[derive(Debug, Serialize)]
pub struct MembershipUpdate<'a> {
    pub event_id: &'a str,
    pub timestamp: i64,
    /// One device, or null, as KubeEdge says it.
    pub added_devices: Option<[Member<'a>; 1]>,
    pub removed_devices: Option<[Member<'a>; 1]>,
}

#[derive(Debug, Serialize)]
pub struct MembershipList<'a> {
    pub event_id: &'a str,
    pub timestamp: i64,
    pub devices: Vec<Member<'a>>,
}

/// Go's programs write null for what is not there.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

fn is_zero(value: &i64) -> bool {
    *value == 0
}
