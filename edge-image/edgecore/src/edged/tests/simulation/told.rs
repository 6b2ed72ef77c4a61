//! What the cloud was told, and what must not be told after it.

use std::collections::BTreeMap;

use serde_json::Value;

/// Of one pod.
#[derive(Default)]
struct Pod {
    phase: String,
    restarts: BTreeMap<String, u64>,
    gone: u32,
}

/// By uid.
#[derive(Default)]
pub struct Told(BTreeMap<String, Pod>);

pub fn is_terminal(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

impl Told {
    /// A terminal phase is never left, and restart counts never fall.
    pub fn status(&mut self, uid: &str, status: &Value, running: &[&str]) {
        let pod = self.0.entry(uid.into()).or_default();
        let phase = status["phase"].as_str().unwrap();
        if is_terminal(&pod.phase) {
            assert_eq!(pod.phase, phase, "{uid} left its terminal phase: {status:#}");
        }
        if is_terminal(phase) {
            assert!(running.is_empty(), "{uid} is told {phase} while {running:?} run");
            let ready =
                &status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Ready").unwrap();
            assert_eq!(ready["status"], "False", "{uid} is {phase} and ready");
        }
        pod.phase = phase.into();
        for list in ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"] {
            for line in status[list].as_array().into_iter().flatten() {
                let name = line["name"].as_str().unwrap();
                let count = line["restartCount"].as_u64().unwrap();
                let before = pod.restarts.insert(name.into(), count).unwrap_or(0);
                assert!(count >= before, "{uid}: restarts of {name} fell from {before}: {status:#}");
            }
        }
    }

    pub fn gone(&mut self, uid: &str) {
        self.0.entry(uid.into()).or_default().gone += 1;
    }

    pub fn times_gone(&self, uid: &str) -> u32 {
        self.0.get(uid).map_or(0, |pod| pod.gone)
    }

    pub fn phase(&self, uid: &str) -> &str {
        self.0.get(uid).map_or("", |pod| pod.phase.as_str())
    }

    pub fn uids(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}
