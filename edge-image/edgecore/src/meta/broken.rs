//! Stands in for a store that cannot be read: takes nothing, gives nothing, and says why.
//!
//! With it the node still joins its cloud and shows what is wrong. No module that acts on objects may run on it: "I cannot
//! read what belongs here" must never look like "nothing belongs here".

use bytes::Bytes;
use tokio::sync::watch;
use wire::{Message, Resource};

use crate::contract::{Applied, BoxFuture, Inbox, Meta, MetaError, Object};

pub struct BrokenMeta {
    why: String,
    changes: watch::Sender<u64>,
}

impl BrokenMeta {
    pub fn new(why: String) -> BrokenMeta {
        BrokenMeta { why, changes: watch::Sender::new(0) }
    }

    fn error(&self) -> MetaError {
        MetaError::Store(anyhow::anyhow!("{}", self.why))
    }
}

impl Inbox for BrokenMeta {
    fn apply<'a>(&'a self, _: &'a Message) -> BoxFuture<'a, Result<Applied, MetaError>> {
        Box::pin(async { Err(self.error()) })
    }
}

impl Meta for BrokenMeta {
    fn list(&self, _: &str) -> Vec<Object> {
        Vec::new()
    }

    fn get(&self, _: &Resource) -> Option<Object> {
        None
    }

    fn fetch<'a>(&'a self, _: &'a Resource) -> BoxFuture<'a, Result<Object, MetaError>> {
        Box::pin(async { Err(self.error()) })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn put_local<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        _: Bytes,
        _: bool,
    ) -> BoxFuture<'a, Result<(), MetaError>> {
        Box::pin(async { Err(self.error()) })
    }

    fn get_local(&self, _: &str, _: &str) -> Option<Bytes> {
        None
    }

    fn list_local(&self, _: &str) -> Vec<(String, Bytes)> {
        Vec::new()
    }

    fn delete_local<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<(), MetaError>> {
        Box::pin(async { Err(self.error()) })
    }
}
