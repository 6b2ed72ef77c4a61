//! `cargo xtask demo`, and the two end-to-end suites, which are the same story without stopping.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result};
use e2e::{
    Programs,
    guest::{Deadlines, Setup, Story},
    steps::Steps,
    streams::Carrier,
};
use nix::sys::signal::{SigSet, Signal};

use crate::{
    Options, images, prerequisites, programs,
    run::{cargo, run as run_command, timed},
    test::Outcome,
};

const MEMORY_MB: u32 = 512;
/// What the second boot of the story has: the smallest guest that must work.
const MEMORY_SMALL_MB: u32 = 256;

pub fn run(root: &Path, options: &Options) -> Result<()> {
    let begun = Instant::now();
    if !options.check {
        interrupts().thread_block().context("block signals")?;
    }
    prerequisites::table(root)?;
    let mut story = begin(root, options)?;
    println!("\nEverything is built after {:.0} s. The story:", begun.elapsed().as_secs_f64());
    let told = tell(&mut story, options.check).and_then(|()| match options.check {
        true => cloud_from_image(root, options, &mut story.steps),
        false => Ok(()),
    });
    story.report.seconds("total_s", begun.elapsed().as_secs_f64());
    let path = root.join("target/demo/report.json");
    story.report.write(&path)?;
    told.with_context(|| story.logs())?;
    if options.check {
        println!("\nAll steps held. Figures: {}", path.display());
        return Ok(());
    }
    stay(&mut story)
}

/// The suite on this machine's containerd.
pub fn host(root: &Path, options: &Options) -> Result<Outcome> {
    if let Some(why) = e2e::containerd::missing() {
        let line = format!("the host story: {why}; the guest suite runs the same pod path in QEMU");
        return Ok(Outcome { not_run: vec![line], ..Outcome::default() });
    }
    let (programs, archive) = host_programs(root, options)?;
    in_steps("host", |dir, steps| {
        e2e::host::run(&programs, dir, steps)?;
        e2e::cloud_image::run(&programs, &archive, dir, steps)
    })
}

/// A suite whose cases are steps that build on each other.
fn in_steps(suite: &str, tell: impl FnOnce(&Path, &mut Steps) -> Result<()>) -> Result<Outcome> {
    let (dir, mut steps, mut outcome) = (scratch(suite)?, Steps::default(), Outcome::default());
    let told = tell(&dir, &mut steps);
    outcome.passed = steps.done.len() as u32;
    match told {
        Ok(()) => drop(std::fs::remove_dir_all(&dir)),
        Err(error) => {
            outcome.failed.push(format!("{suite}: {error:#} (again: cargo xtask test --suite {suite})"))
        }
    }
    Ok(outcome)
}

/// A node that has no cloud, on this machine's containerd.
pub fn alone(root: &Path, _: &Options) -> Result<Outcome> {
    if let Some(why) = e2e::containerd::missing() {
        return Ok(Outcome { not_run: vec![format!("a node alone: {why}")], ..Outcome::default() });
    }
    images::archives(root, std::env::consts::ARCH, &programs::host(root)?)?;
    let programs = programs_for(root, PathBuf::new(), PathBuf::new());
    in_steps("alone", |dir, steps| e2e::alone::run(&programs, dir, steps))
}

/// The table of pods on this machine's containerd: every row is a case.
pub fn pods(root: &Path, options: &Options) -> Result<Outcome> {
    if let Some(why) = e2e::containerd::missing() {
        let line = format!("the table of pods: {why}");
        return Ok(Outcome { not_run: vec![line], ..Outcome::default() });
    }
    let busybox = prerequisites::busybox(root, options.debian_mirror.as_deref())?;
    let programs = on_this_machine(root, options)?;
    images::busybox(root, &busybox)?;
    let dir = scratch("pods")?;
    let told = e2e::pods::run(&programs, &dir, &root.join("tests/pods"), &options.row)?;
    let again = |row: &str| format!("(again: cargo xtask test --suite pods --row {row})");
    let failed: Vec<String> =
        told.failed.iter().map(|(row, why)| format!("{row}: {why} {}", again(row))).collect();
    if failed.is_empty() {
        std::fs::remove_dir_all(&dir).context("remove the scratch folder")?;
    }
    Ok(Outcome { passed: told.passed.len() as u32, failed, ..Outcome::default() })
}

