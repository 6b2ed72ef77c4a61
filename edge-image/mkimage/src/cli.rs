//! The command line; every command is a call into the library.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use lexopt::prelude::*;

use crate::oci;
use crate::tools::{self, Group};

const USAGE: &str = "usage:
  mkimage tools [--group kubectl|qemu|image|compiler]... [--debian-mirror URL]
  mkimage oci --name docker.io/kinglet/hello:1 --arch aarch64|x86_64 --file FROM:TO... --entrypoint ARG... [--env K=V]... [--port N]... --out FILE";

pub fn run() -> Result<()> {
    let mut args = lexopt::Parser::from_env();
    let command = args.next()?;
    match command {
        Some(Value(name)) if name == "tools" => tools_command(args),
        Some(Value(name)) if name == "oci" => oci_command(args),
        _ => bail!("{USAGE}"),
    }
}

/// The workspace's target directory.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target"), PathBuf::from)
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
