//! What the broker knows of one socket.

use std::collections::VecDeque;

use super::{
    ConnectionId,
    access::{Origin, Rights},
    message::Message,
    routes::SessionAt,
};
use crate::{
    encode,
    limits::{ALIASED_TOPIC_BYTES_MIN, BROKER_IN_FLIGHT_MAX, TOPIC_ALIASES_MAX},
    packet::{Packet, Version},
};

#[derive(Debug)]
pub(super) struct Connection {
    pub id: ConnectionId,
    pub origin: Origin,
    pub phase: Phase,
    pub version: Version,
    pub session: Option<SessionAt>,
    /// Bytes that could not be handled yet: a part of a packet, or what waits for a subscriber.
    pub input: Vec<u8>,
    /// Of `input`, what was already looked through for acknowledgements while the connection waits.
    pub skimmed: usize,
    pub output: Vec<u8>,
    /// Answers that wait for the disk, in order. Those behind wait with them.
    pub held: VecDeque<(u64, Vec<u8>)>,
    /// Nothing is delivered before CONNACK is out, which waits for this change.
    pub up_after: u64,
    /// When something came in last.
    pub heard_ms: u64,
    pub blocked_since_ms: Option<u64>,
    /// The session that it waits for, and since when it got nothing through.
    pub waits_for: Option<SessionAt>,
    pub held_since_ms: Option<u64>,
    /// The node's own publisher: see [`super::Auth::node_clients`].
    pub is_own: bool,
    pub keep_alive_s: u16,
    /// Unacknowledged messages that the client takes.
    pub receive_max: usize,
    pub packet_bytes_max: usize,
    pub aliases: Vec<Box<str>>,
    pub aliases_out: AliasesOut,
    pub will: Option<Box<Will>>,
    pub rights: Rights,
    pub is_touched: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// CONNECT has not come.
    New,
    /// The shell checks the password.
    Checking,
    Checked(bool),
    Up,
    /// The output is written, then the socket is closed.
    Closing,
}

#[derive(Debug)]
pub(super) struct Will {
    pub message: Message,
    pub delay_s: u32,
    /// For the expiry of the message, which counts from its publication.
    pub expiry_s: Option<u32>,
}

impl Connection {
    pub fn new(id: ConnectionId, origin: Origin, now_ms: u64) -> Connection {
        Connection {
            id,
            origin,
            phase: Phase::New,
            version: Version::V3,
            session: None,
            input: Vec::new(),
            skimmed: 0,
            output: Vec::new(),
            held: VecDeque::new(),
            up_after: 0,
            heard_ms: now_ms,
            blocked_since_ms: None,
            waits_for: None,
            held_since_ms: None,
            is_own: false,
            keep_alive_s: 0,
            receive_max: BROKER_IN_FLIGHT_MAX,
            packet_bytes_max: usize::MAX,
            aliases: Vec::new(),
            aliases_out: AliasesOut::default(),
            will: None,
            rights: Rights::default(),
            is_touched: false,
        }
    }

    /// Answers at once, or behind the answers that wait for the disk.
    pub fn reply(&mut self, packet: &Packet<'_>) {
        match self.held.back_mut() {
            None => encode::packet_as(self.version, &mut self.output, packet),
            Some((_, bytes)) => encode::packet_as(self.version, bytes, packet),
        }
    }

    /// Answers when this change is on the disk.
    pub fn reply_after(&mut self, change: u64, done: u64, packet: &Packet<'_>) {
        if change > done {
            self.held.push_back((change, Vec::new()));
        }
        self.reply(packet);
    }

    /// What the client is still to read, or will be.
    pub fn unread_bytes(&self) -> usize {
        self.output.len() + self.held.iter().map(|(_, bytes)| bytes.len() + 32).sum::<usize>()
    }

    /// Moves the answers to the output whose changes are on the disk.
    pub fn release(&mut self, done: u64) {
        while let Some((_, bytes)) = self.held.pop_front_if(|(change, _)| *change <= done) {
            self.output.extend_from_slice(&bytes);
        }
        if self.held.is_empty() {
            self.held = VecDeque::new();
        }
    }
}

/// Topics that the client was told once and then knows by a number (MQTT 5): those that came first. They are not replaced: a
/// client that reads more topics than it allows numbers for gets the rest in full.
#[derive(Debug, Default)]
pub(super) struct AliasesOut {
    topics: Vec<Box<str>>,
    max: u8,
}

/// How a topic is written for one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alias {
    None,
    /// With the topic, for later.
    New(u16),
    /// Instead of it.
    Known(u16),
}

impl AliasesOut {
    /// `allowed` is the client's Topic Alias Maximum.
    pub fn allow(&mut self, allowed: u32) {
        self.max = allowed.min(TOPIC_ALIASES_MAX as u32) as u8;
    }

    pub fn of(&mut self, topic: &str) -> Alias {
        if self.max == 0 || topic.len() < ALIASED_TOPIC_BYTES_MIN {
            return Alias::None;
        }
        match self.topics.iter().position(|known| **known == *topic) {
            Some(at) => Alias::Known(at as u16 + 1),
            None if self.topics.len() < usize::from(self.max) => {
                self.topics.push(topic.into());
                Alias::New(self.topics.len() as u16)
            }
            None => Alias::None,
        }
    }

    /// What was written is not sent after all.
    pub fn take_back(&mut self, alias: Alias) {
        if matches!(alias, Alias::New(_)) {
            self.topics.pop();
        }
    }
}
