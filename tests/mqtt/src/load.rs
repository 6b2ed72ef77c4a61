//! Load on a broker: publishers and one or more subscribers on blocking sockets, and what the broker's process spent on it.
//!
//! Payloads carry publisher and number, so that a subscriber notices each loss, repetition and change of order.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    peer::Peer,
    wire::{self, Connect, Publish, V4},
};

/// Bytes of payload of each message.
const PAYLOAD: usize = 64;
/// When nothing has come for so long, the rest is lost.
const LOST_AFTER: Duration = Duration::from_secs(5);

/// CPU seconds that all threads of a process have had. The scheduler's own count: ticks of 10 ms would hide small brokers.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let mut nanoseconds = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("the broker's process is gone")? {
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        nanoseconds += text.split(' ').next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(nanoseconds as f64 / 1e9)
}

pub fn resident_kb(pid: u32) -> Result<f64> {
    e2e::process::proc_status_kb(pid, "VmRSS").map(|kb| kb as f64)
}

/// Bytes that the process has sent to the disk.
pub fn written_bytes(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).context("the broker's process is gone")?;
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    Ok(line.context("no write_bytes")?.trim().parse()?)
}

/// A batch of messages from `publishers` to `subscribers`, as fast as it goes.
#[derive(Clone, Copy)]
pub struct Flood {
    pub qos: u8,
    pub messages: u32,
    pub publishers: u32,
    pub subscribers: u32,
    /// Messages of one publisher that may wait: for their acknowledgement, and at QoS 0, where there is none, for being received.
    /// A flood without bound would measure how brokers drop messages.
    pub window: u32,
    pub topic: &'static str,
    /// Subscribers keep their sessions: only for those are durable messages written.
    pub is_kept: bool,
}

#[derive(Debug, Default)]
pub struct Flooded {
    pub seconds: f64,
    pub cpu_seconds: f64,
    pub received: u64,
    pub lost: u64,
    /// Times that a message came again or out of its publisher's order.
    pub disorder: u64,
}

pub fn flood(address: SocketAddr, pid: u32, load: Flood) -> Result<Flooded> {
    let each = load.messages / load.publishers;
    let readers: Vec<Reader> = (0..load.subscribers)
        .map(|at| {
            Reader::subscribe(
                address,
                &format!("r{at}"),
                &format!("{}/#", load.topic),
                load.qos,
                load.is_kept,
            )
        })
        .collect::<Result<_>>()?;
    let writers: Vec<TcpStream> = (0..load.publishers)
        .map(|at| Ok(connect(address, &format!("w{at}"))?.into_socket()))
        .collect::<Result<_>>()?;
    let (cpu, begun) = (cpu_seconds(pid)?, Instant::now());
    let mut total = Flooded::default();
    let received: Vec<AtomicU32> = (0..load.publishers).map(|_| AtomicU32::new(0)).collect();
    std::thread::scope(|scope| -> Result<()> {
        let readers: Vec<_> = readers
            .into_iter()
            .map(|reader| scope.spawn(|| reader.count(load.publishers, each, &received)))
            .collect();
        let writers: Vec<_> = writers
            .into_iter()
            .enumerate()
            .map(|(at, socket)| {
                let received = &received;
                scope.spawn(move || write(socket, at as u32, each, load, received))
            })
            .collect();
        for writer in writers {
            writer.join().expect("a writer does not panic").context("publisher")?;
        }
        for reader in readers {
            let counted = reader.join().expect("a reader does not panic").context("subscriber")?;
            total.received += counted.received;
            total.lost += counted.lost;
            total.disorder += counted.disorder;
        }
        Ok(())
    })?;
    total.seconds = begun.elapsed().as_secs_f64();
    total.cpu_seconds = cpu_seconds(pid)? - cpu;
    Ok(total)
}

fn connect(address: SocketAddr, id: &str) -> Result<Peer> {
    Peer::connect(address, &Connect { keep_alive: 600, ..Connect::new(V4, id) })
}

