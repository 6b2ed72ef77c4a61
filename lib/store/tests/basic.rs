//! What callers rely on, through the public API and on real files.

use bytes::Bytes;
use store::{CommitError, Durability, EventKind, Expect, Key, Op, Options, Put, Store, Upstream, Value};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
}

fn pod(name: &str) -> Key {
    Key::new("pods", "default", name)
}

#[test]
fn objects_and_watch_history_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = runtime();
    let (epoch, first) = {
        let store = Store::open(dir.path(), Options::default()).unwrap();
        assert!(store.recovery().clean);
        let upstream = Upstream { id: "cloud".into(), uid: "u".into(), resource_version: "17".into() };
        let put = Put {
            key: pod("a"),
            uid: "uid-a".into(),
            upstream: Some(upstream),
            key_id: 3,
            value: Value::Render(Box::new(|revision| Bytes::from(format!("at {revision}")))),
        };
        let first =
            runtime.block_on(store.commit(vec![Op::Put(put, Expect::Absent)], Durability::Sync)).unwrap();
        let lazy = Op::put(pod("b"), "b", Expect::Any);
        let lazy = runtime.block_on(store.commit(vec![lazy], Durability::Lazy)).unwrap();
        assert_eq!(lazy.revision, first.revision + 1);
        (store.epoch().to_owned(), first.revision)
    };
    let store = Store::open(dir.path(), Options::default()).unwrap();
    assert!(store.recovery().clean, "{}", store.recovery());
    assert_eq!(store.epoch(), epoch);
    assert_eq!(store.revision(), first + 1);
    let record = store.get(&pod("a")).unwrap();
    assert_eq!((&*record.value, &*record.uid, record.key_id), (format!("at {first}").as_bytes(), "uid-a", 3));
    assert_eq!(&*record.upstream.as_ref().unwrap().resource_version, "17");
    let mut watch = store.watch(Some("pods"), first).unwrap();
    let event = runtime.block_on(watch.next()).unwrap().unwrap();
    assert_eq!((event.revision, &*event.record.key.name), (first + 1, "b"));
    assert!(watch.try_next().unwrap().is_none());
    store.close();
    assert!(runtime.block_on(watch.next()).unwrap().is_none(), "a watch ends with the store");
    let late = runtime.block_on(store.commit(vec![Op::put(pod("c"), "c", Expect::Any)], Durability::Sync));
    assert!(matches!(late, Err(CommitError::Closed)));
}

#[test]
fn a_commit_of_several_operations_is_done_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = runtime();
    let store = Store::open(dir.path(), Options::default()).unwrap();
    let commit = |ops| runtime.block_on(store.commit(ops, Durability::Sync));
    let before = store.revision();

    let refused =
        commit(vec![Op::put(pod("a"), "1", Expect::Absent), Op::put(pod("b"), "1", Expect::Present)]);
    assert!(matches!(refused, Err(CommitError::Absent { key }) if key == pod("b")));
    assert_eq!((store.revision(), store.get(&pod("a"))), (before, None));

    let done = commit(vec![
        Op::put(pod("a"), "1", Expect::Absent),
        Op::put(pod("a"), "2", Expect::Revision(before + 1)),
        Op::Delete(pod("never was"), Expect::Any),
        Op::put(pod("b"), "1", Expect::Any),
    ]);
    let done = done.unwrap();
    assert_eq!((done.revision, done.records.len()), (before + 3, 3));
    assert_eq!(store.get(&pod("a")).unwrap().revision, before + 2);

    let exists = commit(vec![Op::put(pod("a"), "3", Expect::Absent)]);
    assert!(matches!(exists, Err(CommitError::Exists { current }) if current.revision == before + 2));
    let conflict = commit(vec![Op::Delete(pod("a"), Expect::Revision(before))]);
    assert_eq!(
        conflict.unwrap_err().to_string(),
        format!("pods/default/a was changed in between: expected revision {before}, it has {}", before + 2)
    );
    let mut watch = store.watch(None, before + 2).unwrap();
    let deleted = commit(vec![Op::Delete(pod("a"), Expect::Present)]).unwrap();
    assert_eq!(deleted.records[0].revision, deleted.revision);
    assert_eq!(&*watch.try_next().unwrap().unwrap().record.key.name, "b");
    let event = watch.try_next().unwrap().unwrap();
    assert!(matches!(event.kind, EventKind::Delete));
    assert_eq!(event.previous.as_ref().unwrap().revision, before + 2);
}

#[test]
fn lists_are_sorted_and_of_one_namespace_or_all() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Options::default()).unwrap();
    let keys = [
        ("pods", "b", "1"),
        ("pods", "a", "2"),
        ("pods", "a", "10"),
        ("nodes", "", "n"),
        ("podss", "a", "x"),
    ];
    let ops = keys.map(|(kind, namespace, name)| Op::put(Key::new(kind, namespace, name), "v", Expect::Any));
    runtime().block_on(store.commit(ops.into(), Durability::Sync)).unwrap();
    let names = |kind, namespace| {
        let list = store.list(kind, namespace);
        assert_eq!(list.revision, store.revision());
        list.records
            .iter()
            .map(|record| format!("{}/{}", record.key.namespace, record.key.name))
            .collect::<Vec<_>>()
    };
    assert_eq!(names("pods", None), ["a/10", "a/2", "b/1"]);
    assert_eq!(names("pods", Some("a")), ["a/10", "a/2"]);
    assert_eq!(names("nodes", Some("")), ["/n"]);
    assert_eq!(names("pod", None), [""; 0]);
}

#[test]
fn many_commits_at_once_keep_their_order_and_write_little() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Options::default()).unwrap();
    let before = store.stats();
    let commits: Vec<_> = (0..600)
        .map(|i| {
            store
                .commit(vec![Op::put(pod(&format!("p{i}")), vec![b'x'; 1000], Expect::Any)], Durability::Sync)
        })
        .collect();
    let revisions: Vec<u64> = runtime().block_on(async {
        let mut revisions = Vec::new();
        for commit in commits {
            revisions.push(commit.await.unwrap().revision);
        }
        revisions
    });
    assert!(revisions.is_sorted());
    let after = store.stats();
    let written = (after.bytes_written - before.bytes_written) / 600;
    println!("{written} bytes written per commit of 1000 bytes, {} syncs", after.syncs - before.syncs);
    assert!(written < 1100, "{written}");
}

#[test]
fn one_process_has_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("made/on/the/way");
    let store = Store::open(&path, Options::default()).unwrap();
    let second = Store::open(&path, Options::default()).err().unwrap();
    assert_eq!(
        second.to_string(),
        format!("the store {} is in use by another process; stop that one first", path.display())
    );
    drop(store);
    Store::open(&path, Options::default()).unwrap();
}
