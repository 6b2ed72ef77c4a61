//! Reports that wait for the cloud's answer, one per key.

use std::collections::BTreeMap;

use super::Action;
use crate::{
    Message,
    limits::{OUTBOX_KEYS_MAX, REPORT_BEHIND_MS, REPORT_GATHER_MS, REPORT_RESEND_MS, REPORTS_IN_FLIGHT_MAX},
};

#[derive(Debug)]
struct Entry {
    message: Box<Message>,
    /// When it is sent again; `None`: not sent on this link yet.
    resend_at_ms: Option<u64>,
    /// An older report of this key that is on its way, and until when this one waits for its answer: a stock cloud works on
    /// several messages at a time, and would let the older one win now and then.
    behind: Option<(String, u64)>,
}

impl Entry {
    fn waits(&self, now_ms: u64) -> bool {
        let after = |at: Option<u64>| at.is_some_and(|at| at > now_ms);
        after(self.resend_at_ms) || after(self.behind.as_ref().map(|(_, until)| *until))
    }
}

#[derive(Debug, Default)]
pub struct Outbox {
    entries: BTreeMap<String, Entry>,
    /// Keys in the order in which they were first reported.
    order: BTreeMap<u64, String>,
    places: BTreeMap<String, u64>,
    next_place: u64,
    /// Reports wait for others, to leave with them.
    gathers: bool,
    /// Until when they wait.
    leave_at_ms: Option<u64>,
}

impl Outbox {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// False when the outbox is full and the key is new. A newer report takes the older one's place in the order.
    pub fn put(&mut self, now_ms: u64, key: String, message: Box<Message>) -> bool {
        let known = self.entries.contains_key(&key);
        if !known && self.entries.len() >= OUTBOX_KEYS_MAX {
            return false;
        }
        if !known {
            self.order.insert(self.next_place, key.clone());
            self.places.insert(key.clone(), self.next_place);
            self.next_place += 1;
        }
        // Our own cloud takes reports in their order; it is the one whose reports gather.
        let older = self.entries.remove(&key).filter(|_| !self.gathers);
        let behind = older.and_then(|older| match older.resend_at_ms {
            Some(resend_at_ms) => {
                let until = resend_at_ms.min(now_ms + REPORT_BEHIND_MS);
                (until > now_ms).then_some((older.message.header.msg_id, until))
            }
            None => older.behind,
        });
        self.entries.insert(key, Entry { message, resend_at_ms: None, behind });
        if self.gathers {
            self.leave_at_ms.get_or_insert(now_ms + REPORT_GATHER_MS);
        }
        true
    }

    /// Everything is sent again on a new link: an answer may have been lost with the old one.
    pub fn new_link(&mut self, gathers: bool) {
        (self.gathers, self.leave_at_ms) = (gathers, None);
        for entry in self.entries.values_mut() {
            (entry.resend_at_ms, entry.behind) = (None, None);
        }
    }

    pub fn next_send_ms(&self) -> Option<u64> {
        let behind = |entry: &Entry| entry.behind.as_ref().map(|(_, until)| *until);
        let times = self.entries.values().filter_map(|entry| entry.resend_at_ms.or_else(|| behind(entry)));
        times.chain(self.leave_at_ms).min()
    }

    /// Sends what is due, oldest first, while the window is open.
    pub fn transmit(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        if self.leave_at_ms.is_some_and(|at| at > now_ms) {
            return;
        }
        self.leave_at_ms = None;
        let mut in_flight = self.entries.values().filter(|entry| entry.waits(now_ms)).count();
        for key in self.order.values() {
            let entry = self.entries.get_mut(key).expect("order and entries have the same keys");
            if entry.waits(now_ms) {
                continue;
            }
            if in_flight >= REPORTS_IN_FLIGHT_MAX {
                return;
            }
            (entry.resend_at_ms, entry.behind) = (Some(now_ms + REPORT_RESEND_MS), None);
            in_flight += 1;
            actions.push(Action::Transmit(entry.message.clone()));
        }
    }

    /// The key whose current message this answers, which is then forgotten. After an answer that says "not now" the report
    /// stays and is sent again later.
    pub fn answered(&mut self, now_ms: u64, answer: &Message) -> Option<String> {
        let parent = &answer.header.parent_msg_id;
        let waits_for = |entry: &&mut Entry| entry.behind.as_ref().is_some_and(|(id, _)| id == parent);
        if let Some(entry) = self.entries.values_mut().find(waits_for) {
            entry.behind = None;
            return None;
        }
        let (key, entry) = self.entries.iter_mut().find(|(_, e)| e.message.header.msg_id == *parent)?;
        if is_transient(answer) {
            entry.resend_at_ms = Some(now_ms + REPORT_RESEND_MS);
            return None;
        }
        let key = key.clone();
        self.entries.remove(&key);
        let place = self.places.remove(&key).expect("entries and places have the same keys");
        self.order.remove(&place);
        Some(key)
    }
}

/// True for an API error that another attempt may not meet: too many requests, or the server's own trouble.
fn is_transient(answer: &Message) -> bool {
    #[derive(serde::Deserialize)]
    struct Answer {
        #[serde(rename = "Err")]
        err: Option<Failure>,
    }
    #[derive(serde::Deserialize)]
    struct Failure {
        #[serde(rename = "ErrStatus")]
        status: Option<Status>,
    }
    #[derive(serde::Deserialize)]
    struct Status {
        #[serde(default)]
        code: i64,
    }
    let code = serde_json::from_str::<Answer>(answer.content.get())
        .ok()
        .and_then(|answer| answer.err?.status)
        .map_or(0, |status| status.code);
    code == 429 || (500..600).contains(&code)
}
