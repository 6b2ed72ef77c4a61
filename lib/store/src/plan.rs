//! Decides what a group of commits does, before anything is written: preconditions, revisions, the resulting events.

use std::{collections::HashMap, sync::Arc};

use crate::{
    CommitError, Event, EventKind, Expect, Key, Op, Put, Record, Upstream, Value,
    format::{DiskOp, DiskRecord},
    limits::{COMMIT_OPS_MAX, FRAME_LEN_MAX, TEXT_LEN_MAX, VALUE_LEN_MAX},
    memory::Memory,
};

/// The state after the commits accepted so far, as a difference to what readers see.
pub(crate) struct Plan<'a> {
    memory: &'a Memory,
    changed: HashMap<Key, Option<Arc<Record>>>,
    pub revision: u64,
}

impl<'a> Plan<'a> {
    pub fn new(memory: &'a Memory) -> Plan<'a> {
        Plan { memory, changed: HashMap::new(), revision: memory.revision() }
    }

    /// The events of one commit, or why it is refused; refused commits leave no trace.
    pub fn stage(&mut self, ops: Vec<Op>) -> Result<Vec<Arc<Event>>, CommitError> {
        let mut events: Vec<Arc<Event>> = Vec::with_capacity(ops.len());
        let (mut len, count) = (0, ops.len());
        for op in ops {
            let revision = self.revision + 1 + events.len() as u64;
            let event = match op {
                Op::Put(put, expect) => Some(self.put(put, expect, revision, &events)?),
                Op::Delete(key, expect) => self.delete(key, expect, revision, &events)?,
            };
            let Some(event) = event else { continue };
            len += disk_len_max(&event.record);
            check_len(&event.record.key, count, COMMIT_OPS_MAX)?;
            check_len(&event.record.key, len, FRAME_LEN_MAX)?;
            events.push(Arc::new(event));
        }
        self.revision += events.len() as u64;
        for event in &events {
            let record = matches!(event.kind, EventKind::Put).then(|| event.record.clone());
            self.changed.insert(event.record.key.clone(), record);
        }
        Ok(events)
    }

    fn put(
        &self,
        put: Put,
        expect: Expect,
        revision: u64,
        staged: &[Arc<Event>],
    ) -> Result<Event, CommitError> {
        let Put { key, uid, upstream, key_id, value } = put;
        let previous = self.current(&key, staged);
        check(&key, expect, previous.as_ref())?;
        let (key, uid, upstream) = self.shared(key, uid, upstream);
        let value = match value {
            Value::Bytes(bytes) => bytes,
            Value::Render(render) => render(revision),
        };
        check_len(&key, value.len(), VALUE_LEN_MAX)?;
        let record = Record { key, uid, revision, upstream, key_id, value };
        check_texts(&record)?;
        Ok(Event { kind: EventKind::Put, revision, record: Arc::new(record), previous })
    }

    /// The texts of a newcomer that a neighbour has too are held once.
    fn shared(
        &self,
        mut key: Key,
        mut uid: Arc<str>,
        mut upstream: Option<Upstream>,
    ) -> (Key, Arc<str>, Option<Upstream>) {
        let share = |text: &mut Arc<str>, known: &Arc<str>| {
            if *text == *known {
                text.clone_from(known);
            }
        };
        for neighbour in self.memory.neighbours(&key).into_iter().flatten() {
            let known = &neighbour.key;
            share(&mut key.kind, &known.kind);
            share(&mut key.namespace, &known.namespace);
            share(&mut key.name, &known.name);
            share(&mut uid, &neighbour.uid);
            if let (Some(upstream), Some(known)) = (&mut upstream, &neighbour.upstream) {
                share(&mut upstream.id, &known.id);
            }
        }
        if let Some(upstream) = &mut upstream {
            share(&mut upstream.uid, &uid);
        }
        (key, uid, upstream)
    }

    fn delete(
        &self,
        key: Key,
        expect: Expect,
        revision: u64,
        staged: &[Arc<Event>],
    ) -> Result<Option<Event>, CommitError> {
        let previous = self.current(&key, staged);
        check(&key, expect, previous.as_ref())?;
        Ok(previous.map(|previous| {
            let record = Arc::new(Record { revision, ..Record::clone(&previous) });
            Event { kind: EventKind::Delete, revision, record, previous: Some(previous) }
        }))
    }

    fn current(&self, key: &Key, staged: &[Arc<Event>]) -> Option<Arc<Record>> {
        if let Some(event) = staged.iter().rev().find(|event| event.record.key == *key) {
            return matches!(event.kind, EventKind::Put).then(|| event.record.clone());
        }
        match self.changed.get(key) {
            Some(changed) => changed.clone(),
            None => self.memory.get(key).cloned(),
        }
    }
}

fn check(key: &Key, expect: Expect, current: Option<&Arc<Record>>) -> Result<(), CommitError> {
    match (expect, current) {
        (Expect::Any, _) | (Expect::Absent, None) | (Expect::Present, Some(_)) => Ok(()),
        (Expect::Revision(expected), Some(current)) if current.revision == expected => Ok(()),
        (Expect::Absent, Some(current)) => Err(CommitError::Exists { current: current.clone() }),
        (Expect::Present | Expect::Revision(_), None) => Err(CommitError::Absent { key: key.clone() }),
        (Expect::Revision(expected), Some(current)) => {
            Err(CommitError::Conflict { key: key.clone(), expected, current: current.clone() })
        }
    }
}

fn check_len(key: &Key, len: usize, max: usize) -> Result<(), CommitError> {
    match len <= max {
        true => Ok(()),
        false => Err(CommitError::TooLarge { key: key.clone(), len, max }),
    }
}

fn text_lens(record: &Record) -> [usize; 7] {
    let key = &record.key;
    let upstream = record.upstream.as_ref();
    let [id, uid, version] = upstream.map_or([0; 3], |upstream| {
        [&upstream.id, &upstream.uid, &upstream.resource_version].map(|text| text.len())
    });
    [key.kind.len(), key.namespace.len(), key.name.len(), record.uid.len(), id, uid, version]
}

/// Bytes that a record takes in the log at most: its texts, its value, a length before each, and the numbers.
fn disk_len_max(record: &Record) -> usize {
    64 + text_lens(record).iter().sum::<usize>() + record.value.len()
}

fn check_texts(record: &Record) -> Result<(), CommitError> {
    let len = text_lens(record).into_iter().max().unwrap_or(0);
    match len <= TEXT_LEN_MAX {
        true => Ok(()),
        // The key itself may be what is too long; the message must stay readable.
        false => Err(CommitError::TooLarge {
            key: Key::new("a name or uid of", "", "this object"),
            len,
            max: TEXT_LEN_MAX,
        }),
    }
}

/// How an event is written.
pub(crate) fn disk_op(event: &Event) -> DiskOp<'_> {
    let key = &event.record.key;
    match event.kind {
        EventKind::Put => DiskOp::Put(DiskRecord::from(&*event.record)),
        EventKind::Delete => DiskOp::Delete { kind: &key.kind, namespace: &key.namespace, name: &key.name },
    }
}
