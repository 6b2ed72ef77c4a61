//! One seed is a link with two ends: streams that are opened, written, read slowly or not at all, finished, dropped; a socket that
//! stalls; cuts.

use std::collections::BTreeMap;

use super::*;
use crate::limits::{SEND_BUFFER_LEN, STREAM_CHUNK_LEN};

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// The byte at this place of what one end writes to a stream.
fn byte(id: u32, from_cloud: bool, at: u64) -> u8 {
    (at.wrapping_mul(31) ^ u64::from(id) << 3 ^ u64::from(from_cloud) ^ at >> 8) as u8
}

/// One end's owner of a stream.
#[derive(Default)]
struct Owner {
    written: u64,
    read: u64,
    goal: u64,
    finished: bool,
    saw_end: bool,
    broken: bool,
}

#[derive(Default)]
struct End {
    owners: BTreeMap<u32, Owner>,
    /// On the way to the other end.
    socket: std::collections::VecDeque<Vec<u8>>,
}

struct World {
    rng: Rng,
    muxes: [Mux; 2],
    ends: [End; 2],
    settings: Settings,
    /// Streams that ended well at both ends, and bytes.
    completed: u64,
    bytes: u64,
}

const CLOUD: usize = 0;
const EDGE: usize = 1;
/// Frames that the socket holds.
const SOCKET_LEN: usize = 3;

impl World {
    fn new(seed: u64) -> World {
        let mut rng = Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let window_min = 1 + rng.below(300) as u32;
        let settings = Settings {
            streams_max: 1 + rng.below(8) as usize,
            window_min,
            window_max: window_min + rng.below(6_000) as u32,
            link_bytes_max: window_min as usize * (1 + rng.below(40) as usize),
        };
        let muxes = [Mux::opener(settings), Mux::acceptor(settings)];
        World { rng, muxes, ends: Default::default(), settings, completed: 0, bytes: 0 }
    }

    fn own(&mut self, end: usize, id: u32) {
        let goal = self.rng.below(20_000);
        self.ends[end].owners.insert(id, Owner { goal, ..Owner::default() });
    }

    fn step(&mut self, may_stall: bool) -> bool {
        let mut progress = false;
        for end in [CLOUD, EDGE] {
            if !may_stall || self.rng.below(3) > 0 {
                progress |= self.fill_socket(end);
            }
            if !may_stall || self.rng.below(3) > 0 {
                progress |= self.empty_socket(end);
            }
            for id in self.ends[end].owners.keys().copied().collect::<Vec<_>>() {
                // A slow owner: most of the time it does nothing.
                if !may_stall || self.rng.below(4) == 0 {
                    progress |= self.act(end, id, may_stall);
                }
            }
        }
        self.check();
        progress
    }

    fn fill_socket(&mut self, end: usize) -> bool {
        let mut sent = false;
        while self.ends[end].socket.len() < SOCKET_LEN {
            let Some((frame, _)) = self.muxes[end].transmit() else { break };
            assert!(
                !matches!(&frame, Frame::Data { bytes, .. } if bytes.len() > STREAM_CHUNK_LEN || bytes.is_empty())
            );
            self.ends[end].socket.push_back(frame.encode());
            sent = true;
        }
        sent
    }

    fn empty_socket(&mut self, from: usize) -> bool {
        let to = 1 - from;
        let Some(message) = self.ends[from].socket.pop_front() else { return false };
        let frame = Frame::decode(&message).expect("our own frames");
        if let Some(Action::Opened(id)) = self.muxes[to].handle(frame).expect("we keep the link's rules") {
            self.own(to, id);
        }
        true
    }

