//! Which images the last look at the runtime casts doubt on: their program ended at once as one does that cannot be loaded.

use std::{collections::BTreeSet, time::Duration};

use super::repair;
use crate::edged::{
    limits,
    observed::{Observed, State},
};

/// Ends that were judged already, by container id; bounded by what the runtime lists.
#[derive(Debug, Default)]
pub struct Suspects {
    judged: BTreeSet<String>,
}

impl Suspects {
    /// Images to repair, each once for each container that ended so.
    pub fn judge(&mut self, observed: &Observed) -> Vec<String> {
        let listed: BTreeSet<&str> = observed.containers.iter().map(|c| c.id.as_str()).collect();
        self.judged.retain(|id| listed.contains(id.as_str()));
        let mut images = Vec::new();
        for container in observed.containers.iter().filter(|c| c.state == State::Exited) {
            let lived = Duration::from_nanos(
                container.finished_at.saturating_sub(container.started_at).max(0) as u64,
            );
            let at_once = container.started_at > 0 && lived < limits::LOADED_AFTER;
            // By its digest an image has no archive and no registry to come from.
            let named = !container.image.is_empty() && !container.image.starts_with("sha256:");
            let news = self.judged.insert(container.id.clone());
            if news
                && at_once
                && named
                && repair::is_suspect_exit(container.exit_code)
                && !images.contains(&container.image)
            {
                images.push(container.image.clone());
            }
        }
        images
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edged::observed::Container;

    #[test]
    fn only_a_program_that_could_not_be_loaded_is_suspect_and_once() {
        let ended = |id: &str, exit_code: i32, seconds: i64| Container {
            id: id.into(),
            image: format!("image-{id}"),
            state: State::Exited,
            exit_code,
            started_at: 5,
            finished_at: 5 + seconds * 1_000_000_000,
            ..Container::default()
        };
        let containers = vec![ended("a", 139, 1), ended("b", 139, 60), ended("c", 1, 1), ended("d", 127, 0)];
        let containers = containers.into_iter().map(Into::into).collect();
        let observed = Observed { containers, ..Observed::default() };
        let mut suspects = Suspects::default();
        assert_eq!(suspects.judge(&observed), ["image-a", "image-d"]);
        assert!(suspects.judge(&observed).is_empty());
        suspects.judge(&Observed::default());
        assert!(suspects.judged.is_empty());
    }
}
