//! Merging an update into the twins of one device: all of it or nothing.

use std::collections::BTreeMap;

use super::{
    types::{DELETED, MsgTwin, TwinDocument, TwinValue, Twins, TypeMetadata, ValueMetadata, Version},
    validate,
    wish::{self, Wish},
};
use crate::limits::{SOURCE_AHEAD_MS_MAX, TWINS_PER_DEVICE_MAX};

pub type Wishes = BTreeMap<String, Wish>;

/// Who sends an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An application or a mapper on this node: the edge's version rises.
    Edge,
    /// The cloud, by `twin/cloud_updated`: versions come with it and must not be older than ours.
    Cloud,
}

/// What an update did.
#[derive(Debug, Default)]
pub struct Merged {
    /// The answer to the sender: null for what was deleted.
    pub result: BTreeMap<String, Option<MsgTwin>>,
    pub document: BTreeMap<String, TwinDocument>,
    /// Properties that have their first actual value.
    pub first_values: bool,
    /// What was refused because the cloud's view is older than ours; it needs a report.
    pub conflict: bool,
    /// Properties that have a value or a quality from this update, in its order.
    pub values: Vec<String>,
    /// A wish was made or withdrawn: that must outlive a power cut.
    pub lasting: bool,
}

/// Applies the update, or returns the reason why nothing was applied.
pub fn merge(
    twins: &mut Twins,
    wishes: &mut Wishes,
    update: BTreeMap<String, Option<MsgTwin>>,
    origin: Origin,
    now_ms: i64,
) -> Result<Merged, String> {
    let mut merged = Merged::default();
    let mut changed: Twins = Twins::new();
    let mut wished = Wishes::new();
    for (key, wanted) in update {
        validate::name(&key)?;
        let before = twins.get(&key).map(Box::as_ref);
        let live = before.filter(|twin| !twin.is_deleted());
        let Some(wanted) = wanted.filter(|wanted| origin == Origin::Edge || !wanted.is_deleted()) else {
            let Some(before) = live else {
                if before.is_none() && origin == Origin::Edge {
                    return Err(format!("{key}: there is no such property to delete"));
                }
                continue;
            };
            if origin == Origin::Edge && before.optional != Some(true) {
                continue;
            }
            merged.result.insert(key.clone(), None);
            let last = Some(before.without_versions());
            merged.document.insert(key.clone(), TwinDocument { last, current: None });
            wished.insert(key.clone(), Wish::default());
            changed.insert(key, Box::new(deleted(before)));
            continue;
        };
        let mut twin =
            before.cloned().unwrap_or_else(|| MsgTwin { optional: Some(true), ..MsgTwin::default() });
        if live.is_none() {
            let given = wanted.metadata.as_ref().map_or("", |metadata| &metadata.value_type);
            twin.metadata = Some(TypeMetadata::of(if given.is_empty() { "string" } else { given }));
            twin.optional = Some(wanted.optional.unwrap_or(true));
        } else if wanted.optional == Some(false) {
            twin.optional = Some(false);
        }
        let value_type = twin.value_type().to_owned();
        let is_value =
            wanted.actual.is_some() || wanted.metadata.as_ref().is_some_and(|m| !m.quality.is_empty());
        if is_value && let Some(metadata) = &mut twin.metadata {
            let given = wanted.metadata.as_ref();
            metadata.quality = given.map_or("", |given| validate::quality(&given.quality)).into();
            metadata.refused = given.map_or(String::new(), |given| validate::reason(&given.refused).into());
        }
        let mut answer =
            MsgTwin { optional: twin.optional, metadata: twin.metadata.clone(), ..MsgTwin::default() };
        let had_actual = twin.actual_value().is_some() && live.is_some();
        let mut made = None;
        let withdrawn = origin == Origin::Edge
            && wanted.expected.as_ref().is_some_and(|expected| expected.value.is_none());
        if withdrawn {
            let mut wish = wishes.get(&key).cloned().unwrap_or_default();
            wish::withdraw(&mut twin, &mut wish, now_ms);
            answer.expected = Some(twin.expected.clone().unwrap_or_default());
            made = Some(wish);
        } else if let Some(value) = value_of(wanted.expected.as_ref(), &key, &value_type)? {
            if bump(&mut twin.expected_version, wanted.expected_version, origin) {
                twin.expected = Some(stamped(value, now_ms));
                answer.expected = twin.expected.clone();
                let mut wish = wishes.get(&key).cloned().unwrap_or_default();
                wish.local_at_ms = (origin == Origin::Edge).then_some(now_ms);
                made = Some(wish);
            } else {
                merged.conflict = true;
                continue;
            }
        }
        if let Some(value) = value_of(wanted.actual.as_ref(), &key, &value_type)? {
            if bump(&mut twin.actual_version, wanted.actual_version, origin) {
                let given = wanted.actual.as_ref().and_then(|actual| actual.metadata.as_ref());
                twin.actual = Some(stamped(value, source_ms(given, now_ms)));
                answer.actual = twin.actual.clone();
                merged.first_values |= !had_actual;
            } else {
                merged.conflict = true;
                continue;
            }
        }
        if is_value {
            merged.values.push(key.clone());
        }
        if let Some(wish) = made {
            wished.insert(key.clone(), wish);
            merged.lasting = true;
        }
        if before == Some(&twin) {
            continue;
        }
        let document = TwinDocument {
            last: live.map(MsgTwin::without_versions),
            current: Some(twin.without_versions()),
        };
        merged.document.insert(key.clone(), document);
        if live.is_some() && !is_value && answer.expected.is_none() {
            // Only whether it may be deleted has changed.
            answer.metadata = None;
        }
        merged.result.insert(key.clone(), Some(answer));
        changed.insert(key, Box::new(twin));
    }
    let added = changed.keys().filter(|key| !twins.contains_key(*key)).count();
    if twins.len() + added > TWINS_PER_DEVICE_MAX {
        return Err(format!(
            "the device would have more than {TWINS_PER_DEVICE_MAX} properties: delete some first"
        ));
    }
    twins.extend(changed);
    wishes.extend(wished);
    wishes.retain(|_, wish| *wish != Wish::default());
    Ok(merged)
}

