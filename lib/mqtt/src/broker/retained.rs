//! Retained messages: the last one of each topic, bounded in number and bytes.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

use super::message::Message;
use crate::{
    limits::{QUEUED_OVERHEAD, RETAINED_AGAIN_MS, RETAINED_FIRST_MS},
    topic::matches,
};

#[derive(Debug)]
pub(super) struct Retained {
    messages: BTreeMap<Box<str>, Arc<Message>>,
    bytes: usize,
    count_max: usize,
    bytes_max: usize,
    /// Topics whose value on the disk is not the present one, and when it is to be written.
    due: BTreeMap<Box<str>, u64>,
    /// Topics that are on the disk.
    written: BTreeSet<Box<str>>,
}

impl Retained {
    pub fn new(count_max: usize, bytes_max: usize) -> Retained {
        let (messages, due, written) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        Retained { messages, bytes: 0, count_max, bytes_max, due, written }
    }

    /// Without the broker's own figures.
    pub fn len(&self) -> usize {
        let figures = self.messages.range::<str, _>((Bound::Included("$SYS/"), Bound::Excluded("$SYS0")));
        self.messages.len() - figures.count()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn get(&self, topic: &str) -> Option<&Arc<Message>> {
        self.messages.get(topic)
    }

    /// Keeps the message, or removes what is kept when it is empty. False when there is no room: the older one then stays out
    /// too, since an old value would be worse than none.
    pub fn keep(&mut self, message: &Arc<Message>) -> bool {
        let view = message.view();
        if let Some(before) = self.messages.remove(view.topic) {
            self.bytes -= cost(&before);
        }
        if view.payload.is_empty() {
            return true;
        }
        let len = cost(message);
        if self.messages.len() >= self.count_max || self.bytes + len > self.bytes_max {
            return false;
        }
        self.bytes += len;
        self.messages.insert(view.topic.into(), message.clone());
        true
    }

    /// Notes that the topic's value is to be written: soon when it is new or gone, later when it changed.
    pub fn changed(&mut self, now_ms: u64, topic: &str) {
        let updated = self.messages.contains_key(topic) && self.written.contains(topic);
        let at = now_ms + if updated { RETAINED_AGAIN_MS } else { RETAINED_FIRST_MS };
        match self.due.get_mut(topic) {
            Some(have) => *have = (*have).min(at),
            None => _ = self.due.insert(topic.into(), at),
        }
    }

    /// Notes that the topic's present value was handed to the disk.
    pub fn wrote(&mut self, topic: &str) {
        self.due.remove(topic);
        if self.messages.contains_key(topic) {
            self.written.insert(topic.into());
        } else {
            self.written.remove(topic);
        }
    }

    /// Topics to write now. Those that neither are nor were on the disk are left out.
    pub fn take_due(&mut self, now_ms: u64) -> Vec<Box<str>> {
        let due: Vec<Box<str>> =
            self.due.iter().filter(|(_, at)| **at <= now_ms).map(|(topic, _)| topic.clone()).collect();
        let (written, messages) = (&self.written, &self.messages);
        let is_wanted = |topic: &str| written.contains(topic) || messages.contains_key(topic);
        let wanted: Vec<Box<str>> = due.iter().filter(|topic| is_wanted(topic)).cloned().collect();
        for topic in &due {
            self.wrote(topic);
        }
        wanted
    }

    /// The messages that a filter selects. Only topics that begin as the filter does are looked at.
    pub fn select(&self, now_ms: u64, filter: &str, mut each: impl FnMut(&Arc<Message>)) {
        let wildcard = filter.find(['+', '#']);
        let Some(wildcard) = wildcard else {
            self.messages.get(filter).filter(|found| !found.is_expired(now_ms)).inspect(|found| each(found));
            return;
        };
        // `a/#` selects `a` too.
        let prefix = filter[..wildcard].trim_end_matches('/');
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let near = self.messages.range::<str, _>(from).take_while(|(topic, _)| topic.starts_with(prefix));
        for (_, message) in near.filter(|(topic, found)| matches(filter, topic) && !found.is_expired(now_ms))
        {
            each(message);
        }
    }

    /// Removes what has expired.
    pub fn expire(&mut self, now_ms: u64) {
        let old = self.messages.iter().filter(|(_, message)| message.is_expired(now_ms));
        let old: Vec<Box<str>> = old.map(|(topic, _)| topic.clone()).collect();
        for topic in &old {
            if let Some(message) = self.messages.remove(topic) {
                self.bytes -= cost(&message);
            }
            self.changed(now_ms, topic);
        }
    }
}

fn cost(message: &Message) -> usize {
    message.len() + QUEUED_OVERHEAD
}
