//! What the broker keeps of one client, with or without a connection: its subscriptions and the messages on their way to it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::{
    ConnectionId,
    connection::Alias,
    message::{Delivery, Message},
};
use crate::{
    limits::QUEUED_OVERHEAD,
    packet::{Qos, Version},
};

#[derive(Debug)]
pub(super) struct Session {
    pub client_id: Box<str>,
    /// Who made it; nobody else gets it.
    pub user: Option<Box<str>>,
    pub connection: Option<ConnectionId>,
    /// Its client has sent something since the session was made, and so knows that it is a new one. Until then the session ends
    /// with its connection: a client that never read "session present 0" must not find a session without what it remembers.
    pub is_confirmed: bool,
    /// 0: ends with its connection. `u32::MAX`: never ends.
    pub expiry_s: u32,
    /// While there is no connection.
    pub ends_at_ms: u64,
    /// Filters as the client wrote them, with the prefix of a shared subscription.
    pub filters: Vec<Box<str>>,
    pub queue: VecDeque<Waiting>,
    pub queue_bytes: usize,
    /// Sent and not acknowledged, in order of sending.
    pub in_flight: VecDeque<InFlight>,
    /// So many of `in_flight` were sent over the present connection.
    pub sent: usize,
    /// Ids of QoS 2 messages of the client that it has not released, and whether they are on the disk.
    pub incoming: BTreeMap<u16, bool>,
    last_id: u16,
    /// Packet ids up to here may have been used before a power cut: after one they go on behind it. Else the client could take a
    /// new message of QoS 2 for one that it has, and whose id the broker has forgotten.
    pub ids_until: u16,
    /// It was sent something of QoS 2: its ids are worth writing.
    pub uses_qos2: bool,
    /// So many ids are certainly not in use.
    ids_free: u16,
    /// Of the next record on the disk.
    pub next_number: u64,
    /// When the queue moved last.
    pub moved_ms: u64,
    pub full_since_ms: Option<u64>,
    /// Since when others wait for it, when that was told.
    pub holds_since_ms: Option<u64>,
    /// A will that waits for its delay.
    pub will: Option<Box<PendingWill>>,
}

#[derive(Debug)]
pub(super) struct PendingWill {
    pub message: Message,
    pub at_ms: u64,
}

/// A message for this session.
#[derive(Debug)]
pub(super) struct Waiting {
    pub message: Arc<Message>,
    pub qos: Qos,
    pub retain: bool,
    /// It may have been sent before a restart.
    pub duplicate: bool,
    /// 0: none yet. Messages of QoS 2 on the disk have theirs from the beginning.
    pub id: u16,
    pub ids: Option<Arc<[u32]>>,
    /// Not sent before this change is on the disk.
    pub after: u64,
    /// Of its record on the disk; 0: none.
    pub number: u64,
}

#[derive(Debug)]
pub(super) struct InFlight {
    pub id: u16,
    /// PUBREC was received: only PUBREL is sent again.
    pub released: bool,
    pub qos: Qos,
    /// To send it again; `None` where the session ends with the connection.
    pub waiting: Option<Waiting>,
    pub number: u64,
}

/// Half of it is enough for what is sent until the next tick and the commit after it.
const IDS_BLOCK: u16 = 8192;

impl Waiting {
    pub fn cost(&self) -> usize {
        self.message.len() + QUEUED_OVERHEAD
    }

    pub fn delivery(&self, version: Version, id: u16, duplicate: bool) -> Delivery<'_> {
        let subscription_ids = self.ids.as_deref().unwrap_or_default();
        let duplicate = (duplicate || self.duplicate) && self.qos != Qos::AtMostOnce;
        let (qos, retain, alias) = (self.qos, self.retain, Alias::None);
        Delivery { version, qos, retain, duplicate, id, subscription_ids, alias }
    }
}

impl Session {
    pub fn new(client_id: &str, user: Option<Box<str>>, now_ms: u64) -> Session {
        Session {
            client_id: client_id.into(),
            user,
            connection: None,
            is_confirmed: false,
            expiry_s: 0,
            ends_at_ms: u64::MAX,
            filters: Vec::new(),
            queue: VecDeque::new(),
            queue_bytes: 0,
            in_flight: VecDeque::new(),
            sent: 0,
            incoming: BTreeMap::new(),
            last_id: 0,
            ids_until: IDS_BLOCK,
            uses_qos2: false,
            ids_free: 0,
            next_number: 1,
            moved_ms: now_ms,
            full_since_ms: None,
            holds_since_ms: None,
            will: None,
        }
    }

    /// After a restart.
    pub fn skip_ids(&mut self, ids_until: u16) {
        self.last_id = ids_until;
        self.ids_until = ids_until.wrapping_add(IDS_BLOCK);
    }

    /// True when the ids on the disk are soon used up; then there are more, to be written.
    pub fn needs_ids(&mut self) -> bool {
        let left = self.ids_until.wrapping_sub(self.last_id);
        let needs = self.uses_qos2 && !(IDS_BLOCK / 2..=IDS_BLOCK).contains(&left);
        if needs {
            self.ids_until = self.last_id.wrapping_add(IDS_BLOCK);
        }
        needs
    }

    /// True for a session that outlives its connection.
    pub fn is_kept(&self) -> bool {
        self.expiry_s > 0
    }

    pub fn push(&mut self, waiting: Waiting) {
        self.queue_bytes += waiting.cost();
        self.queue.push_back(waiting);
    }

    pub fn pop(&mut self) -> Option<Waiting> {
        let waiting = self.queue.pop_front()?;
        self.queue_bytes -= waiting.cost();
        Some(waiting)
    }

    /// Ids go round, so the next one is free unless a very old message is still there. That is looked for rarely: as long as the
    /// oldest id in use cannot have been caught up with, nothing has to be compared.
    pub fn next_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            let id = self.last_id;
            if self.ids_free > 0 {
                self.ids_free -= 1;
                return id;
            }
            let reserved = self.queue.iter().map(|waiting| waiting.id).filter(|id| *id != 0);
            let age = |used: u16| id.wrapping_sub(used);
            let ages = self.in_flight.iter().map(|sent| sent.id).chain(reserved).map(age);
            let (mut oldest, mut is_used) = (0, false);
            for age in ages {
                is_used |= age == 0;
                oldest = oldest.max(age);
            }
            if !is_used {
                self.ids_free = 60_000_u16.saturating_sub(oldest);
                return id;
            }
        }
    }

    pub fn position(&self, id: u16) -> Option<usize> {
        // Clients acknowledge in order: it is nearly always the first.
        self.in_flight.iter().position(|sent| sent.id == id)
    }

    pub fn remove_in_flight(&mut self, at: usize) -> Option<InFlight> {
        let removed = self.in_flight.remove(at)?;
        self.sent -= usize::from(at < self.sent);
        Some(removed)
    }

    /// Gives back the memory of a burst.
    pub fn relax(&mut self) {
        if self.queue.is_empty() && self.queue.capacity() > 4 {
            self.queue = VecDeque::new();
        }
        if self.in_flight.is_empty() && self.in_flight.capacity() > 4 {
            self.in_flight = VecDeque::new();
        }
    }
}
