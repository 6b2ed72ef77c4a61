//! One direction of the bridge: a reader with a kept session at the source, a writer at the target, in one task.
//!
//! A message is acknowledged to the source when the target has acknowledged its copies, so it is always kept by one of the two
//! brokers, over restarts of either and of edgecore. While the target is away the reader is too, and what is for it waits in its
//! session at the source, by that broker's rules: ours then stops whoever publishes more than the session holds.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    time::{Duration, Instant},
};

use mqtt::{
    Qos,
    client::{Client, Event, PublishError},
};
use rt::Drain;

use super::{
    bridge::{source, target_topic},
    endpoint::Endpoint,
    socket::{Outage, Socket, SocketError},
};
use crate::config::BridgeRule;

/// A broker and our client of it.
pub(super) struct End {
    pub endpoint: Endpoint,
    pub client: Client,
}

struct Pump {
    rules: Vec<BridgeRule>,
    from: Client,
    to: Client,
    /// Ids at the target of copies that it has not acknowledged, and of what each is a copy.
    copies: BTreeMap<u16, u16>,
}

/// Until the drain.
pub(super) async fn run(rules: Vec<BridgeRule>, from: End, to: End, drain: Drain) -> Result<(), Infallible> {
    let started = Instant::now();
    let mut outages = (Outage::new(&from.endpoint), Outage::new(&to.endpoint));
    let mut pump = Pump { rules, from: from.client, to: to.client, copies: BTreeMap::new() };
    pump.from.acknowledge_by_hand();
    for rule in &pump.rules {
        pump.from.subscribe_at(&source(rule), if rule.live { Qos::AtMostOnce } else { Qos::AtLeastOnce });
    }
    loop {
        let attempt = async {
            let mut target = match open(&to.endpoint, &mut pump.to, started).await {
                Ok(socket) => socket,
                Err(error) => return outages.1.failed(&error),
            };
            outages.1.over();
            let mut source = match open(&from.endpoint, &mut pump.from, started).await {
                Ok(socket) => socket,
                Err(error) => return outages.0.failed(&error),
            };
            outages.0.over();
            // Unacknowledged messages come again from the source.
            pump.copies.clear();
            match pump.serve(&mut source, &mut target).await {
                Err(Ended::Source(error)) => outages.0.failed(&error),
                Err(Ended::Target(error)) => outages.1.failed(&error),
                Ok(never) => match never {},
            }
        };
        if drain.or(attempt).await.is_none() {
            return Ok(());
        }
        let pause = pump.from.closed().max(pump.to.closed());
        if !drain.sleep(Duration::from_millis(pause)).await {
            return Ok(());
        }
    }
}

/// Which end broke.
enum Ended {
    Source(SocketError),
    Target(SocketError),
}

/// Connects, and waits until the broker has accepted us.
async fn open(endpoint: &Endpoint, client: &mut Client, started: Instant) -> Result<Socket, SocketError> {
    let mut socket = Socket::open(endpoint, client, started).await?;
    while !client.is_up() {
        socket.flush(client).await?;
        socket.wait(client).await?;
        // The first event is this one: messages come behind it.
        client.next_event()?;
    }
    socket.flush(client).await?;
    Ok(socket)
}

impl Pump {
    async fn serve(&mut self, source: &mut Socket, target: &mut Socket) -> Result<Infallible, Ended> {
        loop {
            while self.has_room() && self.copy_next().map_err(Ended::Source)? {
                // A copy may be as large as all that waits for the socket may be.
                target.flush(&mut self.to).await.map_err(Ended::Target)?;
            }
            source.flush(&mut self.from).await.map_err(Ended::Source)?;
            target.flush(&mut self.to).await.map_err(Ended::Target)?;
            let has_room = self.has_room();
            tokio::select! {
                waited = target.wait(&mut self.to) => waited.map_err(Ended::Target)?,
                waited = source.wait(&mut self.from), if has_room => waited.map_err(Ended::Source)?,
            }
            while let Some(event) = self.to.next_event().map_err(|error| Ended::Target(error.into()))? {
                if let Event::Acknowledged(id) | Event::Refused(id) = event
                    && let Some(of) = self.copies.remove(&id)
                    && !self.copies.values().any(|other| *other == of)
                {
                    self.from.acknowledge(of);
                }
            }
        }
    }

    /// One message has at most as many copies as there are rules.
    fn has_room(&self) -> bool {
        self.to.room() >= self.rules.len()
    }

    /// Copies the next message that has come; false when there is none.
    fn copy_next(&mut self) -> Result<bool, SocketError> {
        let mut is_copied = false;
        let Some(event) = self.from.next_event()? else { return Ok(false) };
        let Event::Message { topic, payload, .. } = event else { return Ok(true) };
        let mut ids = Vec::new();
        for rule in &self.rules {
            if !mqtt::topic::matches(&source(rule), topic) {
                continue;
            }
            let Some(wanted) = target_topic(rule, topic) else { continue };
            match self.to.publish(&wanted, payload, Qos::AtLeastOnce, rule.retain) {
                Ok(id) => ids.push(id),
                Err(error @ (PublishError::TooLarge(_) | PublishError::Topic(_))) => {
                    tracing::warn!("modules.eventBus.bridge: a message is not copied: {error}");
                }
                // There is room, and the connection is up: else this is not called.
                Err(PublishError::Full | PublishError::Down) => return Err(SocketError::Closed),
            }
            is_copied = true;
        }
        let Some(of) = self.from.taken() else { return Ok(true) };
        if is_copied && !ids.is_empty() {
            self.copies.extend(ids.into_iter().map(|id| (id, of)));
        } else {
            self.from.acknowledge(of);
        }
        Ok(true)
    }
}
