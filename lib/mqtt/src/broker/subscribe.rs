//! SUBSCRIBE and UNSUBSCRIBE.

use super::{
    Broker, ConnectionId, Step,
    routes::{Entry, SessionAt, parse_shared},
    session::Waiting,
};
use crate::{
    limits::{KEPT_SUBSCRIPTIONS_MAX, SESSION_SUBSCRIPTIONS_MAX, SUBSCRIPTIONS_TOTAL_MAX},
    packet::{Packet, Qos, SubscribeOptions, Version, reason},
    property::{self, Properties},
};

/// Codes of most SUBACKs fit here.
type Codes = Vec<u8>;

impl Broker {
    pub(super) fn subscribe(
        &mut self,
        now_ms: u64,
        id: ConnectionId,
        at: SessionAt,
        message: u16,
        filters: &[(&str, SubscribeOptions)],
        properties: Properties<'_>,
    ) -> Step {
        let queue_max = self.limits.queue_bytes_max;
        // Retained messages are always taken, so a client that only subscribes and never reads is stopped here.
        let is_full = self.session(at).is_none_or(|session| session.queue_bytes >= queue_max);
        if is_full || self.disk_is_behind() {
            return Step::Wait;
        }
        let subscription_id = properties.number(property::SUBSCRIPTION_ID).unwrap_or(0);
        // MQTT-3.8.3-4.
        if filters.iter().any(|(filter, options)| options.no_local && filter.starts_with("$share/")) {
            return Step::Fail(reason::PROTOCOL);
        }
        let mut codes = Codes::with_capacity(filters.len());
        let mut is_changed = false;
        for (filter, options) in filters {
            match self.subscribe_one(id, at, filter, *options, subscription_id) {
                Ok((is_new, qos)) => {
                    is_changed = true;
                    codes.push(qos.bits());
                    let options = &SubscribeOptions { qos, ..*options };
                    if options.retain_handling == 0 || (options.retain_handling == 1 && is_new) {
                        self.give_retained(now_ms, at, filter, *options, subscription_id);
                    }
                }
                Err(code) => codes.push(code),
            }
        }
        let after = if is_changed { self.write_session(at) } else { 0 };
        let done = self.pending.done;
        let Some(connection) = self.connection(id) else { return Step::Done };
        if connection.version == Version::V3 {
            codes.iter_mut().filter(|code| **code > 2).for_each(|code| *code = reason::FAILURE);
        }
        connection.reply_after(after, done, &Packet::SubAck { id: message, codes: &codes });
        if after > done {
            self.waiting_connections.push(id);
        }
        self.touch(id);
        self.pump(now_ms, at);
        Step::Done
    }

    /// True when the subscription is new, and the QoS that it is granted.
    fn subscribe_one(
        &mut self,
        id: ConnectionId,
        at: SessionAt,
        filter: &str,
        options: SubscribeOptions,
        subscription_id: u32,
    ) -> Result<(bool, Qos), u8> {
        let (group, plain) = parse_shared(filter).ok_or(reason::FILTER_INVALID)?;
        let connection = self.connection(id).ok_or(reason::FAILURE)?;
        if !connection.rights.may_read(plain) {
            return Err(reason::NOT_AUTHORIZED);
        }
        let is_new = self.routes.get(plain, group, at).is_none();
        let total = self.routes.len();
        let node_topics = self.limits.node_topics;
        let session = self.session(at).ok_or(reason::FAILURE)?;
        let qos = super::holds::granted(node_topics, session.is_kept(), plain, options.qos);
        let options = SubscribeOptions { qos, ..options };
        let most = if session.expiry_s > 0 { KEPT_SUBSCRIPTIONS_MAX } else { SESSION_SUBSCRIPTIONS_MAX };
        if is_new && (session.filters.len() >= most || total >= SUBSCRIPTIONS_TOTAL_MAX) {
            return Err(reason::QUOTA);
        }
        if is_new {
            session.filters.push(filter.into());
        }
        let entry = Entry { session: at, group: group.map(Into::into), options, id: subscription_id };
        Ok((self.routes.add(plain, entry), qos))
    }

    /// Retained messages for a subscription; a shared one gets none (MQTT 5 section 4.8.2).
    fn give_retained(
        &mut self,
        now_ms: u64,
        at: SessionAt,
        filter: &str,
        options: SubscribeOptions,
        subscription_id: u32,
    ) {
        if filter.starts_with("$share/") {
            return;
        }
        let ids: Option<std::sync::Arc<[u32]>> = (subscription_id > 0).then(|| [subscription_id].into());
        let Some(session) = self.sessions.get_mut(at as usize).and_then(Option::as_mut) else { return };
        let before = session.queue_bytes;
        self.retained.select(now_ms, filter, |message| {
            session.push(Waiting {
                message: message.clone(),
                qos: message.view().qos.min(options.qos),
                retain: true,
                duplicate: false,
                id: 0,
                ids: ids.clone(),
                after: 0,
                number: 0,
            });
        });
        self.queued_bytes += session.queue_bytes - before;
    }

    pub(super) fn unsubscribe(
        &mut self,
        id: ConnectionId,
        at: SessionAt,
        message: u16,
        filters: &[&str],
    ) -> Step {
        if self.disk_is_behind() {
            return Step::Wait;
        }
        let mut codes = Codes::with_capacity(filters.len());
        for filter in filters {
            let was_there = self.remove_filter(at, filter);
            codes.push(if was_there { reason::SUCCESS } else { reason::NO_SUBSCRIPTION });
        }
        let after = self.write_session(at);
        let done = self.pending.done;
        let Some(connection) = self.connection(id) else { return Step::Done };
        connection.reply_after(after, done, &Packet::UnsubAck { id: message, codes: &codes });
        if after > done {
            self.waiting_connections.push(id);
        }
        self.touch(id);
        Step::Done
    }

    /// True when there was such a subscription.
    pub(super) fn remove_filter(&mut self, at: SessionAt, filter: &str) -> bool {
        let Some((group, plain)) = parse_shared(filter) else { return false };
        let removed = self.routes.remove(plain, group, at);
        if let Some(session) = self.session(at) {
            session.filters.retain(|have| **have != *filter);
        }
        removed
    }
}
