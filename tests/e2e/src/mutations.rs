//! Things broken on purpose: each must turn the step of the end-to-end test red that is there to see it. A mutation that stays
//! green is a hole in the test.
//!
//! Two are done to a running node (mapper stopped, container restarted), two are built into a program (`rt::fault`: an
//! acknowledgement dropped, an fsync removed).

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    Programs,
    cloud::Cloud,
    guest::{self, Deadlines, Setup, Story},
    host::{self, Node},
    kubectl::Kubectl,
    steps::{Steps, wait_for},
};

/// What is expected to fail is not waited for as long as what is expected to hold.
const GIVE_UP: Duration = Duration::from_secs(10);
/// The fastest boot offline takes a third of this.
const GIVE_UP_BOOT: Duration = Duration::from_secs(60);

/// Judges one mutated run: red in one of `expected`, or an error that says what happened instead.
pub fn red(mutation: &str, expected: &[&str], outcome: Result<()>) -> Result<()> {
    let Err(error) = outcome else {
        bail!("mutation `{mutation}` stays green: none of {expected:?} noticed it");
    };
    match error.chain().any(|cause| expected.contains(&cause.to_string().as_str())) {
        true => Ok(()),
        false => Err(error.context(format!("mutation `{mutation}` failed elsewhere than in {expected:?}"))),
    }
}

struct Bench {
    cloud: Cloud,
    kubectl: Kubectl,
    node: Node,
}

impl Bench {
    fn new(programs: &Programs, dir: &Path) -> Result<Bench> {
        let mut cloud = Cloud::new(&programs.cloudcore, &dir.join("cloud"), &["127.0.0.1"])?;
        cloud.start()?;
        let kubectl = cloud.kubectl(&programs.kubectl);
        Ok(Bench { cloud, kubectl, node: Node::new(programs, dir)? })
    }
}

/// A whole node, disturbed from outside: first its mapper, then its container. Each must be red, and was green just before.
pub fn disturbed(programs: &Programs, dir: &Path, steps: &mut Steps) -> Result<()> {
    let Bench { mut cloud, kubectl, mut node } = Bench::new(programs, dir)?;
    let before = host::pod_runs(&cloud, &mut node, &kubectl, steps)?;
    let mut sensor = host::device(&mut node, &kubectl, steps)?;
    steps.step("mutation: mapper stopped", || {
        node.mapper.take().context("mapper runs")?.kill();
        let outcome = host::sensor_speaks(&kubectl, &mut sensor, GIVE_UP, &mut Steps::quiet());
        red("mapper stopped", &[host::SENSOR_SPEAKS], outcome)
    })?;
    steps.step("the node is whole before the next mutation", || host::unchanged(&kubectl, &node, &before))?;
    steps.step("mutation: container restart forced", || {
        let restart = |node: &Node| {
            let pids = node.processes()?;
            let [pid] = pids[..] else { bail!("the pod has processes {pids:?}") };
            kill(Pid::from_raw(pid as i32), Signal::SIGKILL)?;
            wait_for(host::SOON, "the container again", || {
                Ok(node.processes()?.iter().any(|now| *now != pid).then_some(()))
            })
        };
        let quiet = &mut Steps::quiet();
        let outcome = host::cloud_returns(&mut cloud, &node, &kubectl, &before, quiet, restart);
        red("container restart forced", &[host::CLOUD_RETURNS], outcome)
    })?;
    Ok(())
}

/// `programs.edgecore` is built with the fault `drop-ack`.
pub fn ack_dropped(programs: &Programs, dir: &Path, steps: &mut Steps) -> Result<()> {
    let Bench { cloud, kubectl, mut node } = Bench::new(programs, dir)?;
    steps.step("mutation: acknowledgements dropped", || {
        let quiet = &mut Steps::quiet();
        let outcome = host::pod_runs(&cloud, &mut node, &kubectl, quiet)
            .and_then(|_| host::nothing_twice(&cloud, 0, host::ACK_WAIT, quiet));
        // The pod may come too late already: it waits behind what is sent again and again.
        red("acknowledgements dropped", &[host::POD_RUNS, host::NOTHING_TWICE], outcome)
    })?;
    Ok(())
}

/// `setup.image` has an edgecore that was built with the fault `no-fsync`.
pub fn fsync_removed(setup: Setup, steps: &mut Steps) -> Result<()> {
    let memory_mb = setup.memory_mb;
    let mut story = Story::begin(setup, Steps::default())?;
    steps.step("mutation: fsync removed", || {
        let outcome = story.join().and_then(|()| story.pod()).and_then(|()| story.devices()).and_then(|()| {
            let within = Deadlines { boot: GIVE_UP_BOOT, step: GIVE_UP };
            story.power_cut(memory_mb, within)
        });
        red("fsync removed", &[guest::OFFLINE_POD, guest::OFFLINE_LAMP], outcome)
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn green_and_red_elsewhere_are_failures() {
        assert!(format!("{:#}", red("m", &["a"], Ok(())).unwrap_err()).contains("stays green"));
        let elsewhere = red("m", &["a"], Err(anyhow!("x").context("b"))).unwrap_err();
        assert!(format!("{elsewhere:#}").contains("failed elsewhere"));
        red("m", &["a"], Err(anyhow!("x").context("a").context("outer"))).unwrap();
    }
}
