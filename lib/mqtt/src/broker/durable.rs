//! What outlives a power cut: which topics, and the changes that the shell writes to the disk.
//!
//! The broker numbers its changes; the shell takes them with [`super::Broker::take_changes`], commits all of them as one, in
//! order, and tells the number it got with them to [`super::Broker::persisted`]. An answer that promises durability waits for that.

use crate::topic::matches;

/// How the messages of a topic are kept for sessions that outlive their connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Class {
    /// In memory.
    #[default]
    Volatile,
    /// On the disk, soon.
    Lazy,
    /// On the disk before the publisher has its acknowledgement.
    Sync,
}

/// Filters of the topics whose messages are kept on the disk.
#[derive(Clone, Debug, Default)]
pub struct DurableTopics {
    pub sync: Vec<String>,
    pub lazy: Vec<String>,
}

impl DurableTopics {
    pub(super) fn class(&self, topic: &str) -> Class {
        let listed = |filters: &[String]| filters.iter().any(|filter| matches(filter, topic));
        match () {
            () if listed(&self.sync) => Class::Sync,
            () if listed(&self.lazy) => Class::Lazy,
            () => Class::Volatile,
        }
    }
}

/// Names a record on the disk.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// A session and its subscriptions, by client id.
    Session(String),
    /// A message that waits for a session's client, in order.
    Message { client: String, number: u64 },
    /// The id of a QoS 2 message that a session's client has sent and not released.
    Incoming { client: String, id: u16 },
    /// By topic.
    Retained(String),
}

/// One record put or, without a value, deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub key: Key,
    pub value: Option<Vec<u8>>,
}

/// Changes that are one commit.
#[derive(Debug, Default)]
pub struct Changes {
    pub changes: Vec<Change>,
    /// To be told to [`super::Broker::persisted`].
    pub number: u64,
    /// Somebody waits: sync before telling. Else it may be done within the time of lazy changes.
    pub sync: bool,
}

/// Most changes of one commit.
const COMMIT_CHANGES_MAX: usize = 2048;

/// What was not taken by the shell yet.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// False: there is no disk, and everything counts as done.
    pub enabled: bool,
    /// With each, whether it must be in the same commit as the one before.
    changes: Vec<(Change, bool)>,
    /// `Some` within a group: whether its first change was noted.
    group: Option<bool>,
    pub bytes: usize,
    sync: bool,
    /// Number of the last change.
    pub last: u64,
    /// Up to here all is on the disk.
    pub done: u64,
}

impl Pending {
    pub fn new(enabled: bool) -> Pending {
        Pending { enabled, ..Pending::default() }
    }

    /// Changes until [`Pending::end`] are on the disk all or not at all: a message, and the id that keeps it from coming twice.
    pub fn begin(&mut self) {
        self.group = Some(false);
    }

    pub fn end(&mut self) {
        self.group = None;
    }

    /// Notes a change; the number to wait for when `sync` is asked.
    pub fn note(&mut self, key: Key, value: Option<Vec<u8>>, sync: bool) -> u64 {
        if !self.enabled {
            return 0;
        }
        self.bytes += cost(&value);
        let is_joined = self.group.as_mut().is_some_and(|begun| std::mem::replace(begun, true));
        self.changes.push((Change { key, value }, is_joined));
        self.sync |= sync;
        self.last += 1;
        if sync { self.last } else { 0 }
    }

    pub fn take(&mut self) -> Changes {
        let mut end = self.changes.len().min(COMMIT_CHANGES_MAX);
        while self.changes.get(end).is_some_and(|(_, is_joined)| *is_joined) {
            end += 1;
        }
        let changes: Vec<Change> = self.changes.drain(..end).map(|(change, _)| change).collect();
        self.bytes -= changes.iter().map(|change| cost(&change.value)).sum::<usize>();
        let number = self.last - self.changes.len() as u64;
        let sync = self.sync;
        self.sync &= !self.changes.is_empty();
        self.changes.shrink_to(64);
        Changes { changes, number, sync }
    }

    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

fn cost(value: &Option<Vec<u8>>) -> usize {
    64 + value.as_ref().map_or(0, Vec::len)
}