    /// The owner of a stream writes, reads, and at last finishes or goes away.
    fn act(&mut self, end: usize, id: u32, may_drop: bool) -> bool {
        let mux = &mut self.muxes[end];
        let owner = self.ends[end].owners.get_mut(&id).expect("listed");
        let mut progress = false;
        if !owner.finished && !owner.broken {
            let len = (owner.goal - owner.written).min(1 + self.rng.below(2_000));
            let bytes: Vec<u8> = (0..len).map(|n| byte(id, end == CLOUD, owner.written + n)).collect();
            match mux.write(id, &bytes) {
                Ok(taken) => {
                    owner.written += taken as u64;
                    progress |= taken > 0;
                }
                Err(_) => owner.broken = true,
            }
            if owner.written == owner.goal && !owner.broken {
                mux.finish(id);
                owner.finished = true;
                progress = true;
            }
        }
        let mut buffer = vec![0; 1 + self.rng.below(2_000) as usize];
        match mux.read(id, &mut buffer) {
            Ok(Read::Bytes(len)) => {
                for (n, found) in buffer[..len].iter().enumerate() {
                    assert_eq!(*found, byte(id, end != CLOUD, owner.read + n as u64), "stream {id}");
                }
                owner.read += len as u64;
                self.bytes += len as u64;
                progress = true;
            }
            Ok(Read::End) => owner.saw_end = true,
            Ok(Read::Wait) => {}
            Err(_) => owner.broken = true,
        }
        let complete = owner.finished && owner.saw_end;
        if complete || owner.broken || (may_drop && self.rng.below(400) == 0) {
            self.completed += u64::from(complete);
            mux.close(id);
            let gone = self.ends[end].owners.remove(&id).expect("listed");
            // All that the other end wrote, if it finished; nothing is known of one that went away in the middle.
            if let (true, Some(other)) = (complete, self.ends[1 - end].owners.get(&id)) {
                assert_eq!(gone.read, other.goal, "stream {id} ended before all of it came");
            }
            return true;
        }
        progress
    }

    fn check(&self) {
        for mux in &self.muxes {
            assert!(mux.kept_len() <= self.settings.link_bytes_max);
            assert!(mux.queued_len() <= mux.len() * SEND_BUFFER_LEN);
            assert!(mux.len() <= self.settings.streams_max);
        }
    }

    fn cut(&mut self) {
        for end in [CLOUD, EDGE] {
            self.ends[end].socket.clear();
            self.muxes[end].end_all("cut");
            for id in std::mem::take(&mut self.ends[end].owners).into_keys() {
                assert!(self.muxes[end].write(id, b"x").is_err());
                self.muxes[end].close(id);
            }
            assert!(self.muxes[end].is_empty());
        }
        self.muxes = [Mux::opener(self.settings), Mux::acceptor(self.settings)];
    }
}

fn run(seed: u64) -> (u64, u64) {
    let mut world = World::new(seed);
    for _ in 0..400 {
        if world.rng.below(20) == 0
            && let Ok(id) = world.muxes[CLOUD].open()
        {
            world.own(CLOUD, id);
        }
        world.step(true);
        if world.rng.below(300) == 0 {
            world.cut();
        }
    }
    // Nobody opens or drops any more: everything that is open comes to its end, or somebody waits for nothing.
    let mut rounds = 0;
    while world.step(false) {
        rounds += 1;
        assert!(rounds < 200_000, "it goes on without an end");
    }
    for end in [CLOUD, EDGE] {
        assert!(world.ends[end].owners.is_empty(), "a stream of end {end} waits for ever");
        assert!(world.muxes[end].is_empty() && !world.muxes[end].has_work());
    }
    (world.completed, world.bytes)
}

#[test]
fn two_ends_under_seeds() {
    let (mut completed, mut bytes) = (0, 0);
    for seed in 1..=60 {
        let outcome = std::panic::catch_unwind(|| run(seed));
        let (streams, len) = outcome.unwrap_or_else(|_| {
            panic!("seed {seed} fails; reproduce with: cargo test -p wire --lib streams::sim (seed {seed})")
        });
        (completed, bytes) = (completed + streams, bytes + len);
    }
    assert!(completed > 300, "only {completed} ends of streams came to a good end");
    assert!(bytes > 1_000_000, "only {bytes} bytes");
}
