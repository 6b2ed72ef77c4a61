//! The lines of virt's PL061 GPIO chip, seen from the other side of the wire, through QEMU's qtest socket.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::qmp::Qmp;
use crate::qtest::Qtest;

/// Where virt maps the chip. The data register's address carries the mask of lines: this one reads all eight.
const DATA_ALL: u64 = 0x0903_03fc;
const DIRECTION: u64 = 0x0903_0400;
const LINES: u8 = 8;

#[derive(Debug)]
pub struct Gpio {
    wires: Qtest,
    /// The chip's path in QEMU's object tree; its index differs from machine to machine.
    chip: String,
}

impl Gpio {
    pub(crate) fn open(socket: &Path, qmp: &mut Qmp, within: Duration) -> Result<Gpio> {
        let devices = qmp.call("qom-list", json!({"path": "/machine/unattached"}))?;
        let name = devices
            .as_array()
            .and_then(|list| list.iter().find(|entry| entry["type"] == "child<pl061>"))
            .and_then(|entry| entry["name"].as_str())
            .with_context(|| format!("this machine has no PL061 GPIO chip: {devices}"))?;
        Ok(Gpio { wires: Qtest::open(socket, within)?, chip: format!("/machine/unattached/{name}") })
    }

    /// Drives an input line, as a switch or sensor would.
    pub fn set_input(&mut self, line: u8, level: bool) -> Result<()> {
        ensure!(line < LINES, "the chip has lines 0 to 7, not {line}");
        let chip = self.chip.clone();
        self.wires.ask(&format!("set_irq_in {chip} unnamed-gpio-in {line} {}", u8::from(level)))?;
        Ok(())
    }

    /// The level the guest drives on a line; `None` while it is not an output.
    pub fn output(&mut self, line: u8) -> Result<Option<bool>> {
        ensure!(line < LINES, "the chip has lines 0 to 7, not {line}");
        if self.wires.read(DIRECTION)? & (1 << line) == 0 {
            return Ok(None);
        }
        Ok(Some(self.wires.read(DATA_ALL)? & (1 << line) != 0))
    }
}
