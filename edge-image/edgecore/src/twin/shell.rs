//! The shell around the machine: store, bus, uplink and clock.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use wire::{Message, Operation, source};

use super::{
    history::{History, tail::Tail},
    machine::{Action, Input, Machine, Sample, Stored},
    push::{self, Pushers},
    upload,
};
use crate::{
    config::Config,
    contract::{Condition, Handles, HistoryQuery, LinkState, Publish, Report},
};

pub const RECORD_KIND: &str = "twin";
/// Of the durable part of the history.
pub const HISTORY_KIND: &str = "history";
/// `<namespace>/<name>/history/get` below it.
const QUERY_TOPIC: &str = "$kinglet/device/";
const QUERY_FILTERS: [&str; 1] = ["$kinglet/device/+/+/history/get"];
const FILTERS: [&str; 4] = [
    "$kinglet/mapper/+",
    "$hw/events/device/+/+/state/update",
    "$hw/events/device/+/+/twin/+",
    "$hw/events/node/+/membership/get",
];
/// Node condition that lists the devices whose objects make no sense.
const CONDITION: &str = "DeviceConfigInvalid";

/// Runs until the drain. Everything that changed is then kept.
pub async fn run(handles: Handles, cfg: Arc<Config>, drain: rt::Drain) -> anyhow::Result<()> {
    let records = handles.meta.list_local(RECORD_KIND);
    let machine = Machine::new(
        &handles.node_name,
        records,
        cfg.kinglet.devices.report_every_ms,
        Box::new(|| uuid::Uuid::new_v4().to_string()),
        Box::new(|now_ms| {
            jiff::Timestamp::from_millisecond(now_ms / 1000 * 1000).unwrap_or_default().to_string()
        }),
    );
    let devices = &cfg.kinglet.devices;
    let mut history = History::new(devices.history_len, devices.history_bytes);
    let tail = devices.history_durable.then(|| {
        let slots = handles.meta.list_local(HISTORY_KIND).into_iter().map(|(_, body)| body).collect();
        Tail::load(slots, devices.history_bytes, &mut history)
    });
    let history = Arc::new(Mutex::new(history));
    let shared = history.clone();
    handles.history.send_replace(Some(Arc::new(move |id: &str, query: &HistoryQuery| {
        lock(&shared).answer(now_ms(), id, query)
    })));
    let pushers = Pushers::new(push::Settings::new(&handles.node_name, devices), drain.child());
    let mut shell = Shell { machine, handles, history, tail, pushers };
    shell.run(&drain).await;
    Ok(())
}

// Held for one value or one answer, never across an await.
fn lock(history: &Mutex<History>) -> MutexGuard<'_, History> {
    history.lock().unwrap_or_else(PoisonError::into_inner)
}

static HISTORY_BYTES: rt::Gauge =
    rt::Gauge::new("kinglet_device_history_bytes", "Memory of the values of devices that the node keeps.");

struct Shell {
    machine: Machine,
    handles: Handles,
    history: Arc<Mutex<History>>,
    tail: Option<Tail>,
    pushers: Pushers,
}

/// Wall clock, because it goes into messages; a step of it only moves a repetition.
fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

impl Shell {
    async fn run(&mut self, drain: &rt::Drain) {
        let mut messages = merged(&self.handles, &FILTERS);
        let mut queries = merged(&self.handles, &QUERY_FILTERS);
        let mut uploads = merged(&self.handles, &upload::FILTERS);
        let mut changes = self.handles.meta.changes();
        let mut link = self.handles.uplink.state();
        changes.mark_changed();
        loop {
            let tail = self.tail.as_ref().and_then(Tail::deadline_ms);
            let deadline = self.machine.deadline_ms().into_iter().chain(tail).min();
            let pause = deadline.map_or(3_600_000, |at| (at - now_ms()).clamp(0, 3_600_000));
            tokio::select! {
                () = drain.wait() => break,
                Ok(()) = changes.changed() => {
                    changes.borrow_and_update();
                    let input = Input::Objects { devices: self.objects("device"), models: self.objects("devicemodel") };
                    self.handle(input).await;
                    let machine = &self.machine;
                    self.pushers.keep(|place| machine.names_place(place));
                }
                Ok(()) = link.changed() => {
                    let connected = *link.borrow_and_update() == LinkState::Connected;
                    let input = match connected {
                        true if self.handles.uplink.is_resumed() => Input::Resumed,
                        true => Input::Connected,
                        false => Input::Disconnected,
                    };
                    self.handle(input).await;
                }
                Some(publish) = next(&mut messages) => {
                    self.handle(Input::Mqtt { topic: &publish.topic, payload: &publish.payload }).await;
                }
                Some(publish) = next(&mut queries) => self.answer(&publish).await,
                Some(publish) = next(&mut uploads) => upload::upload(&*self.handles.uplink, now_ms(), &publish),
                () = tokio::time::sleep(Duration::from_millis(pause as u64)) => {
                    self.handle(Input::Tick).await;
                    self.keep_tail(false).await;
                }
            }
        }
        self.handle(Input::Drain).await;
        self.keep_tail(true).await;
    }

