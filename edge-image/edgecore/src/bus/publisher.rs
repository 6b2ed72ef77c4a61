//! The connection that publishes. It keeps our retained messages and gives them to each broker that comes (back) up.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    time::{Duration, Instant},
};

use anyhow::anyhow;
use bytes::Bytes;
use mqtt::{
    Qos,
    client::{Client, Event, Options, PublishError},
    limits::RETAINED_MAX,
};
use rt::Drain;
use tokio::sync::{mpsc, oneshot};

use super::socket::{Outage, Socket, SocketError};

pub(super) const KEEP_ALIVE_S: u16 = 60;

pub(super) struct Command {
    pub topic: String,
    pub payload: Bytes,
    pub retain: bool,
    /// Told when the message is on its way (or kept, when it is retained and there is no broker).
    pub done: oneshot::Sender<anyhow::Result<()>>,
}

struct Publisher {
    client: Client,
    retained: BTreeMap<String, Bytes>,
    /// Messages that wait for a place in flight; new commands are not taken while there are any.
    waiting: VecDeque<(String, Bytes, bool)>,
    outage: Outage,
    last_error: String,
}

pub(super) async fn run(
    endpoint: String,
    options: Options,
    mut commands: mpsc::Receiver<Command>,
    drain: Drain,
) -> Result<(), Infallible> {
    let started = Instant::now();
    let outage = Outage::new(&endpoint);
    let last_error = format!("MQTT broker at {endpoint} is not connected yet");
    let mut publisher = Publisher {
        client: Client::new(options),
        retained: BTreeMap::new(),
        waiting: VecDeque::new(),
        outage,
        last_error,
    };
    loop {
        let attempt = async {
            let mut socket = {
                let open = Socket::open(&endpoint, &mut publisher.client, started);
                open.await?
            };
            publisher.serve(&mut socket, &mut commands).await
        };
        let Some(result) = drain.or(attempt).await else { return Ok(()) };
        let Err(error) = result;
        publisher.last_error = publisher.outage.text(&error);
        publisher.outage.failed(&error);
        let pause = Duration::from_millis(publisher.client.closed());
        let answering = async {
            while let Some(command) = commands.recv().await {
                publisher.refuse(command);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = drain.wait() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
            () = answering => {}
        }
    }
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
            let may_take = !self.client.is_up() || self.waiting.is_empty();
            tokio::select! {
                waited = socket.wait(&mut self.client) => waited?,
                Some(command) = commands.recv(), if may_take => {
                    if self.client.is_up() { self.take(command) } else { self.refuse(command) }
                }
            }
            while let Some(event) = self.client.next_event()? {
                if event == Event::Up {
                    self.outage.over();
                    let retained =
                        self.retained.iter().map(|(topic, payload)| (topic.clone(), payload.clone(), true));
                    self.waiting = retained.collect();
                    break;
                }
            }
        }
    }

    fn take(&mut self, command: Command) {
        if command.retain && !self.keep(&command.topic, &command.payload) {
            let _ = command.done.send(Err(anyhow!("{RETAINED_MAX} retained messages are kept already")));
            return;
        }
        self.waiting.push_back((command.topic, command.payload, command.retain));
        // Sent from the queue at once or when the broker has acknowledged others; an error in between is the outage's.
        let _ = command.done.send(Ok(()));
    }

    /// Answers while there is no broker: what is retained is published later, anything else is lost and said to be.
    fn refuse(&mut self, command: Command) {
        let kept = command.retain && self.keep(&command.topic, &command.payload);
        let _ = command.done.send(if kept { Ok(()) } else { Err(anyhow!("{}", self.last_error)) });
    }

    fn keep(&mut self, topic: &str, payload: &Bytes) -> bool {
        if self.retained.len() >= RETAINED_MAX && !self.retained.contains_key(topic) {
            return false;
        }
        // An empty one stays too: a broker with a disk may still hold the message that it takes back.
        self.retained.insert(topic.to_owned(), payload.clone());
        true
    }

    fn send_waiting(&mut self) {
        while let Some((topic, payload, retain)) = self.waiting.front() {
            match self.client.publish(topic, payload, Qos::AtLeastOnce, *retain) {
                Err(PublishError::Full | PublishError::Down) => return,
                Err(error) => tracing::error!("not published to {topic}: {error}"),
                Ok(_) => {}
            }
            self.waiting.pop_front();
        }
    }
}
