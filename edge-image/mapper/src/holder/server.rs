//! The line-holder's sockets: one thread, one `poll`.

use std::{
    fs,
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::AsFd,
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Holder;
use crate::limits::{HOLDER_CONNECTIONS_MAX, HOLDER_REQUEST_BYTES_MAX};

/// The stop flag is looked at this often.
const TURN_MS_MAX: u64 = 500;

struct Connection {
    stream: UnixStream,
    received: heapless::Vec<u8, HOLDER_REQUEST_BYTES_MAX>,
}

/// Serves until `stop`. The socket is made anew: one that a dead process left behind is removed.
pub fn serve(path: &Path, mut holder: Holder, stop: &AtomicBool) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    let mut connections: Vec<Connection> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let now_ms = crate::monotonic_ms();
        let pause_ms =
            holder.deadline_ms().map_or(TURN_MS_MAX, |at| at.saturating_sub(now_ms).min(TURN_MS_MAX));
        let ready: Vec<bool> = {
            let mut fds: Vec<PollFd<'_>> = vec![PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            fds.extend(
                connections
                    .iter()
                    .map(|connection| PollFd::new(connection.stream.as_fd(), PollFlags::POLLIN)),
            );
            match poll(&mut fds, PollTimeout::from(pause_ms as u16)) {
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
                Ok(_) => fds.iter().map(|fd| fd.any().unwrap_or(true)).collect(),
            }
        };
        let now_ms = crate::monotonic_ms();
        let mut at = 0;
        connections.retain_mut(|connection| {
            at += 1;
            !ready.get(at).copied().unwrap_or(false) || connection.read(now_ms, &mut holder)
        });
        if ready[0]
            && let Ok((stream, _)) = listener.accept()
            && connections.len() < HOLDER_CONNECTIONS_MAX
            && stream.set_nonblocking(true).is_ok()
        {
            connections.push(Connection { stream, received: heapless::Vec::new() });
        }
        holder.tick(now_ms);
    }
    let _ = fs::remove_file(path);
    Ok(())
}

impl Connection {
    /// Answers what has come; false when the connection is over. A request that is too long ends it.
    fn read(&mut self, now_ms: u64, holder: &mut Holder) -> bool {
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
            let mut answer = holder.handle(now_ms, &String::from_utf8_lossy(&self.received));
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
