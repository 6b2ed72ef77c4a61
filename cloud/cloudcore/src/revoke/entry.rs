//! The entry of a revoked node: the value of one shared config map.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Refusal;

/// Keys of one entry. More: the oldest admitted one goes; a revoked one is not taken in, and stays refused under the node's name.
const KEYS_MAX: usize = 64;
const REASON_LEN_MAX: usize = 200;

/// A node that is refused. Keys are SHA-256 of the SubjectPublicKeyInfo in hex.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Entry {
    pub node: String,
    /// What the node had, as far as it is known.
    pub keys: BTreeSet<String>,
    /// What was admitted under the name since, oldest first.
    pub admitted: Vec<String>,
    /// Any valid token may admit a device under the name (after `node reset`); else only one made for it.
    pub open: bool,
    pub reason: String,
    /// When, in UTC.
    pub since: String,
}

impl Entry {
    pub fn new(node: &str, reason: &str, keys: impl IntoIterator<Item = String>) -> Entry {
        let mut entry = Entry { node: node.into(), ..Entry::default() };
        entry.reason = reason.chars().filter(|c| !c.is_control()).take(REASON_LEN_MAX).collect();
        entry.since = pki::format_utc(crate::join::now_s());
        entry.revoke(keys);
        entry
    }

    /// What the name had until now is refused.
    pub fn revoke(&mut self, keys: impl IntoIterator<Item = String>) {
        let admitted = std::mem::take(&mut self.admitted);
        for key in admitted.into_iter().chain(keys) {
            if self.keys.len() < KEYS_MAX {
                self.keys.insert(key);
            }
        }
    }

    /// Revoked once more, as `newer` says.
    pub fn renew(&mut self, newer: &Entry) {
        self.revoke(newer.keys.clone());
        self.open = newer.open;
        (self.reason, self.since) = (newer.reason.clone(), newer.since.clone());
    }

    pub fn admit(&mut self, key: &str) {
        if !self.admitted.iter().any(|admitted| admitted == key) {
            self.admitted.push(key.into());
            if self.admitted.len() > KEYS_MAX {
                self.admitted.remove(0);
            }
        }
    }

    pub(super) fn refusal(&self) -> Refusal {
        let reason = if self.reason.is_empty() { String::new() } else { format!(" ({})", self.reason) };
        Refusal::Node { node: self.node.clone(), reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_admitted_is_revoked_with_the_next_time() {
        let mut entry = Entry::new("pi", "lost\nin the field", ["a".to_owned(), "b".to_owned()]);
        assert_eq!(entry.reason, "lostin the field");
        entry.admit("c");
        entry.open = true;
        entry.renew(&Entry::new("pi", "again", ["d".to_owned()]));
        assert_eq!(entry.keys.iter().cloned().collect::<String>(), "abcd");
        assert!(entry.admitted.is_empty() && !entry.open && entry.reason == "again");
        (0..100).for_each(|n| entry.admit(&n.to_string()));
        assert!(entry.admitted.len() == KEYS_MAX && entry.admitted.contains(&"99".to_owned()));
    }
}
