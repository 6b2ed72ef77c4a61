//! `cargo xtask`: builds, packs, runs and measures Kinglet. Thin: the work is in mkimage, qemu and e2e.

mod bench;
mod budgets;
mod checks;
mod cloud_image;
mod cross_env;
mod deb;
mod demo;
mod elf;
mod images;
mod mqtt;
mod mutations;
mod prerequisites;
mod programs;
mod run;
mod test;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

const HELP: &str = "\
cargo xtask: build, run and test Kinglet

  cargo xtask demo                      from nothing to a joined node with a pod and devices, in QEMU; Ctrl-C ends it
      --check                           the same without stopping, asserts every step, writes target/demo/report.json
      --image FILE                      run a finished image instead of building one
      --memory MB                       memory of the guest (default 512)
      --debian-mirror URL               take Debian packages from there (needed on Ubuntu)
  cargo xtask test                      all tests, as .ci/run runs them
      --suite NAME                      only this suite (cargo xtask test --list shows them); may be repeated
      --row TEXT                        of the suites `pods` and `interop`: only rows with this in their names
  cargo xtask image --board BOARD       a flashable image: rpi (Pi 3, 4, 5, Zero 2 W) or qemu-virt
      --dev                             with a shell on the serial console
      --out DIR                         default target/image/BOARD
  cargo xtask cloud-image [--arch A]    cloudcore as an OCI image for amd64 and arm64, without a container engine
  cargo xtask deb [--arch A]            the Debian package of a node, for amd64 and arm64, into target/deb
  cargo xtask build-device              edgecore, mapper, init and sample programs for aarch64, size-optimised
  cargo xtask bench pods                what pods cost beside containerd; table and target/bench/pods.json
      --shim FILE                       and the memory per pod with this containerd shim
  cargo xtask bench link                bytes between a node and the cloud, on both lanes; table and target/bench/link.json
  cargo xtask bench hub                 what many nodes cost cloudcore; table and target/bench/hub.json
      --nodes N                         how many (default 1000)
  cargo xtask bench load                edgecore with 20 pods, 50 devices and 500 objects; table and target/bench/load.json
  cargo xtask sizes                     budgets.toml against what was built and measured
  cargo xtask check                     import rules and other checks of the sources

  Example: cargo xtask demo --check && cargo xtask sizes
";

fn main() {
    if let Err(error) = dispatch() {
        eprintln!("error: {error:#}");
        std::process::exit(1);
    }
}

fn dispatch() -> Result<()> {
    use lexopt::prelude::*;
    let root = root();
    let mut parser = lexopt::Parser::from_env();
    let Some(command) = parser.next()? else {
        print!("{HELP}");
        return Ok(());
    };
    let command = match command {
        Value(name) => name.string()?,
        Long("help") | Short('h') => {
            print!("{HELP}");
            return Ok(());
        }
        other => return Err(other.unexpected().into()),
    };
    let mut options = Options::default();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("help") | Short('h') => {
                print!("{HELP}");
                return Ok(());
            }
            Long("check") => options.check = true,
            Long("list") => options.list = true,
            Long("dev") => options.dev = true,
            Long("image") => options.image = Some(parser.value()?.into()),
            Long("out") => options.out = Some(parser.value()?.into()),
            Long("board") => options.board = Some(parser.value()?.string()?),
            Long("arch") => options.arch.push(parser.value()?.string()?),
            Long("row") => options.row = parser.value()?.string()?,
            Long("shim") => options.shim = Some(parser.value()?.into()),
            Long("nodes") => options.nodes = Some(parser.value()?.parse()?),
            Value(name) if options.name.is_none() => options.name = Some(name.string()?),
            Long("suite") => options.suites.push(parser.value()?.string()?),
            Long("memory") => options.memory_mb = Some(parser.value()?.parse()?),
            Long("debian-mirror") => options.debian_mirror = Some(parser.value()?.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    match command.as_str() {
        "demo" => demo::run(&root, &options),
        "test" => test::run(&root, &options),
        "image" => images::run(&root, &options),
        "cloud-image" => cloud_image::run(&root, &options),
        "deb" => deb::run(&root, &options),
        "build-device" => programs::device(&root, options.debian_mirror.as_deref()).map(drop),
        "bench" => bench::run(&root, &options),
        "sizes" => budgets::run(&root),
        "check" => checks::run(&root),
        other => bail!("no command {other:?}; `cargo xtask --help` lists them"),
    }
}

/// Options of all commands; each reads those that HELP gives for it.
#[derive(Debug, Default)]
pub struct Options {
    check: bool,
    list: bool,
    dev: bool,
    image: Option<PathBuf>,
    out: Option<PathBuf>,
    board: Option<String>,
    arch: Vec<String>,
    suites: Vec<String>,
    row: String,
    name: Option<String>,
    shim: Option<PathBuf>,
    nodes: Option<usize>,
    memory_mb: Option<u32>,
    debian_mirror: Option<String>,
}

/// The checkout that this xtask was built from.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace").to_path_buf()
}
