//! Flows of our programs against programs that others wrote: KubeEdge's cloudcore and edgecore, a real kube-apiserver.
//!
//! Not here: any product crate (a check in `cargo xtask test` refuses the import), and any peer: they are given by the environment
//! variable `KINGLET_PEERS` (docs/interop.md), a folder of programs. Without it a flow that needs one is told as not run and never
//! counted as passed; flows against our own doubles need none.
//!
//! Every flow has a folder of its own, ports of its own on the loopback, and ends whatever it started when its values are dropped.
//! Start at [`run`]; a flow is a [`Flow`] in its module's `FLOWS`.

pub mod adopt;
pub mod certificates;
pub mod control_plane;
pub mod dmi;
pub mod kubernetes;
pub mod peers;
pub mod ports;
pub mod push;
pub mod running;
pub mod stock_cloud;
pub mod stock_edge;
pub mod twins;
pub mod values;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use e2e::{Programs, steps::Steps};

pub use control_plane::ControlPlane;
pub use peers::{Peer, Peers, peers};
pub use running::Running;

/// All flows, module by module.
const ALL: &[&[Flow]] = &[
    certificates::FLOWS,
    control_plane::FLOWS,
    kubernetes::FLOWS,
    stock_cloud::FLOWS,
    stock_edge::FLOWS,
    dmi::FLOWS,
    twins::FLOWS,
    values::FLOWS,
    push::FLOWS,
    adopt::FLOWS,
];

/// One story against one or more peers.
#[derive(Debug)]
pub struct Flow {
    /// `cargo xtask test --suite interop --row TEXT` runs those whose names have the text in them.
    pub name: &'static str,
    /// Without these it cannot run. None: it runs against a double of ours.
    pub needs: &'static [Peer],
    pub run: fn(&Bench, &mut Steps) -> Result<()>,
}

/// What a flow works with.
#[derive(Debug)]
pub struct Bench {
    /// Our programs, as built from this checkout.
    pub programs: Programs,
    /// Empty, and its own. It stays when the flow fails.
    pub dir: PathBuf,
    /// [`Peer::Python`], if it is there.
    pub python: Option<PathBuf>,
    peers: Option<Peers>,
}

impl Bench {
    /// The peers; an error only for a flow that did not say that it needs one.
    pub fn peers(&self) -> Result<&Peers> {
        self.peers.as_ref().context("a flow without needs asked for peers")
    }
}

/// What became of the flows.
#[derive(Debug, Default)]
pub struct Told {
    pub passed: Vec<&'static str>,
    /// Name and why.
    pub failed: Vec<(&'static str, String)>,
    /// Name and why not.
    pub not_run: Vec<(&'static str, String)>,
}

/// Runs the flows with `row` in their names, each in its own folder below `dir`.
pub fn run(programs: &Programs, dir: &Path, row: &str, python: Option<PathBuf>) -> Result<Told> {
    let peers = peers();
    let mut told = Told::default();
    for flow in ALL.iter().copied().flatten().filter(|flow| flow.name.contains(row)) {
        let lacks = |peer: &Peer| match peer {
            Peer::Python if python.is_some() => None,
            Peer::Python => Some("skipped: no Python with what pip would fetch".to_owned()),
            peer => peers::missing(peers.as_ref(), *peer),
        };
        if let Some(why) = flow.needs.iter().find_map(lacks) {
            told.not_run.push((flow.name, why));
            continue;
        }
        println!("\n  --- {}", flow.name);
        let folder = dir.join(told.passed.len().to_string());
        std::fs::create_dir_all(&folder)?;
        let bench = Bench {
            programs: programs.clone(),
            dir: folder.clone(),
            python: python.clone(),
            peers: peers.clone(),
        };
        match (flow.run)(&bench, &mut Steps::default()) {
            Ok(()) => {
                told.passed.push(flow.name);
                std::fs::remove_dir_all(&folder)
                    .with_context(|| format!("{}: remove {}", flow.name, folder.display()))?;
            }
            Err(error) => {
                println!("  FAILED: {error:#}");
                let kept = dir.join(format!("failed-{}", told.failed.len()));
                std::fs::rename(&folder, &kept)?;
                told.failed.push((flow.name, format!("{error:#}; logs: {}", kept.display())));
            }
        }
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn names_of_flows_are_unique() {
        let names: Vec<&str> = super::ALL.iter().copied().flatten().map(|flow| flow.name).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
    }
}
