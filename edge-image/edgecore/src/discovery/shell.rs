//! The shell around the machine: store and bus.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::mpsc;

use super::machine::{Action, Input, Machine, Stored};
use crate::{
    contract::{Handles, Publish},
    limits::DISCOVERY_ASK_PAUSE,
};

/// Kind of the local records: the retained topics of each device.
const KIND: &str = "discovery";

/// Runs until the drain. With an empty prefix it only clears what an earlier life published.
pub async fn run(handles: Handles, prefix: String, drain: rt::Drain) {
    let remembered: BTreeMap<String, BTreeSet<String>> = handles
        .meta
        .list_local(KIND)
        .into_iter()
        .map(|(id, body)| (id, serde_json::from_slice(&body).unwrap_or_default()))
        .collect();
    if prefix.is_empty() && remembered.is_empty() {
        return drain.wait().await;
    }
    let mut machine = Machine::new(&handles.node_name, &prefix, remembered);
    let filters = if prefix.is_empty() { Vec::new() } else { filters(&handles.node_name) };
    let mut messages: Vec<mpsc::Receiver<Publish>> =
        filters.iter().map(|filter| handles.bus.subscribe(filter)).collect();
    let mut changes = handles.meta.changes();
    changes.mark_changed();
    loop {
        tokio::select! {
            () = drain.wait() => return,
            Ok(()) = changes.changed() => {
                changes.borrow_and_update();
                let input = Input::Objects { devices: objects(&handles, "device"), models: objects(&handles, "devicemodel") };
                act(&handles, machine.handle(input)).await;
            }
            () = tokio::time::sleep(DISCOVERY_ASK_PAUSE), if machine.is_asking() => {
                act(&handles, machine.handle(Input::Tick)).await;
            }
            // A wish is said once: a retained one would be made again at each start, whatever was wished since.
            publish = next(&mut messages) => {
                if publish.retained && publish.topic.ends_with("/set") {
                    tracing::warn!("the wish on {} is retained and not made again: publish it without retain", publish.topic);
                    continue;
                }
                let input = Input::Mqtt { topic: &publish.topic, payload: &publish.payload };
                act(&handles, machine.handle(input)).await;
            }
        }
    }
}

fn filters(node: &str) -> Vec<String> {
    let device = "$hw/events/device/+/+";
    vec![
        format!("{device}/twin/update/document"),
        format!("{device}/twin/get/result"),
        format!("{device}/state/update/result"),
        format!("kinglet/{node}/+/+/+/set"),
    ]
}

fn objects(handles: &Handles, kind: &str) -> Vec<Stored> {
    let objects = handles.meta.list(kind).into_iter();
    objects
        .map(|object| (format!("{}/{}", object.resource.namespace, object.resource.name), object.body))
        .collect()
}

async fn act(handles: &Handles, actions: Vec<Action>) {
    for action in actions {
        match action {
            Action::Publish { topic, payload, retain } => {
                if let Err(error) = handles.bus.publish(&topic, payload.into(), retain).await {
                    tracing::debug!("not published to {topic}: {error:#}");
                }
            }
            Action::Remember { id, topics } => {
                let body = serde_json::to_vec(&topics).expect("texts serialise");
                if let Err(error) = handles.meta.put_local(KIND, &id, body.into(), false).await {
                    tracing::warn!("discovery of {id} is not remembered: {}", rt::error_chain(&error));
                }
            }
            Action::Forget { id } => {
                if let Err(error) = handles.meta.delete_local(KIND, &id).await {
                    tracing::warn!("discovery of {id} stays in the store: {}", rt::error_chain(&error));
                }
            }
        }
    }
}

/// The next message of any of the receivers; never, when there is none. Safe to drop: a message is taken only when it is returned.
async fn next(receivers: &mut [mpsc::Receiver<Publish>]) -> Publish {
    std::future::poll_fn(|cx| {
        for receiver in receivers.iter_mut() {
            if let std::task::Poll::Ready(Some(publish)) = receiver.poll_recv(cx) {
                return std::task::Poll::Ready(publish);
            }
        }
        std::task::Poll::Pending
    })
    .await
}
