//! Meta as the modules see it: the store, and the cloud for what the store lacks.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;
use wire::{Message, Operation, Resource, source};

use crate::{
    contract::{BoxFuture, Meta, MetaError, Object, Uplink, UplinkError},
    limits::FETCH_TIMEOUT,
};

pub struct Front {
    store: Arc<dyn Meta>,
    uplink: Arc<dyn Uplink>,
}

impl Front {
    pub fn new(store: Arc<dyn Meta>, uplink: Arc<dyn Uplink>) -> Front {
        Front { store, uplink }
    }

    /// The hub stores the cloud's answer before it hands it out, so that the object is in the store when there is one.
    ///
    /// Of several questions for one object that a stock cloud has at a time it answers the last one only: its queue of what must be
    /// acknowledged holds one message per object (KubeEdge `message_dispatcher.go`, enqueueAckMessage). So whoever waits also looks
    /// into the store.
    async fn query(&self, resource: &Resource) -> Result<Object, MetaError> {
        let now_ms = jiff::Timestamp::now().as_millisecond();
        let query = Message::new(now_ms, source::EDGED, "meta", Operation::QUERY, &resource.to_string());
        let mut changes = self.store.changes();
        if let Some(object) = self.store.get(resource) {
            return Ok(object);
        }
        let mut request = self.uplink.request(query, FETCH_TIMEOUT);
        let answer = loop {
            tokio::select! {
                answer = &mut request => break answer,
                Ok(()) = changes.changed() => {
                    if let Some(object) = self.store.get(resource) {
                        return Ok(object);
                    }
                }
            }
        };
        let answer = answer.map_err(|error| match error {
            UplinkError::Disconnected(_) => MetaError::Offline(resource.clone()),
            UplinkError::Timeout(_) => MetaError::Peer(error.to_string()),
        })?;
        self.store.get(resource).ok_or_else(|| refusal(resource, &answer))
    }
}

/// KubeEdge answers with the error's text, or with `{"ErrStatus": <Status>}`.
fn refusal(resource: &Resource, answer: &Message) -> MetaError {
    let content: serde_json::Value = answer.content_as().unwrap_or_default();
    let status = content.get("ErrStatus");
    let text = content.as_str().or_else(|| status?.get("message")?.as_str()).unwrap_or_default();
    let reason = status.and_then(|status| status.get("reason")?.as_str());
    if reason == Some("NotFound") || text.contains("not found") {
        return MetaError::NotFound(resource.clone());
    }
    let text: String = text.chars().take(300).collect();
    MetaError::Peer(if text.is_empty() { format!("something that is not {resource}") } else { text })
}

impl Meta for Front {
    fn list(&self, kind: &str) -> Vec<Object> {
        self.store.list(kind)
    }

    fn get(&self, resource: &Resource) -> Option<Object> {
        self.store.get(resource)
    }

    fn fetch<'a>(&'a self, resource: &'a Resource) -> BoxFuture<'a, Result<Object, MetaError>> {
        Box::pin(async move {
            match self.store.get(resource) {
                Some(object) => Ok(object),
                None => self.query(resource).await,
            }
        })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.store.changes()
    }

    fn put_local<'a>(
        &'a self,
        kind: &'a str,
        name: &'a str,
        body: Bytes,
        durable: bool,
    ) -> BoxFuture<'a, Result<(), MetaError>> {
        self.store.put_local(kind, name, body, durable)
    }

    fn get_local(&self, kind: &str, name: &str) -> Option<Bytes> {
        self.store.get_local(kind, name)
    }

    fn list_local(&self, kind: &str) -> Vec<(String, Bytes)> {
        self.store.list_local(kind)
    }

    fn delete_local<'a>(&'a self, kind: &'a str, name: &'a str) -> BoxFuture<'a, Result<(), MetaError>> {
        self.store.delete_local(kind, name)
    }
}
