//! The broker's shell: sockets, passwords and the disk around [`mqtt::broker::Broker`].
//!
//! This is the seam for a broker backend: [`start`] gives a handle with the address and statistics, and stops with the drain.
//! Why rumqttd is not behind it: docs/decisions/mqtt-broker.md.
//!
//! Here: listeners. `exchange` moves bytes between a socket and the broker, `disk` writes what is to outlive a power cut, `users`
//! checks passwords, `reload` reads them again when they change, `notices` tells people what the broker noticed. All of them share one broker behind a lock that is never held across an await.

mod disk;
mod exchange;
mod notices;
mod reload;
mod settings;
mod users;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::{Duration, Instant},
};

use mqtt::broker::{Auth, Broker, ConnectionId, DurableTopics, Limits, Origin, Stats, slot};
use rt::{Drain, TaskGroup};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::Notify,
};
use tokio_rustls::TlsAcceptor;

use crate::limits::{BUS_RETRY_DELAY_MAX, BUS_RETRY_DELAY_MIN, BUS_STOP_TIMEOUT};
use exchange::{Exchange, Socket};
pub use reload::Files;
pub use settings::from_config;
pub use users::{Users, UsersError};

/// How often silent and stuck connections are looked for.
const TICK: Duration = Duration::from_millis(500);
/// One buffer for all connections: an idle one holds none.
const READ_BYTES: usize = 16 * 1024;

/// Where and how a broker is reached.
#[derive(Clone)]
pub enum Listen {
    Tcp(SocketAddr),
    Tls(SocketAddr, Arc<ServerConfig>),
    /// Everybody who may open the file (owner and group) is on this machine.
    Unix(PathBuf),
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Listen::Tcp(address) => write!(f, "tcp://{address}"),
            Listen::Tls(address, _) => write!(f, "mqtts://{address}"),
            Listen::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// All that a broker is told at its start.
#[derive(Default)]
pub struct Settings {
    pub listen: Vec<Listen>,
    pub auth: Auth,
    pub users: Users,
    /// Where users and rules come from, to be read again when they change.
    pub files: Files,
    pub limits: Limits,
    pub durable: DurableTopics,
    /// Folder of what outlives a restart; none: nothing does.
    pub store_dir: Option<PathBuf>,
}

/// A broker that runs until its drain.
pub struct Handle {
    addresses: Vec<SocketAddr>,
    shared: Arc<Shared>,
    tasks: TaskGroup,
}

impl Handle {
    /// Where it listens first; the port is the real one when 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.addresses.first().copied().unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// All addresses of TCP and TLS, in the order of the settings.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Ends the session of a client that will not come again.
    pub fn forget(&self, client_id: &str) {
        let mut state = self.shared.lock();
        state.broker.forget(self.shared.now_ms(), client_id);
        self.shared.wake(&mut state, None);
    }

    pub fn stats(&self) -> Stats {
        self.shared.lock().broker.stats()
    }

    /// Waits, after the drain, until everything is written. False when that takes too long.
    pub async fn stopped(&self) -> bool {
        self.tasks.wait(BUS_STOP_TIMEOUT * 2).await
    }
}

struct Shared {
    state: Mutex<State>,
    started: Instant,
    users: Mutex<Users>,
    /// There is something for the disk, or for the checker of passwords.
    disk_work: Notify,
    checks: Notify,
}

struct State {
    broker: Broker,
    /// By place of the connection.
    wakers: Vec<Option<Waker>>,
    /// Where each comes from, by the same place; none for the unix socket.
    peers: Vec<Option<IpAddr>>,
    said: notices::Said,
    buffer: Box<[u8; READ_BYTES]>,
    /// The connections are to end, whatever they have to write.
    is_over: bool,
}

impl Shared {
    /// Held for the handling of one read or write, never across an await.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_users(&self, users: Users) {
        *self.users.lock().unwrap_or_else(PoisonError::into_inner) = users;
    }

