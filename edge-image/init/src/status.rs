//! What the device says about itself: `status.txt` beside the provisioning file, readable on any computer.

use std::fs;
use std::time::Instant;

use serde::Deserialize;

use crate::clock;
use crate::limits::{STATUS_DOUBLINGS_MAX, STATUS_FORGIVEN, STATUS_STABLE, STATUS_WRITE_MIN};

pub const FILE: &str = "status.txt";
pub const EDGECORE: &str = "/run/kinglet/edgecore.json";

/// What edgecore last wrote about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Edgecore {
    pub state: String,
    pub error: String,
    pub remedy: String,
    pub node: String,
    pub cloud: String,
}

impl Edgecore {
    pub fn load() -> Option<Edgecore> {
        serde_json::from_slice(&fs::read(EDGECORE).ok()?).ok()
    }
}

/// A failure and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub error: String,
    pub remedy: String,
}

/// Everything that is shown. Two equal values need no new file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    pub version: String,
    pub board: String,
    pub state: String,
    pub node: String,
    pub cloud: String,
    pub address: String,
    /// Where the time comes from.
    pub clock: &'static str,
    pub problem: Option<Problem>,
}

impl Status {
    /// The file's text. Windows' editor wants its own line ends.
    pub fn render(&self, boot: u64, now: u64, memory: &str) -> String {
        let or = |text: &str, none: &str| if text.is_empty() { none.to_owned() } else { text.to_owned() };
        let (error, remedy) = self
            .problem
            .as_ref()
            .map_or(("none", "nothing to do"), |problem| (problem.error.as_str(), problem.remedy.as_str()));
        let lines = [
            "Kinglet: how this device's last boot went".to_owned(),
            format!("state:    {}", or(&self.state, "Starting")),
            format!("error:    {error}"),
            format!("remedy:   {remedy}"),
            format!("node:     {}", or(&self.node, "(no name yet)")),
            format!("cloud:    {}", or(&self.cloud, "(none)")),
            format!("address:  {}", or(&self.address, "(no network yet)")),
            format!("clock:    {} ({})", clock::render(now), self.clock),
            format!("memory:   {} (kB)", or(memory, "(nothing runs)")),
            format!("boot:     number {boot}"),
            format!("image:    {} for {}", self.version, self.board),
        ];
        lines.map(|line| line + "\r\n").concat()
    }
}

/// Says when the file is worth writing: once the state has settled after the boot, then on changes, ever more slowly while it keeps
/// changing. The file lies on flash.
#[derive(Debug, Default)]
pub struct Writer {
    written: Option<(Status, Instant)>,
    writes: u32,
    seen: Option<(Status, Instant)>,
}

impl Writer {
    /// `is_early`: better news may be a moment away.
    pub fn is_due(&mut self, now: Instant, is_early: bool, status: &Status) -> bool {
        if self.written.as_ref().is_some_and(|(written, _)| written == status) {
            self.seen = None;
            return false;
        }
        let since = match &self.seen {
            Some((seen, since)) if seen == status => *since,
            _ => {
                self.seen = Some((status.clone(), now));
                now
            }
        };
        let is_paused = self.written.as_ref().is_some_and(|(_, at)| {
            let pause = STATUS_WRITE_MIN * (1 << self.writes.saturating_sub(1).min(STATUS_DOUBLINGS_MAX));
            now.saturating_duration_since(*at) < pause
        });
        let is_early = is_early && self.written.is_none();
        !is_paused && !is_early && now.saturating_duration_since(since) >= STATUS_STABLE
    }

    /// It was written, or could not be: either way not again at once.
    pub fn wrote(&mut self, now: Instant, status: &Status) {
        let was_quiet = |at: &Instant| now.saturating_duration_since(*at) >= STATUS_FORGIVEN;
        if self.written.as_ref().is_none_or(|(_, at)| was_quiet(at)) {
            self.writes = 0;
        }
        self.written = Some((status.clone(), now));
        self.writes = self.writes.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_names_state_error_and_remedy() {
        let mut status = Status { state: "Joining".into(), node: "n1".into(), ..Status::default() };
        assert!(status.render(1, 0, "").contains("error:    none\r\n"));
        status.problem = Some(Problem {
            error: "the token has expired".into(),
            remedy: "make one with cloudcore token".into(),
        });
        let text = status.render(2, 0, "init=900");
        assert!(
            text.contains("error:    the token has expired\r\nremedy:   make one with cloudcore token\r\n"),
            "{text}"
        );
        assert!(text.contains("boot:     number 2") && text.contains("memory:   init=900 (kB)"));
    }

    /// Runs the writer every second; gives the seconds at which it wrote.
    fn writings(until: u64, mut at: impl FnMut(u64) -> (bool, &'static str)) -> Vec<u64> {
        let start = Instant::now();
        let mut writer = Writer::default();
        let mut wrote = Vec::new();
        for second in 0..until {
            let (is_early, state) = at(second);
            let status = Status { state: state.into(), ..Status::default() };
            let now = start + std::time::Duration::from_secs(second);
            if writer.is_due(now, is_early, &status) {
                writer.wrote(now, &status);
                wrote.push(second);
            }
        }
        wrote
    }

    #[test]
    fn the_file_is_written_once_per_boot_and_on_change() {
        assert_eq!(
            writings(36_000, |second| (second < 12, if second < 12 { "Joining" } else { "Ready" })),
            [14]
        );
        assert_eq!(writings(36_000, |second| (second < 30, "Joining")), [30]);
        let cut = writings(36_000, |second| {
            (false, if (5000..9000).contains(&second) { "Offline" } else { "Ready" })
        });
        assert_eq!(cut, [2, 5002, 9002]);
    }

    #[test]
    fn a_state_that_flaps_for_a_day_is_written_a_few_times() {
        let flapping =
            |second: u64| (false, if (second / 5).is_multiple_of(2) { "Ready" } else { "Offline" });
        let wrote = writings(86_400, flapping);
        assert!((10..200).contains(&wrote.len()), "{}", wrote.len());
    }

    #[test]
    fn what_edgecore_wrote_is_read_whatever_it_adds_later() {
        let read: Edgecore = serde_json::from_str(r#"{"state":"Ready","node":"n","since":1}"#).expect("read");
        assert_eq!((read.state.as_str(), read.error.as_str()), ("Ready", ""));
    }
}