fn payload(publisher: u32, number: u32) -> Vec<u8> {
    let mut payload = vec![b'.'; PAYLOAD];
    payload[..4].copy_from_slice(&publisher.to_be_bytes());
    payload[4..8].copy_from_slice(&number.to_be_bytes());
    payload
}

/// Sends `each` messages, at most `window` unacknowledged.
fn write(
    mut socket: TcpStream,
    publisher: u32,
    each: u32,
    load: Flood,
    received: &[AtomicU32],
) -> Result<()> {
    let topic = format!("{}/{publisher}", load.topic);
    let (mut sent, mut acked, mut out) = (0, 0, Vec::new());
    let mut input = Acks::default();
    while acked < each {
        while sent < each && sent - acked < load.window && out.len() < 16 * 1024 {
            let publish = Publish {
                topic: topic.clone(),
                payload: payload(publisher, sent),
                qos: load.qos,
                id: (sent % 60_000 + 1) as u16,
                ..Publish::default()
            };
            out.extend(publish.packet(V4).bytes());
            sent += 1;
        }
        socket.write_all(&out).context("write")?;
        out.clear();
        if load.qos == 0 {
            let waiting = Instant::now();
            acked = received[publisher as usize].load(Ordering::Relaxed) / load.subscribers;
            while sent - acked >= load.window && waiting.elapsed() < LOST_AFTER {
                std::thread::sleep(Duration::from_micros(100));
                acked = received[publisher as usize].load(Ordering::Relaxed) / load.subscribers;
            }
            if sent == each || waiting.elapsed() >= LOST_AFTER {
                // What was lost leaves its place.
                acked = sent;
            }
        } else if sent - acked >= load.window || sent == each {
            acked += input.read(&mut socket)?;
        }
    }
    // Good-bye only after everything was taken: a closed socket must not be what loses messages.
    socket.write_all(&wire::empty(wire::PINGREQ).bytes())?;
    let mut byte = [0; 2];
    socket.read_exact(&mut byte).context("the answer to the last ping")
}

/// Counts PUBACKs, which are four bytes each.
#[derive(Default)]
struct Acks {
    rest: usize,
}

impl Acks {
    fn read(&mut self, socket: &mut TcpStream) -> Result<u32> {
        let mut buffer = [0; 4096];
        let len = socket.read(&mut buffer).context("no PUBACK")?;
        ensure!(len > 0, "the broker closed a publisher's connection");
        self.rest += len;
        let whole = self.rest / 4;
        self.rest %= 4;
        Ok(whole as u32)
    }
}

pub struct Reader {
    socket: TcpStream,
    buffer: Vec<u8>,
    qos: u8,
}

impl Reader {
    pub fn subscribe(address: SocketAddr, id: &str, filter: &str, qos: u8, is_kept: bool) -> Result<Reader> {
        let mut peer =
            Peer::connect(address, &Connect { keep_alive: 600, clean: !is_kept, ..Connect::new(V4, id) })?;
        peer.subscribe(filter, qos)?;
        Ok(Reader { socket: peer.into_socket(), buffer: Vec::new(), qos })
    }

