//! What outlives a restart and a power cut: the broker's changes, as commits of a store of their own.
//!
//! While one commit is on its way the next changes gather, so many publishers share one sync.

use std::{path::Path, time::Duration};

use mqtt::broker::{Broker, Change, Changes, Key};
use store::{Durability, Expect, Op, Options, Store};

use super::Shared;
use crate::limits::BUS_RETRY_DELAY_MAX;

/// After this lazy changes are on the disk. With the pause between two commits it stays below the 5 s that docs/mqtt.md promises.
const LAZY_MAX: Duration = Duration::from_secs(3);
const _: () = assert!(LAZY_MAX.as_millis() <= 4000, "a commit that is under way may take a second more");

const SESSION: &str = "mqtt-session";
const MESSAGE: &str = "mqtt-message";
const INCOMING: &str = "mqtt-incoming";
const RETAINED: &str = "mqtt-retained";

/// Nobody watches this store: history is only what the log needs.
pub(super) fn options() -> Options {
    Options { lazy_max: LAZY_MAX, history_len_max: 16 * 1024, ..Options::default() }
}

/// `None`, after a line in the log, when the folder cannot be used: a node without its memory is better than one without its bus.
pub(super) fn open(dir: &Path) -> Option<Store> {
    match Store::open(dir, options()) {
        Ok(store) => Some(store),
        Err(error) => {
            tracing::error!(
                "the MQTT broker keeps nothing over a restart: {}; repair or remove {}",
                rt::error_chain(&error),
                dir.display()
            );
            None
        }
    }
}

pub(super) fn restore(broker: &mut Broker, store: &Store) {
    let unreadable = broker.restore(0, records(store));
    if unreadable > 0 {
        tracing::error!(
            "the MQTT broker could not read {unreadable} records of its store and has left them out"
        );
    }
}

fn records(store: &Store) -> Vec<(Key, Vec<u8>)> {
    let mut records = Vec::new();
    for kind in [SESSION, MESSAGE, INCOMING, RETAINED] {
        for record in store.list(kind, None).records {
            if let Some(key) = key_of(&record.key) {
                records.push((key, record.value.to_vec()));
            }
        }
    }
    records
}

fn key_of(key: &store::Key) -> Option<Key> {
    let (client, name) = (key.namespace.to_string(), key.name.to_string());
    match &*key.kind {
        SESSION => Some(Key::Session(name)),
        MESSAGE => Some(Key::Message { client, number: u64::from_str_radix(&name, 16).ok()? }),
        INCOMING => Some(Key::Incoming { client, id: name.parse().ok()? }),
        RETAINED => Some(Key::Retained(name)),
        _ => None,
    }
}

fn store_key(key: &Key) -> store::Key {
    match key {
        Key::Session(client) => store::Key::new(SESSION, "", client),
        Key::Message { client, number } => store::Key::new(MESSAGE, client, &format!("{number:016x}")),
        Key::Incoming { client, id } => store::Key::new(INCOMING, client, &id.to_string()),
        Key::Retained(topic) => store::Key::new(RETAINED, "", topic),
    }
}

/// Commits until it is dropped.
pub(super) async fn run(shared: &Shared, store: &Store) {
    loop {
        shared.disk_work.notified().await;
        flush(shared, store).await;
    }
}

/// Commits all that there is.
pub(super) async fn flush(shared: &Shared, store: &Store) {
    loop {
        let changes = {
            let mut state = shared.lock();
            if !state.broker.has_changes() {
                return;
            }
            state.broker.take_changes()
        };
        let mut said = false;
        while let Err(error) = commit(store, &changes).await {
            if !std::mem::replace(&mut said, true) {
                tracing::error!(
                    "the MQTT broker cannot write: {}; publishers to durable topics wait until it can",
                    rt::error_chain(&error)
                );
            }
            if matches!(error, store::CommitError::Closed) {
                return;
            }
            tokio::time::sleep(BUS_RETRY_DELAY_MAX).await;
        }
        let mut state = shared.lock();
        state.broker.persisted(shared.now_ms(), changes.number);
        shared.wake(&mut state, None);
    }
}

async fn commit(store: &Store, changes: &Changes) -> Result<(), store::CommitError> {
    let op = |change: &Change| match &change.value {
        Some(value) => Op::put(store_key(&change.key), value.clone(), Expect::Any),
        None => Op::Delete(store_key(&change.key), Expect::Any),
    };
    let durability = if changes.sync { Durability::Sync } else { Durability::Lazy };
    store.commit(changes.changes.iter().map(op).collect(), durability).await.map(|_| ())
}
