//! One node's link while it is up: a loop that feeds the delivery value and the upstream requests, and carries out what they
//! say. The only owner of the node's delivery records.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rt::{BoxFuture, Drain};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, protocol::Message as Frame};
use wire::Message;
use wire::delivery::{Action, Delivery, Input};

use super::downlink::{Fetched, devices, fetch, membership};
use crate::contract::{DesiredWatch, NodeDesired};
use crate::limits::SESSION_REQUESTS_MAX;
use crate::records::{DeliveryFile, RecordError, Records};
use crate::upstream::request::{Request, parse};
use crate::upstream::{Upstream, refuse};

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

pub struct Session<S> {
    pub node: String,
    pub generation: u64,
    pub ws: WebSocketStream<S>,
    pub upstream: Upstream,
    pub records: Records,
    pub desired: DesiredWatch,
    pub keepalive: Duration,
    pub write_timeout: Duration,
    /// Starts when another connection takes over or cloudcore stops.
    pub stop: Drain,
    /// Starts when cloudcore stops.
    pub drain: Drain,
}

struct Work {
    delivery: Delivery,
    file: DeliveryFile,
    started: Instant,
    members: BTreeSet<String>,
    fetching: Option<BoxFuture<'static, Fetched>>,
    requests: VecDeque<(Request, Message)>,
    answering: Option<BoxFuture<'static, Option<Message>>>,
    node_uid: Option<String>,
    alive_until: Instant,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Session<S> {
    /// Runs the link to its end.
    pub async fn run(mut self) -> End {
        let mut file = match self.records.delivery(&self.node, self.generation) {
            Ok(file) => file,
            Err(error) => return End::Records(error),
        };
        let delivered = match file.load() {
            Ok(delivered) => delivered,
            Err(error) => return End::Records(error),
        };
        let now = Instant::now();
        let mut work = Work {
            delivery: Delivery::new(delivered),
            file,
            started: now,
            members: BTreeSet::new(),
            fetching: None,
            requests: VecDeque::new(),
            answering: None,
            node_uid: None,
            alive_until: now + self.keepalive,
        };
        let end = self.talk(&mut work).await.err().unwrap_or(End::Closed);
        if !matches!(end, End::Closed | End::Broken(_)) {
            // The peer may be gone; it has a second to read the reason.
            let close = self.ws.close(None);
            drop(tokio::time::timeout(Duration::from_secs(1), close).await);
        }
        end
    }

    async fn talk(&mut self, work: &mut Work) -> Result<(), End> {
        let nonce = u128::from_be_bytes(*uuid::Uuid::new_v4().as_bytes());
        self.handle(work, Input::Connected { nonce }).await?;
        self.desired.mark_changed();
        loop {
            let resend_at =
                work.delivery.next_deadline_ms().map(|ms| work.started + Duration::from_millis(ms));
            let wake_at = resend_at.map_or(work.alive_until, |at| at.min(work.alive_until));
            tokio::select! {
                biased;
                () = self.stop.wait() => return Err(if self.drain.is_draining() { End::Drained } else { End::TakenOver }),
                answer = pending(&mut work.answering) => {
                    work.answering = None;
                    if let Some(answer) = answer {
                        self.send(&answer).await?;
                    }
                    self.answer_next(work);
                }
                fetched = pending(&mut work.fetching) => {
                    work.fetching = None;
                    match fetched {
                        Fetched::Ready(message) => self.send(&message).await?,
                        Fetched::Gone { msg_id } => self.handle(work, Input::Skipped { msg_id }).await?,
                        Fetched::Failed => {}
                    }
                }
                frame = self.ws.next(), if work.requests.len() < SESSION_REQUESTS_MAX => {
                    let frame = frame.ok_or(End::Closed)?.map_err(broken)?;
                    self.receive(work, frame).await?;
                }
                changed = self.desired.changed() => {
                    changed.map_err(|_| End::Drained)?;
                    self.desire(work).await?;
                }
                () = tokio::time::sleep_until(wake_at) => {
                    if Instant::now() >= work.alive_until {
                        return Err(End::Silent(self.keepalive));
                    }
                    self.handle(work, Input::Tick).await?;
                }
            }
        }
    }

    async fn receive(&mut self, work: &mut Work, frame: Frame) -> Result<(), End> {
        let bytes = match &frame {
            Frame::Text(text) => text.as_bytes(),
            Frame::Binary(bytes) => bytes,
            Frame::Close(_) => return Err(End::Closed),
            _ => return Ok(()),
        };
        let message = match Message::decode(bytes) {
            Ok(message) => message,
            Err(error) => {
                tracing::warn!(
                    "node {} sent a frame that is not a message; it is skipped: {}",
                    self.node,
                    rt::error_chain(&error)
                );
                return Ok(());
            }
        };
        match parse(&self.node, &message) {
            Ok(Request::Keepalive) => self.keep_alive(work),
            Ok(Request::Ack { parent }) if message.content_is_ok() => {
                self.handle(work, Input::Acked { msg_id: parent }).await
            }
            Ok(Request::Ack { .. } | Request::Ignored) => Ok(()),
            Ok(request) => {
                work.requests.push_back((request, message));
                self.answer_next(work);
                Ok(())
            }
            Err(error) => {
                tracing::debug!("node {}: {error}", self.node);
                match refuse(&message, &error) {
                    Some(answer) => self.send(&answer).await,
                    None => Ok(()),
                }
            }
        }
    }

    fn keep_alive(&self, work: &mut Work) -> Result<(), End> {
        work.alive_until = Instant::now() + self.keepalive;
        let record = self.records.node(&self.node).map_err(End::Records)?;
        if record.generation != self.generation { Err(End::Reset) } else { Ok(()) }
    }

    /// One request at a time, in the order they came: a lease renewal must not overtake another.
    fn answer_next(&self, work: &mut Work) {
        if work.answering.is_some() {
            return;
        }
        let Some((request, message)) = work.requests.pop_front() else { return };
        let (upstream, node, desired) =
            (self.upstream.clone(), self.node.clone(), self.desired.borrow().clone());
        work.answering =
            Some(Box::pin(async move { upstream.answer(&node, desired, request, message).await }));
    }

    async fn desire(&mut self, work: &mut Work) -> Result<(), End> {
        let Some(desired): Option<Arc<NodeDesired>> = self.desired.borrow_and_update().clone() else {
            return Ok(());
        };
        if work.node_uid.is_some() && work.node_uid != desired.node_uid {
            return Err(End::NodeDeleted);
        }
        work.node_uid.clone_from(&desired.node_uid);
        let members = devices(&desired.targets);
        if let Some(message) = membership(&work.members, &members) {
            self.send(&message).await?;
            work.members = members;
        }
        self.handle(work, Input::Desired(desired.targets.clone())).await
    }

    async fn handle(&mut self, work: &mut Work, input: Input) -> Result<(), End> {
        let now_ms = work.started.elapsed().as_millis() as u64;
        for action in work.delivery.handle(now_ms, input) {
            match action {
                Action::Record { uid, delivered, durable } => {
                    work.file.record(&uid, &delivered, durable).map_err(End::Records)?
                }
                Action::Forget { uid } => work.file.forget(&uid).map_err(End::Records)?,
                // A push that is still being read will be sent when it was.
                Action::Send(push) if work.fetching.is_none() => {
                    if push.sends > 1 {
                        let waited_s = wire::limits::PUSH_RESEND_MS / 1000;
                        tracing::warn!(
                            "node {} has not acknowledged {} within {waited_s} s; it is sent again; if this goes on, look at the \
                             node's condition StoreUnwritable and its log",
                            self.node,
                            push.resource
                        );
                    }
                    work.fetching = Some(Box::pin(fetch(self.upstream.api.clone(), push)));
                }
                Action::Send(_) => {}
            }
        }
        work.file.tidy(work.delivery.delivered()).map_err(End::Records)
    }

    async fn send(&mut self, message: &Message) -> Result<(), End> {
        let send = self.ws.send(Frame::text(message.encode()));
        match tokio::time::timeout(self.write_timeout, send).await {
            Ok(sent) => sent.map_err(broken),
            Err(_) => Err(End::Stuck(self.write_timeout)),
        }
    }
}

fn broken(error: tungstenite::Error) -> End {
    match error {
        tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => End::Closed,
        error => End::Broken(error),
    }
}

/// The future's output, or for ever nothing when there is none.
async fn pending<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
