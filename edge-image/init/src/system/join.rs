//! Joining by the provisioning file: when to try, with which arguments, and when not to. A value; the supervisor runs the child.

use std::fs;
use std::time::{Duration, Instant};

use crate::limits::{JOIN_RETRY_FIRST, JOIN_RETRY_MAX};
use crate::provision::Provision;

const MARKER: &str = "/var/lib/kinglet/joined";

/// What is remembered of the last successful join: enough to know the same token again without keeping it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    pub node: String,
    pub token_hash: u64,
}

impl Joined {
    pub fn load() -> Option<Joined> {
        Joined::parse(&fs::read_to_string(MARKER).ok()?)
    }

    fn parse(text: &str) -> Option<Joined> {
        let (node, hash) = text.trim().split_once(' ')?;
        Some(Joined { node: node.to_owned(), token_hash: u64::from_str_radix(hash, 16).ok()? })
    }

    pub fn save(&self) -> std::io::Result<()> {
        let partial = format!("{MARKER}.partial");
        fs::write(&partial, format!("{} {:016x}\n", self.node, self.token_hash))?;
        fs::File::open(&partial)?.sync_all()?;
        fs::rename(&partial, MARKER)?;
        fs::File::open("/var/lib/kinglet")?.sync_all()
    }
}

/// FNV-1a: tells tokens apart, reveals none.
pub fn hash(token: &str) -> u64 {
    token.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// What the boot has to do about joining.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Joined before, nothing new.
    Run,
    /// The token was used, but a power cut came before it was blanked.
    BlankAndRun,
    Join,
    /// Nothing says where to, but there are devices or static pods to work for.
    Alone,
    /// Nothing says what to do.
    Unprovisioned,
}

/// `has_work`: there are devices or static pods from the boot partition.
pub fn plan(provision: Option<&Provision>, joined: Option<&Joined>, has_work: bool) -> Plan {
    let token = provision.map_or("", |provision| provision.token.as_str());
    match (token, joined) {
        ("", Some(_)) => Plan::Run,
        ("", None) if has_work && provision.is_none_or(|provision| provision.cloud.is_empty()) => Plan::Alone,
        ("", None) => Plan::Unprovisioned,
        (token, Some(joined)) if joined.token_hash == hash(token) => Plan::BlankAndRun,
        _ => Plan::Join,
    }
}

/// The child's arguments: keadm join's flags.
pub fn arguments(provision: &Provision, node: &str) -> Vec<String> {
    let mut args: Vec<String> = [
        "join",
        "--cloudcore-ipport",
        &provision.cloud,
        // The image is what the checks of a plain host would ask for, and containerd may still be starting.
        "--force",
        "--token",
        &provision.token,
        "--edgenode-name",
        node,
    ]
    .map(str::to_owned)
    .to_vec();
    args.extend(machine(provision));
    if let Some(port) = provision.join_port {
        args.extend(["--certport".to_owned(), port.to_string()]);
    }
    if !provision.labels.is_empty() {
        let labels: Vec<String> =
            provision.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        args.extend(["--labels".to_owned(), labels.join(",")]);
    }
    args
}

/// The arguments of `edgecore alone`.
pub fn arguments_alone(provision: Option<&Provision>, node: &str) -> Vec<String> {
    let mut args = ["alone", "--edgenode-name", node].map(str::to_owned).to_vec();
    args.extend(machine(provision.unwrap_or(&Provision::default())));
    args
}

/// What both ways of becoming a node are told.
fn machine(provision: &Provision) -> Vec<String> {
    let mut args =
        ["--remote-runtime-endpoint", "unix:///run/containerd/containerd.sock", "--cgroupdriver", "cgroupfs"]
            .map(str::to_owned)
            .to_vec();
    if let Some(prefix) = &provision.discovery_prefix {
        args.extend(["--discovery-prefix".to_owned(), prefix.clone()]);
    }
    args
}

/// Attempts with growing pauses.
#[derive(Debug)]
pub struct Attempts {
    pub pid: Option<i32>,
    next: Instant,
    wait: Duration,
}

impl Attempts {
    pub fn new(now: Instant) -> Attempts {
        Attempts { pid: None, next: now, wait: JOIN_RETRY_FIRST }
    }

    pub fn is_due(&self, now: Instant) -> bool {
        self.pid.is_none() && now >= self.next
    }

    /// Something has changed that a try may profit from.
    pub fn hurry(&mut self, now: Instant) {
        self.next = self.next.min(now);
    }

    /// Returns the pause until the next try.
    pub fn failed(&mut self, now: Instant) -> Duration {
        self.pid = None;
        let wait = self.wait;
        self.next = now + wait;
        self.wait = (self.wait * 2).min(JOIN_RETRY_MAX);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provision::parse;

    #[test]
    fn a_token_is_used_once_also_across_power_cuts() {
        let fresh = parse(b"cloud = \"a:1\"\ntoken = \"t1\"").expect("valid");
        let blanked = parse(b"cloud = \"a:1\"\ntoken = \"\"").expect("valid");
        let joined = Joined { node: "n".into(), token_hash: hash("t1") };
        assert_eq!(plan(None, None, false), Plan::Unprovisioned);
        assert_eq!(plan(None, None, true), Plan::Alone);
        let named = parse(b"node_name = \"greenhouse\"").expect("valid");
        assert_eq!(plan(Some(&named), None, true), Plan::Alone);
        assert_eq!(plan(Some(&blanked), None, true), Plan::Unprovisioned, "it was meant to join");
        assert_eq!(plan(Some(&fresh), None, true), Plan::Join);
        assert_eq!(
            plan(Some(&fresh), Some(&joined), false),
            Plan::BlankAndRun,
            "the power cut came before the blanking"
        );
        assert_eq!(plan(Some(&blanked), Some(&joined), true), Plan::Run);
        let moved = parse(b"cloud = \"b:1\"\ntoken = \"t2\"").expect("valid");
        assert_eq!(plan(Some(&moved), Some(&joined), false), Plan::Join, "a new token is a new join");
        assert_eq!(plan(None, Some(&joined), false), Plan::Run, "a damaged file does not stop a joined node");
    }

    #[test]
    fn the_flags_are_keadms() {
        let provision =
            parse(b"cloud = \"a:1\"\ntoken = \"t\"\njoin_port = 5\n[labels]\nx = \"1\"\ny = \"2\"\n")
                .expect("valid");
        let text = arguments(&provision, "n1").join(" ");
        for part in [
            "join --cloudcore-ipport a:1",
            "--token t",
            "--edgenode-name n1",
            "--certport 5",
            "--labels x=1,y=2",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn alone_a_node_is_told_its_name_and_machine() {
        let text = arguments_alone(None, "n1").join(" ");
        assert!(text.starts_with("alone --edgenode-name n1 --remote-runtime-endpoint unix:///"), "{text}");
        let provision = parse(b"discovery_prefix = \"homeassistant\"").expect("valid");
        let text = arguments_alone(Some(&provision), "n1").join(" ");
        assert!(text.ends_with("--discovery-prefix homeassistant"), "{text}");
    }

    #[test]
    fn the_marker_survives_a_round_trip_and_damage() {
        let joined = Joined { node: "n".into(), token_hash: 7 };
        assert_eq!(Joined::parse("n 0000000000000007\n"), Some(joined));
        assert_eq!(Joined::parse("n"), None);
    }
}
