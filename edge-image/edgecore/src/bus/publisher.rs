//! The connection that publishes, with QoS 1. What a broker has not acknowledged is kept: the last value of each retained topic for
//! as long as this program lives (a broker without a disk forgets them when it restarts), other messages in order and up to a
//! bound ([`BUS_KEPT_MAX`], [`BUS_KEPT_BYTES_MAX`]). When a broker is away for longer the oldest of those go, are counted, and the log says so.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    convert::Infallible,
    time::{Duration, Instant},
};

use anyhow::anyhow;
use bytes::Bytes;
use mqtt::{
    Qos,
    client::{Client, Event, PublishError},
    limits::RETAINED_MAX,
};
use rt::Drain;
use tokio::sync::{mpsc, oneshot};

use super::{
    endpoint::Endpoint,
    socket::{Outage, Socket, SocketError},
};
use crate::limits::{BUS_KEPT_BYTES_MAX, BUS_KEPT_MAX, BUS_REFUSED_PAUSE, BUS_RETAINED_BYTES_MAX};

pub(super) const KEEP_ALIVE_S: u16 = 60;

pub(super) struct Command {
    pub topic: String,
    pub payload: Bytes,
    pub retain: bool,
    /// Told when the message is on its way or kept.
    pub done: oneshot::Sender<anyhow::Result<()>>,
}

struct Publisher {
    client: Client,
    kept: Kept,
    outage: Outage,
    /// Retained messages on their way, by packet id.
    retaining: BTreeMap<u16, String>,
    refused: Refused,
}

/// What the broker did not take, for a full session whose client is away has subscribed to it. A retained value is offered again,
/// as it then is; what was only news is gone, and said.
#[derive(Default)]
struct Refused {
    topics: BTreeSet<String>,
    again_at: Option<tokio::time::Instant>,
    gone: u64,
}

/// Messages that no broker has acknowledged, and retained ones that it may have to be given again.
#[derive(Default)]
struct Kept {
    retained: BTreeMap<String, Bytes>,
    retained_bytes: usize,
    waiting: VecDeque<(String, Bytes, bool)>,
    waiting_bytes: usize,
    dropped: u64,
}

impl Kept {
    /// False when there are too many retained messages already. An empty one stays too: a broker with a disk may still hold the
    /// message that it takes back.
    fn retain(&mut self, topic: &str, payload: &Bytes) -> bool {
        let before = self.retained.get(topic).map(|have| have.len() + topic.len());
        let bytes = self.retained_bytes - before.unwrap_or(0) + topic.len() + payload.len();
        if bytes > BUS_RETAINED_BYTES_MAX || (before.is_none() && self.retained.len() >= RETAINED_MAX) {
            return false;
        }
        self.retained_bytes = bytes;
        self.retained.insert(topic.to_owned(), payload.clone());
        true
    }

    fn push(&mut self, topic: String, payload: Bytes, retain: bool) {
        self.waiting_bytes += topic.len() + payload.len();
        self.waiting.push_back((topic, payload, retain));
        while self.waiting.len() > BUS_KEPT_MAX || self.waiting_bytes > BUS_KEPT_BYTES_MAX {
            // The newest wish or value is worth more than the oldest.
            if self.pop().is_none() {
                return;
            }
            self.dropped += 1;
        }
    }

    /// While a broker is there nothing is dropped: publishers wait.
    fn has_room(&self) -> bool {
        self.waiting.len() < BUS_KEPT_MAX / 2 && self.waiting_bytes < BUS_KEPT_BYTES_MAX / 2
    }

    fn pop(&mut self) -> Option<(String, Bytes, bool)> {
        let (topic, payload, retain) = self.waiting.pop_front()?;
        self.waiting_bytes -= topic.len() + payload.len();
        Some((topic, payload, retain))
    }

    /// A broker is there (again): all retained messages come first, then what waited.
    fn start_over(&mut self) {
        let waiting: Vec<_> = std::iter::from_fn(|| self.pop()).filter(|(_, _, retain)| !retain).collect();
        for (topic, payload) in &self.retained {
            self.waiting_bytes += topic.len() + payload.len();
            self.waiting.push_back((topic.clone(), payload.clone(), true));
        }
        for (topic, payload, retain) in waiting {
            self.waiting_bytes += topic.len() + payload.len();
            self.waiting.push_back((topic, payload, retain));
        }
    }
}

