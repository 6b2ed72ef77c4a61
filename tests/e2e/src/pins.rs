//! The kernel's own GPIO chip without hardware, gpio-sim, on the image's kernel and with the image's modules: what the unit tests
//! ask of the fake is asked of it. A machine of its own, because the release image has nobody who could make such a chip.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use qemu::{Bare, Programs, disk};

use crate::steps::Steps;

const BOOT: Duration = Duration::from_secs(120);

/// `lines` is the program of tests/lines for the device, `modules` the folder with `modules.map` of the image's root.
pub fn conforms(
    image: &Path,
    lines: &Path,
    modules: &Path,
    programs: &Programs,
    dir: &Path,
    steps: &mut Steps,
) -> Result<()> {
    let map = fs::read_to_string(modules.join("modules.map")).context("modules.map of the image")?;
    let mut files = vec![("init".to_owned(), fs::read(lines).context("the program `lines`")?)];
    for line in map.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(name), Some(path)) = (words.next(), words.next()) else { continue };
        if ["gpio_sim", "configfs"].contains(&name) {
            files.push((format!("modules/{path}"), fs::read(modules.join(path)).context(name.to_owned())?));
        }
    }
    ensure!(files.len() > 1, "the image has no module gpio_sim");
    files.push(("modules/modules.map".into(), map.into_bytes()));
    let files: Vec<qemu::InitFile<'_>> =
        files.iter().map(|(path, data)| (path.as_str(), data.as_slice(), path == "init")).collect();
    let kernel = disk::read_boot_bytes(image, "a/Image")?;
    steps.step("lines of the kernel's gpio-sim do what the fake's do", || {
        let mut machine = Bare::start(programs, &kernel, &files, dir)?;
        let verdict = machine.wait_for("rows on gpio-sim", BOOT)?;
        ensure!(verdict.contains(" 0 failed"), "{}", machine.console.tail());
        Ok(())
    })?;
    Ok(())
}
