//! What is kept of a device over a restart: the local record `twin`.
//!
//! Durable (`sync`) is what others hold us to: wishes made on the node, and the version of what the mapper was told. Reported values are `lazy`: the device has them anyway, and flash wears.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{merge::Wishes, types::Twins, validate};

/// What is kept over a restart (the local record `twin`).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Record {
    #[serde(default)]
    pub uid: String,
    #[serde(default)]
    pub twins: Twins,
    #[serde(default, skip_serializing_if = "Wishes::is_empty")]
    pub wishes: Wishes,
    #[serde(default)]
    pub state: String,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub last_online: String,
    /// Of the description that mappers get; rises with each change of it.
    #[serde(default)]
    pub version: u64,
    #[serde(default)]
    pub topic: String,
    #[serde(default)]
    pub body: String,
}

/// The record of a device whose twins another agent kept until now. `uid`: of its Device, empty when that is not known.
pub fn taken_over(uid: &str, twins: Twins, state: &str, last_online: &str) -> Bytes {
    let (uid, state, last_online) = (uid.into(), state.into(), last_online.into());
    let record = Record { uid, twins, state, last_online, ..Record::default() };
    serde_json::to_vec(&record).expect("a record serialises").into()
}

/// What of a device's record matters to another agent.
#[derive(Debug)]
pub struct Kept {
    pub twins: Twins,
    pub state: String,
    pub last_online: String,
}

/// `None`: the record cannot be read.
pub fn kept(record: &[u8]) -> Option<Kept> {
    let Record { twins, state, last_online, .. } = serde_json::from_slice(record).ok()?;
    Some(Kept { twins, state, last_online })
}

impl Record {
    pub fn set_state(&mut self, state: &str, reason: &str) {
        self.state = state.into();
        self.reason = validate::reason(reason).into();
    }

    /// The protocol whose mapper has the description.
    pub fn protocol(&self) -> Option<&str> {
        self.topic.strip_prefix(super::machine::MAPPER_TOPIC)?.split('/').next()
    }
}
