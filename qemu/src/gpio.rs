//! The lines of virt's PL061 GPIO chip, seen from the other side of the wire, through QEMU's qtest socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::qmp::{Qmp, connect};

/// Where virt maps the chip. The data register's address carries the mask of lines: this one reads all eight.
const DATA_ALL: u64 = 0x0903_03fc;
const DIRECTION: u64 = 0x0903_0400;
const LINES: u8 = 8;

#[derive(Debug)]
pub struct Gpio {
    stream: BufReader<UnixStream>,
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
        Ok(Gpio {
            stream: BufReader::new(connect(socket, within)?),
            chip: format!("/machine/unattached/{name}"),
        })
    }

    fn ask(&mut self, line: &str) -> Result<String> {
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes())?;
        loop {
            let mut answer = String::new();
            if self.stream.read_line(&mut answer)? == 0 {
                bail!("QEMU closed its test socket");
            }
            if let Some(rest) = answer.trim_end().strip_prefix("OK") {
                return Ok(rest.trim().to_owned());
            }
            ensure!(answer.starts_with("IRQ"), "QEMU refused {line:?}: {}", answer.trim_end());
        }
    }

    fn read(&mut self, address: u64) -> Result<u8> {
        let text = self.ask(&format!("readl {address:#x}"))?;
        let value = u64::from_str_radix(text.trim_start_matches("0x"), 16)
            .with_context(|| format!("odd answer {text:?}"))?;
        Ok((value & 0xff) as u8)
    }

    /// Drives an input line, as a switch or sensor would.
    pub fn set_input(&mut self, line: u8, level: bool) -> Result<()> {
        ensure!(line < LINES, "the chip has lines 0 to 7, not {line}");
        let chip = self.chip.clone();
        self.ask(&format!("set_irq_in {chip} unnamed-gpio-in {line} {}", u8::from(level)))?;
        Ok(())
    }

    /// The level the guest drives on a line; `None` while it is not an output.
    pub fn output(&mut self, line: u8) -> Result<Option<bool>> {
        ensure!(line < LINES, "the chip has lines 0 to 7, not {line}");
        if self.read(DIRECTION)? & (1 << line) == 0 {
            return Ok(None);
        }
        Ok(Some(self.read(DATA_ALL)? & (1 << line) != 0))
    }
}
