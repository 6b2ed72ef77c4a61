use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use super::{
    line::Filter,
    reader::{Reader, Step},
    *,
};

fn entry(second: u32, stream: &str, tag: &str, text: &str) -> String {
    format!("2026-11-21T10:00:{second:02}.5Z {stream} {tag} {text}\n")
}

fn options(query: &str) -> Options {
    let now = "2026-11-21T10:00:30Z".parse().unwrap();
    Options::parse(&Query::parse(query), now).unwrap()
}

fn filtered(log: &str, query: &str) -> String {
    let mut out = Vec::new();
    Filter::new(&options(query)).push(log.as_bytes(), &mut out);
    String::from_utf8(out).unwrap()
}

/// All that a reader gives until it waits or is full.
fn drain(reader: &mut Reader) -> String {
    let mut out = Vec::new();
    while reader.read(&mut out).unwrap() == Step::More {}
    String::from_utf8(out).unwrap()
}

fn read(path: &Path, query: &str) -> String {
    drain(&mut Reader::open(path, &options(query)).unwrap())
}

fn append(path: &Path, text: &str) {
    OpenOptions::new().create(true).append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

#[test]
fn options_of_a_request() {
    let parse = |query| Options::parse(&Query::parse(query), "2026-11-21T10:00:30Z".parse().unwrap());
    let all = parse(
        "follow=true&previous=1&timestamps=true&tailLines=7&sinceSeconds=10&limitBytes=9&stream=Stderr",
    )
    .unwrap();
    let expected = Options {
        follow: true,
        previous: true,
        timestamps: true,
        tail: Some(7),
        since: Some("2026-11-21T10:00:20Z".parse().unwrap()),
        bytes_max: Some(9),
        streams: Streams::Stderr,
    };
    assert_eq!(all, expected);
    assert_eq!(parse(""), Ok(Options::default()));
    assert_eq!(parse("tail=all&follow=false"), Ok(Options::default()));
    for bad in [
        "tailLines=-1",
        "limitBytes=0",
        "sinceSeconds=0",
        "stream=both",
        "sinceSeconds=1&sinceTime=2026-11-21T10:00:00Z",
    ] {
        assert_eq!(parse(bad), Err(BadOptions::Invalid), "{bad}");
    }
    for bad in ["tailLines=many", "sinceTime=yesterday"] {
        assert_eq!(parse(bad), Err(BadOptions::Undecodable), "{bad}");
    }
    assert!(parse("sinceSeconds=9223372036854775807").is_ok());
}

#[test]
fn entries_become_lines() {
    let log = [
        entry(1, "stdout", "F", "one"),
        entry(2, "stderr", "F", "two"),
        entry(3, "stdout", "P", "thr"),
        entry(3, "stdout", "F", "ee"),
        "garbage\n2026- stdout\n\n".into(),
        entry(4, "stdout", "F", ""),
        entry(5, "stdout", "F:future", "last word"),
    ]
    .concat();
    assert_eq!(filtered(&log, ""), "one\ntwo\nthree\n\nlast word\n");
    assert_eq!(filtered(&log, "stream=Stderr"), "two\n");
    assert_eq!(filtered(&log, "sinceTime=2026-11-21T10:00:04Z"), "\nlast word\n");
    assert_eq!(filtered(&log, "limitBytes=6"), "one\ntw");
    assert_eq!(
        filtered(&log, "timestamps=1&stream=Stdout&sinceSeconds=28"),
        "2026-11-21T10:00:03.500000000Z three\n2026-11-21T10:00:04.500000000Z \n2026-11-21T10:00:05.500000000Z last word\n"
    );
    assert_eq!(
        filtered("2026-11-21T11:00:00+01:00 stdout F x\n", "timestamps=1"),
        "2026-11-21T11:00:00.000000000+01:00 x\n"
    );
}

#[test]
fn the_last_lines_are_found_over_blocks_and_files() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("3.log");
    // Lines of many lengths, so that block borders fall everywhere; some in parts, some on stderr.
    let mut all = Vec::new();
    for n in 0..3000_u32 {
        let text = format!("line {n} {}", "x".repeat((n as usize * 37) % 190));
        let stream = if n % 3 == 0 { "stderr" } else { "stdout" };
        let file: PathBuf = dir.path().join(["3.log.2", "3.log.1", "3.log"][n as usize / 1000]);
        let (first, second) = text.split_at(4);
        if n % 5 == 0 {
            append(&file, &entry(1, stream, "P", first));
            append(&file, &entry(1, stream, "F", second));
        } else {
            append(&file, &entry(1, stream, "F", &text));
        }
        all.push((stream, format!("{text}\n")));
    }
    append(&dir.path().join("30.log.1"), &entry(1, "stdout", "F", "another attempt"));
    let last = |lines: usize, stream: Option<&str>| -> String {
        let of: Vec<&str> = all
            .iter()
            .filter(|(s, _)| stream.is_none_or(|wanted| wanted == *s))
            .map(|(_, text)| text.as_str())
            .collect();
        of[of.len().saturating_sub(lines)..].concat()
    };
    for lines in [0, 1, 2, 7, 333, 999, 1000, 1001, 2500, 3000, 9999] {
        assert_eq!(read(&log, &format!("tailLines={lines}")), last(lines, None), "{lines} lines");
    }
    for lines in [1, 500, 2000] {
        assert_eq!(
            read(&log, &format!("tailLines={lines}&stream=Stderr")),
            last(lines, Some("stderr")),
            "{lines}"
        );
    }
    assert_eq!(read(&log, ""), last(9999, None), "renamed files come first");
}

