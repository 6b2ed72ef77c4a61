//! What the probes found, kept over a restart of the agent: a ready container must not look unready until it was asked again.
//!
//! A small file in the run folder (memory on every system, so no flash wears out) that ends with a reboot, as containers do. The
//! echoed status, which kubelet uses, would be old after a time offline.

use std::{collections::BTreeMap, path::PathBuf};

use super::Known;

pub struct Memory {
    path: PathBuf,
    found: BTreeMap<String, Known>,
}

impl Memory {
    /// Reads what was kept; nothing, if there is nothing that can be read.
    pub fn load(path: PathBuf) -> Memory {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        Memory { path, found: parse(&text) }
    }

    pub fn get(&self, id: &str) -> Option<Known> {
        self.found.get(id).copied()
    }

    pub fn all(&self) -> impl Iterator<Item = (&String, Known)> {
        self.found.iter().map(|(id, known)| (id, *known))
    }

    /// Replaces what is kept. Not synced: it need not outlive a power cut.
    pub fn keep<'a>(&mut self, found: impl Iterator<Item = (&'a str, Known)>) {
        // What was read at the start was asked for by then, or is of containers that are gone.
        self.found.clear();
        let mut text = String::new();
        for (id, known) in found.filter(|(_, known)| known.started) {
            text.push_str(&format!("{id} {}\n", if known.ready { "ready" } else { "started" }));
        }
        let fresh = self.path.with_extension("new");
        let dir = self.path.parent().map_or(Ok(()), std::fs::create_dir_all);
        let written = dir.and_then(|()| std::fs::write(&fresh, text));
        if let Err(error) = written.and_then(|()| std::fs::rename(&fresh, &self.path)) {
            tracing::debug!("cannot keep what probes found in {} ({error})", self.path.display());
        }
    }
}

pub fn parse(text: &str) -> BTreeMap<String, Known> {
    let line = |line: &str| {
        let (id, word) = line.split_once(' ')?;
        let ready = match word {
            "ready" => true,
            "started" => false,
            _ => return None,
        };
        Some((id.to_string(), Known { started: true, ready }))
    };
    text.lines().filter_map(line).collect()
}
