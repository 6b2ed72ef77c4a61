//! Values that go elsewhere than to the cloud, at full rate: over HTTP, to another MQTT broker, to InfluxDB, to an OpenTelemetry
//! collector, as the Device's `pushMethod` says.
//!
//! Each place has a queue in memory and a task. What cannot be delivered waits there, with back-off, as long as there is room: so a
//! place gets what it missed while it or the network was away, oldest first, with the times at which the values were read.
//!
//! Invariants: nothing waits for a place that is slow; a queue has a bound, its oldest values go first and are counted; a request that
//! the place calls wrong is not repeated.
//!
//! Start at [`Pushers::push`].

mod encode;
mod http;
mod mqtt;
mod otlp;
mod queue;
mod target;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rt::{Backoff, Drain, TaskGroup};
use tokio::sync::Notify;

use self::{
    http::{Client, Url},
    queue::{Item, Queue},
};
use super::machine::Sample;
use crate::limits::{
    PUSH_BATCH_LEN, PUSH_GATHER, PUSH_RETRY_MS_FIRST, PUSH_RETRY_MS_MAX, PUSH_TARGETS_MAX, PUSH_TIMEOUT,
};

pub use self::target::{Form, Place, Push, fuzz_push, read};

static SENT: rt::Gauge =
    rt::Gauge::new("kinglet_push_values_total", "Values of devices delivered as pushMethod says.");
static DROPPED: rt::Gauge = rt::Gauge::new(
    "kinglet_push_dropped_total",
    "Values of devices not delivered: the place did not take them, or was away for too long.",
);

/// How values are delivered, from the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    pub queue_bytes: usize,
    /// Certificates that places with https are checked with (PEM).
    pub ca_file: PathBuf,
    /// The token for InfluxDB; no file: none.
    pub token_file: PathBuf,
    /// Part of client ids.
    pub node: Arc<str>,
    pub gather: Duration,
}

impl Settings {
    pub fn new(node: &Arc<str>, devices: &crate::config::Devices) -> Settings {
        Settings {
            queue_bytes: devices.push_queue_bytes,
            ca_file: devices.push_ca_file.clone(),
            token_file: devices.push_token_file.clone(),
            node: node.clone(),
            gather: PUSH_GATHER,
        }
    }
}

#[derive(Clone)]
struct Waiting {
    queue: Arc<Mutex<Queue>>,
    filled: Arc<Notify>,
}

impl Waiting {
    // Held for one step on the queue, never across an await.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The queues of all places.
pub struct Pushers {
    settings: Settings,
    places: BTreeMap<Place, (Waiting, Drain)>,
    tasks: TaskGroup,
}

impl Pushers {
    pub fn new(settings: Settings, drain: Drain) -> Pushers {
        Pushers { settings, places: BTreeMap::new(), tasks: TaskGroup::new("push", PUSH_TARGETS_MAX, drain) }
    }

    /// Hands a value to the queues of its ways. Never waits.
    pub fn push(&mut self, sample: &Sample) {
        for (way, push) in sample.push.iter().enumerate() {
            let Some(waiting) = self.waiting(&push.place) else {
                DROPPED.add(1);
                continue;
            };
            let item = Item {
                id: sample.id.clone(),
                property: sample.property.clone(),
                value: sample.value.clone(),
                value_type: sample.value_type.clone(),
                quality: sample.quality.clone(),
                at_ms: sample.at_ms,
                ways: sample.push.clone(),
                way,
            };
            let mut queue = waiting.lock();
            let before = queue.dropped();
            queue.push(item);
            DROPPED.add(queue.dropped() - before);
            drop(queue);
            waiting.filled.notify_one();
        }
    }

    /// Places that no Device names any more are given up, with what waits for them.
    pub fn keep(&mut self, is_named: impl Fn(&Place) -> bool) {
        self.places.retain(|place, (waiting, stop)| {
            let stays = is_named(place);
            if !stays {
                DROPPED.add(waiting.lock().len() as u64);
                stop.start();
            }
            stays
        });
    }

    fn waiting(&mut self, place: &Place) -> Option<Waiting> {
        if let Some((waiting, _)) = self.places.get(place) {
            return Some(waiting.clone());
        }
        let queue = Arc::new(Mutex::new(Queue::new(self.settings.queue_bytes)));
        let waiting = Waiting { queue, filled: Arc::default() };
        let stop = self.tasks.drain().child();
        let worker = Worker {
            place: place.clone(),
            waiting: waiting.clone(),
            settings: self.settings.clone(),
            client: None,
            is_away: false,
        };
        if let Err(error) = self.tasks.spawn(worker.run(stop.clone())) {
            tracing::error!("values are not pushed to {place:?}: {error}");
            return None;
        }
        self.places.insert(place.clone(), (waiting.clone(), stop));
        Some(waiting)
    }
}

/// What became of a batch.
#[derive(Debug)]
enum Fault {
    /// Try again later.
    Away(String),
    /// The same request would be refused again.
    Refused(String),
}

struct Worker {
    place: Place,
    waiting: Waiting,
    settings: Settings,
    client: Option<Client>,
    /// The log says so already.
    is_away: bool,
}

impl Worker {
    async fn run(mut self, stop: Drain) -> Result<(), Infallible> {
        let first = Duration::from_millis(PUSH_RETRY_MS_FIRST);
        let mut backoff = Backoff::new(first, Duration::from_millis(PUSH_RETRY_MS_MAX));
        let work = async {
            loop {
                while self.waiting.lock().is_empty() {
                    self.waiting.filled.notified().await;
                }
                tokio::time::sleep(self.settings.gather).await;
                let batch = self.waiting.lock().batch(PUSH_BATCH_LEN);
                if self.deliver(batch).await {
                    backoff.reset();
                } else {
                    tokio::time::sleep(backoff.random_delay()).await;
                }
            }
        };
        let _: Option<Infallible> = stop.or(work).await;
        Ok(())
    }

