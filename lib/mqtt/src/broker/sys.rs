//! `$SYS` figures, with the names that mosquitto gives them: retained, published when they change.

use super::{
    Broker, Holder,
    message::{NEVER, View},
};
use crate::{limits::SYS_INTERVAL_MS, packet::Qos};

#[derive(Debug, Default)]
pub(super) struct Sys {
    next_ms: u64,
    /// Distinguishes names given by this run from those of earlier ones; set by the shell.
    epoch: u64,
    version: String,
}

impl Sys {
    pub fn epoch(&self) -> u64 {
        self.epoch
    }
}

impl Broker {
    /// What `$SYS/broker/version` says, and a number that differs from start to start, for the client ids that the broker gives.
    pub fn introduce(&mut self, version: &str, epoch: u64) {
        self.sys.version = version.to_owned();
        self.sys.epoch = epoch;
    }

    pub(super) fn publish_figures(&mut self, now_ms: u64) {
        if now_ms < self.sys.next_ms {
            return;
        }
        self.sys.next_ms = now_ms + SYS_INTERVAL_MS;
        let stats = self.stats();
        let sessions_away = stats.sessions.saturating_sub(stats.connections) as u64;
        let figures: [(&str, u64); 20] = [
            ("uptime", now_ms / 1000),
            ("clients/connected", stats.connections as u64),
            ("clients/disconnected", sessions_away),
            ("clients/total", stats.sessions as u64),
            ("subscriptions/count", stats.subscriptions as u64),
            ("retained messages/count", stats.retained as u64),
            ("store/messages/bytes", (stats.retained_bytes + stats.queued_bytes) as u64),
            ("publish/messages/received", stats.received),
            ("publish/messages/sent", stats.delivered),
            ("publish/messages/dropped", stats.dropped),
            ("publish/messages/expired", stats.expired),
            ("publish/messages/not retained", stats.not_retained),
            ("bytes/received", stats.bytes_received),
            ("bytes/sent", stats.bytes_sent),
            ("queued/bytes", stats.queued_bytes as u64),
            ("clients/waiting", stats.blocked as u64),
            ("publish/messages/refused", stats.refused),
            ("sessions/holding", stats.holding as u64),
            ("clients/closed", stats.closed_by_broker),
            ("sessions/ended", stats.sessions_ended),
        ];
        let holders = render(&self.holders(now_ms));
        self.publish_figure(now_ms, "sessions/holders", &holders);
        let version = self.sys.version.clone();
        self.publish_figure(now_ms, "version", &version);
        for (name, value) in figures {
            self.publish_figure(now_ms, name, &value.to_string());
        }
    }

    fn publish_figure(&mut self, now_ms: u64, name: &str, value: &str) {
        let topic = format!("$SYS/broker/{name}");
        if self.retained.get(&topic).is_some_and(|have| have.view().payload == value.as_bytes()) {
            return;
        }
        let payload = value.as_bytes();
        let (qos, retain) = (Qos::AtMostOnce, true);
        let view = View { topic: &topic, payload, properties: &[], qos, retain, expires_ms: NEVER };
        self.publish_kept(now_ms, view.keep());
    }
}

/// A line for each session that others wait for: who it is, whether its client is away, and who waits.
fn render(holders: &[Holder]) -> String {
    let line = |holder: &Holder| {
        let away = if holder.is_away { " (away)" } else { "" };
        let more = if holder.more > 0 { format!(" and {} more", holder.more) } else { String::new() };
        format!("{}{away} holds {}{more}", holder.session, holder.held.join(", "))
    };
    holders.iter().map(line).collect::<Vec<_>>().join("\n")
}