    fn users(&self) -> Users {
        self.users.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Wakes whoever has something to do after a change of the broker, but for the connection that made it.
    fn wake(&self, state: &mut State, but: Option<ConnectionId>) {
        while let Some(id) = state.broker.next_touched() {
            if but != Some(id)
                && let Some(waker) = state.wakers.get(slot(id)).and_then(Option::as_ref)
            {
                waker.wake_by_ref();
            }
        }
        if state.broker.has_changes() {
            self.disk_work.notify_one();
        }
        if state.broker.has_checks() {
            self.checks.notify_one();
        }
        if state.broker.has_notices() {
            let notices = state.broker.take_notices();
            state.said.tell(notices, &state.peers);
        }
    }
}

/// A broker on one address, without users of its own and without a disk.
pub fn start(listen: SocketAddr, auth: Auth, limits: Limits, drain: Drain) -> Handle {
    start_with(Settings { listen: vec![Listen::Tcp(listen)], auth, limits, ..Settings::default() }, drain)
}

/// Starts a broker. When an address is in use it is tried again until it is free; the log names the remedy. When the disk cannot
/// be read the broker runs without one, and the log says so.
pub fn start_with(settings: Settings, drain: Drain) -> Handle {
    let store = settings.store_dir.as_deref().and_then(disk::open);
    start_on(settings, store, drain)
}

fn start_on(settings: Settings, store: Option<store::Store>, drain: Drain) -> Handle {
    // A few places more than connections: the listeners, the disk, the passwords, connections that are just being refused.
    let places = settings.limits.connections_max + settings.listen.len() + 8;
    let tasks = TaskGroup::new("mqtt-broker", places, drain);
    let has_disk = store.is_some();
    let auth = Auth { has_hashed: !settings.users.is_empty(), ..settings.auth };
    let mut broker = Broker::with_disk(settings.limits, auth, settings.durable, has_disk);
    broker.introduce(concat!("kinglet ", env!("CARGO_PKG_VERSION")), rt::random_u64());
    if let Some(store) = &store {
        disk::restore(&mut broker, store);
    }
    let state = State {
        broker,
        wakers: Vec::new(),
        peers: Vec::new(),
        said: notices::Said::default(),
        buffer: Box::new([0; READ_BYTES]),
        is_over: false,
    };
    let shared = Arc::new(Shared {
        state: Mutex::new(state),
        started: Instant::now(),
        users: Mutex::new(settings.users),
        disk_work: Notify::new(),
        checks: Notify::new(),
    });
    let room = "a new group has room for its own tasks";
    let mut addresses = Vec::new();
    for listen in settings.listen {
        let bound = bind(&listen);
        match (&bound, &listen) {
            (Ok(Listener::Tcp(listener)), _) => addresses.extend(listener.local_addr().ok()),
            (_, Listen::Tcp(address) | Listen::Tls(address, _)) => addresses.push(*address),
            _ => {}
        }
        tasks.spawn(serve(bound, listen, shared.clone(), tasks.clone())).expect(room);
    }
    tasks.spawn(watch(shared.clone(), store, tasks.drain().clone())).expect(room);
    tasks.spawn(users::run(shared.clone(), tasks.drain().clone())).expect(room);
    if !settings.files.is_empty() {
        tasks.spawn(reload::run(settings.files, shared.clone(), tasks.drain().clone())).expect(room);
    }
    Handle { addresses, shared, tasks }
}

/// Time passes for the broker; at the end it is stopped, and what it still has to say and to write is said and written.
async fn watch(shared: Arc<Shared>, store: Option<store::Store>, drain: Drain) -> io::Result<()> {
    let written = async {
        match &store {
            Some(store) => disk::run(&shared, store).await,
            None => std::future::pending().await,
        }
    };
    let ticks = async {
        let mut tick = tokio::time::interval(TICK);
        loop {
            tick.tick().await;
            let mut state = shared.lock();
            state.broker.tick(shared.now_ms());
            shared.wake(&mut state, None);
        }
    };
    tokio::select! {
        () = drain.wait() => {}
        () = written => {}
        () = ticks => {}
    }
    {
        let mut state = shared.lock();
        state.broker.stop(shared.now_ms());
        shared.wake(&mut state, None);
    }
    if let Some(store) = &store {
        disk::flush(&shared, store).await;
    }
    let left = tokio::time::timeout(BUS_STOP_TIMEOUT, async {
        while shared.lock().broker.stats().connections > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let _ = left.await;
    let mut state = shared.lock();
    state.is_over = true;
    state.wakers.iter().flatten().for_each(Waker::wake_by_ref);
    Ok(())
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

fn bind(listen: &Listen) -> io::Result<Listener> {
    match listen {
        Listen::Tcp(address) | Listen::Tls(address, _) => {
            let socket = match address.is_ipv4() {
                true => tokio::net::TcpSocket::new_v4()?,
                false => tokio::net::TcpSocket::new_v6()?,
            };
            // Without this a restart within a minute finds the port still taken by its own dead connections.
            socket.set_reuseaddr(true)?;
            socket.bind(*address)?;
            Ok(Listener::Tcp(socket.listen(1024)?))
        }
        Listen::Unix(path) => {
            // The file of an earlier run is in the way; one that somebody listens on is not ours to take.
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(path)?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
            Ok(Listener::Unix(listener))
        }
    }
}

impl Listener {
    async fn accept(&self, tls: Option<&Arc<ServerConfig>>) -> io::Result<(Socket, Origin, Option<IpAddr>)> {
        match self {
            Listener::Unix(listener) => Ok((Box::new(listener.accept().await?.0), Origin::Local, None)),
            Listener::Tcp(listener) => {
                let (socket, peer) = listener.accept().await?;
                let _ = socket.set_nodelay(true);
                let ip = peer.ip().to_canonical();
                let is_local = ip.is_loopback() && tls.is_none();
                Ok((Box::new(socket), if is_local { Origin::Local } else { Origin::Remote }, Some(ip)))
            }
        }
    }
}

async fn serve(
    first: io::Result<Listener>,
    listen: Listen,
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
        bound = bind(&listen);
    };
    let tls = match &listen {
        Listen::Tls(_, config) => Some(config.clone()),
        _ => None,
    };
    loop {
        let accepted = match drain.or(listener.accept(tls.as_ref())).await {
            None => return Ok(()),
            Some(accepted) => accepted,
        };
        match accepted {
            Ok((socket, origin, peer)) => {
                let Some(id) = admit(&shared, &origin, peer) else { continue };
                let exchange = Exchange::new(id, shared.clone());
                let spawned = match &tls {
                    None => tasks.spawn(exchange.run(socket)),
                    Some(config) => tasks.spawn(exchange.run_tls(TlsAcceptor::from(config.clone()), socket)),
                };
                // The exchange that was not started has left by being dropped.
                if let Err(error) = spawned {
                    tracing::warn!("{error}");
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

fn admit(shared: &Shared, origin: &Origin, peer: Option<IpAddr>) -> Option<ConnectionId> {
    let mut state = shared.lock();
    let admitted = state.broker.accept(shared.now_ms(), origin.clone());
    if let Some(id) = admitted {
        if state.peers.len() <= slot(id) {
            state.peers.resize(slot(id) + 1, None);
        }
        state.peers[slot(id)] = peer;
    }
    if admitted.is_none() {
        let stats = state.broker.stats();
        // Said at powers of two: a crowd at the door must not fill the log.
        if stats.closed_by_broker.is_power_of_two() {
            tracing::warn!(
                "the MQTT broker is full ({} connections): a client was refused",
                stats.connections
            );
        }
    }
    admitted
}

#[cfg(test)]
mod tests;
