//! The node's end of the link: dialling, keepalive, acknowledgement, requests and reports, as a value without I/O.
//!
//! The shell feeds what happened and carries out the actions in order. It owns the socket, the clock and the store.
//!
//! Invariants
//! - An object message is acknowledged only after the shell said that it is durable ([`Input::Stored`]).
//! - A report leaves the outbox only when the cloud answered that very message; a newer one with the same key takes its place.
//! - A request ends exactly once: answered, failed for want of a link, or timed out.
//! - A link that is silent for [`SILENCE_BEATS_MAX`] heartbeats is closed, whatever TCP says.
//! - After a loss the wait before the next dial is drawn evenly between zero and a limit that doubles, so that many nodes
//!   that lost one cloud do not return in step. A cloud that says how long it is busy is left alone for so long, within bounds.
//! - What was stored is remembered over the loss of the link, so that the next one need not carry it again ([`Link::stored_ids`]).

mod backoff;
mod outbox;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

pub use backoff::Backoff;
use outbox::Outbox;

use crate::{
    Message, Operation, Resource,
    inventory::INVENTORY,
    limits::{BUSY_MS_MAX, LINK_STABLE_MS, REQUESTS_MAX, RESUME_LEN_MAX, SILENCE_BEATS_MAX},
    source,
};

/// A moment on both clocks. Only `mono_ms` drives timers; `unix_ms` is written into messages and may jump.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    pub mono_ms: u64,
    pub unix_ms: i64,
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub heartbeat_ms: u64,
    pub reconnect_first_ms: u64,
    pub reconnect_max_ms: u64,
    /// Of the jitter; any number that differs between nodes.
    pub seed: u64,
}

#[derive(Debug)]
pub enum Input {
    /// The answer to [`Action::Dial`]: the upgrade was accepted. `compact`: both ends speak the compact lane.
    Connected {
        compact: bool,
    },
    /// The cloud asks to be left alone for so long (`Retry-After`, or on the lane); `Lost` follows.
    Busy {
        after_ms: u64,
    },
    /// The answer to a failed [`Action::Dial`], or the connection ended. The text names the remedy.
    Lost(String),
    Received(Box<Message>),
    /// Any other sign of life (a pong).
    Heard,
    /// [`Action::Store`] was carried out and is durable.
    Stored(Box<Message>),
    /// [`Action::Store`] failed: no acknowledgement, so the cloud sends the message again.
    NotStored(Box<Message>),
    /// A report to deliver. `message.header.msg_id` must be fresh.
    Report {
        key: String,
        message: Box<Message>,
    },
    /// A message without an answer; dropped without a link.
    Send(Box<Message>),
    Request {
        message: Box<Message>,
        timeout_ms: u64,
    },
    /// Ends the current connection (new certificates, shutdown).
    Hangup(String),
    Tick,
}

#[derive(Debug)]
pub enum Action {
    /// Open a connection; answer with `Connected` or `Lost`.
    Dial,
    /// Close the connection. No `Lost` is expected for it.
    Close,
    Transmit(Box<Message>),
    /// A WebSocket ping, which every peer's library answers by itself (a stock cloud does not answer keepalives).
    Ping,
    /// Make durable, then `Stored` with the same message.
    Store(Box<Message>),
    /// The cloud's answer to the request with this id.
    Answered {
        msg_id: String,
        answer: Box<Message>,
    },
    Failed {
        msg_id: String,
        why: RequestFailure,
    },
    /// The cloud answered this report: forget it, unless a newer one took its key meanwhile.
    Delivered {
        key: String,
        msg_id: String,
    },
    /// The outbox is full: this report is not kept.
    Refused {
        key: String,
    },
    /// A message that this node does not act on.
    Unsupported(Box<Message>),
    Up,
    Down(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestFailure {
    Disconnected(String),
    Timeout,
    /// Too many requests wait already.
    Busy,
}

#[derive(Debug)]
enum State {
    Idle { dial_at_ms: u64 },
    Dialling,
    Up { since_ms: u64, heard_ms: u64, sent_ms: u64, beat_at_ms: u64, compact: bool },
}

/// See the module's text.
#[derive(Debug)]
pub struct Link {
    settings: Settings,
    state: State,
    backoff: Backoff,
    /// Why there is no link.
    down_reason: String,
    outbox: Outbox,
    /// Deadline of each waiting request by its `msg_id`.
    requests: BTreeMap<String, u64>,
    /// The cloud is busy until then.
    busy_until_ms: u64,
    /// Ids of the messages that were stored last, oldest first.
    stored_ids: VecDeque<String>,
}

impl Link {
    /// Dials at the first `Tick`.
    pub fn new(settings: Settings) -> Link {
        let backoff = Backoff::new(settings.reconnect_first_ms, settings.reconnect_max_ms, settings.seed);
        Link {
            settings,
            backoff,
            state: State::Idle { dial_at_ms: 0 },
            down_reason: "not dialled yet".into(),
            outbox: Outbox::default(),
            requests: BTreeMap::new(),
            busy_until_ms: 0,
            stored_ids: VecDeque::new(),
        }
    }

    /// Ids of the messages that were stored last, whether their acknowledgement arrived or not. At most [`RESUME_LEN_MAX`].
    pub fn stored_ids(&self) -> impl Iterator<Item = &str> {
        self.stored_ids.iter().map(String::as_str)
    }

    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    /// Reports that the cloud has not answered.
    pub fn outbox_len(&self) -> usize {
        self.outbox.len()
    }

    /// When [`Input::Tick`] is next of use.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        let state = match self.state {
            State::Idle { dial_at_ms } => Some(dial_at_ms),
            State::Dialling => None,
            State::Up { heard_ms, beat_at_ms, .. } => {
                let silent_at = heard_ms + SILENCE_BEATS_MAX * self.settings.heartbeat_ms;
                Some(beat_at_ms.min(silent_at).min(self.outbox.next_send_ms().unwrap_or(u64::MAX)))
            }
        };
        state.into_iter().chain(self.requests.values().copied()).min()
    }

