//! The broker's shell: sockets around [`mqtt::broker::Broker`].
//!
//! This is the seam for a broker backend: `start(listen, auth, limits, drain)` gives a handle with the address and statistics,
//! and stops with the drain. Why rumqttd is not behind it: docs/decisions/mqtt-broker.md.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use mqtt::{
    broker::{Auth, Broker, ConnectionId, Limits, Stats},
    limits::STALL_MS_MAX,
};
use rt::{Drain, TaskGroup};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::Notify,
};

use crate::limits::{BUS_RETRY_DELAY_MAX, BUS_RETRY_DELAY_MIN};

/// How often silent and stuck connections are looked for.
const TICK: Duration = Duration::from_millis(500);
const READ_BYTES: usize = 4096;

/// A broker that runs until its drain.
pub struct Handle {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Handle {
    /// Where it listens; the port is the real one when 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn stats(&self) -> Stats {
        self.shared.lock().broker.stats()
    }
}

struct Shared {
    state: Mutex<State>,
    started: Instant,
}

struct State {
    broker: Broker,
    wake: BTreeMap<ConnectionId, Arc<Notify>>,
}

impl Shared {
    /// Held for the handling of one read or write, never across an await.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

impl State {
    /// Wakes the tasks of the connections that have something to do.
    fn wake_touched(&mut self) {
        for id in self.broker.take_touched() {
            if let Some(wake) = self.wake.get(&id) {
                wake.notify_one();
            }
        }
    }
}

/// Starts a broker. When the address is in use it is tried again until it is free; the log names the remedy.
pub fn start(listen: SocketAddr, auth: Auth, limits: Limits, drain: Drain) -> Handle {
    // Two places more than connections: the listener, and a connection that is just being refused.
    let tasks = TaskGroup::new("mqtt-broker", limits.connections_max + 2, drain);
    let state = State { broker: Broker::new(limits, auth), wake: BTreeMap::new() };
    let shared = Arc::new(Shared { state: Mutex::new(state), started: Instant::now() });
    let first = bind(listen);
    let address = first.as_ref().ok().and_then(|listener| listener.local_addr().ok()).unwrap_or(listen);
    tasks
        .spawn(serve(first, listen, shared.clone(), tasks.clone()))
        .expect("a new group has room for its listener");
    Handle { address, shared }
}

fn bind(listen: SocketAddr) -> io::Result<TcpListener> {
    let socket =
        if listen.is_ipv4() { tokio::net::TcpSocket::new_v4()? } else { tokio::net::TcpSocket::new_v6()? };
    // Without this a restart within a minute finds the port still taken by its own dead connections.
    socket.set_reuseaddr(true)?;
    socket.bind(listen)?;
    socket.listen(128)
}

async fn serve(
    first: io::Result<TcpListener>,
    listen: SocketAddr,
    shared: Arc<Shared>,
    tasks: TaskGroup,
) -> io::Result<()> {
    let drain = tasks.drain().clone();
    let mut backoff = rt::Backoff::new(BUS_RETRY_DELAY_MIN, BUS_RETRY_DELAY_MAX);
    let mut bound = first;
    let listener = loop {
        match bound {
            Ok(listener) => break listener,
            Err(error) => tracing::error!(
                "the MQTT broker cannot listen on {listen}: {error}; stop the other broker, or set modules.eventBus.mqttMode to 2 to use it"
            ),
        }
        if !drain.sleep(backoff.random_delay()).await {
            return Ok(());
        }
        bound = bind(listen);
    };
    let mut tick = tokio::time::interval(TICK);
    loop {
        let accepted = tokio::select! {
            () = drain.wait() => return Ok(()),
            _ = tick.tick() => {
                let mut state = shared.lock();
                state.broker.tick(shared.now_ms());
                state.wake_touched();
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, _)) => {
                let Some((id, wake)) = admit(&shared) else { continue };
                if tasks.spawn(connection(socket, id, wake, shared.clone(), drain.clone())).is_err() {
                    leave(&shared, id);
                }
            }
            Err(error) => {
                // Out of descriptors or memory: others may close theirs meanwhile.
                tracing::warn!("the MQTT broker cannot accept: {error}");
                drain.sleep(BUS_RETRY_DELAY_MIN).await;
            }
        }
    }
}

fn admit(shared: &Shared) -> Option<(ConnectionId, Arc<Notify>)> {
    let mut state = shared.lock();
    let Some(id) = state.broker.accept(shared.now_ms()) else {
        tracing::warn!(
            "the MQTT broker is full ({} connections): a client was refused",
            state.broker.stats().connections
        );
        return None;
    };
    let wake = Arc::new(Notify::new());
    state.wake.insert(id, wake.clone());
    Some((id, wake))
}

fn leave(shared: &Shared, id: ConnectionId) {
    let mut state = shared.lock();
    state.wake.remove(&id);
    state.broker.closed(shared.now_ms(), id);
    state.wake_touched();
}

async fn connection(
    mut socket: TcpStream,
    id: ConnectionId,
    wake: Arc<Notify>,
    shared: Arc<Shared>,
    drain: Drain,
) -> io::Result<()> {
    let _ = socket.set_nodelay(true);
    // How it ended is of no interest to the log: a client that goes away is everyday life. Wills and counters tell the rest.
    let _ = drain.or(exchange(&mut socket, id, &wake, &shared)).await;
    leave(&shared, id);
    Ok(())
}

async fn exchange(
    socket: &mut TcpStream,
    id: ConnectionId,
    wake: &Notify,
    shared: &Shared,
) -> io::Result<()> {
    loop {
        let (output, wants_more) = {
            let mut state = shared.lock();
            let output = state.broker.output(id).map(std::mem::take);
            (output, state.broker.wants_more(id))
        };
        let Some(output) = output else { return socket.shutdown().await };
        if !output.is_empty() {
            let stall = Duration::from_millis(STALL_MS_MAX);
            tokio::time::timeout(stall, socket.write_all(&output))
                .await
                .map_err(|_| io::ErrorKind::TimedOut)??;
            let mut state = shared.lock();
            state.broker.wrote(shared.now_ms(), id);
            state.wake_touched();
            continue;
        }
        tokio::select! {
            ready = socket.readable(), if wants_more => {
                ready?;
                // On the stack and not across an await: an idle connection holds no buffer.
                let mut buffer = [0; READ_BYTES];
                let len = match socket.try_read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(len) => len,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                    Err(error) => return Err(error),
                };
                let mut state = shared.lock();
                state.broker.receive(shared.now_ms(), id, &buffer[..len]);
                state.wake_touched();
            }
            () = wake.notified() => {}
        }
    }
}