/// kubectl's streams through the link and through KubeEdge's tunnel, on this machine's containerd.
pub fn streams(root: &Path, options: &Options) -> Result<Outcome> {
    if let Some(why) = e2e::containerd::missing() {
        let line = format!("kubectl's streams: {why}");
        return Ok(Outcome { not_run: vec![line], ..Outcome::default() });
    }
    let busybox = prerequisites::busybox(root, options.debian_mirror.as_deref())?;
    let programs = on_this_machine(root, options)?;
    images::busybox(root, &busybox)?;
    in_steps("streams", |dir, steps| {
        for (carrier, name) in [(Carrier::Link, "link"), (Carrier::Tunnel, "tunnel")] {
            println!("streams through the {name}:");
            e2e::streams::run(&programs, &dir.join(name), carrier, steps)?;
        }
        Ok(())
    })
}

/// Flows against KubeEdge's programs, a real kube-apiserver, and our doubles.
/// As pip names them.
const PUSH_READERS: &[&str] = &["opentelemetry-proto==1.45.2", "line-protocol-parser==2.0.1"];

pub fn interop(root: &Path, options: &Options) -> Result<Outcome> {
    let tools = prerequisites::tools(root, options.debian_mirror.as_deref())?;
    let busybox = prerequisites::busybox(root, options.debian_mirror.as_deref())?;
    let cloudcore = programs::cloudcore_unoptimised(root)?;
    programs::mapper_dmi(root)?;
    images::archives(root, std::env::consts::ARCH, &programs::host(root)?)?;
    images::busybox(root, &busybox)?;
    let programs = programs_for(root, cloudcore, tools.program("kubectl"));
    let dir = scratch("interop")?;
    let python =
        crate::mqtt::python(root, "push", PUSH_READERS, "import opentelemetry.proto, line_protocol_parser");
    if let Err(error) = &python {
        println!("no Python that reads what is pushed: {error:#}");
    }
    let told = interop::run(&programs, &dir, &options.row, python.ok())?;
    let again = |row: &str| format!("(again: cargo xtask test --suite interop --row '{row}')");
    let failed: Vec<String> =
        told.failed.iter().map(|(row, why)| format!("{row}: {why} {}", again(row))).collect();
    if failed.is_empty() {
        std::fs::remove_dir_all(&dir).context("remove the scratch folder")?;
    }
    let not_run = told.not_run.iter().map(|(row, why)| format!("interop, {row}: {why}")).collect();
    Ok(Outcome { passed: told.passed.len() as u32, failed, not_run })
}

/// What runs on this machine itself, and cloudcore's OCI image.
fn host_programs(root: &Path, options: &Options) -> Result<(Programs, PathBuf)> {
    let programs = on_this_machine(root, options)?;
    let archive = crate::cloud_image::build(root, programs::host_target()?, &programs.cloudcore, options)?;
    Ok((programs, archive))
}

/// Builds what runs on this machine itself, and its pod images.
pub fn on_this_machine(root: &Path, options: &Options) -> Result<Programs> {
    let tools = prerequisites::tools(root, options.debian_mirror.as_deref())?;
    let cloudcore = programs::cloudcore(root, programs::host_target()?)?;
    images::archives(root, std::env::consts::ARCH, &programs::host(root)?)?;
    Ok(programs_for(root, cloudcore, kubectl(tools.program("kubectl"))))
}

/// `KINGLET_KUBECTL`: another kubectl than the pinned one, to see that its version works too.
fn kubectl(pinned: PathBuf) -> PathBuf {
    std::env::var_os("KINGLET_KUBECTL").map_or(pinned, PathBuf::from)
}

/// The demo's last step: the cloud from its image, where a container runtime is here to run it.
fn cloud_from_image(root: &Path, options: &Options, steps: &mut Steps) -> Result<()> {
    if let Some(why) = e2e::containerd::missing() {
        println!("not run here: the cloud from its OCI image: {why}");
        return Ok(());
    }
    let (programs, archive) = host_programs(root, options)?;
    let dir = scratch("cloud-image")?;
    e2e::cloud_image::run(&programs, &archive, &dir, steps)?;
    std::fs::remove_dir_all(&dir).context("remove the scratch folder")
}

/// The kernel's own GPIO chip, with the image's kernel and modules.
fn gpio_sim(root: &Path, options: &Options, image: &Path) -> Result<()> {
    let tools = prerequisites::tools(root, options.debian_mirror.as_deref())?;
    let (lines, _) = timed("build the suite of lines for the device", "about 20 seconds", || {
        let build = ["build", "--locked", "--profile", "device", "--target", programs::DEVICE_TARGET];
        run_command(cargo(root).args(build).args(["-p", "lines"]))?;
        Ok(root.join("target").join(programs::DEVICE_TARGET).join("device/lines"))
    })?;
    let modules = root.join("target/image/work/qemu-virt/root/usr/lib/modules");
    let (dir, mut steps) = (scratch("lines")?, Steps::default());
    let programs = qemu::Programs::in_tools(tools.dir());
    e2e::pins::conforms(image, &lines, &modules, &programs, &dir, &mut steps)?;
    std::fs::remove_dir_all(&dir).context("remove the scratch folder")
}

