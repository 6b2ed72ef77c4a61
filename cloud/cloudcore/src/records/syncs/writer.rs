//! Writes ObjectSyncs in the background: the newest of each, several at a time, again until it worked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rt::Drain;
use serde_json::json;
use tokio::sync::{Notify, oneshot, watch};
use wire::Resource;

use super::{ANNOTATION, folder};
use crate::api::{Api, ApiError, MERGE_PATCH};
use crate::cluster::views::Kind;
use crate::limits::{SYNC_DRAIN_TIME_MAX, SYNC_WRITES_MAX, WATCH_RETRY};

/// Node and uid.
type Key = (String, String);

#[derive(Debug)]
enum Write {
    Set { resource: Resource, is_new: bool, at: String, version: Option<String> },
    Forget { resource: Resource },
}

#[derive(Debug)]
struct Job {
    write: Write,
    done: Vec<oneshot::Sender<()>>,
}

#[derive(Default)]
struct Jobs {
    /// Bounded by the objects that belong on the connected nodes: one each.
    waiting: BTreeMap<Key, Job>,
    running: BTreeSet<Key>,
}

#[derive(Clone)]
pub struct Writer {
    api: Api,
    jobs: Arc<Mutex<Jobs>>,
    added: Arc<Notify>,
    finished: watch::Sender<()>,
}

impl Writer {
    pub fn new(api: Api) -> Writer {
        Writer { api, jobs: Arc::default(), added: Arc::default(), finished: watch::Sender::new(()) }
    }

    /// The receiver gets its value when this, or what came after it, is written.
    pub fn set(
        &self,
        node: &str,
        uid: &str,
        resource: Resource,
        is_new: bool,
        at: String,
        version: Option<String>,
    ) -> oneshot::Receiver<()> {
        self.add(node, uid, Write::Set { resource, is_new, at, version })
    }

    pub fn forget(&self, node: &str, uid: &str, resource: Resource) {
        drop(self.add(node, uid, Write::Forget { resource }));
    }

    fn add(&self, node: &str, uid: &str, mut write: Write) -> oneshot::Receiver<()> {
        let (tx, rx) = oneshot::channel();
        let mut jobs = self.lock();
        let key = (node.to_owned(), uid.to_owned());
        let before = jobs.waiting.remove(&key);
        let mut done = Vec::new();
        if let Some(before) = before {
            if let (Write::Set { is_new: true, .. }, Write::Set { is_new, .. }) = (&before.write, &mut write)
            {
                *is_new = true;
            }
            done = before.done;
        }
        done.push(tx);
        jobs.waiting.insert(key, Job { write, done });
        drop(jobs);
        self.added.notify_one();
        rx
    }

    /// Waits until nothing is to be written for the node.
    pub async fn settled(&self, node: &str) {
        let mut finished = self.finished.subscribe();
        loop {
            {
                let jobs = self.lock();
                let of_node = |key: &Key| key.0 == node;
                if !jobs.waiting.keys().any(of_node) && !jobs.running.iter().any(of_node) {
                    return;
                }
            }
            if finished.changed().await.is_err() {
                return;
            }
        }
    }

    pub async fn run(&self, drain: &Drain) {
        let work = self.work();
        tokio::pin!(work);
        tokio::select! {
            () = &mut work => {}
            () = drain.wait() => {
                // What was acknowledged in the last moments; lost, it would only be sent once more.
                let idle = async {
                    while self.is_busy() {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                };
                tokio::select! {
                    () = &mut work => {}
                    // The links end at the same time; the first look comes after their last words.
                    () = async { tokio::time::sleep(Duration::from_millis(500)).await; idle.await } => {}
                    () = tokio::time::sleep(SYNC_DRAIN_TIME_MAX) => {
                        tracing::warn!("not all of what nodes acknowledged could be written; it is sent to them again");
                    }
                }
            }
        }
    }

    async fn work(&self) {
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < SYNC_WRITES_MAX {
                let Some((key, job)) = self.take() else { break };
                running.push(async move {
                    let result = carry_out(&self.api, &key, &job.write).await;
                    if result.is_err() {
                        tokio::time::sleep(WATCH_RETRY).await;
                    }
                    (key, job, result)
                });
            }
            tokio::select! {
                Some((key, job, result)) = running.next() => self.finish(key, job, result),
                () = self.added.notified() => {}
            }
        }
    }

