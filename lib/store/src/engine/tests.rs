//! The engine without its thread: grouping, full disks, failing syncs, damage.

use tokio::sync::oneshot;

use super::*;
use crate::{
    Compacted, Expect, Key, Watch,
    format::FRAME_HEADER_LEN,
    sim::{Rng, SimDisk},
};

fn key(name: &str) -> Key {
    Key::new("things", "ns", name)
}

fn put(name: &str, value: &str) -> Op {
    Op::put(key(name), value.to_owned(), Expect::Any)
}

fn open(disk: &SimDisk, options: Options) -> Engine {
    Engine::open(Box::new(disk.clone()), options).unwrap().0
}

fn run(
    engine: &mut Engine,
    commits: Vec<Vec<Op>>,
    durability: Durability,
) -> Vec<Result<Committed, CommitError>> {
    let (requests, answers): (Vec<_>, Vec<_>) = commits
        .into_iter()
        .map(|ops| {
            let (reply, answer) = oneshot::channel();
            (Request { ops, durability, reply, permit: None }, answer)
        })
        .unzip();
    engine.run(requests);
    answers.into_iter().map(|mut answer| answer.try_recv().expect("every request is answered")).collect()
}

fn commit(engine: &mut Engine, op: Op) -> Result<Committed, CommitError> {
    run(engine, vec![vec![op]], Durability::Sync).remove(0)
}

fn values(engine: &Engine) -> Vec<String> {
    let list = engine.shared().memory().list("things", None);
    list.records
        .iter()
        .map(|record| format!("{}={}", record.key.name, String::from_utf8_lossy(&record.value)))
        .collect()
}

#[test]
fn a_group_shares_one_write_and_one_sync() {
    let disk = SimDisk::new();
    let mut engine = open(&disk, Options::default());
    let ops = disk.ops();
    let commits = (0..50).map(|i| vec![put(&format!("o{i}"), &"x".repeat(1000))]).collect();
    let answers = run(&mut engine, commits, Durability::Sync);
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(disk.ops() - ops, 2);
    let written = engine.len as usize / 50;
    println!("{written} bytes written per commit of 1000 bytes in a group");
    assert!((1000..1080).contains(&written), "{written}");

    let answers = run(&mut engine, vec![vec![put("lazy", "")]], Durability::Lazy);
    assert!(answers[0].is_ok() && engine.dirty());
    assert_eq!(disk.ops() - ops, 3, "a lazy commit is written, not synced");
    run(&mut engine, vec![vec![]], Durability::Sync);
    assert!(!engine.dirty());
}

#[test]
fn refusals_depend_on_what_the_same_group_did_before() {
    let mut engine = open(&SimDisk::new(), Options::default());
    let commits = (0..3).map(|i| vec![Op::put(key("a"), format!("{i}"), Expect::Absent)]).collect();
    let answers = run(&mut engine, commits, Durability::Sync);
    assert!(answers[0].is_ok());
    assert!(answers[1..].iter().all(|answer| matches!(answer, Err(CommitError::Exists { .. }))));
    assert_eq!(values(&engine), ["a=0"]);
}

#[test]
fn a_full_disk_refuses_and_stays_readable_and_takes_changes_again_when_there_is_space() {
    let disk = SimDisk::new();
    let mut engine = open(&disk, Options::default());
    commit(&mut engine, put("a", "1")).unwrap();
    disk.limit_space(Some(engine.len + 100));
    let refused = commit(&mut engine, put("b", &"x".repeat(500))).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "no space left for the store simulated; nothing was changed, free some space and try again"
    );
    assert_eq!(values(&engine), ["a=1"]);
    commit(&mut engine, put("a", "2")).expect("a small change fits");
    let unclean = open(&disk.after_kill(), Options::default());
    assert_eq!(values(&unclean), ["a=2"], "no rest of the refused change is in the way");

    disk.limit_space(Some(0));
    let mut reopened = open(&disk, Options::default());
    assert_eq!(values(&reopened), ["a=2"], "a full disk does not keep the store from opening");
    assert!(matches!(commit(&mut reopened, put("c", "3")), Err(CommitError::Full { .. })));
    disk.limit_space(None);
    commit(&mut reopened, put("c", "3")).unwrap();
    assert_eq!(values(&open(&disk, Options::default())), ["a=2", "c=3"]);
}

#[test]
fn after_a_failed_sync_the_log_is_rewritten_before_anything_else() {
    let disk = SimDisk::new();
    let mut engine = open(&disk, Options::default());
    commit(&mut engine, put("a", "1")).unwrap();
    run(&mut engine, vec![vec![put("lazy", "1")]], Durability::Lazy);
    disk.fail_syncs(true);
    for _ in 0..2 {
        assert!(matches!(commit(&mut engine, put("b", "2")), Err(CommitError::Io { .. })));
        assert_eq!(values(&engine), ["a=1", "lazy=1"], "what failed is not shown");
    }
    disk.fail_syncs(false);
    let cut = || values(&open(&disk.after_power_cut(crate::sim::Cut::LoseAll), Options::default()));
    assert_eq!(cut(), ["a=1"]);
    engine.sync().unwrap();
    assert_eq!(cut(), ["a=1", "lazy=1"], "a second sync of the same file would have promised too much");
    commit(&mut engine, put("c", "3")).unwrap();
    let after = disk.after_power_cut(crate::sim::Cut::LoseAll);
    assert_eq!(values(&open(&after, Options::default())), ["a=1", "c=3", "lazy=1"]);
}

