//! The example firmware on an emulated Cortex-M, spoken to in the bytes that docs/serial-frames.md describes. The codec here is the
//! document's, not the product's: it is what somebody would write who has only the page.

use std::{
    io::{Read, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

const WITHIN: Duration = Duration::from_secs(60);

struct Board(Child);

impl Drop for Board {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The counter counts, the heater obeys, and noise costs nothing but itself.
pub fn speaks(qemu: &Path, firmware: &Path) -> Result<()> {
    let mut board = Board(
        Command::new(qemu)
            .args(["-M", "lm3s6965evb", "-nodefaults", "-display", "none", "-serial", "stdio", "-kernel"])
            .arg(firmware)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", qemu.display()))?,
    );
    let mut input = board.0.stdin.take().context("stdin is piped")?;
    let mut output = board.0.stdout.take().context("stdout is piped")?;
    let (tx, bytes) = mpsc::channel();
    // Ends with the board.
    std::thread::spawn(move || {
        let mut byte = [0];
        while output.read_exact(&mut byte).is_ok() && tx.send(byte[0]).is_ok() {}
    });
    let begun = Instant::now();
    let next = || -> Result<Vec<u8>> {
        let mut encoded = Vec::new();
        loop {
            let left = WITHIN.saturating_sub(begun.elapsed());
            match bytes.recv_timeout(left).context("the firmware says no more")? {
                0 => return body(&encoded).context("a frame with a wrong checksum"),
                byte => encoded.push(byte),
            }
        }
    };
    // Report, sequence 1, channel 1, Int, 1 in zigzag; then 2.
    ensure!(next()? == [0, 1, 1, 1, 2], "the first report");
    ensure!(next()? == [0, 2, 1, 1, 4], "the second report");
    // Noise without an end, its end, then Set, sequence 300, channel 2, Bool, true.
    input.write_all(&[0xff, 0x13, 0])?;
    input.write_all(&frame(&[1, 0xac, 0x02, 2, 0, 1]))?;
    input.flush()?;
    let mut done = false;
    for _ in 0..50 {
        let said = next()?;
        done |= said == [2, 0xac, 0x02, 1];
        // The heater's report: Report, a sequence, channel 2, Bool, true.
        if done && said.first() == Some(&0) && said.ends_with(&[2, 0, 1]) {
            return Ok(());
        }
    }
    anyhow::bail!("the heater was not acknowledged and reported")
}

/// CRC-16/IBM-SDLC.
fn crc(bytes: &[u8]) -> [u8; 2] {
    let step = |crc: u16, byte: &u8| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x8408 } else { 0 })
    };
    (!bytes.iter().fold(0xffff, step)).to_le_bytes()
}

/// COBS with the checksum inside and the zero byte at the end; for bodies below 254 bytes.
fn frame(body: &[u8]) -> Vec<u8> {
    let plain = [body, &crc(body)].concat();
    let mut out = Vec::new();
    for run in plain.split(|byte| *byte == 0) {
        out.push(run.len() as u8 + 1);
        out.extend_from_slice(run);
    }
    out.push(0);
    out
}

fn body(encoded: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::new();
    let mut rest = encoded;
    while let Some((len, after)) = rest.split_first() {
        let run = after.get(..usize::from(*len).checked_sub(1)?)?;
        plain.extend_from_slice(run);
        rest = &after[run.len()..];
        if !rest.is_empty() {
            plain.push(0);
        }
    }
    let (body, sum) = plain.split_last_chunk::<2>()?;
    (crc(body) == *sum).then(|| body.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_s_example() {
        let report = [0, 0xac, 0x02, 1, 1, 3];
        let sent = frame(&report);
        assert_eq!(sent[..7], [1, 8, 0xac, 0x02, 1, 1, 3]);
        assert_eq!(body(&sent[..sent.len() - 1]).unwrap(), report);
        assert_eq!(crc(b"123456789"), 0x906e_u16.to_le_bytes());
    }
}
