//! The connection that reads: hands each message to the subscriptions that match, and waits for them.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use mqtt::{
    client::{Client, Event, Options},
    topic::matches,
};
use rt::Drain;
use tokio::sync::{Notify, mpsc};

use super::{
    endpoint::Endpoint,
    socket::{Outage, Socket, SocketError},
};
use crate::{contract::Publish, limits::BUS_QUEUE_LEN};

/// Long, because this connection does not read, and so sees no answer to its pings, while a reader is behind.
pub(super) const KEEP_ALIVE_S: u16 = 240;

/// The node's subscriptions, shared by the connections to all brokers.
#[derive(Default)]
pub(super) struct Subscriptions {
    readers: Mutex<Vec<(String, mpsc::Sender<Publish>)>>,
    added: Notify,
}

impl Subscriptions {
    fn lock(&self) -> MutexGuard<'_, Vec<(String, mpsc::Sender<Publish>)>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add(&self, filter: &str) -> mpsc::Receiver<Publish> {
        let (tx, rx) = rt::chan::waiting(BUS_QUEUE_LEN);
        self.lock().push((filter.to_owned(), tx));
        self.added.notify_waiters();
        rx
    }

    /// Filters with a living reader. Forgets the others.
    fn filters(&self) -> Vec<String> {
        let mut readers = self.lock();
        readers.retain(|(_, reader)| !reader.is_closed());
        readers.iter().map(|(filter, _)| filter.clone()).collect()
    }

    /// The readers of a topic. A broker that kept messages for us gives them at once when we are back, and that may be before the
    /// modules of this program have subscribed: they are waited for.
    async fn readers_when_there(&self, topic: &str, grace: Duration) -> Vec<mpsc::Sender<Publish>> {
        let appear = async {
            loop {
                let added = self.added.notified();
                tokio::pin!(added);
                added.as_mut().enable();
                let readers = self.readers_of(topic);
                if !readers.is_empty() {
                    return readers;
                }
                added.await;
            }
        };
        tokio::time::timeout(grace, appear).await.unwrap_or_default()
    }

    fn readers_of(&self, topic: &str) -> Vec<mpsc::Sender<Publish>> {
        self.lock()
            .iter()
            .filter(|(filter, _)| matches(filter, topic))
            .map(|(_, reader)| reader.clone())
            .collect()
    }
}

pub(super) async fn run(
    endpoint: Endpoint,
    options: Options,
    subscriptions: Arc<Subscriptions>,
    drain: Drain,
) -> Result<(), Infallible> {
    let started = Instant::now();
    let mut client = Client::new(options);
    let mut outage = Outage::new(&endpoint);
    loop {
        let attempt = async {
            let mut socket = Socket::open(&endpoint, &mut client, started).await?;
            serve(&mut socket, &mut client, &subscriptions, &mut outage).await
        };
        let Some(result) = drain.or(attempt).await else { return Ok(()) };
        let Err(error) = result;
        outage.failed(&error);
        let pause = Duration::from_millis(client.closed());
        if !drain.sleep(pause).await {
            return Ok(());
        }
    }
}

async fn serve(
    socket: &mut Socket,
    client: &mut Client,
    subscriptions: &Subscriptions,
    outage: &mut Outage,
) -> Result<Infallible, SocketError> {
    loop {
        // Before the filters are listed, so that one added in between wakes us.
        let added = subscriptions.added.notified();
        tokio::pin!(added);
        added.as_mut().enable();
        for filter in subscriptions.filters() {
            if !client.subscribe(&filter) {
                tracing::error!(
                    "the bus cannot subscribe to {filter:?}: it is invalid, or there are too many subscriptions"
                );
            }
        }
        socket.flush(client).await?;
        tokio::select! {
            waited = socket.wait(client) => waited?,
            () = added => {}
        }
        while let Some(event) = client.next_event()? {
            let (topic, payload, retained) = match event {
                Event::Message { topic, payload, retain } => {
                    (topic.to_owned(), Bytes::copy_from_slice(payload), retain)
                }
                Event::Up => {
                    outage.over();
                    continue;
                }
                Event::Acknowledged(_) | Event::Refused(_) => continue,
            };
            for reader in subscriptions.readers_when_there(&topic, socket.grace()).await {
                // A reader that is gone is forgotten at the next listing.
                let publish = Publish { topic: topic.clone(), payload: payload.clone(), retained };
                let _ = reader.send(publish).await;
            }
        }
    }
}
