//! The command line; every command is a call into the library.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use lexopt::prelude::*;

use crate::apt::lock::Policy;
use crate::tools::{self, Group};
use crate::{image, oci};

const USAGE: &str = "usage:
  mkimage tools [--group kubectl|qemu|image|compiler]... [--debian-mirror URL]
  mkimage oci --name docker.io/kinglet/hello:1 --arch aarch64|x86_64 --file FROM:TO... --entrypoint ARG... [--env K=V]... [--port N]... --out FILE
  mkimage lock [--debian-mirror URL]
  mkimage build --board NAME --init FILE [--edgecore FILE] [--mapper FILE] [--pod-image ARCHIVE]... [--devices DIR] [--manifests DIR] [--out DIR] [--dev] [--fast] [--no-xz] [--ci] [--debian-mirror URL]";

pub fn run() -> Result<()> {
    let mut args = lexopt::Parser::from_env();
    let command = args.next()?;
    match command {
        Some(Value(name)) if name == "tools" => tools_command(args),
        Some(Value(name)) if name == "oci" => oci_command(args),
        Some(Value(name)) if name == "lock" => lock_command(args),
        Some(Value(name)) if name == "build" => build_command(args),
        _ => bail!("{USAGE}"),
    }
}

/// The workspace's target directory.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target"), PathBuf::from)
}

/// The repository.
fn source_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn lock_command(mut args: lexopt::Parser) -> Result<()> {
    let mut mirror = None;
    while let Some(arg) = args.next()? {
        match arg {
            Long("debian-mirror") => mirror = Some(args.value()?.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let lock = image::update_lock(&source_dir(), &target_dir(), mirror.as_deref())?;
    println!("{} packages, kernel {}", lock.packages.len(), lock.kernel);
    Ok(())
}

fn build_command(mut args: lexopt::Parser) -> Result<()> {
    let programs = image::Programs { init: PathBuf::new(), edgecore: None, mapper: None };
    let mut options = image::Options::new("", &source_dir(), &target_dir(), programs);
    let mut out = None;
    while let Some(arg) = args.next()? {
        match arg {
            Long("board") => options.board = args.value()?.string()?,
            Long("init") => options.programs.init = args.value()?.into(),
            Long("edgecore") => options.programs.edgecore = Some(args.value()?.into()),
            Long("mapper") => options.programs.mapper = Some(args.value()?.into()),
            Long("pod-image") => options.pod_images.push(args.value()?.into()),
            Long("devices") => options.devices = Some(args.value()?.into()),
            Long("manifests") => options.manifests = Some(args.value()?.into()),
            Long("out") => out = Some(PathBuf::from(args.value()?)),
            Long("dev") => options.dev = true,
            Long("fast") => options.small = false,
            Long("no-xz") => options.xz = false,
            Long("ci") => options.policy = Policy::Ci,
            Long("debian-mirror") => options.debian_mirror = Some(args.value()?.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    ensure!(
        !options.board.is_empty() && options.programs.init.exists(),
        "--board NAME and --init FILE are needed"
    );
    options.out_dir = out.unwrap_or_else(|| target_dir().join("image").join(&options.board));
    let built = image::build(&options)?;
    println!("{}{}", built.img.display(), if built.reused { " (nothing changed)" } else { "" });
    Ok(())
}

fn tools_command(mut args: lexopt::Parser) -> Result<()> {
    let mut options = tools::Options { target_dir: target_dir(), debian_mirror: None };
    let mut groups = Vec::new();
    while let Some(arg) = args.next()? {
        match arg {
            Long("group") => groups.push(group(&args.value()?.string()?)?),
            Long("debian-mirror") => options.debian_mirror = Some(args.value()?.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let groups = if groups.is_empty() { Group::ALL.to_vec() } else { groups };
    let tools = tools::ensure(&groups, &options)?;
    print!("{}", tools.versions());
    Ok(())
}

fn group(name: &str) -> Result<Group> {
    Group::ALL
        .into_iter()
        .find(|group| format!("{group:?}").eq_ignore_ascii_case(name))
        .with_context(|| format!("no group {name:?} of tools"))
}

fn oci_command(mut args: lexopt::Parser) -> Result<()> {
    let mut spec = oci::Spec::default();
    let mut out = None;
    while let Some(arg) = args.next()? {
        match arg {
            Long("name") => spec.reference = args.value()?.string()?,
            Long("arch") => spec.arch = oci::oci_arch(&args.value()?.string()?).to_owned(),
            Long("file") => {
                let value = args.value()?.string()?;
                let (from, to) = value.rsplit_once(':').context("--file wants FROM:TO")?;
                spec.files.push(oci::File::program(from, to));
            }
            Long("entrypoint") => spec.entrypoint.push(args.value()?.string()?),
            Long("env") => {
                let value = args.value()?.string()?;
                let (key, value) = value.split_once('=').context("--env wants K=V")?;
                spec.env.push((key.to_owned(), value.to_owned()));
            }
            Long("port") => spec.ports.push(args.value()?.parse()?),
            Long("out") => out = Some(PathBuf::from(args.value()?)),
            other => return Err(other.unexpected().into()),
        }
    }
    let out = out.context("--out FILE is missing")?;
    println!("{} {}", oci::write_archive(&spec, &out)?, spec.reference);
    Ok(())
}
