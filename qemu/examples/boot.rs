//! Boots an image and shows its console until a marker appears or time is up:
//! `cargo run -p qemu --example boot -- IMAGE [--memory MB] [--until MARKER] [--seconds N] [--tools DIR] [--provision FILE] [--power-down] [--keep DIR] [--type FILE]`

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use qemu::{Config, Machine, Programs, disk};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let image = PathBuf::from(args.next().context("which image?")?);
    let mut options = std::collections::HashMap::new();
    while let Some(key) = args.next() {
        let value = if key == "--power-down" {
            String::new()
        } else {
            args.next().context("an option wants a value")?
        };
        options.insert(key, value);
    }
    let option = |key: &str, default: &str| options.get(key).cloned().unwrap_or_else(|| default.to_owned());
    let tools = PathBuf::from(option("--tools", "target/tools"));
    let dir = PathBuf::from(option("--keep", "/tmp/kinglet-boot"));
    std::fs::create_dir_all(&dir)?;
    let copy = dir.join("disk.img");
    if !copy.exists() {
        let text = options.get("--provision").map(std::fs::read_to_string).transpose()?.unwrap_or_default();
        disk::provision(&image, &copy, 2048, &text)?;
    }
    let mut config = Config::new(Programs::in_tools(&tools), &copy, &dir);
    config.memory_mb = option("--memory", "512").parse()?;
    config.serial_ports = 1;
    config.forward = vec![8080];
    let begun = Instant::now();
    let mut machine = Machine::start(&config)?;
    let until = option("--until", "containerd ready");
    let found = machine.wait_for(&until, Duration::from_secs(option("--seconds", "120").parse()?));
    if let Some(script) = options.get("--type") {
        machine.console.write(&std::fs::read_to_string(script)?)?;
        let _ = machine.wait_for("typed-end", Duration::from_secs(90));
    }
    println!("{}", machine.console.text());
    println!("-- {:?} wall, {:.1} s CPU", begun.elapsed(), machine.cpu_seconds()?);
    found?;
    println!("-- line 2 output: {:?}", machine.gpio().output(2)?);
    if options.contains_key("--power-down") {
        let log = machine.console.log().to_owned();
        machine.power_down(Duration::from_secs(60))?;
        print_tail(&log)?;
    } else {
        machine.power_cut()?;
    }
    println!(
        "-- status.txt:\n{}",
        disk::read_boot_file(&copy, disk::STATUS).unwrap_or_else(|error| format!("{error:#}"))
    );
    Ok(())
}

fn print_tail(log: &Path) -> Result<()> {
    let text = std::fs::read_to_string(log)?;
    let lines: Vec<&str> = text.lines().collect();
    println!("-- after the power button:\n{}", lines[lines.len().saturating_sub(8)..].join("\n"));
    Ok(())
}
