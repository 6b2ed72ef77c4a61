//! A client as a plain value. The shell owns the socket: it feeds [`Client::receive`], takes [`Client::output`], asks
//! [`Client::next_event`] until there is none, and calls [`Client::tick`] when [`Client::deadline_ms`] has passed.
//!
//! Subscriptions are sent again after each reconnection, and messages of QoS 1 that were not acknowledged are sent again.

use std::collections::VecDeque;

use crate::{
    encode,
    limits::{
        CLIENT_OUTPUT_BYTES_MAX, IN_FLIGHT_MAX, PACKET_BYTES_MAX, RETRY_DELAY_MS_MAX, RETRY_DELAY_MS_MIN,
        SUBSCRIPTIONS_MAX,
    },
    packet::{self, Ack, Connect, DecodeError, Packet, Publish, Qos, Version, Will, reason},
    property::Properties,
    topic::{filter_is_valid, topic_is_valid},
};

/// A dead peer is noticed after a silence of this long: a ping is sent, and the connection ends when nothing comes back.
const ANSWER_MS_MAX: u64 = 10_000;

#[derive(Clone, Debug)]
pub struct Options {
    pub client_id: String,
    pub username: Option<String>,
    pub password: Option<String>,
    /// False: the broker keeps our subscriptions, and messages for them, while we are away.
    pub clean_session: bool,
    pub keep_alive_s: u16,
    /// Topic and payload that the broker publishes (QoS 1) when this client is gone without good-bye.
    pub will: Option<(String, String)>,
    /// Largest packet accepted, at most [`PACKET_BYTES_MAX`].
    pub packet_bytes_max: usize,
}

/// Why a connection is of no use any more. The shell closes the socket and calls [`Client::closed`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("the broker refused the connection: {0}")]
    Refused(&'static str),
    #[error("the broker refused the subscription to {0}")]
    SubscriptionRefused(String),
    #[error("the broker did not answer within {} s", ANSWER_MS_MAX / 1000)]
    Silent,
    #[error("the broker ended the connection with reason {0:#04x}")]
    Ended(u8),
    #[error("the broker sent a packet that only a client may send")]
    Unexpected,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    #[error("not connected to the broker")]
    Down,
    #[error("{IN_FLIGHT_MAX} messages wait for the broker already")]
    Full,
    #[error("message of {0} bytes is over the limit of {PACKET_BYTES_MAX}")]
    TooLarge(usize),
    #[error("{0:?} is not a topic")]
    Topic(String),
}

#[derive(Debug, PartialEq)]
pub enum Event<'a> {
    /// The broker accepted the connection; subscriptions are on their way.
    Up,
    Message {
        topic: &'a str,
        payload: &'a [u8],
        retain: bool,
    },
    /// The broker has the message with this id.
    Acknowledged(u16),
    /// The broker did not take it (MQTT 5): nobody gets it.
    Refused(u16),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Closed,
    Connecting,
    Up,
}

struct InFlight {
    id: u16,
    /// The encoded PUBLISH.
    packet: Vec<u8>,
}

pub struct Client {
    version: Version,
    options: Options,
    phase: Phase,
    received: Vec<u8>,
    /// Bytes of `received` that the last event has used.
    used: usize,
    output: Vec<u8>,
    filters: Vec<(String, Qos)>,
    /// Ids of SUBSCRIBE packets and the filter each carries.
    subscribing: Vec<(u16, usize)>,
    in_flight: VecDeque<InFlight>,
    last_id: u16,
    /// Messages are acknowledged by [`Client::acknowledge`] only.
    is_by_hand: bool,
    /// Of the last message, when it is to be acknowledged by hand.
    taken: Option<u16>,
    sent_ms: u64,
    /// Since when the broker owes an answer.
    waiting_since_ms: Option<u64>,
    retry_delay_ms: u64,
}

impl Client {
    pub fn new(options: Options) -> Client {
        Client::speaking(Version::V3, options)
    }

    /// MQTT 5 is for brokers that are known to speak it: they can refuse a message instead of making us wait.
    pub fn speaking(version: Version, options: Options) -> Client {
        Client {
            version,
            options,
            phase: Phase::Closed,
            received: Vec::new(),
            used: 0,
            output: Vec::new(),
            filters: Vec::new(),
            subscribing: Vec::new(),
            in_flight: VecDeque::new(),
            last_id: 0,
            is_by_hand: false,
            taken: None,
            sent_ms: 0,
            waiting_since_ms: None,
            retry_delay_ms: RETRY_DELAY_MS_MIN,
        }
    }

    /// From now on the broker keeps each message until [`Client::acknowledge`]: for one who must not lose it.
    pub fn acknowledge_by_hand(&mut self) {
        self.is_by_hand = true;
    }

    /// The id of the message that [`Client::next_event`] gave last, if its acknowledgement is ours to give.
    pub fn taken(&mut self) -> Option<u16> {
        self.taken.take()
    }

    pub fn acknowledge(&mut self, id: u16) {
        if self.phase == Phase::Up {
            encode::packet_as(self.version, &mut self.output, &Packet::PubAck(id.into()));
        }
    }

