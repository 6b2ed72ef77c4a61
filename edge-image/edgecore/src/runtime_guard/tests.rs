//! Databases whole, cut and flipped; and how often containerd may crash.

use std::{fs, path::Path, time::Duration};

use super::*;

/// A database as bbolt writes it: two meta pages, a freelist, a branch over two leaves, one with a bucket inline.
fn database() -> Vec<u8> {
    const PAGE: usize = 4096;
    let mut bytes = vec![0; PAGE * 6];
    let header = |page: u64, flags: u16, count: u16| {
        let mut text = page.to_le_bytes().to_vec();
        text.extend(flags.to_le_bytes());
        text.extend(count.to_le_bytes());
        text.extend(0_u32.to_le_bytes());
        text
    };
    let leaf = |page: u64, kind: u32, key: &[u8], value: &[u8]| {
        let mut text = header(page, 2, 1);
        for field in [kind, 16, key.len() as u32, value.len() as u32] {
            text.extend(field.to_le_bytes());
        }
        text.extend(key);
        text.extend(value);
        text
    };
    for page in 0..2_u64 {
        let mut meta = Vec::new();
        for field in [0xED0C_DAED_u32, 2, PAGE as u32, 0] {
            meta.extend(field.to_le_bytes());
        }
        for field in [3_u64, 0, 2, 6, 7 + page] {
            meta.extend(field.to_le_bytes());
        }
        let hash = meta.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
        });
        meta.extend(hash.to_le_bytes());
        let page_bytes = [header(page, 4, 0), meta].concat();
        bytes[page as usize * PAGE..][..page_bytes.len()].copy_from_slice(&page_bytes);
    }
    let mut branch = header(3, 1, 2);
    for (n, (key, page)) in [(b"a", 4_u64), (b"b", 5)].iter().enumerate() {
        branch.extend((32 - 16 * n as u32 + n as u32).to_le_bytes());
        branch.extend((key.len() as u32).to_le_bytes());
        branch.extend(page.to_le_bytes());
    }
    branch.extend(b"ab");
    let inner = [vec![0; 16], leaf(0, 0, b"key", b"value")].concat();
    for (page, text) in
        [(3, branch), (4, leaf(4, 1, b"a", &inner)), (5, leaf(5, 0, b"b", b"plain")), (2, header(2, 16, 0))]
    {
        bytes[page * PAGE..][..text.len()].copy_from_slice(&text);
    }
    bytes
}

fn check_bytes(dir: &Path, bytes: &[u8]) -> Result<(), String> {
    fs::write(dir.join("db"), bytes).unwrap();
    bolt::check(&dir.join("db"))
}

#[test]
fn a_whole_database_is_whole_and_damage_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let whole = database();
    assert_eq!(check_bytes(dir.path(), &whole), Ok(()));
    assert_eq!(bolt::check(&dir.path().join("absent")), Ok(()));
    // One meta page lost is what bbolt survives.
    let mut one_meta = whole.clone();
    one_meta[..4096].fill(0);
    assert_eq!(check_bytes(dir.path(), &one_meta), Ok(()));
    assert!(check_bytes(dir.path(), &vec![0; whole.len()]).unwrap_err().contains("meta page"));
    assert!(check_bytes(dir.path(), &whole[..whole.len() / 2]).unwrap_err().contains("cut off"));
    for page in 3..6 {
        let mut zeroed = whole.clone();
        zeroed[page * 4096..][..4096].fill(0);
        assert!(check_bytes(dir.path(), &zeroed).unwrap_err().contains("damaged page"), "page {page}");
    }
    let mut circle = whole.clone();
    let at = 3 * 4096 + 16 + 8;
    circle[at..at + 8].copy_from_slice(&3_u64.to_le_bytes());
    assert!(check_bytes(dir.path(), &circle).is_err());
}

#[test]
fn whatever_the_bytes_the_walk_ends() {
    let whole = database();
    let mut seed: u64 = 11;
    for _ in 0..1500 {
        let mut bytes = whole.clone();
        for _ in 0..6 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = 3 * 4096 + (seed >> 33) as usize % 96 + 4096 * ((seed >> 20) as usize % 3);
            bytes[at] = (seed >> 24) as u8;
        }
        bolt::fuzz_bolt(&bytes);
        bolt::fuzz_bolt(&bytes[..(seed >> 40) as usize % bytes.len()]);
    }
}

#[test]
fn a_damaged_database_is_moved_aside_and_a_whole_one_stays() {
    let root = tempfile::tempdir().unwrap();
    let (meta, layers) = (root.path().join(META), root.path().join(SNAPSHOTTER));
    fs::create_dir_all(meta.parent().unwrap()).unwrap();
    fs::create_dir_all(layers.join("snapshots/1")).unwrap();
    fs::write(&meta, database()).unwrap();
    fs::write(layers.join("metadata.db"), database()).unwrap();
    assert!(check(root.path()).unwrap().is_empty());
    assert!(meta.exists() && layers.join("snapshots/1").exists());

    fs::write(&meta, vec![0; 32768]).unwrap();
    let done = check(root.path()).unwrap();
    assert!(done[0].contains("meta.db has no valid meta page"), "{done:?}");
    assert!(!meta.exists() && layers.join("snapshots/1").exists());

    fs::write(layers.join("metadata.db"), &database()[..9000]).unwrap();
    check(root.path()).unwrap();
    assert!(!layers.exists(), "layers without names go");
}

#[test]
fn a_containerd_that_keeps_crashing_loses_its_databases_once() {
    let state = tempfile::tempdir().unwrap();
    let at = |seconds: u64| Duration::from_secs(seconds);
    let early: Vec<bool> = (0..4).map(|n| note_start(state.path(), at(100 + n * 10))).collect();
    assert_eq!(early, [false; 4]);
    assert!(note_start(state.path(), at(150)), "the fifth start within three minutes");
    assert!(!note_start(state.path(), at(151)), "once");
    let state = tempfile::tempdir().unwrap();
    assert!((0..20).all(|n| !note_start(state.path(), at(n * 60))), "now and then is no loop");
}
