//! The suite `mutations`: what is broken on purpose must turn the end-to-end test red (tests/e2e/src/mutations.rs).

use std::path::{Path, PathBuf};

use anyhow::Result;
use e2e::{Programs, guest::Setup, mutations, steps::Steps};
use mkimage::image;

use crate::{
    Options,
    demo::{on_this_machine, programs_for, scratch},
    images, prerequisites,
    programs::{self, Device},
    run::{cargo, run, timed},
    test::Outcome,
};

const MEMORY_MB: u32 = 512;

pub fn suite(root: &Path, options: &Options) -> Result<Outcome> {
    let tools = prerequisites::tools(root, options.debian_mirror.as_deref())?;
    let cloudcore = programs::cloudcore(root, programs::host_target()?)?;
    let mut outcome = Outcome::default();
    let mut cases = Cases { outcome: &mut outcome };
    match e2e::containerd::missing() {
        Some(why) => {
            for name in ["mapper stopped", "container restart forced", "acknowledgements dropped"] {
                cases.outcome.not_run.push(format!("mutation `{name}`: {why}"));
            }
        }
        None => {
            let whole = on_this_machine(root, options)?;
            cases.tell("disturbed", |dir, steps| mutations::disturbed(&whole, dir, steps))?;
            let mutant = Programs { edgecore: mutant(root, "drop-ack", None)?, ..whole };
            cases.tell("ack", |dir, steps| mutations::ack_dropped(&mutant, dir, steps))?;
        }
    }
    let image = image_without_fsync(root, options)?;
    let programs = programs_for(root, cloudcore, tools.program("kubectl"));
    let qemu = qemu::Programs::in_tools(tools.dir());
    cases.tell("fsync", |dir, steps| {
        let setup = Setup { programs, image, qemu, dir: dir.into(), memory_mb: MEMORY_MB };
        mutations::fsync_removed(setup, steps)
    })?;
    Ok(outcome)
}

struct Cases<'a> {
    outcome: &'a mut Outcome,
}

impl Cases<'_> {
    /// Every step that held is a case.
    fn tell(&mut self, name: &str, story: impl FnOnce(&Path, &mut Steps) -> Result<()>) -> Result<()> {
        let dir = scratch(name)?;
        let mut steps = Steps::default();
        let told = story(&dir, &mut steps);
        self.outcome.passed += steps.done.len() as u32;
        match told {
            Ok(()) => drop(std::fs::remove_dir_all(&dir)),
            Err(error) => {
                let line = format!("mutations: {error:#} (again: cargo xtask test --suite mutations)");
                self.outcome.failed.push(line);
            }
        }
        Ok(())
    }
}

/// edgecore with a fault built in, for this machine or for the device. Unoptimised but for size; in a target folder of its own, so
/// that no other build ever meets it.
fn mutant(root: &Path, fault: &str, target: Option<&str>) -> Result<PathBuf> {
    let folder = root.join("target/mutants");
    timed(&format!("build edgecore with the fault {fault}"), "about 1 minute", || {
        let mut command = cargo(root);
        command.args(["build", "--quiet", "--locked", "-p", "edgecore", "--target-dir"]).arg(&folder);
        command.env("KINGLET_FAULT", fault);
        let mut built = folder.clone();
        if let Some(target) = target {
            command.args(["--target", target]);
            // It travels in an image.
            command.env("CARGO_PROFILE_DEV_STRIP", "symbols").env("CARGO_PROFILE_DEV_DEBUG", "0");
            command.env("CARGO_PROFILE_DEV_OPT_LEVEL", "1");
            built.push(target);
        }
        run(&mut command)?;
        Ok(built.join("debug/edgecore"))
    })
    .map(|(program, _)| program)
}

/// The qemu-virt image with that one program exchanged, packed for speed.
fn image_without_fsync(root: &Path, options: &Options) -> Result<PathBuf> {
    let device = programs::device(root, options.debian_mirror.as_deref())?;
    let edgecore = mutant(root, "no-fsync", Some(programs::DEVICE_TARGET))?;
    let mut request = images::request(root, "qemu-virt", &Device { edgecore, ..device }, options)?;
    request.out_dir = root.join("target/mutants/image");
    (request.small, request.xz) = (false, false);
    timed("pack an image with it", "", || image::build(&request)).map(|(image, _)| image.img)
}