    /// Messages that [`Client::publish`] takes before one is acknowledged.
    pub fn room(&self) -> usize {
        IN_FLIGHT_MAX - self.in_flight.len()
    }

    pub fn is_up(&self) -> bool {
        self.phase == Phase::Up
    }

    /// The socket is open: CONNECT goes out.
    pub fn opened(&mut self, now_ms: u64) {
        self.phase = Phase::Connecting;
        self.received.clear();
        self.used = 0;
        self.output.clear();
        self.sent_ms = now_ms;
        self.waiting_since_ms = Some(now_ms);
        let will = self.options.will.as_ref().map(|(topic, payload)| Will {
            topic,
            payload: payload.as_bytes(),
            qos: Qos::AtLeastOnce,
            ..Will::default()
        });
        encode::packet_as(
            self.version,
            &mut self.output,
            &Packet::Connect(Connect {
                version: self.version,
                client_id: &self.options.client_id,
                clean_session: self.options.clean_session,
                keep_alive_s: self.options.keep_alive_s,
                will,
                username: self.options.username.as_deref(),
                password: self.options.password.as_deref().map(str::as_bytes),
                ..Connect::default()
            }),
        );
    }

    /// The socket is closed or could not be opened. Returns how long to wait before the next attempt.
    pub fn closed(&mut self) -> u64 {
        self.phase = Phase::Closed;
        self.received.clear();
        self.used = 0;
        self.output.clear();
        self.subscribing.clear();
        self.waiting_since_ms = None;
        let delay = self.retry_delay_ms;
        self.retry_delay_ms = (delay * 2).min(RETRY_DELAY_MS_MAX);
        delay
    }

    /// Remembers a filter and subscribes to it now and after each reconnection. False when there are too many or it is invalid.
    pub fn subscribe(&mut self, filter: &str) -> bool {
        self.subscribe_at(filter, Qos::AtLeastOnce)
    }

    /// The same with the QoS that is wanted; 2 is not.
    pub fn subscribe_at(&mut self, filter: &str, qos: Qos) -> bool {
        if self.filters.iter().any(|(have, _)| have == filter) {
            return true;
        }
        if self.filters.len() >= SUBSCRIPTIONS_MAX || !filter_is_valid(filter) {
            return false;
        }
        self.filters.push((filter.to_owned(), qos.min(Qos::AtLeastOnce)));
        if self.phase == Phase::Up {
            self.send_subscribe(self.filters.len() - 1);
        }
        true
    }

    pub fn unsubscribe(&mut self, filter: &str) {
        let before = self.filters.len();
        self.filters.retain(|(have, _)| have != filter);
        if self.phase == Phase::Up && self.filters.len() < before {
            let id = self.next_id();
            encode::packet_as(
                self.version,
                &mut self.output,
                &Packet::Unsubscribe { id, filters: vec![filter] },
            );
        }
    }

    /// Queues a message. With QoS 1 the id comes back in [`Event::Acknowledged`]; with QoS 0 the id is 0.
    pub fn publish(
        &mut self,
        topic: &str,
        payload: &[u8],
        qos: Qos,
        retain: bool,
    ) -> Result<u16, PublishError> {
        if self.phase != Phase::Up {
            return Err(PublishError::Down);
        }
        let len = encode::publish_len(topic, payload) + usize::from(self.version == Version::V5);
        if len > PACKET_BYTES_MAX {
            return Err(PublishError::TooLarge(len));
        }
        if !topic_is_valid(topic) {
            return Err(PublishError::Topic(topic.to_owned()));
        }
        if self.in_flight.len() >= IN_FLIGHT_MAX || self.output.len() + len > CLIENT_OUTPUT_BYTES_MAX {
            return Err(PublishError::Full);
        }
        if qos == Qos::AtMostOnce {
            encode::packet_as(
                self.version,
                &mut self.output,
                &Packet::Publish(Publish {
                    topic,
                    payload,
                    qos,
                    retain,
                    duplicate: false,
                    id: 0,
                    ..Publish::default()
                }),
            );
            return Ok(0);
        }
        let id = self.next_id();
        let mut packet = Vec::with_capacity(len);
        encode::packet_as(
            self.version,
            &mut packet,
            &Packet::Publish(Publish {
                topic,
                payload,
                qos: Qos::AtLeastOnce,
                retain,
                duplicate: false,
                id,
                ..Publish::default()
            }),
        );
        self.output.extend_from_slice(&packet);
        self.in_flight.push_back(InFlight { id, packet });
        Ok(id)
    }

    /// Says good-bye, so that the broker does not publish a will.
    pub fn disconnect(&mut self) {
        if self.phase == Phase::Up {
            encode::packet_as(
                self.version,
                &mut self.output,
                &Packet::Disconnect { reason: 0, properties: Properties::default() },
            );
        }
    }

    /// Bytes for the socket. The shell removes what it has written.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Tells that bytes left, for the keep-alive.
    pub fn wrote(&mut self, now_ms: u64) {
        self.sent_ms = now_ms;
    }

    pub fn receive(&mut self, bytes: &[u8]) {
        if self.used > 0 {
            self.received.drain(..self.used);
            self.used = 0;
        }
        self.received.extend_from_slice(bytes);
        self.waiting_since_ms = None;
    }

