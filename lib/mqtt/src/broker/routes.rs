//! Who has subscribed to what: an index of filters, and the subscribers of the topics that were published lately.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::durable::{Class, DurableTopics};
use crate::{
    limits::{ROUTES_MAX, ROUTES_TARGETS_MAX},
    packet::{Qos, SubscribeOptions},
};

/// Place of a session in the broker.
pub(super) type SessionAt = u32;

/// One session's subscription to a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub session: SessionAt,
    /// Name of the group of a shared subscription.
    pub group: Option<Box<str>>,
    pub options: SubscribeOptions,
    /// 0: none.
    pub id: u32,
}

/// Everybody who gets a topic.
#[derive(Debug, Default)]
pub(super) struct Route {
    pub targets: Box<[Target]>,
    pub groups: Box<[Group]>,
    pub class: Class,
}

/// One session; several of its subscriptions that select the topic give one message, with the best of their qualities of service.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub session: SessionAt,
    pub qos: Qos,
    pub retain_as_published: bool,
    pub no_local: bool,
    pub ids: Option<Arc<[u32]>>,
}

/// A shared subscription: each message goes to one of the members, in turn.
#[derive(Debug)]
pub(super) struct Group {
    pub members: Box<[Target]>,
    turn: AtomicUsize,
}

impl Group {
    pub fn next_turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }
}

impl Route {
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty() && self.groups.is_empty()
    }

    /// All sessions that may get a message.
    pub fn all(&self) -> impl Iterator<Item = &Target> {
        self.targets.iter().chain(self.groups.iter().flat_map(|group| group.members.iter()))
    }
}

#[derive(Debug, Default)]
pub(super) struct Routes {
    /// Filters without the prefix of a shared subscription.
    filters: BTreeMap<Arc<str>, Vec<Entry>>,
    count: usize,
    known: HashMap<Box<str>, Arc<Route>>,
    known_targets: usize,
    durable: DurableTopics,
}

/// Name of the group and filter of `$share/GROUP/FILTER`; `None` when that is not well formed.
pub(super) fn parse_shared(filter: &str) -> Option<(Option<&str>, &str)> {
    let Some(rest) = filter.strip_prefix("$share/") else { return Some((None, filter)) };
    let (group, filter) = rest.split_once('/')?;
    let valid = !group.is_empty() && !group.contains(['+', '#']) && !filter.is_empty();
    valid.then_some((Some(group), filter))
}

impl Routes {
    pub fn new(durable: DurableTopics) -> Routes {
        Routes { durable, ..Routes::default() }
    }

    pub fn len(&self) -> usize {
        self.count
    }

    /// Adds or replaces a subscription; true when it is new.
    pub fn add(&mut self, filter: &str, entry: Entry) -> bool {
        self.forget_known();
        if !self.filters.contains_key(filter) {
            self.filters.insert(filter.into(), Vec::with_capacity(1));
        }
        let entries = self.filters.get_mut(filter).expect("was just made");
        let same = |have: &&mut Entry| have.session == entry.session && have.group == entry.group;
        match entries.iter_mut().find(same) {
            Some(have) => {
                *have = entry;
                false
            }
            None => {
                entries.push(entry);
                self.count += 1;
                true
            }
        }
    }

    /// True when there was such a subscription.
    pub fn remove(&mut self, filter: &str, group: Option<&str>, session: SessionAt) -> bool {
        let Some(entries) = self.filters.get_mut(filter) else { return false };
        let before = entries.len();
        entries.retain(|have| have.session != session || have.group.as_deref() != group);
        let removed = before - entries.len();
        if entries.is_empty() {
            self.filters.remove(filter);
        }
        self.count -= removed;
        if removed > 0 {
            self.forget_known();
        }
        removed > 0
    }

    pub fn get(&self, filter: &str, group: Option<&str>, session: SessionAt) -> Option<&Entry> {
        self.filters
            .get(filter)?
            .iter()
            .find(|have| have.session == session && have.group.as_deref() == group)
    }

