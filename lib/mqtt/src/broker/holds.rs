//! Who holds whom. A full session stops its publishers, for no message of QoS 1 or 2 may be lost; so people must be able to see
//! which session it is, and a publisher that can be told (MQTT 5) is told.
//!
//! ```text
//! session full, its client reads slowly    publishers wait
//! stands still for 10 s                    its connection ends; a kept session goes on without
//! full, and its client is away             MQTT 3.1.1: publishers wait; MQTT 5: PUBACK 0x97 after 10 s, then at once
//! client is back, session expires          everything goes on
//! ```

use super::{
    Broker, ConnectionId,
    connection::Connection,
    message::View,
    routes::{Route, SessionAt, Target},
};
use crate::{
    limits::*,
    packet::{Qos, Version},
};

/// What a person should know; comes out of [`Broker::take_notices`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A full session makes others wait, or has them refused. Told once until it is [`Notice::Freed`].
    Holds {
        session: String,
        is_away: bool,
        bytes: usize,
        held: Vec<String>,
        more: usize,
    },
    Freed {
        session: String,
        seconds: u64,
    },
    /// A connection was closed for what its client did; the name is empty before CONNECT.
    Closed {
        connection: ConnectionId,
        client: String,
        reason: u8,
    },
}

/// A session that holds others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub session: String,
    pub is_away: bool,
    /// Names of those who wait, at most [`HELD_NAMES_MAX`].
    pub held: Vec<String>,
    /// Those whose names are left out.
    pub more: usize,
}

impl Broker {
    /// The subscriber that is behind and must not miss this message: one whose client is away before one that only reads slowly.
    pub(super) fn holder(&self, now_ms: u64, view: &View<'_>, route: &Route) -> Option<SessionAt> {
        // Nobody can be full as long as all together have not as much.
        if self.queued_bytes < self.limits.queue_bytes_max {
            return None;
        }
        let crowded = self.queued_bytes >= self.limits.queues_bytes_max;
        let waits = |target: &&Target| {
            let Some(session) = self.sessions.get(target.session as usize).and_then(Option::as_ref) else {
                return false;
            };
            let full = session.queue_bytes >= self.limits.queue_bytes_max;
            let counts_as_full = full || (crowded && session.queue_bytes > 0);
            if !counts_as_full {
                return false;
            }
            match view.qos.min(target.qos) {
                Qos::AtMostOnce => session.connection.is_some() && now_ms < session.moved_ms + LIVELY_MS,
                _ => session.connection.is_some() || session.is_kept(),
            }
        };
        let groups = route.groups.iter().filter(|group| group.members.iter().all(|member| waits(&member)));
        let mut found = None;
        for target in route.targets.iter().filter(waits).chain(groups.flat_map(|group| group.members.first()))
        {
            if self.is_away(target.session) {
                return Some(target.session);
            }
            found = found.or(Some(target.session));
        }
        found
    }

    fn is_away(&self, at: SessionAt) -> bool {
        self.sessions
            .get(at as usize)
            .and_then(Option::as_ref)
            .is_some_and(|found| found.connection.is_none())
    }

    /// True when the publisher is to be told "quota exceeded" instead of being made to wait: it speaks MQTT 5, and the session
    /// that holds it may stay full for days. The node's own publisher does not wait at all: what it says next is for others.
    pub(super) fn is_refused(&mut self, now_ms: u64, id: ConnectionId, holder: SessionAt, qos: Qos) -> bool {
        if qos == Qos::AtMostOnce || !self.is_away(holder) {
            return false;
        }
        let full_since_ms = self.session(holder).and_then(|session| session.full_since_ms);
        let Some(connection) = self.connection(id) else { return false };
        let since = [full_since_ms, connection.held_since_ms].into_iter().flatten().min();
        let is_long = since.is_some_and(|since| now_ms >= since + STALL_MS_MAX);
        let is_refused = connection.version == Version::V5 && (is_long || connection.is_own);
        if is_refused {
            self.stats.refused += 1;
            let name = self.name_of(id);
            self.notice_holds(now_ms, holder, vec![name], 0);
        }
        is_refused
    }