    /// The next event in what was received. `None`: read more.
    pub fn next_event(&mut self) -> Result<Option<Event<'_>>, ClientError> {
        loop {
            // Decoded twice when a message is found: the first time to learn what it is without borrowing `self` for the answer.
            let max = self.options.packet_bytes_max.min(PACKET_BYTES_MAX);
            let version = self.version;
            let Some((packet, len)) = packet::decode_as(version, &self.received[self.used..], max)? else {
                return Ok(None);
            };
            let start = self.used;
            self.used += len;
            match packet {
                Packet::Publish(publish) => {
                    let is_by_hand = self.is_by_hand;
                    self.taken = (is_by_hand && publish.qos != Qos::AtMostOnce).then_some(publish.id);
                    if publish.qos != Qos::AtMostOnce && !is_by_hand {
                        let id = publish.id;
                        encode::packet_as(self.version, &mut self.output, &Packet::PubAck(id.into()));
                    }
                    let Some((Packet::Publish(publish), _)) =
                        packet::decode_as(version, &self.received[start..], max)?
                    else {
                        return Err(ClientError::Unexpected);
                    };
                    return Ok(Some(Event::Message {
                        topic: publish.topic,
                        payload: publish.payload,
                        retain: publish.retain,
                    }));
                }
                Packet::ConnAck { code: 0, .. } => {
                    self.phase = Phase::Up;
                    self.retry_delay_ms = RETRY_DELAY_MS_MIN;
                    for at in 0..self.filters.len() {
                        self.send_subscribe(at);
                    }
                    for waiting in &mut self.in_flight {
                        waiting.packet[0] |= 0x08;
                        self.output.extend_from_slice(&waiting.packet);
                    }
                    return Ok(Some(Event::Up));
                }
                Packet::ConnAck { code, .. } => return Err(ClientError::Refused(refusal(code))),
                Packet::PubAck(Ack { id, reason: code }) => {
                    self.in_flight.retain(|waiting| waiting.id != id);
                    let is_taken = code < reason::FAILURE;
                    return Ok(Some(if is_taken { Event::Acknowledged(id) } else { Event::Refused(id) }));
                }
                Packet::SubAck { id, codes } => {
                    let refused = codes.iter().any(|code| *code >= reason::FAILURE);
                    if let Some(at) = self.subscribing.iter().position(|(waiting, _)| *waiting == id) {
                        let (_, filter) = self.subscribing.swap_remove(at);
                        if refused {
                            return Err(ClientError::SubscriptionRefused(
                                self.filters.get(filter).map(|found| found.0.clone()).unwrap_or_default(),
                            ));
                        }
                    }
                }
                Packet::UnsubAck { .. } | Packet::PingResp => {}
                Packet::Disconnect { reason, .. } if version == Version::V5 => {
                    return Err(ClientError::Ended(reason));
                }
                _ => return Err(ClientError::Unexpected),
            }
        }
    }

    /// When [`Client::tick`] must be called at the latest.
    pub fn deadline_ms(&self) -> Option<u64> {
        match (self.phase, self.waiting_since_ms) {
            (Phase::Closed, _) => None,
            (_, Some(since)) => Some(since + ANSWER_MS_MAX),
            (_, None) => Some(self.ping_at_ms()),
        }
    }

    /// Sends a ping when it is time, and notices a broker that does not answer.
    pub fn tick(&mut self, now_ms: u64) -> Result<(), ClientError> {
        match self.waiting_since_ms {
            Some(since) if now_ms >= since + ANSWER_MS_MAX => Err(ClientError::Silent),
            None if self.phase == Phase::Up && now_ms >= self.ping_at_ms() => {
                encode::packet_as(self.version, &mut self.output, &Packet::PingReq);
                self.sent_ms = now_ms;
                self.waiting_since_ms = Some(now_ms);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn ping_at_ms(&self) -> u64 {
        // Half of the keep-alive: the broker counts from its last byte of ours, which may be older than we think.
        self.sent_ms + u64::from(self.options.keep_alive_s.max(2)) * 500
    }

    fn send_subscribe(&mut self, at: usize) {
        let id = self.next_id();
        self.subscribing.push((id, at));
        let (filter, qos) = &self.filters[at];
        let filters = vec![(filter.as_str(), (*qos).into())];
        encode::packet_as(
            self.version,
            &mut self.output,
            &Packet::Subscribe { id, filters, properties: Properties::default() },
        );
    }

    fn next_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if !self.in_flight.iter().any(|waiting| waiting.id == self.last_id) {
                return self.last_id;
            }
        }
    }
}

fn refusal(code: u8) -> &'static str {
    match code {
        1 | reason::UNSUPPORTED_VERSION => "it does not speak this version of MQTT",
        2 | reason::CLIENT_ID => "it does not accept the client id",
        3 => "it is not available",
        4 | reason::BAD_PASSWORD => "user name or password is wrong",
        5 | reason::NOT_AUTHORIZED => "this client is not authorised",
        _ => "for a reason that MQTT 3.1.1 does not know",
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
