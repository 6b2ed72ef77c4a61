//! What the device says about itself: `status.txt` beside the provisioning file, readable on any computer.

use std::fs;

use serde::Deserialize;

use crate::clock;

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
    pub problem: Option<Problem>,
}

impl Status {
    /// The file's text. Windows' editor wants its own line ends.
    pub fn render(&self, boot: u64, now: u64) -> String {
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
            format!("clock:    {}", clock::render(now)),
            format!("boot:     number {boot}"),
            format!("image:    {} for {}", self.version, self.board),
        ];
        lines.map(|line| line + "\r\n").concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_names_state_error_and_remedy() {
        let mut status = Status { state: "Joining".into(), node: "n1".into(), ..Status::default() };
        assert!(status.render(1, 0).contains("error:    none\r\n"));
        status.problem = Some(Problem {
            error: "the token has expired".into(),
            remedy: "make one with cloudcore token".into(),
        });
        let text = status.render(2, 0);
        assert!(
            text.contains("error:    the token has expired\r\nremedy:   make one with cloudcore token\r\n"),
            "{text}"
        );
        assert!(text.contains("boot:     number 2"));
    }

    #[test]
    fn what_edgecore_wrote_is_read_whatever_it_adds_later() {
        let read: Edgecore = serde_json::from_str(r#"{"state":"Ready","node":"n","since":1}"#).expect("read");
        assert_eq!((read.state.as_str(), read.error.as_str()), ("Ready", ""));
    }
}
