//! Retained messages: the last one of each topic, bounded in number and bytes.

use std::{collections::BTreeMap, sync::Arc};

use super::Message;
use crate::{
    encode::publish_len,
    limits::{RETAINED_BYTES_MAX, RETAINED_MAX},
    topic::matches,
};

#[derive(Debug, Default)]
pub(super) struct Retained {
    messages: BTreeMap<String, Arc<Message>>,
    bytes: usize,
}

impl Retained {
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Keeps the message, or removes what is kept when it is empty. False when there is no room: the older one then stays out
    /// too, since an old value would be worse than none.
    pub fn keep(&mut self, message: &Arc<Message>) -> bool {
        if let Some(before) = self.messages.remove(&message.topic) {
            self.bytes -= publish_len(&before.topic, &before.payload);
        }
        if message.payload.is_empty() {
            return true;
        }
        let len = publish_len(&message.topic, &message.payload);
        if self.messages.len() >= RETAINED_MAX || self.bytes + len > RETAINED_BYTES_MAX {
            return false;
        }
        self.bytes += len;
        self.messages.insert(message.topic.clone(), message.clone());
        true
    }

    pub fn select(&self, filter: &str, mut each: impl FnMut(&Arc<Message>)) {
        for message in self.messages.values().filter(|message| matches(filter, &message.topic)) {
            each(message);
        }
    }
}
