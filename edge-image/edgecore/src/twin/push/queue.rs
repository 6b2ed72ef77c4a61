//! Values that wait for one place, as a plain value: bounded, the oldest dropped and counted.

use std::{collections::VecDeque, sync::Arc};

use super::target::{Form, Push};

/// A value on its way.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// `<namespace>/<name>` of the device.
    pub id: String,
    pub property: String,
    pub value: String,
    pub value_type: String,
    pub quality: String,
    pub at_ms: i64,
    pub ways: Arc<[Push]>,
    /// Which of the ways.
    pub way: usize,
}

impl Item {
    pub fn form(&self) -> &Form {
        &self.ways[self.way].form
    }

    fn bytes(&self) -> usize {
        size_of::<Item>()
            + self.id.len()
            + self.property.len()
            + self.value.len()
            + self.value_type.len()
            + self.quality.len()
    }
}

#[derive(Debug)]
pub struct Queue {
    items: VecDeque<Item>,
    bytes: usize,
    bytes_max: usize,
    dropped: u64,
}

impl Queue {
    pub fn new(bytes_max: usize) -> Queue {
        Queue { items: VecDeque::new(), bytes: 0, bytes_max, dropped: 0 }
    }

    pub fn len(&self) -> usize {
        self.items.len()
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Values that were dropped because there were too many, since the start.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    pub fn push(&mut self, item: Item) {
        self.bytes += item.bytes();
        self.items.push_back(item);
        self.trim();
    }

    /// The oldest values, no longer in the queue.
    pub fn batch(&mut self, len_max: usize) -> Vec<Item> {
        let len = self.items.len().min(len_max);
        let batch: Vec<Item> = self.items.drain(..len).collect();
        self.bytes -= batch.iter().map(Item::bytes).sum::<usize>();
        batch
    }

    /// A batch that was not delivered, before all that came since.
    pub fn put_back(&mut self, batch: Vec<Item>) {
        for item in batch.into_iter().rev() {
            self.bytes += item.bytes();
            self.items.push_front(item);
        }
        self.trim();
    }

    fn trim(&mut self) {
        while self.bytes > self.bytes_max {
            let Some(oldest) = self.items.pop_front() else { return };
            self.bytes -= oldest.bytes();
            self.dropped += 1;
        }
    }
}
