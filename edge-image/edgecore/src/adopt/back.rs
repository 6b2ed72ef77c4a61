//! The way back: what changed while our agent ran, in KubeEdge's tables. Without it pods that were deleted meanwhile would run again,
//! and those that came meanwhile would be stopped: a stock cloud does not send again what was acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use sqlite::{Database, Row, SqliteError, Table, Value};

use super::stock::KINDS;
use crate::{
    contract::Meta,
    twin::{
        self,
        types::{MsgTwin, TwinValue},
    },
};

/// Tables with other rows than the database has; empty when nothing changed.
pub fn changes(database: &Database, meta: &dyn Meta) -> Result<BTreeMap<String, Vec<Row>>, SqliteError> {
    let mut changed = BTreeMap::new();
    for table in database.tables()? {
        let before = database.rows(&table.name)?;
        let after = match table.name.as_str() {
            "meta" => objects(&table, &before, meta),
            "device_twin" => twins(&table, &before, meta),
            "device" => devices(&table, &before, meta),
            _ => None,
        };
        if let Some(after) = after.filter(|after| *after != before) {
            changed.insert(table.name, after);
        }
    }
    Ok(changed)
}

fn text(value: impl Into<String>) -> Value {
    Value::Text(value.into())
}

fn next_number(rows: &[Row]) -> i64 {
    rows.iter().map(|(number, _)| *number).max().unwrap_or(0) + 1
}

/// Objects that are on the node now, and whatever else the table held.
fn objects(table: &Table, before: &[Row], meta: &dyn Meta) -> Option<Vec<Row>> {
    let (key, kind, value) = (table.column("key")?, table.column("type")?, table.column("value")?);
    let mut now: BTreeMap<String, (&str, String)> = BTreeMap::new();
    for kind in KINDS {
        for object in meta.list(kind) {
            let body = String::from_utf8_lossy(&object.body).into_owned();
            now.insert(object.resource.to_string(), (kind, body));
        }
    }
    let mut next = next_number(before);
    let mut rows = Vec::new();
    for (number, values) in before {
        let is_ours = KINDS.contains(&values[kind].text().as_str());
        let row = match now.remove(&values[key].text()) {
            // The same object may be written differently: then it stays as it was.
            Some((_, body)) if is_ours && !is_same(&values[value].text(), &body) => {
                let mut values = values.clone();
                values[value] = text(body);
                (*number, values)
            }
            Some(_) => (*number, values.clone()),
            None if is_ours && is_object(&values[value].text()) => continue,
            None => (*number, values.clone()),
        };
        rows.push(row);
    }
    for (name, (of_kind, body)) in now {
        let mut values = vec![Value::Null; table.columns.len()];
        (values[key], values[kind], values[value]) = (text(name), text(of_kind), text(body));
        rows.push((next, values));
        next += 1;
    }
    Some(rows)
}

fn is_object(value: &str) -> bool {
    let parsed: serde_json::Value = serde_json::from_str(value).unwrap_or_default();
    let parsed = parsed.as_str().and_then(|inner| serde_json::from_str(inner).ok()).unwrap_or(parsed);
    parsed.pointer("/metadata/uid").is_some()
}

fn is_same(theirs: &str, ours: &str) -> bool {
    let whole = |text: &str| {
        let value: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
        value.as_str().and_then(|inner| serde_json::from_str(inner).ok()).unwrap_or(value)
    };
    theirs == ours || whole(theirs) == whole(ours)
}

/// Devices of our store by id.
fn ours(meta: &dyn Meta) -> BTreeMap<String, twin::record::Kept> {
    let records = meta.list_local(twin::RECORD_KIND).into_iter();
    records.filter_map(|(id, body)| Some((id, twin::record::kept(&body)?))).collect()
}

fn devices(table: &Table, before: &[Row], meta: &dyn Meta) -> Option<Vec<Row>> {
    let (id, name) = (table.column("id")?, table.column("name")?);
    let (state, last_online) = (table.column("state")?, table.column("last_online")?);
    let now = ours(meta);
    let mut next = next_number(before);
    let mut rows: Vec<Row> =
        before.iter().filter(|(_, values)| now.contains_key(&values[id].text())).cloned().collect();
    for (device, kept) in &now {
        let at = rows.iter().position(|(_, values)| values[id].text() == *device).unwrap_or_else(|| {
            let mut values = vec![text(""); table.columns.len()];
            values[id] = text(device);
            values[name] = text(device.rsplit('/').next().unwrap_or_default());
            rows.push((next, values));
            next += 1;
            rows.len() - 1
        });
        let values = &mut rows[at].1;
        (values[state], values[last_online]) = (text(&kept.state), text(&kept.last_online));
    }
    Some(rows)
}

fn twins(table: &Table, before: &[Row], meta: &dyn Meta) -> Option<Vec<Row>> {
    let (device, name) = (table.column("deviceid")?, table.column("name")?);
    let now = ours(meta);
    let mut left: BTreeSet<(String, String)> =
        now.iter().flat_map(|(id, kept)| kept.twins.keys().map(|name| (id.clone(), name.clone()))).collect();
    let mut next = next_number(before);
    let mut rows = Vec::new();
    for (number, values) in before {
        let place = (values[device].text(), values[name].text());
        let Some(twin) = now.get(&place.0).and_then(|kept| kept.twins.get(&place.1)) else { continue };
        left.remove(&place);
        rows.push((*number, with_twin(table, values.clone(), twin)));
    }
    for (id, property) in left {
        let mut values = vec![text(""); table.columns.len()];
        (values[device], values[name]) = (text(&id), text(&property));
        if let Some(at) = table.row_number {
            values[at] = Value::Integer(next);
        }
        let twin = &now[&id].twins[&property];
        rows.push((next, with_twin(table, values, twin)));
        next += 1;
    }
    Some(rows)
}

fn with_twin(table: &Table, mut values: Vec<Value>, twin: &MsgTwin) -> Vec<Value> {
    let json = |value: Option<String>| value.unwrap_or_default();
    let meta = |value: &Option<TwinValue>| {
        let metadata = value.as_ref().and_then(|value| value.metadata.as_ref());
        json(metadata.and_then(|metadata| serde_json::to_string(metadata).ok()))
    };
    let version = |version: &Option<twin::types::Version>| {
        json(version.as_ref().and_then(|version| serde_json::to_string(version).ok()))
    };
    for (column, value) in [
        ("expected", twin.expected_value().unwrap_or_default().to_owned()),
        ("actual", twin.actual_value().unwrap_or_default().to_owned()),
        ("expected_meta", meta(&twin.expected)),
        ("actual_meta", meta(&twin.actual)),
        ("expected_version", version(&twin.expected_version)),
        ("actual_version", version(&twin.actual_version)),
        ("attr_type", twin.value_type().to_owned()),
    ] {
        if let Some(at) = table.column(column) {
            values[at] = text(value);
        }
    }
    if let Some(at) = table.column("optional") {
        values[at] = Value::Integer(i64::from(twin.optional.unwrap_or(false)));
    }
    values
}
