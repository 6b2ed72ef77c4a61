//! The hub's task: carries what happens into the link, and out what the link decides.

use std::{
    collections::{HashMap, VecDeque},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use rt::{Drain, TaskGroup};
use streams::{Ended, Event};
use tokio_tungstenite::tungstenite::Message as Frame;
use wire::{
    Message,
    lane::{Frames, Lane, LaneError, Out, Received},
    limits::ACKS_WAIT_MS,
    link::{Action, Input, Link, Now, RequestFailure, Settings},
};

use super::{
    ConnectError, Endpoint, Hub,
    connect::{Dialled, Past, Socket, connect},
    disk::{Disk, Write, Written},
    handle::{Mail, Reply},
};
use crate::{
    contract::{Applied, BoxFuture, Condition, LinkState, UplinkError},
    credentials::{Refusals, unix_now_s},
    limits::{INBOX_QUEUE_LEN, LINK_CLOSE_TIME_MAX, RECONNECT_DELAY_FIRST, RECONNECT_DELAY_MAX},
};

impl Hub {
    /// Runs until the drain. Dialling again is part of it: this ends only when it is told to.
    pub async fn run(self, drain: Drain) {
        let link = Link::new(Settings {
            heartbeat_ms: self.heartbeat.as_millis() as u64,
            reconnect_first_ms: RECONNECT_DELAY_FIRST.as_millis() as u64,
            reconnect_max_ms: RECONNECT_DELAY_MAX.as_millis() as u64,
            seed: rt::random_u64(),
        });
        let mut disk = Disk::new(self.meta.clone(), self.inbox.clone());
        let kept = disk.load().await;
        let mut pump = Pump {
            link,
            disk,
            socket: None,
            lane: Lane::json(),
            acks_until: None,
            past: Past::default(),
            is_resumed: false,
            faults: 0,
            dial: None,
            waiters: HashMap::new(),
            inputs: kept.into_iter().map(|(key, message)| Input::Report { key, message }).collect(),
            started: Instant::now(),
            last_down: String::new(),
            store_failed: false,
            refusals: Refusals::default(),
            serving: TaskGroup::new("stream", wire::limits::STREAMS_MAX, drain.clone()),
            hub: self,
        };
        pump.run(drain).await;
    }
}

struct Pump {
    hub: Hub,
    link: Link,
    disk: Disk,
    socket: Option<Socket>,
    /// Of the link that is up.
    lane: Lane,
    /// Acknowledgements wait for others of their kind, at the longest until then.
    acks_until: Option<Instant>,
    past: Past,
    is_resumed: bool,
    /// What was wrong with what the cloud sent on this link; only the first is logged.
    faults: u64,
    dial: Option<BoxFuture<'static, Result<Dialled, ConnectError>>>,
    /// Who waits for the answer to which message, and how long.
    waiters: HashMap<String, (Reply, Duration)>,
    inputs: VecDeque<Input>,
    started: Instant,
    /// The last reason in the log: a cloud that stays away costs one line, not one per dial.
    last_down: String,
    store_failed: bool,
    /// In a row, because of the certificates.
    refusals: Refusals,
    /// The kubelet API on the streams of the link; they end with it.
    serving: TaskGroup,
}

/// The cloud refused the certificate again and again: the one before the last change may still be good.
fn fall_back(endpoint: &Endpoint) {
    match endpoint.credentials.fall_back(&endpoint.node, unix_now_s()) {
        Ok(true) => {
            tracing::warn!(target: "hub", "the cloud does not accept the node's certificate; the one before it is tried");
        }
        Ok(false) => {}
        Err(error) => {
            tracing::warn!(target: "hub", "the certificate before cannot be tried: {}", rt::error_chain(&error));
        }
    }
}

static SENT_BYTES: rt::Gauge =
    rt::Gauge::new("kinglet_link_sent_bytes_total", "Messages sent to the cloud, streams left out.");
static RECEIVED_BYTES: rt::Gauge = rt::Gauge::new(
    "kinglet_link_received_bytes_total",
    "Messages received from the cloud, streams left out.",
);
static CONNECTS: rt::Gauge =
    rt::Gauge::new("kinglet_link_connects_total", "How often the link to the cloud came up.");

impl Pump {
    async fn run(&mut self, drain: Drain) {
        self.inputs.push_back(Input::Tick);
        self.process().await;
        while !drain.is_draining() {
            let deadline = self.link.next_deadline_ms().map(|at| self.started + Duration::from_millis(at));
            // While the socket takes nothing, nobody makes more for it.
            let has_room = self.socket.as_ref().is_none_or(Socket::has_room);
            let may_read = has_room && self.disk.len() < INBOX_QUEUE_LEN;
            tokio::select! {
                () = drain.wait() => {}
                () = self.hub.handle.arrived.notified(), if has_room => {
                    let mail = self.hub.handle.take();
                    self.mail(mail);
                }
                dialled = finish(&mut self.dial) => {
                    self.dial = None;
                    self.dialled(dialled);
                }
                event = next(&mut self.socket, may_read) => self.event(event),
                written = self.disk.next() => self.written(written),
                () = sleep_until(deadline) => self.inputs.push_back(Input::Tick),
                () = sleep_until(self.acks_until) => self.acks_until = None,
            }
            self.process().await;
        }
        self.inputs.push_back(Input::Hangup("edgecore is stopping".into()));
        self.process().await;
    }

    fn mail(&mut self, mail: Mail) {
        for report in mail.reports {
            let (key, message) = (report.key, Box::new(report.message));
            match report.durable {
                true => self.disk.push(Write::Keep { key, message }),
                false => self.inputs.push_back(Input::Report { key, message }),
            }
        }
        self.inputs.extend(mail.sends.into_iter().map(|message| Input::Send(Box::new(message))));
        for request in mail.requests {
            let timeout_ms = request.timeout.as_millis() as u64;
            self.waiters.insert(request.message.header.msg_id.clone(), (request.reply, request.timeout));
            self.inputs.push_back(Input::Request { message: Box::new(request.message), timeout_ms });
        }
        self.inputs.extend(mail.hangup.map(Input::Hangup));
    }

    fn dialled(&mut self, dialled: Result<Dialled, ConnectError>) {
        match dialled {
            Ok(Dialled { socket, lane, resumed, received }) => {
                self.socket = Some(socket);
                self.lane = lane;
                self.faults = 0;
                self.is_resumed = resumed;
                self.past.stored = self.lane.is_compact().then(|| (self.past.dialled, Vec::new()));
                self.refusals.accepted();
                self.other_cloud(None);
                self.inputs.push_back(Input::Connected { compact: self.lane.is_compact() });
                self.received(received);
            }
            Err(error) => {
                self.other_cloud(Some(&error));
                if error.is_rejection() && self.refusals.refused() {
                    fall_back(&self.hub.endpoint);
                }
                if let ConnectError::Busy { after, .. } | ConnectError::NameInUse { after, .. } = &error {
                    self.inputs.push_back(Input::Busy { after_ms: after.as_millis() as u64 });
                }
                self.inputs.push_back(Input::Lost(error.to_string()));
            }
        }
    }

    fn other_cloud(&self, error: Option<&ConnectError>) {
        let found = error.filter(|error| matches!(error, ConnectError::OtherCloud { .. }));
        self.hub.conditions.set(Condition {
            condition_type: "CloudIdentityChanged".into(),
            status: found.is_some(),
            reason: if found.is_some() { "AnotherCloud" } else { "SameCloud" }.into(),
            message: found
                .map_or_else(|| "the cloud is the one that this node joined".into(), |e| e.to_string()),
        });
        let in_use = error.filter(|error| matches!(error, ConnectError::NameInUse { .. }));
        self.hub.conditions.set(Condition {
            condition_type: "NodeNameInUse".into(),
            status: in_use.is_some(),
            reason: if in_use.is_some() { "AnotherDevice" } else { "OneDevice" }.into(),
            message: in_use.map_or_else(|| "the cloud takes this node".into(), |e| e.to_string()),
        });
    }

    fn event(&mut self, event: Result<Event, Ended>) {
        match event {
            Ok(Event::Message(bytes)) => self.message(Frames::Json(&bytes)),
            Ok(Event::Frames(bytes)) => self.message(Frames::Binary(&bytes)),
            Ok(Event::Heard) => self.inputs.push_back(Input::Heard),
            Ok(Event::Opened(stream)) => {
                self.inputs.push_back(Input::Heard);
                self.serve(stream);
            }
            Err(Ended::Closed) => self.lost("the cloud closed the link".into()),
            Err(Ended::Broken(error)) => self.lost(format!("the link to the cloud broke: {error}")),
            Err(Ended::Stuck(waited)) => self
                .lost(format!("the cloud took nothing for {} s; check the network to it", waited.as_secs())),
            Err(error @ (Ended::Frame(_) | Ended::Violation(_))) => self.lost(format!(
                "the link to the cloud was given up: {}; update cloudcore and edgecore to the same version",
                rt::error_chain(&error)
            )),
        }
    }

    fn message(&mut self, frames: Frames<'_>) {
        let (Frames::Json(bytes) | Frames::Binary(bytes)) = frames;
        RECEIVED_BYTES.add(bytes.len() as u64);
        match self.lane.receive(frames) {
            Ok(received) => {
                self.inputs.push_back(Input::Heard);
                self.received(received);
            }
            Err(error) if error.ends_link() => self.lane_failed(&error),
            Err(error) => {
                self.fault(&format!("a frame is skipped: {}", rt::error_chain(&error)));
                self.inputs.push_back(Input::Heard);
            }
        }
    }

    fn received(&mut self, received: Vec<Received>) {
        for received in received {
            match received {
                Received::Message(message) => {
                    tracing::trace!(target: "hub", "< {} {}", message.route.operation, message.route.resource);
                    self.inputs.push_back(Input::Received(message));
                }
                Received::Busy { after_ms, reason } => {
                    tracing::info!(target: "hub", "the cloud asks to be left alone for {after_ms} ms: {reason}");
                    self.inputs.push_back(Input::Busy { after_ms: after_ms.into() });
                }
                Received::PeerSkipped { kind } => {
                    self.fault(&format!("it does not know frames of kind {kind:#06x}"));
                }
                Received::Unasked { parent } => {
                    self.fault(&format!("it answers message {parent}, which asked nothing"))
                }
                Received::Welcome { .. } => self.fault("it greets twice"),
            }
        }
    }

    /// Once per link: a peer that is wrong is seldom wrong once.
    fn fault(&mut self, what: &str) {
        self.faults += 1;
        if self.faults == 1 {
            tracing::warn!(target: "hub", "the cloud at {} is not understood: {what}; update cloudcore and edgecore to the same version", self.hub.endpoint.server);
        } else {
            tracing::debug!(target: "hub", "the cloud is not understood: {what}");
        }
    }

    /// A cloud whose frames cannot be read is spoken to in JSON from now on.
    fn lane_failed(&mut self, error: &LaneError) {
        self.hub.endpoint.lane = false;
        self.lost(format!(
            "the link to the cloud was given up: {}; until edgecore restarts it uses JSON. Update cloudcore and edgecore to the same version",
            rt::error_chain(error)
        ));
    }

    /// A stream that is not served is dropped, which the cloud sees as its end.
    fn serve(&self, stream: streams::Stream) {
        let serving = self.hub.kubelet.serve(Box::new(stream));
        let task = async move {
            serving.await;
            Ok::<(), std::convert::Infallible>(())
        };
        if let Err(error) = self.serving.spawn(task) {
            tracing::warn!(target: "hub", "a stream of the cloud is refused: {error}");
        }
    }

    fn lost(&mut self, reason: String) {
        self.socket = None;
        self.inputs.push_back(Input::Lost(reason));
    }

    fn written(&mut self, written: Written) {
        match written {
            Written::Applied(message, result) => self.applied(message, result),
            Written::Kept { key, message, result } => {
                if let Err(error) = result {
                    tracing::error!(target: "hub", "report {key} will not survive a restart: {}", rt::error_chain(&error));
                }
                self.inputs.push_back(Input::Report { key, message });
            }
            Written::Dropped => {}
        }
    }

    fn applied(&mut self, message: Box<Message>, result: Result<Applied, crate::contract::MetaError>) {
        let resource = &message.route.resource;
        let failure = match result {
            Ok(Applied::Ignored(why)) => {
                tracing::warn!(target: "hub", "{} {resource} of the cloud is ignored: {why}", message.route.operation);
                None
            }
            Ok(applied) => {
                tracing::debug!(target: "hub", "{} {resource}: {applied:?}", message.route.operation);
                None
            }
            Err(error) => Some(format!("{resource} is not acknowledged: {}", rt::error_chain(&error))),
        };
        if failure.is_some() != self.store_failed {
            self.store_failed = failure.is_some();
            self.hub.conditions.set(Condition {
                condition_type: "StoreUnwritable".into(),
                status: failure.is_some(),
                reason: if failure.is_some() { "WriteFailed" } else { "WriteSucceeded" }.into(),
                message: failure.clone().unwrap_or_else(|| "the node's store takes changes again".into()),
            });
        }
        self.inputs.push_back(match failure {
            None if rt::fault::is("drop-ack") => Input::NotStored(message),
            None => Input::Stored(message),
            Some(_) => Input::NotStored(message),
        });
    }

    /// Feeds the link until it has nothing more to say; what is to be sent is queued.
    async fn process(&mut self) {
        while let Some(input) = self.inputs.pop_front() {
            let now = Now {
                mono_ms: self.started.elapsed().as_millis() as u64,
                unix_ms: jiff::Timestamp::now().as_millisecond(),
            };
            for action in self.link.handle(now, input) {
                self.act(action).await;
            }
        }
        self.flush();
    }

    /// Hands what waits on the lane to the socket. Acknowledgements wait a moment while more is being stored.
    fn flush(&mut self) {
        if self.lane.only_acks_wait() && self.disk.len() > 0 {
            let until =
                *self.acks_until.get_or_insert_with(|| Instant::now() + Duration::from_millis(ACKS_WAIT_MS));
            if Instant::now() < until {
                return;
            }
        }
        self.acks_until = None;
        while let Some(out) = self.lane.take() {
            let frame = match out {
                Out::Text(text) => Frame::Text(text.into()),
                Out::Binary(bytes) => Frame::Binary(bytes.into()),
            };
            SENT_BYTES.add(frame.len() as u64);
            self.queue(frame);
        }
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Dial => {
                let endpoint: Endpoint = self.hub.endpoint.clone();
                let mut past = self.past.clone();
                if let Some((link, seqs)) = &mut past.stored {
                    let stored = self.link.stored_ids().filter_map(Lane::number_of);
                    seqs.extend(stored.filter(|(of, _)| of == link).map(|(_, seq)| seq));
                }
                // Zero stands for "none before".
                let link = rt::random_u64().max(1);
                self.past.dialled = link;
                self.dial = Some(Box::pin(async move { connect(&endpoint, link, &past).await }));
            }
            Action::Close => {
                self.dial = None;
                self.flush();
                if let Some(mut socket) = self.socket.take() {
                    // Politeness; the cloud notices the end of TCP as well.
                    socket.close("the node ended the link", LINK_CLOSE_TIME_MAX).await;
                }
            }
            Action::Transmit(message) => {
                tracing::trace!(target: "hub", "> {} {}", message.route.operation, message.route.resource);
                if !self.lane.push(&message) {
                    tracing::trace!(target: "hub", "its asker has gone with an earlier link");
                }
            }
            Action::Ping => self.queue(Frame::Ping(bytes::Bytes::new())),
            Action::Store(message) => self.disk.push(Write::Apply(message)),
            Action::Answered { msg_id, answer } => self.reply(&msg_id, |_| Ok(*answer)),
            Action::Failed { msg_id, why } => self.reply(&msg_id, |timeout| {
                Err(match why {
                    RequestFailure::Disconnected(why) => UplinkError::Disconnected(why),
                    RequestFailure::Busy => {
                        UplinkError::Disconnected("too many requests wait; try again".into())
                    }
                    RequestFailure::Timeout => UplinkError::Timeout(timeout),
                })
            }),
            Action::Delivered { key, msg_id } => {
                if self.hub.meta.get_local(super::disk::OUTBOX, &key).is_some() {
                    self.disk.push(Write::Drop { key, msg_id });
                }
            }
            Action::Refused { key } => {
                tracing::error!(target: "hub", "report {key} is lost: the outbox is full, since the cloud answers nothing");
            }
            Action::Unsupported(message) => self.unsupported(&message),
            Action::Up => {
                tracing::info!(target: "hub", "connected to the cloud at {}", self.hub.endpoint.server);
                self.last_down.clear();
                CONNECTS.add(1);
                self.hub.handle.resumed.store(self.is_resumed, Ordering::Relaxed);
                self.hub.handle.state.send_replace(LinkState::Connected);
                let carries_streams = self.socket.as_ref().is_some_and(|socket| socket.streams().is_some());
                self.hub.handle.streams.send_replace(Some(carries_streams));
            }
            Action::Down(reason) => {
                if reason != self.last_down {
                    tracing::warn!(target: "hub", "{reason}");
                    self.last_down = reason.clone();
                }
                self.hub.handle.state.send_replace(LinkState::Disconnected(reason));
                self.hub.handle.streams.send_replace(None);
            }
        }
    }

    fn reply(&mut self, msg_id: &str, result: impl FnOnce(Duration) -> Result<Message, UplinkError>) {
        if let Some((reply, timeout)) = self.waiters.remove(msg_id) {
            // The asker may have gone; then nobody misses the answer.
            let _ = reply.send(result(timeout));
        }
    }

    /// Node tasks are begun; everything else that a stock cloud sends beside objects (membership, router calls) needs no answer.
    fn unsupported(&mut self, message: &Message) {
        let route = &message.route;
        if route.group == "taskmanager" || route.source == "nodeupgradejobcontroller" {
            self.hub.tasks.run(message);
        } else {
            tracing::debug!(target: "hub", "{} {} from {} is not supported", route.operation, route.resource, route.source);
        }
    }

    /// Sent by the next turn of the loop, before any stream's data.
    fn queue(&mut self, frame: Frame) {
        if let Some(socket) = &mut self.socket {
            socket.queue(frame);
        }
    }
}

async fn finish(
    dial: &mut Option<BoxFuture<'static, Result<Dialled, ConnectError>>>,
) -> Result<Dialled, ConnectError> {
    match dial {
        Some(dial) => dial.await,
        None => std::future::pending().await,
    }
}

async fn next(socket: &mut Option<Socket>, may_read: bool) -> Result<Event, Ended> {
    match socket {
        Some(socket) => socket.next(may_read).await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