    pub fn handle(&mut self, now: Now, input: Input) -> Vec<Action> {
        let mut actions = Vec::new();
        match input {
            Input::Connected { compact } => self.connected(now, compact, &mut actions),
            Input::Busy { after_ms } => {
                self.busy_until_ms = now.mono_ms + self.backoff.above(after_ms.min(BUSY_MS_MAX));
            }
            Input::Lost(reason) => self.lost(now, reason, &mut actions),
            Input::Hangup(reason) => {
                if !matches!(self.state, State::Idle { .. }) {
                    actions.push(Action::Close);
                    self.lost(now, reason, &mut actions);
                }
            }
            Input::Heard => self.heard(now),
            Input::Received(message) => {
                self.heard(now);
                self.received(now, message, &mut actions);
            }
            Input::Stored(message) => self.stored(now, message, true, &mut actions),
            Input::NotStored(message) => self.stored(now, message, false, &mut actions),
            Input::Report { key, message } => {
                if !self.outbox.put(now.mono_ms, key.clone(), message) {
                    actions.push(Action::Refused { key });
                }
            }
            Input::Send(message) => {
                if self.is_up() {
                    actions.push(Action::Transmit(message));
                }
            }
            Input::Request { message, timeout_ms } => self.request(now, message, timeout_ms, &mut actions),
            Input::Tick => self.tick(now, &mut actions),
        }
        if let State::Up { sent_ms, .. } = &mut self.state {
            self.outbox.transmit(now.mono_ms, &mut actions);
            if actions.iter().any(|action| matches!(action, Action::Transmit(_))) {
                *sent_ms = now.mono_ms;
            }
        }
        actions
    }

    fn connected(&mut self, now: Now, compact: bool, actions: &mut Vec<Action>) {
        if !matches!(self.state, State::Dialling) {
            return;
        }
        let Now { mono_ms, .. } = now;
        let beat_at_ms = if compact { mono_ms + self.settings.heartbeat_ms } else { mono_ms };
        self.state =
            State::Up { since_ms: mono_ms, heard_ms: mono_ms, sent_ms: mono_ms, beat_at_ms, compact };
        self.busy_until_ms = 0;
        self.outbox.new_link(compact);
        actions.push(Action::Up);
        self.beat(now, actions);
    }

    fn lost(&mut self, now: Now, reason: String, actions: &mut Vec<Action>) {
        match self.state {
            State::Idle { .. } => return,
            State::Up { since_ms, .. } if now.mono_ms.saturating_sub(since_ms) >= LINK_STABLE_MS => {
                self.backoff.reset();
            }
            _ => {}
        }
        let dial_at_ms = (now.mono_ms + self.backoff.next_ms()).max(self.busy_until_ms);
        self.state = State::Idle { dial_at_ms };
        self.down_reason = reason.clone();
        actions.push(Action::Down(reason.clone()));
        for msg_id in std::mem::take(&mut self.requests).into_keys() {
            actions.push(Action::Failed { msg_id, why: RequestFailure::Disconnected(reason.clone()) });
        }
    }

    fn heard(&mut self, now: Now) {
        if let State::Up { heard_ms, .. } = &mut self.state {
            *heard_ms = now.mono_ms;
        }
    }

