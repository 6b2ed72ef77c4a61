//! What a container says of its own end: its termination message, or the end of its log.
//!
//! Bounds as kubelet's: 4096 bytes of the message, else the last 2048 bytes of the last 80 lines of the log.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use super::limits;

/// The beginning of the file that the container may have written.
pub fn of_file(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        let _ = file.take(limits::TERMINATION_MESSAGE_BYTES_MAX).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The end of the log, for a container that failed without a word.
pub fn of_log(path: &Path) -> String {
    let mut bytes = Vec::new();
    let mut read = || -> std::io::Result<()> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(limits::LAST_WORDS_READ_BYTES)))?;
        file.take(limits::LAST_WORDS_READ_BYTES).read_to_end(&mut bytes)?;
        Ok(())
    };
    if let Err(error) = read() {
        tracing::debug!("cannot read the end of {} ({error})", path.display());
    }
    end_of_log(&bytes)
}

/// Takes the texts out of a runtime's log lines (`<time> <stream> <tags> <text>`).
fn end_of_log(bytes: &[u8]) -> String {
    let mut texts = Vec::new();
    let mut lines = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n').rev() {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let (Some(_), Some(stream), Some(tags), Some(text)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        if !matches!(stream, b"stdout" | b"stderr") {
            continue;
        }
        // A partial line has its end in the next one.
        let partial = tags.split(|byte| *byte == b':').any(|tag| tag == b"P");
        lines += u32::from(!partial);
        if lines > limits::LAST_WORDS_LINES_MAX {
            break;
        }
        texts.push(if partial { text.strip_suffix(b"\n").unwrap_or(text) } else { text });
    }
    texts.reverse();
    let whole = texts.concat();
    let from = whole.len().saturating_sub(limits::LAST_WORDS_BYTES_MAX);
    String::from_utf8_lossy(&whole[from..]).into_owned()
}

/// Total for every input: see `tests/fuzz`.
pub fn fuzz_last_words(bytes: &[u8]) {
    assert!(
        end_of_log(bytes).len() <= 3 * limits::LAST_WORDS_BYTES_MAX,
        "bytes that are no text take three each"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_of_both_streams_and_no_more() {
        let log = b"2026-11-21T08:00:00.1Z stdout F first\n2026-11-21T08:00:00.2Z stderr P the pump \n\
            2026-11-21T08:00:00.3Z stderr F is dry\n2026-11-21T08:00:00.4Z stdout F last\n";
        assert_eq!(end_of_log(log), "first\nthe pump is dry\nlast\n");
        let many: String = (0..200).map(|n| format!("t stdout F line {n}\n")).collect();
        let words = end_of_log(many.as_bytes());
        assert_eq!((words.lines().count(), words.lines().next()), (80, Some("line 120")));
        let long = format!("t stdout F {}end\n", "x".repeat(5000));
        let words = end_of_log(long.as_bytes());
        assert!(words.len() == limits::LAST_WORDS_BYTES_MAX && words.ends_with("xend\n"));
        assert_eq!(end_of_log(b"half of a li"), "");
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let whole =
            b"2026-11-21T08:00:00.1Z stdout F first\n2026-11-21T08:00:00.2Z stderr P \xff\xfe\n x  F:P \n"
                .to_vec();
        let mut seed: u64 = 7;
        let mut random = |n: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as usize % n
        };
        for _ in 0..2000 {
            let mut bytes = whole.clone();
            for _ in 0..4 {
                let at = random(bytes.len());
                bytes[at] = [b' ', b'\n', b'P', b':', 0xff, b'F'][random(6)];
            }
            bytes.truncate(random(bytes.len()) + 1);
            fuzz_last_words(&bytes);
        }
    }
}
