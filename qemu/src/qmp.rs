//! QEMU's machine protocol: one JSON object per line.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// Lines of events read while waiting for one answer.
const EVENTS_MAX: usize = 1000;

#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
}

/// Opens a socket that QEMU is about to make.
pub(crate) fn connect(path: &Path, within: Duration) -> Result<UnixStream> {
    let end = Instant::now() + within;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(within))?;
                return Ok(stream);
            }
            Err(error) if Instant::now() > end => {
                return Err(error).with_context(|| format!("QEMU did not open {}", path.display()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

impl Qmp {
    pub(crate) fn open(path: &Path, within: Duration) -> Result<Qmp> {
        let mut qmp = Qmp { stream: BufReader::new(connect(path, within)?) };
        qmp.read().context("QMP sent no greeting")?;
        qmp.call("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            bail!("QEMU closed its control socket");
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// Runs a command and returns its `return` value; events on the way are dropped.
    pub fn call(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = format!("{}\n", json!({"execute": command, "arguments": arguments}));
        self.stream.get_mut().write_all(line.as_bytes())?;
        for _ in 0..EVENTS_MAX {
            let mut answer = self.read()?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused {command}: {}", error["desc"].as_str().unwrap_or("no reason"));
            }
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
        }
        bail!("QEMU did not answer {command}")
    }

    /// A command of the human monitor, for what QMP lacks.
    pub fn human(&mut self, command: &str) -> Result<String> {
        let answer = self.call("human-monitor-command", json!({"command-line": command}))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }
}
