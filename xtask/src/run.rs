//! Running commands with progress on the terminal.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// Prints what begins and how long it took. `expect` is what a person should be ready to wait, in words; empty for short steps.
pub fn timed<T>(what: &str, expect: &str, run: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let hint = if expect.is_empty() { String::new() } else { format!(" ({expect})") };
    println!("==> {what}{hint}");
    let begun = Instant::now();
    let value = run().with_context(|| what.to_owned())?;
    let took = begun.elapsed();
    println!("    {what}: {:.1} s", took.as_secs_f64());
    Ok((value, took))
}

/// Runs a command whose output the person sees; an error names it.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}");
    let status = command.status().with_context(|| format!("start {shown}"))?;
    if !status.success() {
        bail!("{shown} ended with {status}");
    }
    Ok(())
}

/// The cargo that runs us, so that a toolchain override holds.
pub fn cargo(root: &std::path::Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.current_dir(root);
    // Set by the outer `cargo run`; they would change the fingerprint of build scripts.
    for name in ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_PKG_NAME", "CARGO_PKG_VERSION"] {
        command.env_remove(name);
    }
    command
}
