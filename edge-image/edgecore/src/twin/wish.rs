//! Whose wish counts, when both the cloud and somebody on the node wish something of a property.
//!
//! The rules (docs/devices.md says them to people)
//! 1. A wish is made when it changes: the cloud's when a Device arrives whose desired value is not the one that this node saw
//!    last, the node's when an update with `expected` arrives. The newest wish made counts, and stays over restarts.
//! 2. What was wished on both sides while they could not talk: the cloud's counts, because it is the one that all see; unless it
//!    carries a time (`desired.metadata.timestamp`, milliseconds) that is older than the node's wish.
//! 3. A wish withdrawn in the cloud leaves a wish of the node alone. A wish withdrawn on the node (`expected` without a value)
//!    gives way to the cloud's.
//! 4. The cloud is told the wish that counts (`observedDesired`), with its time, its versions, and `origin: node` when it is the
//!    node's. The Device's spec is never written by a node.

use serde::{Deserialize, Serialize};

use super::{
    merge::stamped,
    types::{MsgTwin, TypeMetadata},
};

/// Beside the twin in the record of the device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// What the Device desired when it was last looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<String>,
    /// The time that this desired value carried; 0: none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub seen_at_ms: i64,
    /// The wish that counts was made on this node, then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_at_ms: Option<i64>,
}

fn is_zero(value: &i64) -> bool {
    *value == 0
}

/// A desired value of the Device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    pub value: String,
    /// 0: the Device does not say when it was wished.
    pub at_ms: i64,
}

/// Brings the Device's word on a property into its twin. True when the wish that counts is another one now.
pub fn from_cloud(twin: &mut MsgTwin, wish: &mut Wish, said: Option<&Desired>, now_ms: i64) -> bool {
    let (value, at_ms) = (said.map(|said| &said.value), said.map_or(0, |said| said.at_ms));
    if value == wish.seen.as_ref() && at_ms == wish.seen_at_ms {
        return false;
    }
    (wish.seen, wish.seen_at_ms) = (value.cloned(), at_ms);
    if let Some(local_at_ms) = wish.local_at_ms
        && (value.is_none() || (at_ms != 0 && at_ms < local_at_ms))
    {
        return false;
    }
    wish.local_at_ms = None;
    // When the cloud does not say when it wished, it is when we heard of it.
    let made_at_ms = if at_ms > 0 { at_ms } else { now_ms };
    if at_ms > 0 && twin.expected_value().is_some() && twin.expected_value() == value.map(String::as_str) {
        // The same wish, made again.
        twin.expected = value.cloned().map(|value| stamped(value, at_ms));
        return true;
    }
    set(twin, value.cloned(), made_at_ms, |twin| twin.expected_version.get_or_insert_default().cloud += 1)
}

/// The node's own wish is withdrawn: the cloud's counts again, if it has one. True when that changes something.
pub fn withdraw(twin: &mut MsgTwin, wish: &mut Wish, now_ms: i64) -> bool {
    wish.local_at_ms = None;
    set(twin, wish.seen.clone(), now_ms, |twin| twin.expected_version.get_or_insert_default().edge += 1)
}

fn set(twin: &mut MsgTwin, value: Option<String>, made_at_ms: i64, bump: impl FnOnce(&mut MsgTwin)) -> bool {
    if twin.expected_value() == value.as_deref() {
        return false;
    }
    twin.expected = value.map(|value| stamped(value, made_at_ms));
    bump(twin);
    true
}

/// The twin as the cloud is told it.
pub fn told(twin: &MsgTwin, wish: Option<&Wish>, unit: &str) -> MsgTwin {
    let mut told = twin.clone();
    if wish.is_some_and(|wish| wish.local_at_ms.is_some())
        && let Some(metadata) = told.expected.as_mut().and_then(|expected| expected.metadata.as_mut())
    {
        metadata.origin = "node".into();
    }
    if !unit.is_empty() {
        let metadata = told.metadata.get_or_insert_with(TypeMetadata::default);
        metadata.unit = unit.into();
    }
    told
}
