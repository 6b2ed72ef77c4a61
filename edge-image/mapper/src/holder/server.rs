//! The line-holder's sockets: one thread, one `poll`.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, RawFd},
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        time::TimeSpec,
    },
};

use super::{Holder, counts};
use crate::{
    limits::{COUNTS_SAVE_MS, HOLDER_CONNECTIONS_MAX, HOLDER_REQUEST_BYTES_MAX},
    monotonic_us,
};

/// The stop flag is looked at this often.
const TURN_US_MAX: u64 = 500_000;

struct Connection {
    stream: UnixStream,
    received: heapless::Vec<u8, HOLDER_REQUEST_BYTES_MAX>,
}

/// The file of counts: written when they changed, and not more often than [`COUNTS_SAVE_MS`].
struct Saved<'a> {
    path: Option<&'a Path>,
    counts: BTreeMap<String, u64>,
    next_us: u64,
}

impl Saved<'_> {
    fn save(&mut self, now_us: u64, holder: &Holder, at_once: bool) {
        let Some(path) = self.path else { return };
        if now_us < self.next_us && !at_once {
            return;
        }
        self.next_us = now_us + COUNTS_SAVE_MS * 1000;
        let counts = holder.counts();
        if counts == self.counts {
            return;
        }
        match counts::save(path, &counts) {
            Ok(()) => self.counts = counts,
            Err(error) => eprintln!("line-holder: counts cannot be kept in {}: {error}", path.display()),
        }
    }
}

/// Serves until `stop` or SIGTERM (which the caller has blocked, when it has). The socket is made anew: one that a dead process
/// left behind is removed. `counts` is where counts outlive this process.
pub fn serve(path: &Path, mut holder: Holder, counts: Option<&Path>, stop: &AtomicBool) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    let mut terminate = SigSet::empty();
    terminate.add(Signal::SIGTERM);
    let terminate = SignalFd::with_flags(&terminate, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let mut saved =
        Saved { path: counts, counts: holder.counts(), next_us: monotonic_us() + COUNTS_SAVE_MS * 1000 };
    let mut connections: Vec<Connection> = Vec::new();
    let mut lines: Vec<RawFd> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let now_us = monotonic_us();
        lines.clear();
        let count_at_us = holder.waits(now_us, &mut lines);
        let due_us = [holder.deadline_us(now_us), count_at_us, Some(now_us + TURN_US_MAX)];
        let pause_us = due_us.into_iter().flatten().min().unwrap_or(now_us).saturating_sub(now_us);
        let ready: Vec<bool> = {
            let mut fds: Vec<PollFd<'_>> = vec![
                PollFd::new(listener.as_fd(), PollFlags::POLLIN),
                PollFd::new(terminate.as_fd(), PollFlags::POLLIN),
            ];
            let clients = connections.iter().map(|connection| connection.stream.as_fd());
            fds.extend(clients.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            fds.extend(lines.iter().map(|fd| PollFd::new(borrowed(*fd), PollFlags::POLLIN)));
            match ppoll(&mut fds, Some(TimeSpec::from_duration(Duration::from_micros(pause_us))), None) {
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
                Ok(_) => fds.iter().map(|fd| fd.any().unwrap_or(true)).collect(),
            }
        };
        let now_us = monotonic_us();
        let (clients, counted) = ready[2..].split_at(connections.len());
        if counted.contains(&true) {
            holder.count(now_us);
        }
        let mut at = 0;
        connections.retain_mut(|connection| {
            at += 1;
            !clients[at - 1] || connection.read(now_us, &mut holder)
        });
        if ready[0]
            && let Ok((stream, _)) = listener.accept()
            && connections.len() < HOLDER_CONNECTIONS_MAX
            && stream.set_nonblocking(true).is_ok()
        {
            connections.push(Connection { stream, received: heapless::Vec::new() });
        }
        holder.tick(monotonic_us());
        saved.save(now_us, &holder, false);
        if ready[1] {
            break;
        }
    }
    holder.count(monotonic_us());
    saved.save(monotonic_us(), &holder, true);
    let _ = fs::remove_file(path);
    Ok(())
}

/// Descriptors of counted lines for one `ppoll`.
#[allow(unsafe_code)]
fn borrowed<'a>(fd: RawFd) -> BorrowedFd<'a> {
    debug_assert!(fd >= 0);
    // SAFETY: the holder's lines own these descriptors, and none is opened or closed between `waits` and the end of `ppoll`.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

impl Connection {
    /// Answers what has come; false when the connection is over. A request that is too long ends it.
    fn read(&mut self, now_us: u64, holder: &mut Holder) -> bool {
        let mut buffer = [0; HOLDER_REQUEST_BYTES_MAX];
        let len = match self.stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(len) => len,
            Err(error) => return matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        };
        for byte in &buffer[..len] {
            if *byte != b'\n' {
                if self.received.push(*byte).is_err() {
                    let _ = self.stream.write_all(b"error the request is too long\n");
                    return false;
                }
                continue;
            }
            let mut answer = holder.handle(now_us, &String::from_utf8_lossy(&self.received));
            answer.push('\n');
            self.received.clear();
            // Whoever does not read its answers (the socket's buffer is far larger than one) is not waited for.
            if self.stream.write_all(answer.as_bytes()).is_err() {
                return false;
            }
        }
        true
    }
}
