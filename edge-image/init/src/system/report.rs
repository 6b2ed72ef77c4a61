//! What the device tells about itself: edgecore's state on the console, memory, `status.txt`.

use std::fs;
use std::path::Path;
use std::time::Instant;

use super::boot;
use super::join::Plan;
use super::supervisor::Supervisor;
use crate::limits::STATUS_FIRST;
use crate::service::State;
use crate::status::{self, Edgecore, Problem};
use crate::{clock, say};

/// Seconds after the node became Ready at which memory use is printed, and the pace from then on.
const MEMORY_LINES: [u64; 3] = [0, 10, 60];
const MEMORY_PACE: u64 = 600;

impl Supervisor {
    pub(super) fn watch_edgecore(&mut self, now: Instant) {
        // No file: it is starting, or was started again.
        let read = Edgecore::load().unwrap_or_default();
        if read == self.edgecore {
            return;
        }
        let because =
            if read.error.is_empty() { String::new() } else { format!(": {} ({})", read.error, read.remedy) };
        let state = if read.state.is_empty() { "Starting" } else { &read.state };
        say!("node {}: {state}{because}", if read.node.is_empty() { &self.node } else { &read.node });
        if read.state == "Ready" {
            self.ready_since.get_or_insert(now);
        }
        self.edgecore = read;
    }

    /// One line that tests and people read: what each program holds, when the node became Ready and from then on.
    pub(super) fn print_memory(&mut self, now: Instant) {
        let Some(since) = self.ready_since else { return };
        let due = MEMORY_LINES.get(self.memory_lines).copied();
        let due = due.unwrap_or_else(|| MEMORY_PACE * (self.memory_lines + 1 - MEMORY_LINES.len()) as u64);
        if now.saturating_duration_since(since).as_secs() < due {
            return;
        }
        self.memory_lines += 1;
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let field = |key: &str| fields(&meminfo, key).unwrap_or(0);
        let (available, total) = (field("MemAvailable:"), field("MemTotal:"));
        say!("memory kB {} available={available} total={total}", self.memory());
    }

    /// What our programs hold: `edgecore=5120 init=900`.
    fn memory(&self) -> String {
        let own =
            self.services.iter().map(|service| (service.name, service.pid())).chain([("init", Some(1))]);
        let shown = own.filter_map(|(name, pid)| Some(format!("{name}={}", resident_kb(pid?)?)));
        shown.collect::<Vec<_>>().join(" ")
    }

    pub(super) fn write_status(&mut self, now: Instant) {
        self.status.address = self.net.address.clone().unwrap_or_default();
        let edgecore_problem = Some(&self.edgecore)
            .filter(|read| !read.error.is_empty())
            .map(|read| Problem { error: read.error.clone(), remedy: read.remedy.clone() });
        let mistake = self
            .started
            .provision
            .as_ref()
            .err()
            .map(|mistake| Problem { error: mistake.text(), remedy: mistake.remedy.clone() });
        let missing =
            self.services.iter().find(|service| service.state == State::Missing).map(|service| Problem {
                error: format!("there is no {} in this image", service.program),
                remedy: "build the image with it, or write a released image".to_owned(),
            });
        let crashing =
            self.services.iter().find(|service| service.is_crash_looping(now)).map(|service| Problem {
                error: service.problem.clone(),
                remedy: "it is started again and again; if that does not end, write the image again"
                    .to_owned(),
            });
        self.status.problem = mistake
            .or(self.net.problem.clone())
            .or(self.join_problem.clone())
            .or(missing)
            .or(crashing)
            .or(edgecore_problem)
            .or(self.started.problem.clone());
        self.status.state = match self.plan {
            Plan::Join => "Joining".to_owned(),
            Plan::Alone => "Alone".to_owned(),
            Plan::Unprovisioned => "NotProvisioned".to_owned(),
            _ if self.edgecore.state.is_empty() => "Starting".to_owned(),
            _ => self.edgecore.state.clone(),
        };
        self.status.clock = match (self.clock_known, self.started.clock_is_set) {
            (true, _) => "from a time server",
            (false, true) => "from a clock chip",
            (false, false) => "not set: the last time known, no time server has answered yet",
        };
        // The first file waits for the node to be ready, or for an error that will not go by itself, but not for ever.
        let is_final = self.status.state == "Ready" || matches!(self.plan, Plan::Alone | Plan::Unprovisioned);
        let is_early = !is_final && clock::uptime() < STATUS_FIRST;
        if self.writer.is_due(now, is_early, &self.status) {
            self.write_file(now);
        }
    }

    fn write_file(&mut self, now: Instant) {
        self.writer.wrote(now, &self.status);
        let text = self.status.render(self.started.boot_number, clock::now(), &self.memory());
        let Some(disk) = &self.started.disk else { return };
        let write = |dir: &Path| boot::write_atomic(&dir.join(status::FILE), text.as_bytes());
        if let Err(error) = boot::with_boot_partition(disk, true, write) {
            say!("cannot write {}: {error}", status::FILE);
        }
    }
}

fn resident_kb(pid: i32) -> Option<u64> {
    fields(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "VmRSS:")
}

/// The number after `key` in a file of `Key: number kB` lines.
fn fields(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_their_key() {
        let text = "VmPeak:\t  100 kB\nVmRSS:\t   42 kB\n";
        assert_eq!(fields(text, "VmRSS:"), Some(42));
        assert_eq!(fields(text, "VmSwap:"), None);
    }
}
