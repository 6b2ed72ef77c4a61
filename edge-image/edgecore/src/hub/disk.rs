//! The hub's writes, one after the other: objects before their acknowledgement, durable reports before they are sent.
//!
//! One order for all of them, so that taking an old report off the disk can never take a newer one along.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use wire::Message;

use crate::contract::{Applied, BoxFuture, Inbox, Meta, MetaError};

/// Kind of the local records that hold durable reports.
pub const OUTBOX: &str = "outbox";

pub enum Write {
    Apply(Box<Message>),
    Keep {
        key: String,
        message: Box<Message>,
    },
    /// Only if the report under this key is still the one with this id.
    Drop {
        key: String,
        msg_id: String,
    },
}

pub enum Written {
    Applied(Box<Message>, Result<Applied, MetaError>),
    Kept { key: String, message: Box<Message>, result: Result<(), MetaError> },
    Dropped,
}

pub struct Disk {
    meta: Arc<dyn Meta>,
    inbox: Arc<dyn Inbox>,
    waiting: VecDeque<Write>,
    running: Option<BoxFuture<'static, Written>>,
}

impl Disk {
    pub fn new(meta: Arc<dyn Meta>, inbox: Arc<dyn Inbox>) -> Disk {
        Disk { meta, inbox, waiting: VecDeque::new(), running: None }
    }

    /// Reports that were kept over a restart. One that cannot be read is named and taken off.
    pub async fn load(&mut self) -> Vec<(String, Box<Message>)> {
        let mut reports = Vec::new();
        for (key, body) in self.meta.list_local(OUTBOX) {
            match Message::decode(&body) {
                Ok(message) => reports.push((key, Box::new(message))),
                Err(error) => {
                    tracing::error!(target: "hub", "report {key} in the outbox is dropped: {error}");
                    let _ = self.meta.delete_local(OUTBOX, &key).await;
                }
            }
        }
        reports
    }

    pub fn push(&mut self, write: Write) {
        self.waiting.push_back(write);
    }

    pub fn len(&self) -> usize {
        self.waiting.len() + usize::from(self.running.is_some())
    }

    /// The next result; pending for ever when nothing is to do. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Written {
        if self.running.is_none() {
            let Some(write) = self.waiting.pop_front() else { return std::future::pending().await };
            self.running = Some(Box::pin(run(write, self.meta.clone(), self.inbox.clone())));
        }
        let running = self.running.as_mut().expect("set above");
        let written = running.await;
        self.running = None;
        written
    }
}

async fn run(write: Write, meta: Arc<dyn Meta>, inbox: Arc<dyn Inbox>) -> Written {
    match write {
        Write::Apply(message) => {
            let result = inbox.apply(&message).await;
            Written::Applied(message, result)
        }
        Write::Keep { key, message } => {
            let result = meta.put_local(OUTBOX, &key, Bytes::from(message.encode()), true).await;
            Written::Kept { key, message, result }
        }
        Write::Drop { key, msg_id } => {
            let kept = meta.get_local(OUTBOX, &key).and_then(|body| Message::decode(&body).ok());
            if kept.is_some_and(|kept| kept.header.msg_id == msg_id)
                && let Err(error) = meta.delete_local(OUTBOX, &key).await
            {
                // It is sent once more after the next start; the cloud takes it twice.
                tracing::warn!(target: "hub", "report {key} stays in the outbox: {}", rt::error_chain(&error));
            }
            Written::Dropped
        }
    }
}
