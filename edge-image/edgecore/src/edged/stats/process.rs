//! Figures of single processes: our own, and the container runtime's.

use std::{fs, os::unix::net::UnixStream, path::Path};

use super::node;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Process {
    pub cpu_ns: u64,
    pub rss: u64,
    pub virtual_bytes: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    pub threads: u64,
    /// Unix milliseconds.
    pub started_ms: i64,
}

/// Ticks per second of /proc; the same on every architecture that we run on.
const TICKS_PER_SECOND: u64 = 100;

/// `None`: there is no such process (any more).
pub fn read(pid: &str) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    parse(&stat, &status, node::boot_time().unwrap_or(0))
}

/// proc(5): the name in field 2 may hold anything, so fields are counted from its end.
fn parse(stat: &str, status: &str, boot_time: i64) -> Option<Process> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // Field 3 of the page is the first one here.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let started_ticks = number(22)?;
    // Counted in pages there, whose size differs between boards.
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let resident = resident.split_whitespace().next()?.parse::<u64>().ok()?.saturating_mul(1024);
    Some(Process {
        cpu_ns: number(14)?.saturating_add(number(15)?).saturating_mul(1_000_000_000 / TICKS_PER_SECOND),
        rss: resident,
        virtual_bytes: number(23)?,
        page_faults: number(10)?,
        major_page_faults: number(12)?,
        threads: number(20)?,
        started_ms: boot_time
            .saturating_mul(1000)
            .saturating_add_unsigned(started_ticks.saturating_mul(1000 / TICKS_PER_SECOND)),
    })
}

/// File descriptors in use, and how many this process may have.
pub fn own_fds() -> (Option<usize>, Option<u64>) {
    let open = fs::read_dir("/proc/self/fd").map(Iterator::count).ok();
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    (open, line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()))
}

/// The process that listens on a socket, as the kernel knows it.
pub fn listener_of(socket: &Path) -> Option<i32> {
    let stream = UnixStream::connect(socket).ok()?;
    let peer = nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials).ok()?;
    // 0: it is in a process namespace that we do not see into.
    Some(peer.pid()).filter(|pid| *pid > 0)
}

/// Entry for a fuzzer.
pub(super) fn fuzz_process(text: &str) {
    let _ = parse(text, text, 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_process() {
        let stat =
            "1 (a) b c) S 0 1 1 0 -1 4194560 50 9 3 0 7 5 0 0 20 0 4 0 250 1000000 30 18446744073709551615";
        let process = parse(stat, "Name:\tx\nVmRSS:\t     120 kB\n", 1000).unwrap();
        let expected = Process {
            cpu_ns: 120_000_000,
            rss: 120 * 1024,
            virtual_bytes: 1_000_000,
            page_faults: 50,
            major_page_faults: 3,
            threads: 4,
            started_ms: 1_002_500,
        };
        assert_eq!(process, expected);
        assert_eq!(parse("1 (x) S 0", "VmRSS: 1 kB", 0), None);
        let own = read("self").unwrap();
        assert!(own.rss > 0 && own.threads > 0 && own.started_ms > 0);
        let (open, max) = own_fds();
        assert!(open.unwrap() > 0 && max.unwrap() > 0);
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert_eq!(listener_of(&socket), Some(std::process::id() as i32));
    }
}