#[test]
fn a_line_without_end_takes_one_block() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("0.log");
    append(&log, &entry(1, "stdout", "F", &"y".repeat(3_000_000)));
    append(&log, &"z".repeat(1_000_000));
    let mut reader = Reader::open(&log, &options("")).unwrap();
    let mut total = 0;
    loop {
        let mut out = Vec::new();
        let step = reader.read(&mut out).unwrap();
        assert!(out.len() <= 2 * crate::edged::kubelet_api::limits::LOG_BLOCK_BYTES, "{}", out.len());
        total += out.len();
        if step == Step::AtEnd {
            break;
        }
    }
    assert_eq!(total, 3_000_001, "what is no entry is left out");
    assert_eq!(read(&log, "tailLines=1").len(), 3_000_001);
}

#[test]
fn a_followed_log_goes_on_through_renaming() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("0.log");
    let line = |text: &str| entry(1, "stdout", "F", text);
    append(&log, &line("a"));
    let mut reader = Reader::open(&log, &options("follow=1")).unwrap();
    assert_eq!(drain(&mut reader), "a\n");
    assert!(reader.is_quiet());
    append(&log, &line("b"));
    assert!(!reader.is_quiet());
    assert_eq!(drain(&mut reader), "b\n");

    let mut old = OpenOptions::new().append(true).open(&log).unwrap();
    fs::rename(&log, dir.path().join("0.log.1")).unwrap();
    assert_eq!(drain(&mut reader), "", "the runtime has not opened a new one yet");
    old.write_all(line("c").as_bytes()).unwrap();
    append(&log, &line("e"));
    assert_eq!(drain(&mut reader), "c\n");
    old.write_all(line("d").as_bytes()).unwrap();
    assert_eq!(drain(&mut reader), "d\ne\n", "the last words of the old file come first");
    assert!(reader.is_quiet());

    // Two renamings while nobody read, and ours was removed meanwhile: on with the oldest that is left.
    append(&log, &line("lost"));
    fs::remove_file(&log).unwrap();
    append(&dir.path().join("0.log.2"), "");
    fs::remove_file(dir.path().join("0.log.1")).unwrap();
    fs::write(dir.path().join("0.log.2"), line("f")).unwrap();
    fs::write(dir.path().join("0.log.1"), line("g")).unwrap();
    append(&log, &line("h"));
    let mut rest = String::new();
    for _ in 0..4 {
        rest.push_str(&drain(&mut reader));
    }
    assert_eq!(rest, "lost\nf\ng\nh\n", "its descriptor still reads what was removed");
}

#[test]
fn any_bytes_are_a_log() {
    let whole = [entry(1, "stdout", "F", "one"), entry(2, "stderr", "P", "two"), entry(3, "stderr", "F", "")]
        .concat();
    let mut random = wire::link::Backoff::new(u64::MAX / 2, u64::MAX / 2, 7);
    for _ in 0..8_000 {
        let mut bytes = vec![random.next_ms() as u8, random.next_ms() as u8];
        bytes.extend(whole.as_bytes());
        for _ in 0..random.next_ms() % 5 {
            let at = 2 + random.next_ms() as usize % (bytes.len() - 2);
            match random.next_ms() % 4 {
                0 => bytes[at] = random.next_ms() as u8,
                1 => bytes.truncate(at.max(3)),
                2 => bytes.insert(at, b' '),
                _ => bytes.insert(at, b'\n'),
            }
        }
        fuzz_log(&bytes);
    }
}
