//! What KubeEdge's database holds, as what our store keeps (kubeedge-wire.md section 9; KubeEdge: edge/pkg/metamanager/dao/models).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;
use sqlite::{Database, SqliteError, Table, Value};
use wire::Resource;

use crate::twin::types::{MsgTwin, TwinValue, Twins, TypeMetadata, ValueMetadata, Version};

/// Kinds of objects that our store keeps. The rest is asked for again (tokens), or is news of the past (patches, leases).
pub const KINDS: [&str; 8] = [
    "pod",
    "configmap",
    "secret",
    "node",
    "device",
    "devicemodel",
    "persistentvolume",
    "persistentvolumeclaim",
];

/// An object of the cloud.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    pub resource: Resource,
    pub uid: String,
    /// JSON text.
    pub body: String,
}

/// A device's values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Device {
    pub state: String,
    pub last_online: String,
    pub twins: Twins,
}

#[derive(Debug, Default)]
pub struct Contents {
    pub objects: Vec<Object>,
    /// By `<namespace>/<name>`.
    pub devices: BTreeMap<String, Device>,
    /// How many rows of each kind are not taken.
    pub left: BTreeMap<String, usize>,
    /// Rows that should have been objects and are not.
    pub damaged: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct View {
    metadata: Metadata,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    uid: String,
}

pub fn read(database: &Database) -> Result<Contents, SqliteError> {
    let mut contents = Contents::default();
    let tables = database.tables()?;
    if let Some(rows) = Rows::of(database, &tables, "meta", &["key", "type", "value"])? {
        for [key, kind, value] in rows.iter() {
            meta(&mut contents, &key.text(), &kind.text(), &value.text());
        }
    }
    if let Some(rows) = Rows::of(database, &tables, "device", &["id", "state", "last_online"])? {
        for [id, state, last_online] in rows.iter() {
            let device = contents.devices.entry(id.text()).or_default();
            (device.state, device.last_online) = (state.text(), last_online.text());
        }
    }
    const TWIN: [&str; 9] = [
        "deviceid",
        "name",
        "expected",
        "actual",
        "expected_meta",
        "actual_meta",
        "expected_version",
        "actual_version",
        "attr_type",
    ];
    let optional = Rows::of(database, &tables, "device_twin", &["optional"])?;
    if let Some(rows) = Rows::of(database, &tables, "device_twin", &TWIN)? {
        let optional: Vec<bool> =
            optional.iter().flat_map(Rows::iter).map(|[value]: [&Value; 1]| value.text() == "1").collect();
        for (n, columns) in rows.iter::<9>().enumerate() {
            let [id, name, ..] = columns;
            let twin = twin(columns.map(Value::text), optional.get(n).copied().unwrap_or(false));
            contents.devices.entry(id.text()).or_default().twins.insert(name.text(), Box::new(twin));
        }
    }
    Ok(contents)
}

/// Some columns of a table, in an order of our own.
struct Rows {
    rows: Vec<sqlite::Row>,
    at: Vec<Option<usize>>,
}

impl Rows {
    /// `None`: there is no such table (its module was never on).
    fn of(
        database: &Database,
        tables: &[Table],
        name: &str,
        columns: &[&str],
    ) -> Result<Option<Rows>, SqliteError> {
        let Some(table) = tables.iter().find(|table| table.name == name) else { return Ok(None) };
        let at = columns.iter().map(|column| table.column(column)).collect();
        Ok(Some(Rows { rows: database.rows(name)?, at }))
    }

    fn iter<const N: usize>(&self) -> impl Iterator<Item = [&Value; N]> {
        const ABSENT: &Value = &Value::Null;
        self.rows.iter().map(|(_, values)| {
            std::array::from_fn(|n| {
                self.at.get(n).copied().flatten().and_then(|at| values.get(at)).unwrap_or(ABSENT)
            })
        })
    }
}

fn meta(contents: &mut Contents, key: &str, kind: &str, value: &str) {
    let resource = Resource::parse(key).filter(|resource| resource.kind == kind && KINDS.contains(&kind));
    let Some(resource) = resource else {
        *contents.left.entry(kind.to_owned()).or_default() += 1;
        return;
    };
    // As in messages, an object may stand inside a string.
    let text = match value.starts_with('"') {
        true => serde_json::from_str::<String>(value).unwrap_or_default(),
        false => value.to_owned(),
    };
    let whole = serde_json::from_str::<Box<RawValue>>(&text).is_ok();
    match serde_json::from_str::<View>(&text) {
        Ok(view) if whole && !view.metadata.uid.is_empty() => {
            contents.objects.push(Object { resource, uid: view.metadata.uid, body: text });
        }
        _ => contents.damaged.push(key.to_owned()),
    }
}

/// A row of `device_twin` by the columns above.
fn twin(columns: [String; 9], optional: bool) -> MsgTwin {
    let [_, _, expected, actual, expected_meta, actual_meta, expected_version, actual_version, value_type] =
        columns;
    let value = |value: String, meta: &str| {
        let metadata: Option<ValueMetadata> = serde_json::from_str(meta).ok();
        (!value.is_empty() || metadata.is_some()).then_some(TwinValue { value: Some(value), metadata })
    };
    let version = |text: &str| serde_json::from_str::<Version>(text).ok();
    MsgTwin {
        expected: value(expected, &expected_meta),
        actual: value(actual, &actual_meta),
        optional: Some(optional),
        metadata: Some(TypeMetadata::of(value_type)),
        expected_version: version(&expected_version),
        actual_version: version(&actual_version),
    }
}

/// Rows of any text become objects, devices or nothing. For random bytes.
pub fn fuzz_rows(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.splitn(9, '\u{1f}').map(str::to_owned);
    let columns: [String; 9] = std::array::from_fn(|_| parts.next().unwrap_or_default());
    let mut contents = Contents::default();
    meta(&mut contents, &columns[0], &columns[1], &columns[2]);
    let _ = twin(columns, true);
}