#[test]
fn old_events_are_forgotten_and_the_rest_survives_rewriting_and_restart() {
    let disk = SimDisk::new();
    let options = Options { history_len_max: 4000, rewrite_len_min: 2000, ..Options::default() };
    let mut engine = open(&disk, options.clone());
    let mut slow = Watch::new(engine.shared().clone(), None, 1).unwrap();
    let mut last = 0;
    for i in 0..200 {
        last = commit(&mut engine, put(&format!("o{}", i % 5), &format!("{i} {}", "x".repeat(100))))
            .unwrap()
            .revision;
    }
    assert!(engine.shared().counters.rewrites.load(std::sync::atomic::Ordering::Relaxed) > 3);
    assert!(engine.len < 20_000, "{}", engine.len);
    let oldest = engine.shared().memory().floor();
    assert!(last - oldest > 5);
    assert_eq!(slow.try_next().err(), Some(Compacted { oldest }));
    let events = |engine: &Engine, after| {
        let mut watch = Watch::new(engine.shared().clone(), Some("things"), after).unwrap();
        std::iter::from_fn(move || watch.try_next().unwrap()).collect::<Vec<_>>()
    };
    let before = events(&engine, oldest);
    assert!(Watch::new(engine.shared().clone(), None, oldest - 1).is_err());
    assert!(Watch::new(engine.shared().clone(), None, last + 1).is_err(), "from the future of another store");
    engine.close().unwrap();
    let engine = open(&disk, options);
    let after = events(&engine, oldest);
    assert_eq!(before.len(), after.len());
    for (before, after) in before.iter().zip(&after) {
        assert_eq!((&before.record, &before.previous), (&after.record, &after.previous));
    }
}

#[test]
fn too_large_objects_and_commits_are_refused_before_they_are_written() {
    let mut engine = open(&SimDisk::new(), Options::default());
    let long = "n".repeat(5000);
    for ops in [
        vec![put("a", &"x".repeat(crate::limits::VALUE_LEN_MAX + 1))],
        vec![put(&long, "")],
        (0..5).map(|i| put(&format!("{i}"), &"x".repeat(crate::limits::VALUE_LEN_MAX))).collect(),
        (0..=crate::limits::COMMIT_OPS_MAX).map(|i| put(&format!("{i}"), "")).collect(),
    ] {
        let refused = run(&mut engine, vec![ops], Durability::Sync).remove(0).unwrap_err();
        assert!(matches!(refused, CommitError::TooLarge { .. }));
        assert!(refused.to_string().len() < 200);
    }
    assert_eq!(values(&engine), [""; 0]);
}

/// A log with three durable commits, and where each frame begins.
fn sample() -> (Vec<u8>, Vec<usize>) {
    let disk = SimDisk::new();
    let mut engine = open(&disk, Options::default());
    for i in 1..=3 {
        commit(&mut engine, put(&format!("o{i}"), &format!("{i}"))).unwrap();
    }
    let content = disk.content(LOG).unwrap();
    let (mut starts, mut at) = (Vec::new(), crate::format::FILE_HEADER_LEN);
    while let Some(header) = crate::format::FrameHeader::decode(&content[at..]) {
        starts.push(at);
        at += FRAME_HEADER_LEN + header.len;
    }
    assert_eq!(at, content.len());
    (content, starts)
}

fn open_bytes(content: &[u8]) -> (SimDisk, Result<(Engine, Recovery), OpenError>) {
    let disk = SimDisk::with_file(LOG, content);
    let opened = Engine::open(Box::new(disk.clone()), Options::default());
    (disk, opened)
}

#[test]
fn a_damaged_tail_is_cut_off_kept_aside_and_reported() {
    let (content, starts) = sample();
    let last = *starts.last().unwrap();
    let mut damaged = content.clone();
    damaged[last + FRAME_HEADER_LEN + 3] ^= 1;
    for (content, torn) in [(&damaged[..], content.len() - last), (&content[..last + 10], 10)] {
        let (disk, opened) = open_bytes(content);
        let (mut engine, recovery) = opened.unwrap();
        assert_eq!(values(&engine), ["o1=1", "o2=2"]);
        assert_eq!(
            recovery.to_string(),
            format!(
                "simulated/store.log had an unfinished end: {torn} bytes from byte {last} were cut off and kept as \
                 simulated/store-1.damaged; nothing that had been acknowledged is lost; if it happens again, check the disk"
            )
        );
        assert_eq!(disk.content("store-1.damaged").unwrap(), content[last..]);
        // Revision 4 may have been seen: it is not given again, not even if the mark was in the damaged part.
        assert!(commit(&mut engine, put("o4", "4")).unwrap().revision > 4 + torn as u64);
        assert_eq!(values(&open(&disk, Options::default())), ["o1=1", "o2=2", "o4=4"]);
    }
    let mut zeros = content.clone();
    zeros.resize(content.len() + 100_000, 0);
    let (disk, opened) = open_bytes(&zeros);
    assert_eq!(
        opened.unwrap().1.damage.unwrap().saved_as,
        None,
        "zeros are what a file system leaves, not data"
    );
    assert_eq!(disk.content("store-1.damaged"), None);
}