/// Properties of which something is wanted, and what; an empty value wants nothing.
pub fn wanted(twins: &Twins) -> impl Iterator<Item = (&String, &MsgTwin, &str)> {
    let live = twins.iter().filter(|(_, twin)| !twin.is_deleted());
    live.filter_map(|(key, twin)| {
        Some((key, &**twin, twin.expected_value().filter(|value| !value.is_empty())?))
    })
}

pub fn stamped(value: String, at_ms: i64) -> TwinValue {
    TwinValue {
        value: Some(value),
        metadata: Some(ValueMetadata { timestamp: at_ms, ..ValueMetadata::default() }),
    }
}

/// When the value was read: its source knows, unless its clock is ahead of ours (KubeEdge writes its own time).
fn source_ms(given: Option<&ValueMetadata>, now_ms: i64) -> i64 {
    let given = given.map_or(0, |metadata| metadata.timestamp);
    if given > 0 && given <= now_ms + SOURCE_AHEAD_MS_MAX { given } else { now_ms }
}

fn value_of(value: Option<&TwinValue>, key: &str, value_type: &str) -> Result<Option<String>, String> {
    let Some(value) = value else { return Ok(None) };
    let Some(text) = &value.value else { return Err(format!("{key}: the value is missing")) };
    validate::value(value_type, text).map_err(|reason| format!("{key}: {reason}"))?;
    Ok(Some(text.clone()))
}

/// The version after a change, or false when the change comes from an older view than ours.
fn bump(have: &mut Option<Version>, given: Option<Version>, origin: Origin) -> bool {
    let version = have.get_or_insert_default();
    match (origin, given) {
        (Origin::Edge, _) => version.edge += 1,
        (Origin::Cloud, Some(given)) if given.cloud >= version.cloud && given.edge >= version.edge => {
            *version = given
        }
        (Origin::Cloud, _) => return false,
    }
    true
}

/// A deleted property stays as a mark, so that the cloud can be told also after it was unreachable.
fn deleted(before: &MsgTwin) -> MsgTwin {
    let bumped =
        |version: Option<Version>| version.map(|version| Version { edge: version.edge + 1, ..version });
    MsgTwin {
        expected: before.expected.as_ref().map(|_| TwinValue::default()),
        actual: before.actual.as_ref().map(|_| TwinValue::default()),
        optional: before.optional,
        metadata: Some(TypeMetadata::of(DELETED)),
        expected_version: bumped(before.expected_version),
        actual_version: bumped(before.actual_version),
    }
}