    fn beat(&mut self, now: Now, actions: &mut Vec<Action>) {
        let State::Up { heard_ms, sent_ms, beat_at_ms, compact, .. } = &mut self.state else { return };
        if *beat_at_ms > now.mono_ms {
            return;
        }
        let last_ms = now.mono_ms.saturating_sub(self.settings.heartbeat_ms);
        *beat_at_ms = now.mono_ms + self.settings.heartbeat_ms;
        if !*compact {
            let keepalive =
                Message::new(now.unix_ms, source::WEBSOCKET, "resource", Operation::KEEPALIVE, "node");
            actions.push(Action::Transmit(Box::new(keepalive.with_content("ping"))));
            actions.push(Action::Ping);
        } else if *heard_ms < last_ms || *sent_ms < last_ms {
            // Whatever passes is a sign of life for either end; the lease alone passes more often than a beat.
            actions.push(Action::Ping);
            *sent_ms = now.mono_ms;
        }
    }

    fn tick(&mut self, now: Now, actions: &mut Vec<Action>) {
        match self.state {
            State::Idle { dial_at_ms } if dial_at_ms <= now.mono_ms => {
                self.state = State::Dialling;
                actions.push(Action::Dial);
            }
            State::Up { heard_ms, .. }
                if now.mono_ms >= heard_ms + SILENCE_BEATS_MAX * self.settings.heartbeat_ms =>
            {
                actions.push(Action::Close);
                let silent_s = now.mono_ms.saturating_sub(heard_ms) / 1000;
                let reason = format!("the cloud was silent for {silent_s} s; check the network to it");
                self.lost(now, reason, actions);
            }
            _ => self.beat(now, actions),
        }
        let due: Vec<String> =
            self.requests.iter().filter(|(_, at)| **at <= now.mono_ms).map(|(id, _)| id.clone()).collect();
        for msg_id in due {
            self.requests.remove(&msg_id);
            actions.push(Action::Failed { msg_id, why: RequestFailure::Timeout });
        }
    }

    fn request(&mut self, now: Now, message: Box<Message>, timeout_ms: u64, actions: &mut Vec<Action>) {
        let msg_id = message.header.msg_id.clone();
        if !self.is_up() {
            let why = RequestFailure::Disconnected(self.down_reason.clone());
            actions.push(Action::Failed { msg_id, why });
        } else if self.requests.len() >= REQUESTS_MAX {
            actions.push(Action::Failed { msg_id, why: RequestFailure::Busy });
        } else {
            self.requests.insert(msg_id, now.mono_ms + timeout_ms);
            actions.push(Action::Transmit(message));
        }
    }

    fn received(&mut self, now: Now, message: Box<Message>, actions: &mut Vec<Action>) {
        if !self.is_up() {
            return;
        }
        let parent = message.header.parent_msg_id.as_str();
        match kind_of(&message) {
            Kind::Control => {
                let answer = message.response(now.unix_ms, &message.route.source, &message.route.group);
                actions.push(Action::Transmit(Box::new(answer.with_content("ack"))));
            }
            Kind::Object => actions.push(Action::Store(message)),
            Kind::Answer if self.requests.remove(parent).is_some() => {
                actions.push(Action::Answered { msg_id: parent.to_owned(), answer: message });
            }
            Kind::Answer => {
                if let Some(key) = self.outbox.answered(now.mono_ms, &message) {
                    actions.push(Action::Delivered { key, msg_id: parent.to_owned() });
                }
            }
            Kind::Other => actions.push(Action::Unsupported(message)),
        }
    }

    fn stored(&mut self, now: Now, message: Box<Message>, durable: bool, actions: &mut Vec<Action>) {
        if durable {
            if self.stored_ids.len() >= RESUME_LEN_MAX {
                self.stored_ids.pop_front();
            }
            self.stored_ids.push_back(message.header.msg_id.clone());
        }
        if durable && self.is_up() {
            actions.push(Action::Transmit(Box::new(message.ack(now.unix_ms))));
        }
        let parent = &message.header.parent_msg_id;
        if self.requests.remove(parent).is_some() {
            actions.push(Action::Answered { msg_id: parent.clone(), answer: message });
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Answered at once, not routed.
    Control,
    /// To be stored, then acknowledged.
    Object,
    /// Answers one of our messages.
    Answer,
    Other,
}

/// What KubeEdge's edge does with a message (reference kubeedge-wire.md sections 2.1, 3.2 and 3.3).
fn kind_of(message: &Message) -> Kind {
    let route = &message.route;
    let from_controller = [
        source::EDGE_CONTROLLER,
        source::DEVICE_CONTROLLER,
        source::POLICY_CONTROLLER,
        source::DYNAMIC_CONTROLLER,
    ]
    .contains(&route.source.as_str());
    match route.operation.as_str() {
        "config" | "ping" | "pong" => Kind::Control,
        Operation::INSERT | Operation::UPDATE | Operation::DELETE | INVENTORY
            if from_controller && route.group == "resource" && Resource::parse(&route.resource).is_some() =>
        {
            Kind::Object
        }
        Operation::RESPONSE if message.is_kept_answer() => Kind::Object,
        Operation::RESPONSE | Operation::ERROR if !message.header.parent_msg_id.is_empty() => Kind::Answer,
        _ => Kind::Other,
    }
}
