//! One connection's lane: messages in, WebSocket messages out, and back.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use serde_json::value::RawValue;

use super::{
    frame::{Envelope, Frame, FrameError},
    idle::{self, Renewal},
    pack::{Compress, PackError, inflate},
};
use crate::{
    Header, Message, Operation, Route,
    frames::{self, ReadError},
    limits::{
        LANE_ACKS_MAX, LANE_ACKS_WAITING_MAX, LANE_BATCH_LEN, LANE_SENT_MAX, LANE_UNKNOWN_MAX, PACK_LEN_MIN,
    },
    message::{ACK_CONTENT, DecodeError},
    source,
};

/// Which end this is: only a node sends the short forms of lease and status, only the cloud compresses.
pub enum End {
    Edge,
    Cloud { node: String, compress: Option<Arc<dyn Compress>> },
}

/// A WebSocket message to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Out {
    Text(String),
    Binary(Vec<u8>),
}

/// A WebSocket message that came.
#[derive(Clone, Copy, Debug)]
pub enum Frames<'a> {
    /// KubeEdge's JSON, whatever the opcode: a peer without lane may also send it as binary.
    Json(&'a [u8]),
    Binary(&'a [u8]),
}

/// What a WebSocket message held.
#[derive(Clone, Debug)]
pub enum Received {
    Message(Box<Message>),
    /// The cloud's first word: whether it goes on from the node's last link.
    Welcome {
        resumed: bool,
    },
    /// The cloud will close the link and asks the node to stay away for so long.
    Busy {
        after_ms: u32,
        reason: String,
    },
    /// The peer does not know a kind that we sent.
    PeerSkipped {
        kind: u16,
    },
    /// An answer to something that was not sent on this link, or was answered before.
    Unasked {
        parent: u32,
    },
}

/// Why the link must be closed, or (JSON) the message skipped.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    #[error("it is not a message")]
    Json(#[source] DecodeError),
    #[error("a frame of the compact lane cannot be read")]
    Frame(#[from] FrameError),
    #[error("a packed frame of the compact lane cannot be read")]
    Pack(#[from] PackError),
    #[error("a packed frame is inside another one")]
    Nested,
    #[error("the content of a message is not JSON")]
    Content(#[source] serde_json::Error),
}

impl LaneError {
    /// A stock peer's message that cannot be read is skipped, as its own ends do; on the compact lane nothing can be trusted after.
    pub fn ends_link(&self) -> bool {
        !matches!(self, LaneError::Json(_))
    }
}

impl From<ReadError> for LaneError {
    fn from(error: ReadError) -> LaneError {
        LaneError::Frame(error.into())
    }
}

/// See the module's text.
pub struct Lane(Kind);

enum Kind {
    Json(VecDeque<String>),
    Compact(Box<Compact>),
}

struct Compact {
    link: u64,
    end: End,
    next_seq: u32,
    /// What was sent and may be answered: its id here.
    sent: BTreeMap<u32, String>,
    /// Acknowledgements that wait to leave together.
    acks: BTreeSet<u32>,
    frames: Vec<u8>,
    /// WebSocket messages that are complete.
    full: VecDeque<Vec<u8>>,
    unknown: BTreeSet<u16>,
    status: StatusMemory,
}

/// What the cloud last accepted as the node's status on this link.
#[derive(Default)]
struct StatusMemory {
    accepted: Option<u64>,
    waiting: Option<(u32, u64)>,
}

impl Lane {
    /// A stock peer's.
    pub fn json() -> Lane {
        Lane(Kind::Json(VecDeque::new()))
    }

    /// `link`: the number of this link, random; it stands in the ids of what is received.
    pub fn compact(link: u64, end: End) -> Lane {
        Lane(Kind::Compact(Box::new(Compact {
            link,
            end,
            next_seq: 1,
            sent: BTreeMap::new(),
            acks: BTreeSet::new(),
            frames: Vec::new(),
            full: VecDeque::new(),
            unknown: BTreeSet::new(),
            status: StatusMemory::default(),
        })))
    }

    pub fn is_compact(&self) -> bool {
        matches!(self.0, Kind::Compact(_))
    }

    /// Queues a message. False: it answers something of another link, whose asker has gone.
    pub fn push(&mut self, message: &Message) -> bool {
        match &mut self.0 {
            Kind::Json(out) => {
                out.push_back(message.encode());
                true
            }
            Kind::Compact(compact) => compact.push(message),
        }
    }

    /// Tells the node to stay away; nothing on the JSON lane, which has no such message.
    pub fn push_busy(&mut self, after_ms: u32, reason: &str) {
        if let Kind::Compact(compact) = &mut self.0 {
            compact.put(&Frame::Busy { after_ms, reason: reason.into() });
        }
    }

    /// The cloud's first word.
    pub fn push_welcome(&mut self, resumed: bool) {
        if let Kind::Compact(compact) = &mut self.0 {
            compact.put(&Frame::Welcome { resumed });
        }
    }

    /// Acknowledgements wait and nothing else: they may wait for more of their kind.
    pub fn only_acks_wait(&self) -> bool {
        match &self.0 {
            Kind::Json(_) => false,
            Kind::Compact(compact) => {
                compact.full.is_empty()
                    && compact.frames.is_empty()
                    && (1..LANE_ACKS_WAITING_MAX).contains(&compact.acks.len())
            }
        }
    }

    /// The next WebSocket message, with all that waits.
    pub fn take(&mut self) -> Option<Out> {
        match &mut self.0 {
            Kind::Json(out) => out.pop_front().map(Out::Text),
            Kind::Compact(compact) => compact.take().map(Out::Binary),
        }
    }

    /// What a WebSocket message holds, in order.
    pub fn receive(&mut self, frames: Frames<'_>) -> Result<Vec<Received>, LaneError> {
        match (&mut self.0, frames) {
            (Kind::Compact(compact), Frames::Binary(bytes)) => {
                let mut received = Vec::new();
                compact.receive(bytes, false, &mut received)?;
                Ok(received)
            }
            (_, Frames::Json(bytes) | Frames::Binary(bytes)) => {
                let message = Message::decode(bytes).map_err(LaneError::Json)?;
                Ok(vec![Received::Message(Box::new(message))])
            }
        }
    }

    /// The messages of this link whose answers are still expected: their numbers and ids. At most [`LANE_SENT_MAX`].
    pub fn unanswered(&self) -> impl Iterator<Item = (u32, &str)> {
        let sent = match &self.0 {
            Kind::Json(_) => None,
            Kind::Compact(compact) => Some(&compact.sent),
        };
        sent.into_iter().flatten().map(|(seq, id)| (*seq, id.as_str()))
    }

    /// Link and number out of an id that [`Lane::receive`] made.
    pub fn number_of(msg_id: &str) -> Option<(u64, u32)> {
        let (link, seq) = msg_id.split_once('.')?;
        Some((u64::from_str_radix(link, 16).ok()?, seq.parse().ok()?))
    }
}

impl Compact {
    fn push(&mut self, message: &Message) -> bool {
        let parent = match message.header.parent_msg_id.as_str() {
            "" => None,
            id => match Lane::number_of(id) {
                Some((link, seq)) if link == self.link => Some(seq),
                _ => return false,
            },
        };
        if let Some(parent) = parent.filter(|_| is_plain_ack(message)) {
            self.acks.insert(parent);
            if self.acks.len() >= LANE_ACKS_MAX {
                self.flush_acks();
            }
            return true;
        }
        let seq = self.next_seq;
        self.next_seq = self.next_seq.wrapping_add(1);
        let is_answered =
            message.is_kept_answer() || (parent.is_none() && message.route.operation != Operation::KEEPALIVE);
        if is_answered {
            self.sent.insert(seq, message.header.msg_id.clone());
            if self.sent.len() > LANE_SENT_MAX {
                self.sent.pop_first();
            }
        }
        let frame =
            self.short_form(seq, message).unwrap_or_else(|| Frame::Message(envelope(seq, parent, message)));
        self.put(&frame);
        true
    }

    /// A node's lease and status, where the cloud has what they repeat.
    fn short_form(&mut self, seq: u32, message: &Message) -> Option<Frame> {
        if !matches!(self.end, End::Edge) {
            return None;
        }
        if let Some(Renewal { lease_seconds, unix_ms }) = idle::renewal(message) {
            return Some(Frame::Renew { seq, lease_seconds, unix_ms });
        }
        let hash = idle::status_hash(message)?;
        let is_known = self.status.accepted == Some(hash);
        self.status.waiting = Some((seq, hash));
        is_known.then_some(Frame::Beat { seq, unix_ms: message.header.timestamp })
    }

    fn put(&mut self, frame: &Frame) {
        // In the order in which they were said.
        self.flush_acks();
        frame.encode(&mut self.frames);
        if self.frames.len() >= LANE_BATCH_LEN {
            self.close_batch();
        }
    }

    fn flush_acks(&mut self) {
        if !self.acks.is_empty() {
            Frame::Acks(std::mem::take(&mut self.acks).into_iter().collect()).encode(&mut self.frames);
        }
    }

    fn close_batch(&mut self) {
        let frames = std::mem::take(&mut self.frames);
        if !frames.is_empty() {
            self.full.push_back(self.packed(&frames).unwrap_or(frames));
        }
    }

    fn packed(&self, frames: &[u8]) -> Option<Vec<u8>> {
        let End::Cloud { compress: Some(compress), .. } = &self.end else { return None };
        if frames.len() < PACK_LEN_MIN {
            return None;
        }
        let bytes = compress.compress(frames)?;
        let mut packed = Vec::with_capacity(bytes.len() + 16);
        Frame::Packed { inflated_len: frames.len() as u32, bytes }.encode(&mut packed);
        (packed.len() < frames.len()).then_some(packed)
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        if self.full.is_empty() {
            self.flush_acks();
            self.close_batch();
        }
        self.full.pop_front()
    }

    fn receive(
        &mut self,
        mut rest: &[u8],
        is_packed: bool,
        received: &mut Vec<Received>,
    ) -> Result<(), LaneError> {
        while !rest.is_empty() {
            let (kind, body) = frames::split(&mut rest)?;
            match Frame::decode(kind, body)? {
                Frame::Message(envelope) => match self.message(envelope) {
                    Ok(message) => received.push(message.map_or_else(
                        |parent| Received::Unasked { parent },
                        |message| Received::Message(Box::new(message)),
                    )),
                    Err(error) => return Err(LaneError::Content(error)),
                },
                Frame::Packed { .. } if is_packed => return Err(LaneError::Nested),
                Frame::Packed { inflated_len, bytes } => {
                    let inflated = inflate(&bytes, inflated_len)?;
                    self.receive(&inflated, true, received)?;
                }
                Frame::Acks(parents) => {
                    for parent in parents {
                        received.push(match self.answered(parent, true) {
                            Some(id) => Received::Message(Box::new(plain_ack(id))),
                            None => Received::Unasked { parent },
                        });
                    }
                }
                Frame::Renew { seq, lease_seconds, unix_ms } => {
                    let message = |node: &str| idle::renew_message(node, Renewal { lease_seconds, unix_ms });
                    received.extend(self.of_node(seq, message));
                }
                Frame::Beat { seq, unix_ms } => {
                    received.extend(self.of_node(seq, |node| idle::beat_message(node, unix_ms)));
                }
                Frame::Busy { after_ms, reason } => received.push(Received::Busy { after_ms, reason }),
                Frame::Welcome { resumed } => received.push(Received::Welcome { resumed }),
                Frame::Unknown { kind } => received.push(Received::PeerSkipped { kind }),
                Frame::Skipped { kind } => {
                    if self.unknown.len() < LANE_UNKNOWN_MAX && self.unknown.insert(kind) {
                        self.put(&Frame::Unknown { kind });
                    }
                }
            }
        }
        Ok(())
    }

    /// A short form; a cloud that sends one means nothing.
    fn of_node(&self, seq: u32, message: impl Fn(&str) -> Message) -> Option<Received> {
        let End::Cloud { node, .. } = &self.end else { return None };
        let mut message = message(node);
        message.header.msg_id = self.id(seq);
        Some(Received::Message(Box::new(message)))
    }

    fn id(&self, seq: u32) -> String {
        format!("{:x}.{seq}", self.link)
    }

    /// Our id of the message that is answered, once.
    fn answered(&mut self, parent: u32, is_ok: bool) -> Option<String> {
        if let Some((_, hash)) = self.status.waiting.take_if(|(seq, _)| *seq == parent) {
            self.status.accepted = is_ok.then_some(hash);
        }
        self.sent.remove(&parent)
    }

    /// `Ok(Err(parent))`: it answers what nobody asked.
    fn message(&mut self, envelope: Envelope) -> Result<Result<Message, u32>, serde_json::Error> {
        let content = RawValue::from_string(envelope.content)?;
        let parent_msg_id = match envelope.parent {
            None => String::new(),
            Some(parent) => match self.answered(parent, false) {
                Some(id) => id,
                None => return Ok(Err(parent)),
            },
        };
        let header = Header {
            msg_id: self.id(envelope.seq),
            parent_msg_id,
            timestamp: envelope.unix_ms,
            resourceversion: envelope.resource_version,
            sync: envelope.sync,
            message_type: envelope.message_type,
        };
        let route = Route {
            source: envelope.source,
            destination: envelope.destination,
            group: envelope.group,
            operation: envelope.operation,
            resource: envelope.resource,
        };
        Ok(Ok(Message { header, route, content }))
    }
}

fn envelope(seq: u32, parent: Option<u32>, message: &Message) -> Envelope {
    let Message { header, route, content } = message;
    Envelope {
        seq,
        parent,
        unix_ms: header.timestamp,
        sync: header.sync,
        source: route.source.clone(),
        destination: route.destination.clone(),
        group: route.group.clone(),
        operation: route.operation.clone(),
        message_type: header.message_type.clone(),
        resource: route.resource.clone(),
        resource_version: header.resourceversion.clone(),
        content: content.get().to_owned(),
    }
}

/// Says `OK` and nothing else.
fn is_plain_ack(message: &Message) -> bool {
    message.route.operation == Operation::RESPONSE
        && message.header.resourceversion.is_empty()
        && message.content_is_ok()
}

/// What the list of acknowledgements does not carry, the receiver knows by the id.
fn plain_ack(parent: String) -> Message {
    let mut message =
        Message::new(0, source::META_MANAGER, "resource", Operation::RESPONSE, "").with_content(ACK_CONTENT);
    message.header.parent_msg_id = parent;
    message
}
