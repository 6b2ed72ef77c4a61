//! The released format: a sample that is read for ever, and the description.

use super::*;
use crate::{Key, engine::Engine, sim::SimDisk};

#[test]
fn the_released_format_is_read_for_ever() {
    let vector = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/disk-v1.log");
    // Only for a new version: what is released is never written again.
    if std::env::var_os("UPDATE").is_some() && !vector.exists() {
        std::fs::create_dir_all(vector.parent().unwrap()).unwrap();
        std::fs::write(&vector, vector_content()).unwrap();
    }
    let content = std::fs::read(&vector).expect("tests/vectors/disk-v1.log; make it once with UPDATE=1");
    let disk = SimDisk::with_file(crate::replay::LOG, &content);
    let (engine, recovery) = Engine::open(Box::new(disk), crate::Options::default()).unwrap();
    assert!(recovery.clean);
    assert_eq!(engine.epoch(), "6b696e67-6c65-7400-8000-000000000001");
    let memory = engine.shared().memory();
    assert_eq!((memory.revision(), memory.floor()), (14, 1));
    assert!(memory.resumable(5).is_err(), "a gap from 4 to 9");
    let record = memory.get(&Key::new("things", "ns", "kept")).unwrap();
    let upstream = Upstream { id: "cloud".into(), uid: "cloud-uid".into(), resource_version: "812".into() };
    assert_eq!((&record.upstream, &*record.uid, record.key_id), (&Some(upstream), "uid-1", 7));
    assert_eq!((&*record.value, record.revision), (&b"second"[..], 12));
    assert_eq!(memory.get(&Key::new("things", "ns", "gone")), None);
    let events: Vec<_> = memory.events_after(1).map(|event| (event.revision, event.kind)).collect();
    use crate::EventKind::{Delete, Put};
    assert_eq!(events, [(2, Put), (3, Put), (11, Delete), (12, Put), (13, Put), (14, Delete)]);
    drop(memory);
    // What today's code writes for the same content is the same, byte for byte.
    assert_eq!(vector_content(), content);
}

fn vector_content() -> Vec<u8> {
    let epoch = *b"king\x6c\x65t\x00\x80\x00\x00\x00\x00\x00\x00\x01";
    let identity = Identity { epoch, salt: 0x0123_4567_89ab_cdef };
    let record = |name: &'static str, revision, value: &'static [u8]| DiskRecord {
        kind: "things",
        namespace: "ns",
        name,
        uid: "uid-1",
        revision,
        upstream: Some(DiskUpstream { id: "cloud", uid: "cloud-uid", resource_version: "812" }),
        key_id: 7,
        value,
    };
    let delete = |name| DiskOp::Delete { kind: "things", namespace: "ns", name };
    let bodies = [
        Body::Base {
            records: vec![DiskRecord { upstream: None, key_id: 0, ..record("base", 1, b"from before") }],
        },
        Body::Mark { revision: 1, limit: 1 },
        Body::Mark { revision: 1, limit: 9 },
        Body::Commit {
            first: 2,
            ops: vec![DiskOp::Put(record("kept", 2, b"first")), DiskOp::Put(record("gone", 3, b""))],
        },
        Body::Mark { revision: 10, limit: 20 },
        Body::Commit { first: 11, ops: vec![delete("gone")] },
        Body::Commit { first: 12, ops: vec![DiskOp::Put(record("kept", 12, b"second"))] },
        Body::Commit { first: 13, ops: vec![DiskOp::Put(record("short", 13, b"\x00\xff")), delete("short")] },
        Body::Mark { revision: 14, limit: 14 },
    ];
    let mut out = encode_file_header(&identity).to_vec();
    for (seq, body) in bodies.iter().enumerate() {
        let synced = if seq < 3 { 0 } else { out.len() as u64 };
        encode_frame(&mut out, identity.salt, seq as u64, synced, body);
    }
    out
}

#[test]
fn the_described_format_is_the_implemented_one() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/disk.md");
    let text = std::fs::read_to_string(path).unwrap();
    let block = text.split("```format\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let hash = crc32fast::hash(block.as_bytes());
    assert_eq!(
        hash, FORMAT_HASH,
        "docs/disk.md describes another format: {hash:#010x}; see there how to change it"
    );
}
