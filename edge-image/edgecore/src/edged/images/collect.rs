//! Which images go when their file system is full: those that nobody uses, the longest unused first; never a pinned one.
//!
//! Pinned are the sandbox's image, what lies as an archive in the preload folder, and what was imported from an archive: a node
//! without a network could not get it again. Source: kubelet's image garbage collection (high and low threshold, minimum age).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::edged::cri::{images::Image, messages::Container};

/// When an image goes.
#[derive(Clone, Debug, PartialEq)]
pub struct CollectSettings {
    /// Percent of the file system in use, from which on images are removed, and down to which.
    pub high_percent: u64,
    pub low_percent: u64,
    /// Younger images stay.
    pub age_min: Duration,
    /// Unused for longer: goes whatever the disk says. Zero: never.
    pub age_max: Duration,
}

impl Default for CollectSettings {
    fn default() -> CollectSettings {
        CollectSettings {
            high_percent: 85,
            low_percent: 80,
            age_min: Duration::from_secs(120),
            age_max: Duration::ZERO,
        }
    }
}

impl CollectSettings {
    /// How much to free on a file system, if it is fuller than allowed.
    pub fn excess(&self, available: u64, capacity: u64) -> Option<u64> {
        let used_percent = capacity.saturating_sub(available).saturating_mul(100).checked_div(capacity)?;
        let aim = u128::from(capacity) * u128::from(100 - self.low_percent.min(100)) / 100;
        (used_percent >= self.high_percent)
            .then(|| u64::try_from(aim).unwrap_or(u64::MAX).saturating_sub(available))
    }
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    first: Duration,
    used: Duration,
}

/// When images were seen and used, since the agent's start; bounded by what the runtime lists.
#[derive(Debug, Default)]
pub struct Tracker {
    images: BTreeMap<String, Seen>,
}

/// An image that may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unused {
    pub id: String,
    pub name: String,
    pub bytes: u64,
    used: Duration,
    first: Duration,
}

impl Tracker {
    /// Notes what is there and in use at `now` (monotonic), and lists what may go, the first to go first.
    pub fn look(
        &mut self,
        now: Duration,
        images: &[Image],
        containers: &[Container],
        pinned: &BTreeSet<String>,
    ) -> Vec<Unused> {
        let mut in_use: BTreeSet<&str> = containers.iter().map(|c| c.image_ref.as_str()).collect();
        in_use.extend(containers.iter().filter_map(|c| c.image.as_ref()).map(|image| image.image.as_str()));
        let listed: BTreeSet<&str> = images.iter().map(|image| image.id.as_str()).collect();
        self.images.retain(|id, _| listed.contains(id.as_str()));
        let mut unused = Vec::new();
        for image in images {
            let names = || [&image.id].into_iter().chain(&image.repo_tags).chain(&image.repo_digests);
            let seen = self.images.entry(image.id.clone()).or_insert(Seen { first: now, used: now });
            if names().any(|name| in_use.contains(name.as_str())) {
                seen.used = now;
                continue;
            }
            if image.pinned || names().any(|name| pinned.contains(name)) {
                continue;
            }
            unused.push(Unused {
                id: image.id.clone(),
                name: image.repo_tags.first().unwrap_or(&image.id).clone(),
                bytes: image.size,
                used: seen.used,
                first: seen.first,
            });
        }
        unused.sort_by_key(|image| (image.used, image.first));
        unused
    }
}

/// Of what may go, what goes: until `bytes` are free, and whatever is too old.
pub fn choose(unused: Vec<Unused>, now: Duration, bytes: u64, settings: &CollectSettings) -> Vec<Unused> {
    let mut freed = 0_u64;
    let too_old =
        |image: &Unused| !settings.age_max.is_zero() && now.saturating_sub(image.used) > settings.age_max;
    let goes = |image: &Unused| {
        let needed = freed < bytes && now.saturating_sub(image.first) >= settings.age_min;
        let goes = needed || too_old(image);
        freed += if goes { image.bytes } else { 0 };
        goes
    };
    let mut goes = goes;
    unused.into_iter().filter(|image| goes(image)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn image(id: &str, bytes: u64) -> Image {
        Image { id: id.into(), repo_tags: vec![format!("r/{id}:1")], size: bytes, ..Image::default() }
    }

    #[test]
    fn the_longest_unused_goes_first_and_never_one_in_use_or_pinned() {
        let images = [image("a", 10), image("b", 10), image("c", 10), image("pinned", 10), image("used", 10)];
        let mut known_to_containerd = image("marked", 10);
        known_to_containerd.pinned = true;
        let images: Vec<Image> = images.into_iter().chain([known_to_containerd]).collect();
        let using = |id: &str| Container { image_ref: id.into(), ..Container::default() };
        let pinned = BTreeSet::from(["r/pinned:1".to_string()]);
        let mut tracker = Tracker::default();
        tracker.look(s(0), &images, &[using("a"), using("used")], &pinned);
        tracker.look(s(50), &images, &[using("b"), using("used")], &pinned);
        let unused = tracker.look(s(200), &images, &[using("used")], &pinned);
        let ids: Vec<&str> = unused.iter().map(|image| image.id.as_str()).collect();
        assert_eq!(ids, ["a", "c", "b"]);

        let settings = CollectSettings::default();
        let chosen = |bytes: u64, now: u64, settings: &CollectSettings| {
            choose(unused.clone(), s(now), bytes, settings)
                .into_iter()
                .map(|image| image.id)
                .collect::<Vec<_>>()
        };
        assert_eq!(chosen(11, 200, &settings), ["a", "c"], "no more than needed");
        assert!(chosen(100, 100, &settings).is_empty(), "all are too young");
        assert!(chosen(0, 200, &settings).is_empty());
        let aging = CollectSettings { age_max: s(160), ..settings };
        assert_eq!(chosen(0, 215, &aging), ["a", "c", "b"]);
        assert_eq!(chosen(0, 205, &aging), ["a", "c"]);
    }

    #[test]
    fn thresholds_of_the_disk() {
        let settings = CollectSettings::default();
        assert_eq!(settings.excess(20, 100), None);
        assert_eq!(settings.excess(15, 100), Some(5), "down to the low threshold");
        assert_eq!(settings.excess(0, 100), Some(20));
        assert_eq!(settings.excess(0, 0), None);
    }
}