    pub(super) fn name_of(&self, id: ConnectionId) -> String {
        let session =
            self.connections.get(super::slot(id)).and_then(Option::as_ref).and_then(|found| found.session);
        let session = session.and_then(|at| self.sessions.get(at as usize)).and_then(Option::as_ref);
        session.map_or_else(String::new, |session| session.client_id.to_string())
    }

    /// Who is held for long, by session.
    fn held(&self, now_ms: u64) -> Vec<(SessionAt, Vec<String>, usize)> {
        let mut found: Vec<(SessionAt, Vec<String>, usize)> = Vec::new();
        let is_long = |connection: &&Connection| {
            connection.held_since_ms.is_some_and(|since| now_ms >= since + STALL_MS_MAX)
        };
        let blocked = self.blocked.iter().filter_map(|id| self.connections[super::slot(*id)].as_deref());
        for connection in blocked.filter(is_long) {
            let Some(holder) = connection.waits_for else { continue };
            let at = found.iter().position(|(session, ..)| *session == holder).unwrap_or_else(|| {
                found.push((holder, Vec::new(), 0));
                found.len() - 1
            });
            if found[at].1.len() < HELD_NAMES_MAX {
                found[at].1.push(self.name_of(connection.id));
            } else {
                found[at].2 += 1;
            }
        }
        found
    }

    /// The sessions that hold others for longer than a slow reader may, with whom.
    pub fn holders(&self, now_ms: u64) -> Vec<Holder> {
        let named = self.held(now_ms).into_iter().filter_map(|(at, held, more)| {
            let session = self.sessions.get(at as usize)?.as_ref()?;
            let is_away = session.connection.is_none();
            Some(Holder { session: session.client_id.to_string(), is_away, held, more })
        });
        named.take(HOLDERS_MAX).collect()
    }

    pub(super) fn tick_holds(&mut self, now_ms: u64) {
        for (at, held, more) in self.held(now_ms) {
            self.notice_holds(now_ms, at, held, more);
        }
    }

    fn notice_holds(&mut self, now_ms: u64, at: SessionAt, held: Vec<String>, more: usize) {
        let Some(session) = self.session(at) else { return };
        if session.holds_since_ms.is_some() {
            return;
        }
        session.holds_since_ms = Some(now_ms);
        let (session, is_away, bytes) =
            (session.client_id.to_string(), session.connection.is_none(), session.queue_bytes);
        self.stats.holding += 1;
        self.notice(Notice::Holds { session, is_away, bytes, held, more });
    }

    /// The session has room again, or ends.
    pub(super) fn notice_freed(&mut self, now_ms: u64, at: SessionAt) {
        let Some(session) = self.session(at) else { return };
        let Some(since) = session.holds_since_ms.take() else { return };
        let (session, seconds) = (session.client_id.to_string(), now_ms.saturating_sub(since) / 1000);
        self.stats.holding -= 1;
        self.notice(Notice::Freed { session, seconds });
    }

    pub(super) fn notice(&mut self, notice: Notice) {
        if self.notices.len() < NOTICES_MAX {
            self.notices.push(notice);
        }
    }

    /// What a person should know since the last call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    pub fn has_notices(&self) -> bool {
        !self.notices.is_empty()
    }
}

/// The QoS that a subscription is granted. What the node itself says (`$hw/`, `$kinglet/`) goes at QoS 0 to sessions that outlive
/// their connection: MQTT lets a server grant less, the client is told in SUBACK, and so no client that has gone away can hold
/// up the node's devices. `filter` is without the prefix of a shared subscription.
pub(super) fn granted(node_topics: &[&str], is_kept: bool, filter: &str, wanted: Qos) -> Qos {
    let is_own = node_topics.iter().any(|prefix| filter.starts_with(prefix));
    if is_kept && is_own { Qos::AtMostOnce } else { wanted }
}