    /// False: wait before the next one.
    async fn deliver(&mut self, batch: Vec<Item>) -> bool {
        let len = batch.len() as u64;
        match self.send(&batch).await {
            Ok(()) => {
                SENT.add(len);
                if std::mem::take(&mut self.is_away) {
                    tracing::info!("{} takes values again", self.name());
                }
                true
            }
            Err(Fault::Refused(reason)) => {
                DROPPED.add(len);
                tracing::warn!("{} does not take {len} values, they are dropped: {reason}", self.name());
                false
            }
            Err(Fault::Away(reason)) => {
                if !std::mem::replace(&mut self.is_away, true) {
                    tracing::warn!("values for {} wait: {reason}", self.name());
                }
                let mut queue = self.waiting.lock();
                let before = queue.dropped();
                queue.put_back(batch);
                DROPPED.add(queue.dropped() - before);
                false
            }
        }
    }

    fn name(&self) -> &str {
        match &self.place {
            Place::Http { url, .. } | Place::Influx { url, .. } | Place::Otlp { url } => &url.server,
            Place::Mqtt { address } => address,
        }
    }

    async fn send(&mut self, batch: &[Item]) -> Result<(), Fault> {
        match self.place.clone() {
            Place::Http { url, timeout_ms } => {
                let timeout = if timeout_ms == 0 { PUSH_TIMEOUT } else { Duration::from_millis(timeout_ms) };
                let headers = "Content-Type: application/x-www-form-urlencoded\r\n";
                for item in batch {
                    // A batch that ends half-way is sent again: each value carries its time.
                    self.post(&url, &url.path, headers, encode::form(item).as_bytes(), timeout).await?;
                }
                Ok(())
            }
            Place::Influx { url, org, bucket } => {
                let lines = encode::lines(batch);
                if lines.is_empty() {
                    return Ok(());
                }
                let base = url.path.trim_end_matches('/');
                let (org, bucket) = (encode::percent(&org), encode::percent(&bucket));
                let path = format!("{base}/api/v2/write?org={org}&bucket={bucket}&precision=ms");
                let mut headers = "Content-Type: text/plain; charset=utf-8\r\n".to_owned();
                if let Some(token) = self.token() {
                    headers += &format!("Authorization: Token {token}\r\n");
                }
                self.post(&url, &path, &headers, lines.as_bytes(), PUSH_TIMEOUT).await
            }
            Place::Otlp { url } => {
                let body = otlp::export(batch, "kinglet");
                let headers = "Content-Type: application/x-protobuf\r\n";
                self.post(&url, &url.path, headers, &body, PUSH_TIMEOUT).await
            }
            Place::Mqtt { address } => {
                let client_id = format!("kinglet-push-{}", self.settings.node);
                let sent = mqtt::send(&address, &client_id, batch, PUSH_TIMEOUT).await;
                sent.map_err(|error| Fault::Away(rt::error_chain(&error)))
            }
        }
    }

    /// Read each time: it may be renewed. A mapper of KubeEdge's has it in its environment as TOKEN.
    fn token(&self) -> Option<String> {
        let text = std::fs::read_to_string(&self.settings.token_file).ok()?;
        let token = text.trim();
        let is_header = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        is_header.then(|| token.to_owned())
    }

    async fn post(
        &mut self,
        url: &Url,
        path: &str,
        headers: &str,
        body: &[u8],
        timeout: Duration,
    ) -> Result<(), Fault> {
        let ca_file = &self.settings.ca_file;
        let client = self.client.get_or_insert_with(|| {
            let pem = url.tls.then(|| std::fs::read_to_string(ca_file).ok()).flatten();
            let cas = pem.and_then(|pem| pki::pem_decode(&pem).ok()).unwrap_or_default();
            let cas = cas.iter().filter(|(label, _)| label == "CERTIFICATE").map(|(_, der)| der.as_slice());
            let tls = pki::tls::client_config_of(cas, None).ok();
            Client::new(tls.filter(|_| url.tls).map(Arc::new))
        });
        let answer = client.post(url, path, headers, body, timeout).await;
        let answer = answer.map_err(|error| {
            if matches!(error, http::PostError::Tls { .. }) {
                // The certificates may be there the next time.
                self.client = None;
            }
            Fault::Away(error.to_string())
        })?;
        let what = || format!("{} {}", answer.status, answer.text());
        match answer.status {
            200..300 => Ok(()),
            // Rights and paths are put right by people; too many and its own trouble pass by themselves.
            401 | 403 | 404 | 408 | 429 | 500..600 => Err(Fault::Away(what())),
            _ => Err(Fault::Refused(what())),
        }
    }
}

#[cfg(test)]
mod tests;