    /// Who gets a topic. Remembered until a subscription changes.
    pub fn find(&mut self, topic: &str) -> Arc<Route> {
        if let Some(route) = self.known.get(topic) {
            return route.clone();
        }
        let route = Arc::new(self.search(topic));
        let targets = 1 + route.all().count();
        if self.known.len() >= ROUTES_MAX || self.known_targets + targets > ROUTES_TARGETS_MAX {
            self.forget_known();
        }
        self.known_targets += targets;
        self.known.insert(topic.into(), route.clone());
        route
    }

    fn forget_known(&mut self) {
        self.known.clear();
        self.known_targets = 0;
    }

    fn search(&self, topic: &str) -> Route {
        let levels: Vec<&str> = topic.split('/').collect();
        let mut found = Vec::new();
        self.walk(&mut String::with_capacity(topic.len() + 2), &levels, topic.starts_with('$'), &mut found);
        found.sort_by(|a, b| (&a.1.group, a.0, a.1.session).cmp(&(&b.1.group, b.0, b.1.session)));
        let mut targets: Vec<Target> = Vec::new();
        // Name, filter, members.
        let mut groups: Vec<(&str, &str, Vec<Target>)> = Vec::new();
        for (filter, entry) in found {
            match &entry.group {
                None => targets.push(target(entry)),
                Some(name) => match groups.last_mut() {
                    Some((last, of, members)) if *last == &**name && *of == filter => {
                        members.push(target(entry))
                    }
                    _ => groups.push((name, filter, vec![target(entry)])),
                },
            }
        }
        targets.sort_by_key(|target| target.session);
        targets.dedup_by(|next, first| {
            let same = next.session == first.session;
            if same {
                merge(first, next);
            }
            same
        });
        let groups = groups
            .into_iter()
            .map(|(_, _, members)| Group { members: members.into(), turn: AtomicUsize::new(0) });
        Route { targets: targets.into(), groups: groups.collect(), class: self.durable.class(topic) }
    }

    /// Looks up every filter that can select the topic, level by level, and only below prefixes that there are: `prefix` is
    /// empty or ends with `/`.
    fn walk<'a>(
        &'a self,
        prefix: &mut String,
        levels: &[&str],
        is_dollar: bool,
        found: &mut Vec<(&'a str, &'a Entry)>,
    ) {
        let len = prefix.len();
        let wildcards = !(is_dollar && len == 0);
        if wildcards {
            prefix.push('#');
            self.collect(prefix, found);
            prefix.truncate(len);
        }
        let Some((level, rest)) = levels.split_first() else { return };
        for candidate in [*level, "+"].into_iter().take(1 + usize::from(wildcards)) {
            prefix.push_str(candidate);
            if rest.is_empty() {
                self.collect(prefix, found);
            }
            prefix.push('/');
            if self.has_below(prefix) {
                self.walk(prefix, rest, is_dollar, found);
            }
            prefix.truncate(len);
        }
    }

    fn collect<'a>(&'a self, filter: &str, found: &mut Vec<(&'a str, &'a Entry)>) {
        if let Some((filter, entries)) = self.filters.get_key_value(filter) {
            found.extend(entries.iter().map(|entry| (&**filter, entry)));
        }
    }

    fn has_below(&self, prefix: &str) -> bool {
        let from = (Bound::Included(prefix), Bound::Unbounded);
        self.filters.range::<str, _>(from).next().is_some_and(|(filter, _)| filter.starts_with(prefix))
    }
}

fn target(entry: &Entry) -> Target {
    Target {
        session: entry.session,
        qos: entry.options.qos,
        retain_as_published: entry.options.retain_as_published,
        no_local: entry.options.no_local,
        ids: (entry.id > 0).then(|| [entry.id].into()),
    }
}

fn merge(first: &mut Target, next: &Target) {
    first.qos = first.qos.max(next.qos);
    first.retain_as_published |= next.retain_as_published;
    first.no_local &= next.no_local;
    first.ids = match (first.ids.take(), &next.ids) {
        (Some(have), Some(more)) => Some([&have[..], &more[..]].concat().into()),
        (have, more) => have.or(more.clone()),
    };
}