    async fn answer(&mut self, publish: &Publish) {
        let rest = publish.topic.strip_prefix(QUERY_TOPIC).and_then(|rest| rest.strip_suffix("/history/get"));
        let Some(id) = rest else { return };
        // What is no question asks for everything.
        let query: HistoryQuery = serde_json::from_slice(&publish.payload).unwrap_or_default();
        let answer = lock(&self.history).answer(now_ms(), id, &query);
        let topic = format!("{}/result", publish.topic);
        if let Err(error) = self.handles.bus.publish(&topic, answer.into(), false).await {
            tracing::debug!("not published to {topic}: {error:#}");
        }
    }

    async fn sample(&mut self, sample: &Sample) {
        self.pushers.push(sample);
        if !sample.kept {
            return;
        }
        {
            let mut history = lock(&self.history);
            history.push(sample);
            HISTORY_BYTES.set(history.bytes() as u64);
        }
        if let Some((name, body)) = self.tail.as_mut().and_then(|tail| tail.push(now_ms(), sample)) {
            self.keep_slot(&name, body).await;
        }
    }

    async fn keep_tail(&mut self, always: bool) {
        if let Some((name, body)) = self.tail.as_mut().and_then(|tail| tail.due(now_ms(), always)) {
            self.keep_slot(&name, body).await;
        }
    }

    async fn keep_slot(&mut self, name: &str, body: Bytes) {
        if let Err(error) = self.handles.meta.put_local(HISTORY_KIND, name, body, false).await {
            tracing::error!("the history of devices is not kept: {}", rt::error_chain(&error));
        }
    }

    fn objects(&self, kind: &str) -> Vec<Stored> {
        let objects = self.handles.meta.list(kind).into_iter();
        objects
            .map(|object| (format!("{}/{}", object.resource.namespace, object.resource.name), object.body))
            .collect()
    }

    async fn handle(&mut self, input: Input<'_>) {
        for action in self.machine.handle(now_ms(), input) {
            match action {
                Action::Sample(sample) => self.sample(&sample).await,
                action => {
                    if let Action::Forget { id } = &action {
                        lock(&self.history).forget(id);
                    }
                    act(&self.handles, action).await;
                }
            }
        }
    }
}

async fn act(handles: &Handles, action: Action) {
    match action {
        Action::Publish { topic, payload, retain } => {
            if let Err(error) = handles.bus.publish(&topic, payload, retain).await {
                tracing::debug!("not published to {topic}: {error:#}");
            }
        }
        Action::Report { key, resource, content } => {
            let message = Message::new(now_ms(), source::TWIN, "resource", Operation::UPDATE, &resource);
            let content: Box<RawValue> = content.0;
            // Not durable: after a start everything is reported anew from the records.
            handles.uplink.report(Report { key, message: message.with_raw_content(content), durable: false });
        }
        Action::Persist { id, record, durable } => {
            if let Err(error) = handles.meta.put_local(RECORD_KIND, &id, record, durable).await {
                tracing::error!("the twins of {id} are not kept: {}", rt::error_chain(&error));
            }
        }
        // Not an action on others.
        Action::Sample(_) => {}
        Action::Forget { id } => {
            if let Err(error) = handles.meta.delete_local(RECORD_KIND, &id).await {
                tracing::error!(
                    "the twins of the deleted device {id} stay in the store: {}",
                    rt::error_chain(&error)
                );
            }
        }
        Action::Faults(faults) => {
            let lines: Vec<String> =
                faults.iter().map(|(id, reason)| format!("device {id}: {reason}")).collect();
            for line in &lines {
                tracing::error!("{line}");
            }
            handles.conditions.set(Condition {
                condition_type: CONDITION.into(),
                status: !lines.is_empty(),
                reason: if lines.is_empty() { "DevicesValid".into() } else { "DeviceInvalid".into() },
                message: if lines.is_empty() {
                    "every device of this node makes sense".into()
                } else {
                    lines.join("; ")
                },
            });
        }
    }
}

/// Several subscriptions, read in turn.
fn merged(handles: &Handles, filters: &[&str]) -> Vec<mpsc::Receiver<Publish>> {
    filters.iter().map(|filter| handles.bus.subscribe(filter)).collect()
}

/// The next message of any of the receivers. Safe to drop: a message is taken only when it is returned.
async fn next(receivers: &mut [mpsc::Receiver<Publish>]) -> Option<Publish> {
    std::future::poll_fn(|cx| {
        let mut open = false;
        for receiver in receivers.iter_mut() {
            match receiver.poll_recv(cx) {
                std::task::Poll::Ready(Some(publish)) => return std::task::Poll::Ready(Some(publish)),
                std::task::Poll::Ready(None) => {}
                std::task::Poll::Pending => open = true,
            }
        }
        if open { std::task::Poll::Pending } else { std::task::Poll::Ready(None) }
    })
    .await
}