#[test]
fn only_the_newest_damaged_tails_are_kept() {
    let (content, starts) = sample();
    let disk = SimDisk::with_file(LOG, &content[..starts[4] + 5]);
    for _ in 0..7 {
        open(&disk, Options::default());
        let mut backend: Box<dyn Backend> = Box::new(disk.clone());
        let len = backend.len(LOG).unwrap().unwrap();
        backend.write_at(LOG, len, b"torn").unwrap();
    }
    let mut backend: Box<dyn Backend> = Box::new(disk);
    let names = backend.names().unwrap();
    assert_eq!(
        names,
        ["store-4.damaged", "store-5.damaged", "store-6.damaged", "store-7.damaged", "store.log"]
    );
}

#[test]
fn damage_before_durable_data_is_refused_with_place_and_remedy_and_nothing_is_changed() {
    let (content, starts) = sample();
    let middle = starts[starts.len() - 2];
    let refused = |content: &[u8]| {
        let (disk, opened) = open_bytes(content);
        assert_eq!(disk.content(LOG).unwrap(), content, "the file is left as it was");
        opened.err().expect("damage is not read as a state").to_string()
    };
    for at in [middle, middle + 6, middle + 20, middle + FRAME_HEADER_LEN + 2] {
        let mut damaged = content.clone();
        damaged[at] ^= 0x10;
        assert_eq!(
            refused(&damaged),
            format!(
                "simulated/store.log is damaged at byte {middle} (checksum), in a part that had been written safely before; \
                 nothing was changed. Restore a copy of it, or move it away to start empty: what came from the cloud is \
                 then fetched again"
            )
        );
    }
    assert!(refused(&content[..30]).contains("at byte 0 (shorter than the header)"));
    assert!(refused(&[]).contains("at byte 0"), "an empty file is not an empty store");
    assert!(refused(&content[..starts[0] + 5]).contains("(the checkpoint is not complete)"));
    assert!(
        refused(b"SQLite format 3\0............................................................")
            .contains("not a store's log")
    );
    let mut header = content.clone();
    header[20] ^= 1;
    assert!(refused(&header).contains("(checksum of the header)"));
    let mut newer = content[..64].to_vec();
    newer[8] = 9;
    let crc = crc32fast::hash(&newer[..60]).to_le_bytes();
    newer[60..].copy_from_slice(&crc);
    assert_eq!(
        refused(&newer),
        "simulated/store.log has format version 9, this program reads version 1; use the program that wrote it, or a newer one"
    );
}

#[test]
fn a_log_inside_a_value_is_only_a_value() {
    let (other, _) = sample();
    let disk = SimDisk::new();
    let mut engine = open(&disk, Options::default());
    let value = bytes::Bytes::from(other);
    commit(&mut engine, Op::put(key("copy"), value, Expect::Any)).unwrap();
    let mut content = disk.content(LOG).unwrap();
    let len = content.len();
    content[len - 1] ^= 1;
    let (_, opened) = open_bytes(&content);
    assert_eq!(values(&opened.unwrap().0), [""; 0], "frames of the copy do not count as proof of damage");
}

/// Random damage and random bytes: an answer, never a panic.
#[test]
fn any_bytes_open_or_are_refused() {
    let (content, starts) = sample();
    let mut rng = Rng::new(7);
    for _ in 0..3000 {
        let mut bytes = content.clone();
        for _ in 0..1 + rng.below(3) {
            let at = rng.below(bytes.len() as u64) as usize;
            match rng.below(4) {
                0 => bytes[at] = rng.number() as u8,
                1 => bytes[at] ^= 1 << rng.below(8),
                2 => bytes.truncate(at.max(1)),
                _ => bytes.extend_from_within(at / 2..at),
            }
        }
        crate::fuzz_log(&bytes);
    }
    // Good checksums around bad bodies.
    let header: [u8; 64] = content[..64].try_into().unwrap();
    let salt = crate::format::decode_file_header(&header).unwrap().salt;
    for _ in 0..3000 {
        let at = starts[rng.below(starts.len() as u64) as usize];
        let frame = crate::format::FrameHeader::decode(&content[at..]).unwrap();
        let mut body = content[at + FRAME_HEADER_LEN..at + FRAME_HEADER_LEN + frame.len].to_vec();
        let i = rng.below(body.len() as u64) as usize;
        body[i] = rng.number() as u8;
        let mut bytes = content[..at].to_vec();
        crate::format::encode_raw_frame(&mut bytes, salt, frame.seq, frame.synced, &body);
        crate::fuzz_log(&bytes);
    }
}