    /// Calls `each` with the payload of every message until it says false or nothing comes any more (false).
    pub fn messages(&mut self, idle: Duration, mut each: impl FnMut(&[u8]) -> bool) -> Result<bool> {
        self.socket.set_read_timeout(Some(idle))?;
        let (mut chunk, mut acks) = (vec![0; 256 * 1024], Vec::new());
        loop {
            let len = match self.socket.read(&mut chunk) {
                Ok(0) => bail!("the broker closed a subscriber's connection"),
                Ok(len) => len,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Ok(false);
                }
                Err(error) => return Err(error).context("read"),
            };
            self.buffer.extend(&chunk[..len]);
            let (mut used, mut more) = (0, true);
            while let Some((start, body, end)) = bounds(&self.buffer[used..]) {
                let (packet, first) = (&self.buffer[used + body..used + end], self.buffer[used + start]);
                used += end;
                if first >> 4 != wire::PUBLISH {
                    continue;
                }
                let topic = usize::from(u16::from_be_bytes([packet[0], packet[1]]));
                let qos = first >> 1 & 3;
                let id = if qos > 0 { 2 } else { 0 };
                if qos == 1 {
                    acks.extend([wire::PUBACK << 4, 2, packet[2 + topic], packet[3 + topic]]);
                }
                more &= each(&packet[2 + topic + id..]);
            }
            self.buffer.drain(..used);
            if self.qos > 0 && !acks.is_empty() {
                self.socket.write_all(&acks)?;
                acks.clear();
            }
            if !more {
                return Ok(true);
            }
        }
    }

    fn count(mut self, publishers: u32, each: u32, received: &[AtomicU32]) -> Result<Flooded> {
        let mut next = vec![0_u32; publishers as usize];
        let mut counted = Flooded::default();
        let wanted = u64::from(publishers * each);
        self.messages(LOST_AFTER, |payload| {
            let number =
                |at: usize| payload[at..at + 4].iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
            let (publisher, number) = (number(0) as usize, number(4));
            counted.received += 1;
            received[publisher].fetch_add(1, Ordering::Relaxed);
            if number != next[publisher] {
                counted.disorder += 1;
            }
            next[publisher] = number + 1;
            counted.received < wanted
        })?;
        counted.lost = wanted.saturating_sub(counted.received);
        Ok(counted)
    }
}

/// Where the first packet starts, its body starts and it ends.
fn bounds(bytes: &[u8]) -> Option<(usize, usize, usize)> {
    let mut len = 0;
    for at in 0..4 {
        let byte = bytes.get(1 + at)?;
        len |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            let end = 2 + at + len;
            return (bytes.len() >= end).then_some((0, 2 + at, end));
        }
    }
    None
}

/// Latencies in microseconds at a fixed rate of QoS 1 messages. Open loop: a message is timed from when it was due, so a broker
/// that is late does not slow its own measurement down.
pub fn paced(address: SocketAddr, topic: &'static str, per_second: u32, seconds: u32) -> Result<Vec<f64>> {
    let count = per_second * seconds;
    let mut reader = Reader::subscribe(address, "paced-r", topic, 1, false)?;
    let mut socket = connect(address, "paced-w")?.into_socket();
    let mut acks = socket.try_clone()?;
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut latencies = Vec::with_capacity(count as usize);
            let whole = reader.messages(LOST_AFTER, |payload| {
                let due = payload[..8].iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
                latencies.push((begun.elapsed().as_nanos() as u64).saturating_sub(due) as f64 / 1000.0);
                latencies.len() < count as usize
            })?;
            ensure!(whole, "{} of {count} messages came", latencies.len());
            Ok(latencies)
        });
        let acks = scope.spawn(move || {
            let (mut input, mut acked) = (Acks::default(), 0);
            acks.set_read_timeout(Some(LOST_AFTER))?;
            while acked < count {
                acked += input.read(&mut acks)?;
            }
            Ok::<(), anyhow::Error>(())
        });
        for number in 0..count {
            let due = Duration::from_secs(1) * number / per_second;
            if let Some(wait) = due.checked_sub(begun.elapsed()) {
                std::thread::sleep(wait);
            }
            let mut payload = vec![b'.'; PAYLOAD];
            payload[..8].copy_from_slice(&(due.as_nanos() as u64).to_be_bytes());
            let id = (number % 60_000 + 1) as u16;
            let publish = Publish { topic: topic.into(), payload, qos: 1, id, ..Publish::default() };
            socket.write_all(&publish.packet(V4).bytes())?;
        }
        acks.join().expect("no panic")?;
        let mut latencies = reader.join().expect("no panic")?;
        latencies.sort_by(f64::total_cmp);
        Ok(latencies)
    })
}

pub fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let at = (sorted.len() as f64 * percent / 100.0) as usize;
    sorted[at.min(sorted.len() - 1)]
}

/// Connections with one subscription each, held until they are dropped.
pub fn idle(address: SocketAddr, count: usize) -> Result<Vec<Peer>> {
    (0..count)
        .map(|at| {
            let mut peer = connect(address, &format!("idle{at}"))?;
            peer.subscribe(&format!("idle/{at}"), 1)?;
            Ok(peer)
        })
        .collect()
}
