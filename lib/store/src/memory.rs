//! What readers see: the live objects, the recent events, and from where a watch may go on.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::Arc,
};

use crate::{Compacted, Event, EventKind, Key, Record, Snapshot, limits::RECORD_OVERHEAD};

pub(crate) struct Memory {
    records: BTreeMap<Key, Arc<Record>>,
    /// Values and overhead of the live objects, in bytes.
    records_len: u64,
    revision: u64,
    history: VecDeque<Arc<Event>>,
    history_len: usize,
    history_len_max: usize,
    /// The history begins after this revision.
    floor: u64,
    /// Revisions that may have been seen but are lost (first and last of each gap): a watch from there would miss that.
    gaps: VecDeque<(u64, u64)>,
}

impl Memory {
    pub fn new(revision: u64, records: BTreeMap<Key, Arc<Record>>, history_len_max: usize) -> Memory {
        let records_len = records.values().map(|record| cost(record) as u64).sum();
        let (history, gaps) = (VecDeque::new(), VecDeque::new());
        Memory {
            records,
            records_len,
            revision,
            history,
            history_len: 0,
            history_len_max,
            floor: revision,
            gaps,
        }
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn floor(&self) -> u64 {
        self.floor
    }

    pub fn records_count(&self) -> usize {
        self.records.len()
    }

    /// Bytes that a rewritten log would have, roughly.
    pub fn live_len(&self) -> u64 {
        self.records_len + self.history_len as u64
    }

    pub fn get(&self, key: &Key) -> Option<&Arc<Record>> {
        self.records.get(key)
    }

    /// The record itself or the one before it, and the one after it: those whose keys are most like it.
    pub fn neighbours(&self, key: &Key) -> [Option<&Arc<Record>>; 2] {
        let before = self.records.range(..=key).next_back();
        let after = self.records.range((Bound::Excluded(key), Bound::Unbounded)).next();
        [before, after].map(|found| found.map(|(_, record)| record))
    }

    pub fn list(&self, kind: &str, namespace: Option<&str>) -> Snapshot {
        let first = Key::new(kind, namespace.unwrap_or(""), "");
        let wanted =
            |key: &Key| *key.kind == *kind && namespace.is_none_or(|namespace| *key.namespace == *namespace);
        let records = self.records.range(first..).take_while(|(key, _)| wanted(key));
        Snapshot { revision: self.revision, records: records.map(|(_, record)| record.clone()).collect() }
    }

    /// Revisions of one commit are applied one after the other under one lock, so readers see all of them or none.
    pub fn apply(&mut self, event: Arc<Event>) {
        debug_assert_eq!(event.revision, self.revision + 1, "revisions are consecutive");
        self.revision = event.revision;
        let key = &event.record.key;
        let replaced = match event.kind {
            EventKind::Put => {
                self.records_len += cost(&event.record) as u64;
                self.records.insert(key.clone(), event.record.clone())
            }
            EventKind::Delete => self.records.remove(key),
        };
        self.records_len -= replaced.map_or(0, |record| cost(&record) as u64);
        self.history_len += event_cost(&event);
        self.history.push_back(event);
        while self.history_len > self.history_len_max
            && let Some(event) = self.history.pop_front()
        {
            self.history_len -= event_cost(&event);
            self.floor = event.revision;
        }
        self.gaps.retain(|(_, last)| *last > self.floor);
    }

    /// Goes on at `revision`, leaving out the numbers before it.
    pub fn jump(&mut self, revision: u64) {
        if revision > self.revision + 1 {
            self.gaps.push_back((self.revision + 1, revision - 1));
        }
        self.revision = revision;
    }

    pub fn resumable(&self, after: u64) -> Result<(), Compacted> {
        let known = after >= self.floor && after <= self.revision;
        match known && !self.gaps.iter().any(|(first, last)| (*first..=*last).contains(&after)) {
            true => Ok(()),
            false => Err(Compacted { oldest: self.floor }),
        }
    }

    /// The events after a revision, oldest first. The caller has checked `resumable` once and `floor` since.
    pub fn events_after(&self, after: u64) -> impl Iterator<Item = &Arc<Event>> {
        let start = self.history.partition_point(|event| event.revision <= after);
        self.history.range(start..)
    }

    /// The objects as they were at `floor`: what a rewritten log begins with.
    pub fn base(&self) -> BTreeMap<&Key, &Arc<Record>> {
        let mut records: BTreeMap<&Key, &Arc<Record>> = self.records.iter().collect();
        for event in self.history.iter().rev() {
            match &event.previous {
                Some(previous) => records.insert(&previous.key, previous),
                None => records.remove(&event.record.key),
            };
        }
        records
    }
}

fn cost(record: &Record) -> usize {
    RECORD_OVERHEAD + record.value.len()
}

fn event_cost(event: &Event) -> usize {
    // Counting the previous value too is the worst case: often it is shared with an older event.
    cost(&event.record) + event.previous.as_ref().map_or(0, |previous| previous.value.len())
}
