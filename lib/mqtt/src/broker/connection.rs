//! What the broker knows of one connection: its subscriptions and the messages on their way to it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use super::Message;
use crate::{
    encode,
    limits::{BROKER_OUTPUT_BYTES_MAX, BROKER_QUEUE_BYTES_MAX, IN_FLIGHT_MAX},
    packet::{Packet, Publish, Qos},
    topic::matches,
};

#[derive(Debug)]
pub(super) struct Connection {
    /// `None` until CONNECT was accepted.
    pub client_id: Option<String>,
    pub keep_alive_s: u16,
    pub will: Option<Message>,
    pub filters: BTreeMap<String, Qos>,
    pub received: Vec<u8>,
    pub output: Vec<u8>,
    /// When something came in last.
    pub heard_ms: u64,
    /// When the queue moved last, or was empty.
    pub moved_ms: u64,
    pub blocked_since_ms: Option<u64>,
    pub closing: bool,
    pub qos2_ids: BTreeSet<u16>,
    queue: VecDeque<Waiting>,
    queue_bytes: usize,
    in_flight: BTreeSet<u16>,
    last_id: u16,
}

#[derive(Debug)]
struct Waiting {
    message: Arc<Message>,
    qos: Qos,
    retain: bool,
}

#[derive(PartialEq, Eq)]
pub(super) enum Push {
    Queued,
    Dropped,
}

impl Connection {
    pub fn new(now_ms: u64) -> Connection {
        Connection {
            client_id: None,
            keep_alive_s: 0,
            will: None,
            filters: BTreeMap::new(),
            received: Vec::new(),
            output: Vec::new(),
            heard_ms: now_ms,
            moved_ms: now_ms,
            blocked_since_ms: None,
            closing: false,
            qos2_ids: BTreeSet::new(),
            queue: VecDeque::new(),
            queue_bytes: 0,
            in_flight: BTreeSet::new(),
            last_id: 0,
        }
    }

    /// The best quality of service of the subscriptions that select the topic. Several of them deliver one message.
    pub fn granted(&self, topic: &str) -> Option<Qos> {
        self.filters.iter().filter(|(filter, _)| matches(filter, topic)).map(|(_, qos)| *qos).max()
    }

    /// True when no further message of QoS 1 may be queued.
    pub fn is_full(&self) -> bool {
        self.queue_bytes >= BROKER_QUEUE_BYTES_MAX
    }

    /// Queues a message. One of QoS 1 is always taken: the broker asks [`Connection::is_full`] before it accepts one, so the
    /// queue is over its bound by one message at most.
    pub fn push(&mut self, now_ms: u64, message: &Arc<Message>, granted: Qos, retain: bool) -> Push {
        let qos = message.qos.min(granted);
        if self.is_full() && qos == Qos::AtMostOnce {
            return Push::Dropped;
        }
        if self.queue.is_empty() {
            self.moved_ms = self.moved_ms.max(now_ms);
        }
        self.queue_bytes += encode::publish_len(&message.topic, &message.payload);
        self.queue.push_back(Waiting { message: message.clone(), qos, retain });
        Push::Queued
    }

    /// A retained message for a new subscription.
    pub fn push_retained(&mut self, now_ms: u64, message: &Arc<Message>) -> Push {
        match self.granted(&message.topic) {
            Some(granted) => self.push(now_ms, message, granted, true),
            None => Push::Dropped,
        }
    }

    pub fn acknowledged(&mut self, id: u16) {
        self.in_flight.remove(&id);
    }

    /// Moves what may go from the queue to the output; returns how many messages that were.
    pub fn pump(&mut self) -> u64 {
        let mut moved = 0;
        while let Some(next) = self.queue.front() {
            let room = self.output.len() < BROKER_OUTPUT_BYTES_MAX;
            if !room || (next.qos == Qos::AtLeastOnce && self.in_flight.len() >= IN_FLIGHT_MAX) {
                break;
            }
            let Some(next) = self.queue.pop_front() else { break };
            let id = if next.qos == Qos::AtLeastOnce { self.next_id() } else { 0 };
            self.queue_bytes -= encode::publish_len(&next.message.topic, &next.message.payload);
            encode::packet(
                &mut self.output,
                &Packet::Publish(Publish {
                    topic: &next.message.topic,
                    payload: &next.message.payload,
                    qos: next.qos,
                    retain: next.retain,
                    duplicate: false,
                    id,
                }),
            );
            moved += 1;
        }
        moved
    }

    fn next_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if self.in_flight.insert(self.last_id) {
                return self.last_id;
            }
        }
    }
}
