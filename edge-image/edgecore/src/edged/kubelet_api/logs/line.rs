//! The CRI log format: `2026-11-21T10:00:00.123456789Z stdout F text`, one entry per line; `P` marks a part of a longer line.
//! Source: the Kubernetes design document "CRI logging".

use jiff::Timestamp;

use super::{Options, Streams};
use crate::edged::kubelet_api::limits::LOG_HEAD_BYTES_MAX;

/// What stands before an entry's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head<'a> {
    pub time: &'a str,
    pub stderr: bool,
    /// The line goes on in the next entry of its stream.
    pub partial: bool,
    /// Where the text begins.
    pub len: usize,
}

impl Head<'_> {
    pub fn is_of(&self, streams: Streams) -> bool {
        match streams {
            Streams::All => true,
            Streams::Stdout => !self.stderr,
            Streams::Stderr => self.stderr,
        }
    }
}

/// `None` unless `bytes` begins with a whole head.
pub fn parse_head(bytes: &[u8]) -> Option<Head<'_>> {
    let bytes = &bytes[..bytes.len().min(LOG_HEAD_BYTES_MAX)];
    let mut spaces = bytes.iter().enumerate().filter(|(_, byte)| **byte == b' ').map(|(at, _)| at);
    let (first, second, third) = (spaces.next()?, spaces.next()?, spaces.next()?);
    let time = std::str::from_utf8(&bytes[..first]).ok()?;
    // Cheap, and tells garbage apart: years have four digits.
    if !time
        .as_bytes()
        .get(..5)
        .is_some_and(|year| year[..4].iter().all(u8::is_ascii_digit) && year[4] == b'-')
    {
        return None;
    }
    let stderr = match &bytes[first + 1..second] {
        b"stdout" => false,
        b"stderr" => true,
        _ => return None,
    };
    // Tags are separated by colons; the first says whether the line is whole.
    let partial = match bytes[second + 1..third].split(|byte| *byte == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(Head { time, stderr, partial, len: third + 1 })
}

enum At {
    /// The bytes of the head so far.
    Head,
    Text {
        partial: bool,
    },
    /// To the end of an entry that is not wanted or not an entry.
    Rest,
}

/// Turns a log into what the peer asked for, piece by piece: nothing of a line is kept but its head.
pub struct Filter {
    streams: Streams,
    since: Option<Timestamp>,
    timestamps: bool,
    /// Bytes that may still be written.
    room: Option<u64>,
    at: At,
    head: Vec<u8>,
    /// The last entry that was written was a part.
    continued: bool,
}

impl Filter {
    pub fn new(options: &Options) -> Filter {
        Filter {
            streams: options.streams,
            since: options.since,
            timestamps: options.timestamps,
            room: options.bytes_max,
            at: At::Head,
            head: Vec::with_capacity(LOG_HEAD_BYTES_MAX),
            continued: false,
        }
    }

    /// Nothing more will be written.
    pub fn is_full(&self) -> bool {
        self.room == Some(0)
    }

    /// Another file begins: what is left of an entry that was cut off is no part of it.
    pub fn begin(&mut self) {
        self.at = At::Head;
        self.head.clear();
    }

    pub fn push(&mut self, mut input: &[u8], out: &mut Vec<u8>) {
        while !input.is_empty() && !self.is_full() {
            match self.at {
                At::Head => input = self.take_head(input, out),
                At::Text { partial } => {
                    let end = input.iter().position(|byte| *byte == b'\n');
                    self.write(&input[..end.unwrap_or(input.len())], out);
                    if end.is_some() {
                        if !partial {
                            self.write(b"\n", out);
                        }
                        self.continued = partial;
                        self.begin();
                    }
                    input = &input[end.map_or(input.len(), |end| end + 1)..];
                }
                At::Rest => match input.iter().position(|byte| *byte == b'\n') {
                    Some(end) => {
                        self.begin();
                        input = &input[end + 1..];
                    }
                    None => return,
                },
            }
        }
    }

    /// Takes bytes until the head is whole; gives back what it did not need.
    fn take_head<'a>(&mut self, input: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
        for (at, byte) in input.iter().enumerate() {
            let rest = &input[at + 1..];
            match byte {
                b'\n' => {
                    self.begin();
                    return rest;
                }
                b' ' if self.head.iter().filter(|byte| **byte == b' ').count() == 2 => {
                    self.head.push(b' ');
                    self.judge(out);
                    return rest;
                }
                _ if self.head.len() >= LOG_HEAD_BYTES_MAX => {
                    self.at = At::Rest;
                    return rest;
                }
                byte => self.head.push(*byte),
            }
        }
        &[]
    }

    fn judge(&mut self, out: &mut Vec<u8>) {
        self.at = At::Rest;
        let head = std::mem::take(&mut self.head);
        if let Some(found) = parse_head(&head)
            && found.is_of(self.streams)
            && self.since.is_none_or(|since| found.time.parse::<Timestamp>().is_ok_and(|time| time >= since))
        {
            self.at = At::Text { partial: found.partial };
            if self.timestamps && !self.continued {
                self.write(fixed(found.time).as_bytes(), out);
                self.write(b" ", out);
            }
        }
        // The buffer is used again.
        self.head = head;
        self.head.clear();
    }

    fn write(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let take = match self.room {
            Some(room) => bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX)),
            None => bytes.len(),
        };
        out.extend_from_slice(&bytes[..take]);
        self.room = self.room.map(|room| room - take as u64);
    }
}

/// The time with all nine digits behind the point, as kubelet shows it; the runtime leaves zeros off.
fn fixed(time: &str) -> String {
    let zone = time.rfind(['Z', '+', '-']).filter(|at| *at > 10).unwrap_or(time.len());
    let (clock, zone) = time.split_at(zone);
    let (seconds, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    format!("{seconds}.{fraction:0<9}{zone}")
}

/// Entry for a fuzzer: a log of any bytes, whole and in pieces, gives the same and never more than was asked for.
pub fn fuzz_log(data: &[u8]) {
    let Some((&[choice, piece], log)) = data.split_first_chunk::<2>() else { return };
    let options = Options {
        timestamps: choice & 1 != 0,
        since: (choice & 2 != 0)
            .then(|| Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_secs(1_790_000_000)),
        bytes_max: (choice & 4 != 0).then_some(u64::from(choice)),
        streams: [Streams::All, Streams::Stdout, Streams::Stderr][usize::from(choice >> 3) % 3],
        ..Options::default()
    };
    let (mut whole, mut pieces) = (Vec::new(), Vec::new());
    Filter::new(&options).push(log, &mut whole);
    let mut filter = Filter::new(&options);
    for piece in log.chunks(usize::from(piece).max(1)) {
        filter.push(piece, &mut pieces);
    }
    assert_eq!(whole, pieces, "the same in pieces");
    assert!(options.bytes_max.is_none_or(|max| whole.len() as u64 <= max));
}
