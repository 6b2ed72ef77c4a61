//! What the modules raise, kept for the Node's status, the status file and the log.

use tokio::sync::watch;

use crate::{
    contract::{Condition, Conditions},
    limits::CONDITIONS_MAX,
};

/// The latest condition of every type, sorted by type.
pub struct ConditionBoard {
    tx: watch::Sender<Vec<Condition>>,
}

impl Default for ConditionBoard {
    fn default() -> Self {
        ConditionBoard { tx: watch::Sender::new(Vec::new()) }
    }
}

impl ConditionBoard {
    pub fn subscribe(&self) -> watch::Receiver<Vec<Condition>> {
        self.tx.subscribe()
    }
}

impl Conditions for ConditionBoard {
    fn set(&self, condition: Condition) {
        self.tx.send_if_modified(|all| {
            match all.binary_search_by(|have| have.condition_type.cmp(&condition.condition_type)) {
                Ok(at) if all[at] == condition => false,
                Ok(at) => {
                    log(&condition);
                    all[at] = condition;
                    true
                }
                // A condition that was never raised needs no "is not so".
                Err(_) if !condition.status => false,
                Err(_) if all.len() >= CONDITIONS_MAX => {
                    tracing::error!(target: "node", "condition {} is not shown: {CONDITIONS_MAX} are set already", condition.condition_type);
                    false
                }
                Err(at) => {
                    log(&condition);
                    all.insert(at, condition);
                    true
                }
            }
        });
    }
}

fn log(condition: &Condition) {
    let Condition { condition_type, reason, message, .. } = condition;
    if condition.status {
        tracing::warn!(target: "node", "condition {condition_type}: {reason}: {message}");
    } else {
        tracing::info!(target: "node", "condition {condition_type} is over: {message}");
    }
}
