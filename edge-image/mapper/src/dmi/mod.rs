//! The mapper at an edgecore's DMI socket instead of a broker: at a stock KubeEdge node, or at ours.
//!
//! ```text
//! edgecore's dmi.sock <--MapperRegister, Report...-- [link: a thread with tokio] <-- [outbox] <-- engine (this thread)
//! edgecore ---RegisterDevice, UpdateDevice, ...----> our socket --> descriptions -------------> engine
//! ```
//!
//! The engine and its drivers are the same, in the same one thread: they are given the descriptions that they would have had on
//! the bus, and what they say on KubeEdge's topics is kept as the newest value of each property until edgecore takes it. gRPC
//! needs HTTP/2, so this mode alone brings tokio, in its own program (`kinglet-mapper-dmi`); why, and what it weighs, is in
//! docs/decisions/dmi.md.
//!
//! Invariants: nothing here grows with time (values by property, devices and models bounded); edgecore's refusal for too many
//! calls (KubeEdge takes one a second) costs old values, never the newest; losing edgecore stops no device.

mod link;
pub mod outbox;

use std::{
    io::{Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
};

use tokio::sync::Notify;

use crate::{
    engine::Engine,
    hotplug::HotPlug,
    limits::DMI_COMMANDS_MAX,
    monotonic_ms,
    run::{KernelOpener, ready_devices},
    wall_ms,
};
use outbox::Outbox;

#[derive(Clone, Debug)]
pub struct Settings {
    /// Edgecore's socket.
    pub edgecore: PathBuf,
    /// Ours, made anew at each start.
    pub listen: PathBuf,
    /// Registered once for each protocol, as `<name>-<protocol>`.
    pub name: String,
    pub protocols: Vec<String>,
    pub lines_socket: PathBuf,
}

/// To the engine.
#[derive(Debug)]
enum Command {
    Description {
        protocol: String,
        id: String,
        payload: Vec<u8>,
    },
    /// The whole list of a protocol.
    Inventory {
        protocol: String,
        payload: Vec<u8>,
    },
    Up,
    Down,
}

/// Between the two threads.
struct Shared {
    outbox: Mutex<Outbox>,
    /// There is something in the outbox.
    news: Notify,
    stop: Notify,
}

impl Shared {
    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The link's end of the way to the engine.
struct Commands {
    queue: mpsc::SyncSender<Command>,
    wake: UnixStream,
}

impl Commands {
    /// Waits when the engine is behind: it is a matter of milliseconds.
    fn send(&self, command: Command) {
        // Without the engine there is no program.
        let _ = self.queue.send(command);
        // A full pipe wakes as well.
        let _ = (&self.wake).write(&[0]);
    }
}

/// Runs until the process is ended.
pub fn run(settings: &Settings) -> anyhow::Result<()> {
    run_until(settings, KernelOpener::new(&settings.lines_socket), || false)
}

/// `stop` is asked at least once per turn.
fn run_until(
    settings: &Settings,
    opener: impl crate::engine::Opener + 'static,
    stop: impl Fn() -> bool,
) -> anyhow::Result<()> {
    let mut engine = Engine::new(Box::new(opener));
    let (queue, commands) = mpsc::sync_channel(DMI_COMMANDS_MAX);
    let (wake, mut woken) = UnixStream::pair()?;
    wake.set_nonblocking(true)?;
    woken.set_nonblocking(true)?;
    let shared = Arc::new(Shared { outbox: Mutex::default(), news: Notify::new(), stop: Notify::new() });
    let thread = link::start(settings.clone(), shared.clone(), Commands { queue, wake })?;
    let hot_plug = HotPlug::new(&[Path::new("/dev")]);
    let mut up = false;
    while !stop() {
        let now_ms = monotonic_ms();
        engine.tick(now_ms);
        if up {
            let mut told = false;
            let mut outbox = shared.outbox();
            engine.flush(now_ms, wall_ms(), |topic, payload| {
                told |= outbox.tell(topic, payload);
                true
            });
            drop(outbox);
            if told {
                shared.news.notify_one();
            }
        }
        let mut waits = Vec::new();
        engine.waits(&mut waits);
        let (commanded, ready) = ready_devices(
            now_ms,
            engine.deadline_ms(),
            &waits,
            hot_plug.as_ref(),
            Some((woken.as_fd(), false)),
        )?;
        let now_ms = monotonic_ms();
        if commanded {
            let mut buffer = [0; 64];
            while woken.read(&mut buffer).is_ok_and(|len| len > 0) {}
        }
        while let Ok(command) = commands.try_recv() {
            match command {
                Command::Description { protocol, id, payload } => {
                    engine.description(now_ms, &protocol, &id, &payload);
                }
                Command::Inventory { protocol, payload } => engine.inventory(now_ms, &protocol, &payload),
                Command::Up => {
                    up = true;
                    engine.connected(now_ms);
                }
                Command::Down => {
                    up = false;
                    engine.disconnected(now_ms);
                }
            }
        }
        for id in ready {
            engine.ready(now_ms, &id);
        }
        if hot_plug.as_ref().is_some_and(HotPlug::has_news) {
            engine.hurry(now_ms);
        }
    }
    shared.stop.notify_one();
    drop(commands);
    thread.join().map_err(|_| anyhow::anyhow!("the DMI thread has panicked"))?;
    remove(&settings.listen);
    Ok(())
}

fn remove(path: &Path) {
    // One that is not there is as good.
    let _ = std::fs::remove_file(path);
}

#[cfg(test)]
mod tests;