pub(super) async fn run(
    endpoint: Endpoint,
    client: Client,
    mut commands: mpsc::Receiver<Command>,
    drain: Drain,
) -> Result<(), Infallible> {
    let started = Instant::now();
    let outage = Outage::new(&endpoint);
    let (kept, retaining, refused) = (Kept::default(), BTreeMap::new(), Refused::default());
    let mut publisher = Publisher { client, kept, outage, retaining, refused };
    loop {
        let attempt = async {
            let mut socket = {
                let open = Socket::open(&endpoint, &mut publisher.client, started);
                let kept = &mut publisher.kept;
                // Whoever publishes must not wait for a broker that does not answer.
                tokio::pin!(open);
                loop {
                    tokio::select! {
                        socket = &mut open => break socket?,
                        Some(command) = commands.recv() => keep(kept, command, false),
                    }
                }
            };
            publisher.serve(&mut socket, &mut commands).await
        };
        let Some(result) = drain.or(attempt).await else { return Ok(()) };
        let Err(error) = result;
        publisher.outage.failed(&error);
        let pause = Duration::from_millis(publisher.client.closed());
        let kept = &mut publisher.kept;
        let keeping = async {
            while let Some(command) = commands.recv().await {
                keep(kept, command, false);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = drain.wait() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
            () = keeping => {}
        }
    }
}

/// Keeps a message. What is retained waits only for a broker that is there: one that comes gets all of it anyway.
fn keep(kept: &mut Kept, command: Command, is_up: bool) {
    let Command { topic, payload, retain, done } = command;
    let taken = !retain || kept.retain(&topic, &payload);
    if taken && (is_up || !retain) {
        kept.push(topic, payload, retain);
    }
    let full = || {
        anyhow!("{RETAINED_MAX} retained messages or {BUS_RETAINED_BYTES_MAX} bytes of them are kept already")
    };
    let _ = done.send(if taken { Ok(()) } else { Err(full()) });
}

impl Publisher {
    async fn serve(
        &mut self,
        socket: &mut Socket,
        commands: &mut mpsc::Receiver<Command>,
    ) -> Result<Infallible, SocketError> {
        loop {
            self.send_waiting();
            socket.flush(&mut self.client).await?;
            // A broker that is there but slow makes the publishers wait; one that is away does not.
            let may_take = !self.client.is_up() || self.kept.has_room();
            let again_at = self.refused.again_at;
            let again = async {
                match again_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                waited = socket.wait(&mut self.client) => waited?,
                Some(command) = commands.recv(), if may_take => {
                    keep(&mut self.kept, command, self.client.is_up());
                }
                () = again => self.offer_again(),
            }
            while let Some(event) = self.client.next_event()? {
                match event {
                    Event::Acknowledged(id) => drop(self.retaining.remove(&id)),
                    Event::Refused(id) => {
                        let topic = self.retaining.remove(&id);
                        self.refused.note(topic);
                    }
                    _ => {}
                }
                if event == Event::Up {
                    self.outage.over();
                    self.kept.start_over();
                    if self.kept.dropped > 0 {
                        let dropped = std::mem::take(&mut self.kept.dropped);
                        tracing::warn!(
                            "{dropped} messages for the MQTT broker were dropped while it was away: the oldest"
                        );
                    }
                }
            }
        }
    }

    fn offer_again(&mut self) {
        self.refused.again_at = None;
        for topic in std::mem::take(&mut self.refused.topics) {
            if let Some(payload) = self.kept.retained.get(&topic).cloned() {
                self.kept.push(topic, payload, true);
            }
        }
    }

    fn send_waiting(&mut self) {
        while let Some((topic, payload, retain)) = self.kept.waiting.front() {
            match self.client.publish(topic, payload, Qos::AtLeastOnce, *retain) {
                Err(PublishError::Full | PublishError::Down) => return,
                Err(error) => tracing::error!("not published to {topic}: {error}"),
                Ok(id) if *retain => drop(self.retaining.insert(id, topic.clone())),
                Ok(_) => {}
            }
            self.kept.pop();
        }
    }
}

impl Refused {
    /// `topic`: of a retained message.
    fn note(&mut self, topic: Option<String>) {
        if let Some(topic) = topic {
            self.topics.insert(topic);
            self.again_at.get_or_insert_with(|| tokio::time::Instant::now() + BUS_REFUSED_PAUSE);
            return;
        }
        self.gone += 1;
        // At powers of two; who holds them the broker says.
        if self.gone.is_power_of_two() {
            tracing::warn!(
                "the MQTT broker has refused {} messages of this node: a full session whose client is away has subscribed to them",
                self.gone
            );
        }
    }
}
