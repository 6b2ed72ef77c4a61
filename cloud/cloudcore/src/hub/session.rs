//! One node's link while it is up: a loop that feeds the delivery value and the upstream requests, and carries out what they
//! say. The only owner of the node's delivery records.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rt::{BoxFuture, Drain};
use streams::{Ended, Event, Socket, WebSocket};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::{self, protocol::Message as Frame};
use wire::Message;
use wire::delivery::{Action, Delivery, Input, Push, UNCONFIRMED, Verb};
use wire::lane::{Frames, Lane, LaneError, Out, Received};
use wire::limits::PUSH_WINDOW;

use super::downlink::{Fetched, devices, fetch, inventory, membership};
use super::sessions::{Parked, Sessions};
use crate::contract::{DesiredWatch, NodeDesired};
use crate::limits::{DEVICE_DRAIN_TIME_MAX, DRAIN_SPREAD_MS, RECORD_LOOK_EVERY, SESSION_REQUESTS_MAX};
use crate::records::{DeliveryRecords, RecordError, Records};
use crate::upstream::book::{Book, DeviceId, Outcome, Pending};
use crate::upstream::request::{Request, parse};
use crate::upstream::{Upstream, device_report, refuse};

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub enum End {
    #[error("the node closed the link")]
    Closed,
    #[error("the link broke")]
    Broken(#[source] tungstenite::Error),
    #[error("no keepalive for {0:?}")]
    Silent(Duration),
    #[error("a write took longer than {0:?}")]
    Stuck(Duration),
    #[error("the node's streams went wrong; update edgecore and cloudcore to the same version")]
    Streams(#[source] Ended),
    #[error("the node's frames cannot be read; update edgecore and cloudcore to the same version")]
    Lane(#[source] LaneError),
    #[error("a newer connection of the same node took over")]
    TakenOver,
    #[error("the Node object was deleted; the node registers again when it reconnects")]
    NodeDeleted,
    #[error("the node was reset with `cloudcore node reset`, or joined again")]
    Reset,
    #[error("cloudcore stops")]
    Drained,
    #[error("its records cannot be kept")]
    Records(#[source] RecordError),
}

pub struct Session<W> {
    pub node: String,
    pub generation: u64,
    pub socket: Socket<W>,
    pub lane: Lane,
    /// The link's number; 0 on the JSON lane.
    pub link: u64,
    /// What was kept of the node's last link, and what it had stored when that ended.
    pub resume: Option<(Parked, Vec<u32>)>,
    /// Held until the first objects are on their way.
    pub start: Option<tokio::sync::OwnedSemaphorePermit>,
    pub sessions: Sessions,
    pub nodes_max: usize,
    pub upstream: Upstream,
    pub records: Records,
    pub desired: DesiredWatch,
    pub keepalive: Duration,
    /// Starts when another connection takes over or cloudcore stops.
    pub stop: Drain,
    /// Starts when cloudcore stops.
    pub drain: Drain,
}

struct Work {
    delivery: Delivery,
    file: Box<dyn DeliveryRecords>,
    /// The first look at what belongs on the node is still to come; before it, what the records say is not known.
    is_loaded: bool,
    started: Instant,
    members: BTreeSet<String>,
    /// The protocol of each device on the node and of its model, by uid, until its deletion is acknowledged.
    protocols: BTreeMap<String, String>,
    fetching: Option<BoxFuture<'static, Fetched>>,
    /// Pushes that wait to be read; no more than the window.
    to_fetch: VecDeque<Push>,
    /// What was wrong with what the node sent on this link; only the first is logged as a warning.
    faults: u64,
    requests: VecDeque<(Request, Message)>,
    answering: Option<BoxFuture<'static, Option<Message>>>,
    /// What the node reported of its devices and is to be written.
    book: Book,
    writing: Option<BoxFuture<'static, (DeviceId, Pending, Outcome)>>,
    node_uid: Option<String>,
    /// How often the node has registered on this link.
    registrations: u32,
    alive_until: Instant,
    /// The record need not be looked at again before.
    look_at: Instant,
}

impl Work {
    /// Since the link came up.
    fn now_ms(&self) -> i64 {
        self.started.elapsed().as_millis() as i64
    }
}

impl<W: WebSocket + Send> Session<W> {
    /// Runs the link to its end.
    pub async fn run(mut self: Box<Self>) -> End {
        // What is done once, here and at the end, is in boxes of its own, so that the link keeps no room for it.
        let file = match Box::pin(self.records.delivery(&self.node, self.generation)).await {
            Ok(file) => file,
            Err(error) => return End::Records(error),
        };
        let now = Instant::now();
        let mut work = Work {
            delivery: Delivery::default(),
            file,
            is_loaded: false,
            started: now,
            members: BTreeSet::new(),
            protocols: BTreeMap::new(),
            fetching: None,
            to_fetch: VecDeque::new(),
            faults: 0,
            requests: VecDeque::new(),
            answering: None,
            book: Book::new(self.upstream.device_write_every_ms),
            writing: None,
            node_uid: None,
            registrations: 0,
            alive_until: now + self.keepalive,
            look_at: now,
        };
        let end = self.talk(&mut work).await.err().unwrap_or(End::Closed);
        if matches!(end, End::Drained) {
            // They would all come back at once.
            let spread_ms = DRAIN_SPREAD_MS.saturating_mul(1 + self.sessions.len() as u32 / 1000);
            self.lane.push_busy(rt::random_u64() as u32 % spread_ms, "cloudcore stops");
        }
        if tokio::time::timeout(DEVICE_DRAIN_TIME_MAX, self.write_rest(&mut work)).await.is_err() {
            tracing::debug!(
                "some values of devices of node {} were not written; it reports them again",
                self.node
            );
        }
        self.park(&work, &end);
        self.flush();
        if !matches!(end, End::Closed | End::Broken(_)) {
            // The peer may be gone; it has a second to read that it is over.
            let reason = end.to_string();
            Box::pin(self.socket.close(&reason, Duration::from_secs(1))).await;
        }
        end
    }

    async fn talk(&mut self, work: &mut Work) -> Result<(), End> {
        let is_compact = self.lane.is_compact();
        self.lane.push_welcome(self.resume.is_some());
        if let Some((parked, _)) = &mut self.resume {
            work.node_uid = parked.node_uid.take();
            work.members = std::mem::take(&mut parked.members);
        }
        self.desired.mark_changed();
        loop {
            self.fetch_next(work);
            self.write_next(work);
            // Answers that only say OK go together while more of them are being made.
            if !(self.lane.only_acks_wait() && work.answering.is_some()) {
                self.flush();
            }
            let resend_at =
                work.delivery.next_deadline_ms().map(|ms| work.started + Duration::from_millis(ms));
            // While the node takes nothing, nobody makes more for it.
            let has_room = self.socket.has_room();
            let may_read = has_room && work.requests.len() < SESSION_REQUESTS_MAX;
            let write_ms = work.book.next_ms().filter(|_| work.writing.is_none());
            let write_at = write_ms.map(|ms| work.started + Duration::from_millis(ms.max(0) as u64));
            let wake_at = resend_at.into_iter().chain(write_at).fold(work.alive_until, Instant::min);
            tokio::select! {
                biased;
                () = self.stop.wait() => return Err(if self.drain.is_draining() { End::Drained } else { End::TakenOver }),
                answer = pending(&mut work.answering), if has_room => {
                    work.answering = None;
                    if let Some(answer) = answer {
                        self.send(&answer);
                    }
                    self.answer_next(work);
                }
                written = pending(&mut work.writing), if has_room => {
                    work.writing = None;
                    self.written(work, written);
                }
                fetched = pending(&mut work.fetching), if has_room => {
                    work.fetching = None;
                    match fetched {
                        Fetched::Ready { uid, message } => {
                            work.file.sending(&uid, &message.header.resourceversion);
                            self.send(&message);
                        }
                        Fetched::Gone { msg_id } => self.handle(work, Input::Skipped { msg_id })?,
                        Fetched::Failed => {}
                    }
                }
                event = self.socket.next(may_read) => match event.map_err(ended)? {
                    Event::Message(bytes) => self.receive(work, Frames::Json(&bytes))?,
                    Event::Frames(bytes) => {
                        self.is_alive(work)?;
                        self.receive(work, Frames::Binary(&bytes))?;
                    }
                    // Where bytes of streams arrive, the node is alive, however late its keepalive is behind them.
                    Event::Heard if is_compact => self.is_alive(work)?,
                    Event::Heard if self.socket.streams().is_some() => {
                        work.alive_until = Instant::now() + self.keepalive;
                    }
                    Event::Heard | Event::Opened(_) => {}
                },
                changed = self.desired.changed() => {
                    changed.map_err(|_| End::Drained)?;
                    self.desire(work)?;
                    self.start = None;
                }
                () = tokio::time::sleep_until(wake_at) => {
                    if Instant::now() >= work.alive_until {
                        return Err(End::Silent(self.keepalive));
                    }
                    self.handle(work, Input::Tick)?;
                }
            }
        }
    }

    fn receive(&mut self, work: &mut Work, frames: Frames<'_>) -> Result<(), End> {
        let received = match self.lane.receive(frames) {
            Ok(received) => received,
            Err(error) if error.ends_link() => return Err(End::Lane(error)),
            Err(error) => {
                self.fault(work, &format!("a frame is skipped: {}", rt::error_chain(&error)));
                return Ok(());
            }
        };
        for received in received {
            match received {
                Received::Message(message) => self.message(work, *message)?,
                Received::PeerSkipped { kind } => {
                    self.fault(work, &format!("it does not know frames of kind {kind:#06x}"));
                }
                Received::Unasked { parent } => {
                    self.fault(work, &format!("it answers message {parent}, which it was not sent"));
                }
                Received::Busy { .. } | Received::Welcome { .. } => self.fault(work, "it speaks as a cloud"),
            }
        }
        Ok(())
    }

    /// Once per link: a peer that is wrong is seldom wrong once.
    fn fault(&self, work: &mut Work, what: &str) {
        work.faults += 1;
        if work.faults == 1 {
            tracing::warn!("node {} is not understood: {what}", self.node);
        } else {
            tracing::debug!("node {} is not understood: {what}", self.node);
        }
    }

    fn message(&mut self, work: &mut Work, message: Message) -> Result<(), End> {
        match parse(&self.node, &message) {
            Ok(Request::Keepalive) => self.is_alive(work),
            Ok(Request::Ack { parent }) if message.content_is_ok() => {
                self.handle(work, Input::Acked { msg_id: parent })
            }
            Ok(Request::Ack { .. } | Request::Ignored) => Ok(()),
            Ok(request) => {
                // Our own edge tells of a new store itself.
                if request == Request::NodeInsert && !self.lane.is_compact() {
                    self.registers(work)?;
                }
                match device_report(&request, &message) {
                    Some(Ok((id, said, answer))) => {
                        for answer in work.book.put(work.now_ms(), id, said, answer) {
                            self.send(&answer);
                        }
                    }
                    Some(Err(error)) => {
                        let resource = &message.route.resource;
                        self.fault(work, &format!("its report {resource} is not one of a device: {error}"));
                    }
                    None => {
                        work.requests.push_back((request, message));
                        self.answer_next(work);
                    }
                }
                Ok(())
            }
            Err(error) => {
                tracing::debug!("node {}: {error}", self.node);
                if let Some(answer) = refuse(&message, &error) {
                    self.send(&answer);
                }
                Ok(())
            }
        }
    }

    /// A KubeEdge edge of 1.23 registers over and over when it does not find its own Node in its database. If the Node was
    /// acknowledged, the database has been emptied since, which such an edge does not tell: everything is sent again. One
    /// registration on a link is what every edge does that starts.
    fn registers(&mut self, work: &mut Work) -> Result<(), End> {
        work.registrations += 1;
        let own = format!("null/node/{}", self.node);
        let has_node = work
            .delivery
            .delivered()
            .iter()
            .any(|(_, known)| known.resource == own && known.version != UNCONFIRMED);
        if work.registrations != 2 || !has_node {
            return Ok(());
        }
        tracing::warn!(
            "node {} has lost what was delivered to it, its database seems to be new: everything is sent to it again",
            self.node
        );
        work.members.clear();
        self.desired.mark_changed();
        self.handle(work, Input::Reset)
    }

    /// Keeps what the next link of the node may go on with, if this one simply ended.
    fn park(&self, work: &Work, end: &End) {
        if !self.lane.is_compact()
            || !work.is_loaded
            || matches!(end, End::NodeDeleted | End::Reset | End::Drained | End::Records(_) | End::Lane(_))
        {
            return;
        }
        let unacked = |id: &str| work.delivery.unacked().find(|push| push.msg_id == id).cloned();
        let sent = self.lane.unanswered().filter_map(|(seq, id)| Some((seq, unacked(id)?))).collect();
        let parked = Parked {
            link: self.link,
            generation: self.generation,
            node_uid: work.node_uid.clone(),
            members: work.members.clone(),
            sent,
            inventory_due: work.delivery.inventory_is_due(),
        };
        self.sessions.park(&self.node, parked, self.nodes_max);
    }

    /// Hands what waits on the lane to the socket, which sends it before all data of streams.
    fn flush(&mut self) {
        while let Some(out) = self.lane.take() {
            self.socket.queue(match out {
                Out::Text(text) => Frame::text(text),
                Out::Binary(bytes) => Frame::binary(bytes),
            });
        }
    }

    fn fetch_next(&self, work: &mut Work) {
        if work.fetching.is_some() {
            return;
        }
        let Some(push) = work.to_fetch.pop_front() else { return };
        give_back(&mut work.to_fetch);
        let (kept, api) = (work.file.kept(), self.upstream.api.clone());
        let (node, desired) = (self.node.clone(), self.desired.borrow().clone());
        let protocol = work.protocols.get(&push.uid).cloned();
        work.fetching = Some(Box::pin(async move {
            if let Some(kept) = kept {
                kept.await;
            }
            match (push.verb, desired) {
                (Verb::Inventory, Some(desired)) => {
                    let message = Box::new(inventory(&node, &push, &desired));
                    Fetched::Ready { uid: push.uid, message }
                }
                (Verb::Inventory, None) => Fetched::Gone { msg_id: push.msg_id },
                _ => fetch(api, push, protocol).await,
            }
        }));
    }

    /// Called for every frame on the compact lane; the record, which is a file, is looked at once a second at the most.
    fn is_alive(&self, work: &mut Work) -> Result<(), End> {
        let now = Instant::now();
        work.alive_until = now + self.keepalive;
        if now < work.look_at {
            return Ok(());
        }
        work.look_at = now + RECORD_LOOK_EVERY;
        let is_current = self.records.is_current(&self.node, self.generation).map_err(End::Records)?;
        if is_current { Ok(()) } else { Err(End::Reset) }
    }

    /// One request at a time, in the order they came: a lease renewal must not overtake another.
    fn answer_next(&self, work: &mut Work) {
        if work.answering.is_some() {
            return;
        }
        let Some((request, message)) = work.requests.pop_front() else { return };
        give_back(&mut work.requests);
        let (upstream, node, desired) =
            (self.upstream.clone(), self.node.clone(), self.desired.borrow().clone());
        // Our own edge knows what it has said.
        let is_brief = self.lane.is_compact() && matches!(request, Request::PodPatch(_) | Request::NodePatch);
        work.answering = Some(Box::pin(async move {
            let answer = upstream.answer(&node, desired, request, message).await?;
            Some(if is_brief { brief(answer) } else { answer })
        }));
    }

    /// One DeviceStatus at a time, at the node's pace.
    fn write_next(&self, work: &mut Work) {
        if work.writing.is_some() {
            return;
        }
        let now_ms = work.now_ms();
        let Some((id, said)) = work.book.next(now_ms) else { return };
        let times_count = work.book.is_calm(now_ms, &id);
        work.writing = Some(self.write(id, said, times_count));
    }

    fn write(
        &self,
        id: DeviceId,
        said: Pending,
        times_count: bool,
    ) -> BoxFuture<'static, (DeviceId, Pending, Outcome)> {
        let (upstream, node, desired) =
            (self.upstream.clone(), self.node.clone(), self.desired.borrow().clone());
        Box::pin(async move {
            let outcome = upstream.write_device(&node, desired, &id, &said, times_count).await;
            (id, said, outcome)
        })
    }

    fn written(&mut self, work: &mut Work, (id, said, outcome): (DeviceId, Pending, Outcome)) {
        for answer in work.book.done(work.now_ms(), id, said, &outcome) {
            self.send(&answer);
        }
    }

    /// The link has ended: what waited for its turn has none to wait for any more.
    async fn write_rest(&mut self, work: &mut Work) {
        if let Some(writing) = work.writing.take() {
            let written = writing.await;
            self.written(work, written);
        }
        for (id, said) in work.book.drain() {
            let written = self.write(id, said, true).await;
            self.written(work, written);
        }
    }

    fn desire(&mut self, work: &mut Work) -> Result<(), End> {
        let Some(desired): Option<Arc<NodeDesired>> = self.desired.borrow_and_update().clone() else {
            return Ok(());
        };
        if work.node_uid.is_some() && work.node_uid != desired.node_uid {
            return Err(End::NodeDeleted);
        }
        work.node_uid.clone_from(&desired.node_uid);
        if !std::mem::replace(&mut work.is_loaded, true) {
            work.delivery = Delivery::new(work.file.loaded(&desired));
            let nonce = u128::from_be_bytes(*uuid::Uuid::new_v4().as_bytes());
            let is_compact = self.lane.is_compact();
            let mut inventory = is_compact;
            if let Some((parked, stored)) = self.resume.take() {
                inventory = parked.inventory_due;
                let stored = stored.iter().filter_map(|seq| parked.sent.get(seq).cloned()).collect();
                self.handle(work, Input::Resumed(stored))?;
            }
            let window = if is_compact { PUSH_WINDOW } else { 1 };
            self.handle(work, Input::Connected { nonce, window, inventory })?;
        }
        let members = devices(&desired.targets);
        if let Some(message) = membership(&work.members, &members) {
            self.send(&message);
            work.members = members;
        }
        work.protocols.retain(|uid, _| work.delivery.delivered().contains(uid));
        work.protocols.extend(desired.protocols.clone());
        self.handle(work, Input::Desired(desired.targets.clone()))
    }

    fn handle(&mut self, work: &mut Work, input: Input) -> Result<(), End> {
        let now_ms = work.started.elapsed().as_millis() as u64;
        for action in work.delivery.handle(now_ms, input) {
            match action {
                Action::Record { uid, delivered, durable } => {
                    work.file.record(&uid, &delivered, durable).map_err(End::Records)?
                }
                Action::Forget { uid } => work.file.forget(&uid).map_err(End::Records)?,
                Action::Send(push) => {
                    if push.sends > 1 {
                        let waited_s = wire::limits::PUSH_RESEND_MS / 1000;
                        tracing::warn!(
                            "node {} has not acknowledged {} within {waited_s} s; it is sent again; if this goes on, look at the \
                             node's condition StoreUnwritable and its log",
                            self.node,
                            push.resource
                        );
                    }
                    tracing::debug!("node {}: {:?} {}", self.node, push.verb, push.resource);
                    // One that still waits to be read will be sent when it was, as what it is by now.
                    match work.to_fetch.iter_mut().find(|waiting| waiting.uid == push.uid) {
                        Some(waiting) => *waiting = push,
                        None => work.to_fetch.push_back(push),
                    }
                }
            }
        }
        work.file.tidy(work.delivery.delivered()).map_err(End::Records)
    }

    fn send(&mut self, message: &Message) {
        self.lane.push(message);
    }
}

fn ended(ended: Ended) -> End {
    match ended {
        Ended::Closed => End::Closed,
        Ended::Broken(error) => End::Broken(error),
        Ended::Stuck(waited) => End::Stuck(waited),
        Ended::Frame(_) | Ended::Violation(_) => End::Streams(ended),
    }
}

/// A success without the object; a failure as it is.
fn brief(answer: Message) -> Message {
    if !answer.content.get().ends_with("\"Err\":null}") {
        return answer;
    }
    answer.with_resource_version("").with_content(wire::message::ACK_CONTENT)
}

/// An idle link keeps no room for what went through it.
fn give_back<T>(queue: &mut VecDeque<T>) {
    if queue.is_empty() {
        *queue = VecDeque::new();
    }
}

/// The future's output, or for ever nothing when there is none.
async fn pending<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