    fn take(&self) -> Option<(Key, Job)> {
        let mut jobs = self.lock();
        let key = jobs.waiting.keys().find(|key| !jobs.running.contains(*key))?.clone();
        let job = jobs.waiting.remove(&key)?;
        jobs.running.insert(key.clone());
        Some((key, job))
    }

    fn finish(&self, key: Key, job: Job, result: Result<(), ApiError>) {
        let mut jobs = self.lock();
        jobs.running.remove(&key);
        match result {
            Ok(()) => job.done.into_iter().for_each(|done| {
                let _ = done.send(());
            }),
            Err(error) => {
                tracing::warn!(
                    "what node {} has cannot be recorded, it is tried again: {}",
                    key.0,
                    error.line()
                );
                match jobs.waiting.get_mut(&key) {
                    // A newer one takes its place.
                    Some(newer) => {
                        if let Write::Set { is_new, .. } = &mut newer.write {
                            *is_new = true;
                        }
                        newer.done.extend(job.done);
                    }
                    None => drop(jobs.waiting.insert(key, job)),
                }
            }
        }
        drop(jobs);
        self.finished.send_replace(());
    }

    fn is_busy(&self) -> bool {
        let jobs = self.lock();
        !jobs.waiting.is_empty() || !jobs.running.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn carry_out(api: &Api, (node, uid): &Key, write: &Write) -> Result<(), ApiError> {
    match write {
        Write::Set { resource, is_new, at, version } => {
            let path = format!("{}/{node}.{uid}", folder(resource));
            if *is_new {
                create(api, node, uid, resource).await?;
            }
            match note(api, &path, at, version.as_deref()).await {
                // Somebody swept it away.
                Err(error) if error.is_not_found() => {
                    create(api, node, uid, resource).await?;
                    note(api, &path, at, version.as_deref()).await
                }
                result => result,
            }
        }
        Write::Forget { resource } => {
            match api.delete(&format!("{}/{node}.{uid}", folder(resource)), "{}").await {
                Err(error) if !error.is_not_found() => Err(error),
                _ => Ok(()),
            }
        }
    }
}

async fn create(api: &Api, node: &str, uid: &str, resource: &Resource) -> Result<(), ApiError> {
    let kind = Kind::from_word(&resource.kind);
    let namespace = Some(resource.namespace.as_str()).filter(|name| !matches!(*name, "" | "null"));
    let object = json!({
        "apiVersion": "reliablesyncs.kubeedge.io/v1alpha1",
        "kind": if namespace.is_some() { "ObjectSync" } else { "ClusterObjectSync" },
        "metadata": {"name": format!("{node}.{uid}"), "namespace": namespace},
        "spec": {
            "objectAPIVersion": kind.map(Kind::api_version), "objectKind": kind.map(Kind::name),
            "objectName": resource.name,
        },
    });
    match api.post(&folder(resource), object.to_string()).await {
        Err(error) if !error.is_conflict() => Err(error),
        _ => Ok(()),
    }
}

async fn note(api: &Api, path: &str, at: &str, version: Option<&str>) -> Result<(), ApiError> {
    if let Some(version) = version {
        let patch = json!({"metadata": {"annotations": {ANNOTATION: format!("{at}:{version}")}}});
        api.patch(path, MERGE_PATCH, patch.to_string()).await?;
    }
    let patch = json!({"status": {"objectResourceVersion": at}});
    api.patch(&format!("{path}/status"), MERGE_PATCH, patch.to_string()).await.map(drop)
}
