//! What a row of the table may hold.
//!
//! ```yaml
//! - row: init-in-order                       # also the pod's name
//!   page: concepts/workloads/pods/init-containers
//!   shows: Init containers run one after another; until the last has succeeded the pod is Pending.
//!   spec:                                    # the pod's; `image` defaults to the test image, `sh: TEXT` is a command
//!     containers: [{name: main, sh: "sleep 1000"}]
//!   steps:
//!     - sees: [{phase: Pending}, {phase: Running}]   # statuses in this order, others may lie between; see `pattern`
//!     - event: {reason: Started}
//! ```
//! `$DIR` in a row is a folder of its own on the node, `$ROOT` the agent's root, `$ROW` the row's name.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Of the image with a shell; packed by xtask from Debian's static busybox.
pub const IMAGE: &str = "docker.io/kinglet/busybox:1";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    pub row: String,
    /// Page of kubernetes.io/docs that documents the behaviour.
    pub page: String,
    /// The behaviour, in our words.
    pub shows: String,
    /// Disturbs others (restarts something, fills something): runs by itself, after the others.
    #[serde(default)]
    pub alone: bool,
    /// Made before the pod.
    #[serde(default)]
    pub objects: Vec<Value>,
    /// Labels and annotations of the pod.
    #[serde(default)]
    pub metadata: Map<String, Value>,
    /// No pod is made when it is absent: the steps do.
    #[serde(default)]
    pub spec: Option<Map<String, Value>>,
    pub steps: Vec<Step>,
    /// Seconds for every wait of the row.
    #[serde(default = "within")]
    pub within: u64,
}

fn within() -> u64 {
    60
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Step {
    /// Statuses of the pod, in this order.
    Sees(Vec<Value>),
    /// No status of the pod so far, nor one in the next `for` seconds, looks so.
    Never {
        status: Value,
        #[serde(default, rename = "for")]
        seconds: u64,
    },
    /// An event of the pod: a pattern of the Event object.
    Event(Value),
    /// `kubectl apply` of objects.
    Apply(Vec<Value>),
    /// `kubectl ARGS`, which succeeds unless `fails` says what it complains about; `has`: its output.
    Kubectl {
        args: Vec<String>,
        #[serde(default)]
        stdin: String,
        has: Option<String>,
        fails: Option<String>,
        /// Tries again until it holds.
        #[serde(default)]
        until: bool,
    },
    /// Deletes the pod (or what is named), without waiting.
    Delete {
        object: Option<String>,
        grace: Option<u64>,
    },
    /// The pod is gone from the API within so many seconds, and not earlier than so many after it was asked to go.
    Gone {
        within: u64,
        #[serde(default)]
        after: u64,
    },
    /// Writes a file on the node.
    Write {
        path: String,
        text: String,
    },
    /// A file on the node holds this.
    File {
        path: String,
        has: String,
    },
    Remove {
        path: String,
    },
    /// GET from the node's network: `10.77.0.1:8080/path`, `$IP:80/`; the answer holds this.
    Http {
        at: String,
        has: String,
    },
    /// Kills and starts: `edgecore` or `containerd`.
    Restart(String),
    /// What the pod's containers are (ids, restart counts) must be as it was at the last `remember`.
    Remember(String),
    Unchanged(String),
}

/// Reads all rows of a folder, in the order of the file names.
pub fn load(table: &Path, dir: &Path) -> Result<Vec<Row>> {
    let mut files: Vec<_> = fs::read_dir(table)
        .with_context(|| format!("read {}", table.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    let mut rows: Vec<Row> = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file)?;
        let read: Vec<Value> = serde_saphyr::from_str(&text).with_context(|| file.display().to_string())?;
        for value in read {
            let name =
                value["row"].as_str().with_context(|| format!("{}: a row has no name", file.display()))?;
            let own = dir.join("rows").join(name);
            let node = dir.join("node").display().to_string();
            let text = value.to_string().replace("$DIR", &own.display().to_string());
            let text = text.replace("$ROOT", &node).replace("$ROW", name);
            let row: Row = serde_json::from_str(&text).with_context(|| format!("row {name}"))?;
            ensure!(rows.iter().all(|other| other.row != row.row), "row {} is there twice", row.row);
            rows.push(row);
        }
    }
    Ok(rows)
}

impl Row {
    /// The pod as it is applied.
    pub fn pod(&self) -> Option<Value> {
        let mut spec = self.spec.clone()?;
        for list in ["initContainers", "containers"] {
            for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                complete(container);
            }
        }
        spec.entry("terminationGracePeriodSeconds").or_insert(json!(1));
        let mut metadata = self.metadata.clone();
        metadata.entry("name").or_insert(json!(self.row));
        Some(json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec }))
    }
}

/// Fills in what every container of the table would repeat.
pub fn complete(container: &mut Value) {
    let Some(fields) = container.as_object_mut() else { return };
    fields.entry("image").or_insert(json!(IMAGE));
    if let Some(script) = fields.remove("sh") {
        fields.insert("command".into(), json!(["sh", "-c", script]));
    }
}