/// The suite in QEMU: every step is a case.
pub fn guest(root: &Path, options: &Options) -> Result<Outcome> {
    let mut story = begin(root, options)?;
    let told = tell(&mut story, true);
    story.report.write(&root.join("target/demo/report.json"))?;
    let mut outcome = Outcome { passed: story.steps.done.len() as u32, ..Outcome::default() };
    if let Err(error) = told {
        println!("{}", story.logs());
        outcome.failed.push(format!("guest: {error:#} (again: cargo xtask test --suite guest)"));
        return Ok(outcome);
    }
    match crate::budgets::run(root) {
        Ok(()) => outcome.passed += 1,
        Err(error) => outcome.failed.push(format!("budgets: {error:#}")),
    }
    match gpio_sim(root, options, story.image()) {
        Ok(()) => outcome.passed += 1,
        Err(error) => outcome.failed.push(format!("gpio-sim: {error:#}")),
    }
    Ok(outcome)
}

fn begin(root: &Path, options: &Options) -> Result<Story> {
    let tools = prerequisites::tools(root, options.debian_mirror.as_deref())?;
    let cloudcore = programs::cloudcore(root, programs::host_target()?)?;
    let mut sizes = Vec::new();
    let image = match &options.image {
        Some(image) => image.canonicalize().with_context(|| format!("no image {}", image.display()))?,
        None => {
            let (image, device) = images::build(root, "qemu-virt", options)?;
            for (name, file) in [
                ("edgecore_bytes", Some(&device.edgecore)),
                ("mapper_bytes", Some(&device.mapper)),
                ("init_bytes", Some(&device.init)),
                ("image_bytes", Some(&image.img)),
                ("image_xz_bytes", image.xz.as_ref()),
            ] {
                sizes.extend(
                    file.map(|file| Ok::<_, std::io::Error>((name, file.metadata()?.len()))).transpose()?,
                );
            }
            image.img
        }
    };
    let setup = Setup {
        programs: programs_for(root, cloudcore, tools.program("kubectl")),
        image,
        qemu: qemu::Programs::in_tools(tools.dir()),
        dir: scratch("demo")?,
        memory_mb: options.memory_mb.unwrap_or(MEMORY_MB),
    };
    let mut story = Story::begin(setup, Steps::default())?;
    sizes.into_iter().for_each(|(name, bytes)| story.report.set(name, bytes));
    Ok(story)
}

fn tell(story: &mut Story, to_the_end: bool) -> Result<()> {
    story.join()?;
    story.pod()?;
    story.devices()?;
    if to_the_end {
        story.power_cut(MEMORY_SMALL_MB, Deadlines::default())?;
        story.reconnect()?;
        story.measure()?;
    }
    Ok(())
}

/// Prints what to try and waits for Ctrl-C; dropping the story ends QEMU and cloudcore.
fn stay(story: &mut Story) -> Result<()> {
    let config = story.cloud.kubeconfig();
    println!("\nThe node is up. Try in another terminal:\n");
    println!("  export KUBECONFIG={}", config.display());
    for line in [
        "kubectl get nodes -o wide",
        "kubectl get pods -o wide",
        "kubectl get devices,devicestatuses",
        "kubectl get devicestatus panel -w -o yaml",
        "kubectl patch device panel --type=json -p '[{\"op\":\"add\",\"path\":\"/spec/properties/1/desired\",\"value\":{\"value\":\"false\"}}]'",
    ] {
        println!("  {line}");
    }
    println!("  curl http://127.0.0.1:{}/", story.page_port()?);
    println!("\n(kubectl is at {}.) Ctrl-C ends everything.", story.kubectl.program().display());
    interrupts().wait().context("wait for Ctrl-C")?;
    println!("ending");
    Ok(())
}

/// Ctrl-C and SIGTERM. They are blocked from the start, so that every thread of ours leaves them to [`stay`]; the programs that we
/// start have an empty mask again (std::process resets it), and a Ctrl-C before that ends the one at work, and with it us.
fn interrupts() -> SigSet {
    let mut set = SigSet::empty();
    set.add(Signal::SIGINT);
    set.add(Signal::SIGTERM);
    set
}

/// A scratch folder with a short path: sockets have at most 107 bytes.
pub fn scratch(what: &str) -> Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("kinglet-{what}-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

pub fn programs_for(root: &Path, cloudcore: PathBuf, kubectl: PathBuf) -> Programs {
    Programs {
        cloudcore,
        edgecore: root.join("target/debug/edgecore"),
        mapper: root.join("target/debug/mapper"),
        kubectl,
        images: root.join("target/images").join(std::env::consts::ARCH),
        samples: root.join("cloud/deploy/samples"),
    }
}
