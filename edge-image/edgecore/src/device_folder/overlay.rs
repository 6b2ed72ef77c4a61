//! Meta and uplink as the device modules see them: the cloud's objects and those of the folder in one list.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::watch;
use wire::{Message, Resource};

use crate::contract::{BoxFuture, Handles, LinkState, Meta, MetaError, Object, Report, Uplink, UplinkError};

pub struct Overlay {
    meta: Arc<dyn Meta>,
    uplink: Arc<dyn Uplink>,
    objects: Mutex<BTreeMap<Resource, Object>>,
    changes: watch::Sender<u64>,
}

impl Overlay {
    pub fn new(handles: &Handles, objects: BTreeMap<Resource, Object>) -> Arc<Overlay> {
        Arc::new(Overlay {
            meta: handles.meta.clone(),
            uplink: handles.uplink.clone(),
            objects: Mutex::new(objects),
            changes: watch::Sender::default(),
        })
    }

    /// The handles for modules that act on devices.
    pub fn handles(self: &Arc<Overlay>, handles: &Handles) -> Handles {
        Handles { meta: self.clone(), uplink: self.clone(), ..handles.clone() }
    }

    pub fn replace(&self, objects: BTreeMap<Resource, Object>) {
        *self.lock() = objects;
        self.changed();
    }

    pub(super) fn changed(&self) {
        self.changes.send_modify(|number| *number += 1);
    }

    /// Objects of the folder that hide one of the cloud.
    pub fn hiding(&self) -> Vec<Resource> {
        self.lock().keys().filter(|resource| self.meta.get(resource).is_some()).cloned().collect()
    }

    /// Whether a message to the cloud is about a device that only the folder knows.
    fn is_local(&self, resource: &str) -> bool {
        let mut parts = resource.split('/');
        let (Some("device"), Some(namespace), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
            return false;
        };
        let device = Resource::new(namespace, "device", name);
        self.lock().contains_key(&device) && self.meta.get(&device).is_none()
    }

    // Held for one look-up, never across an await.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Resource, Object>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Meta for Overlay {
    fn list(&self, kind: &str) -> Vec<Object> {
        let ours = self.lock();
        let mut objects = self.meta.list(kind);
        objects.retain(|object| !ours.contains_key(&object.resource));
        objects.extend(ours.values().filter(|object| object.resource.kind == kind).cloned());
        objects
    }

    fn get(&self, resource: &Resource) -> Option<Object> {
        let ours = self.lock().get(resource).cloned();
        ours.or_else(|| self.meta.get(resource))
    }

    fn fetch<'a>(&'a self, resource: &'a Resource) -> BoxFuture<'a, Result<Object, MetaError>> {
        let ours = self.lock().get(resource).cloned();
        match ours {
            Some(object) => Box::pin(async move { Ok(object) }),
            None => self.meta.fetch(resource),
        }
    }

    /// Rises with the cloud's objects too: the folder's task passes that on.
    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn put_local<'a>(
        &'a self,
        kind: &'a str,
        name: &'a str,
        body: Bytes,
        durable: bool,
    ) -> BoxFuture<'a, Result<(), MetaError>> {
        self.meta.put_local(kind, name, body, durable)
    }

    fn get_local(&self, kind: &str, name: &str) -> Option<Bytes> {
        self.meta.get_local(kind, name)
    }

    fn list_local(&self, kind: &str) -> Vec<(String, Bytes)> {
        self.meta.list_local(kind)
    }

    fn delete_local<'a>(&'a self, kind: &'a str, name: &'a str) -> BoxFuture<'a, Result<(), MetaError>> {
        self.meta.delete_local(kind, name)
    }
}

impl Uplink for Overlay {
    fn report(&self, report: Report) {
        if !self.is_local(&report.message.route.resource) {
            self.uplink.report(report);
        }
    }

    fn send(&self, message: Message) {
        if !self.is_local(&message.route.resource) {
            self.uplink.send(message);
        }
    }

    fn request<'a>(
        &'a self,
        message: Message,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Message, UplinkError>> {
        self.uplink.request(message, timeout)
    }

    fn state(&self) -> watch::Receiver<LinkState> {
        self.uplink.state()
    }

    fn is_resumed(&self) -> bool {
        self.uplink.is_resumed()
    }
}
