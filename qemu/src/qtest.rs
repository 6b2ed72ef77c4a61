//! QEMU's test socket: the machine's memory and wires, from outside. One line for a command, one for the answer.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::qmp::connect;

#[derive(Debug)]
pub(crate) struct Qtest {
    stream: BufReader<UnixStream>,
}

impl Qtest {
    pub(crate) fn open(socket: &Path, within: Duration) -> Result<Qtest> {
        Ok(Qtest { stream: BufReader::new(connect(socket, within)?) })
    }

    pub(crate) fn ask(&mut self, line: &str) -> Result<String> {
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

    /// A register of 32 bits.
    pub(crate) fn read(&mut self, address: u64) -> Result<u32> {
        let text = self.ask(&format!("readl {address:#x}"))?;
        let value = u64::from_str_radix(text.trim_start_matches("0x"), 16);
        Ok(value.with_context(|| format!("odd answer {text:?}"))? as u32)
    }
}
