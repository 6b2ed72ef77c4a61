//! Tells the node's MQTT clients whether there is a link to the cloud, so that a driver can apply fail-safe values when it has
//! been gone for too long: retained `$kinglet/link` = `{"connected":BOOL,"since":MILLISECONDS}`.
//!
//! The death of this program is no message: clients see it as the loss of their connection to the broker.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use rt::Drain;
use tokio::sync::watch;

use crate::contract::{Bus, LinkState};

pub const TOPIC: &str = "$kinglet/link";

/// A broker that does not take the message is asked again after this.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Publishes each change until the drain. A change that comes while the broker is away replaces the one that waits.
pub async fn tell(bus: Arc<dyn Bus>, mut state: watch::Receiver<LinkState>, drain: Drain) {
    let mut told: Option<bool> = None;
    while !drain.is_draining() {
        let connected = *state.borrow_and_update() == LinkState::Connected;
        if told != Some(connected) {
            let sent = drain.or(bus.publish(TOPIC, payload(connected, now_ms()), true)).await;
            if let Some(Err(error)) = sent {
                tracing::debug!("{TOPIC} cannot be told: {error:#}");
                drain.sleep(RETRY_DELAY).await;
                continue;
            }
            told = Some(connected);
        }
        match drain.or(state.changed()).await {
            Some(Ok(())) => {}
            _ => return,
        }
    }
}

fn payload(connected: bool, since_ms: u64) -> Bytes {
    format!("{{\"connected\":{connected},\"since\":{since_ms}}}").into()
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::testing::FakeBus;

    #[tokio::test]
    async fn each_change_of_the_link_is_retained_once() {
        let bus = FakeBus::new();
        let (link, drain) = (watch::Sender::new(LinkState::Disconnected("not yet".into())), Drain::new());
        let mut seen = bus.subscribe(TOPIC);
        let task = tokio::spawn(tell(bus.clone(), link.subscribe(), drain.clone()));
        let mut next = async || String::from_utf8(seen.recv().await.unwrap().payload.to_vec()).unwrap();
        assert!(next().await.starts_with("{\"connected\":false,\"since\":"));
        link.send_replace(LinkState::Connected);
        assert!(next().await.starts_with("{\"connected\":true,\"since\":"));
        // Another reason for the same state is no news.
        link.send_replace(LinkState::Disconnected("refused".into()));
        assert!(next().await.starts_with("{\"connected\":false"));
        link.send_replace(LinkState::Disconnected("no route".into()));
        link.send_replace(LinkState::Connected);
        assert!(next().await.starts_with("{\"connected\":true"));
        drain.start();
        task.await.unwrap();
        assert!(bus.retained(TOPIC).unwrap().starts_with(b"{\"connected\":true"));
    }
}
