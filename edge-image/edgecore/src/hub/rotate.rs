//! Renewal of the node's certificate before it expires.

use std::{sync::Arc, time::Duration};

use pki::{CertInfo, Key, Validity};
use rt::{Backoff, Drain};

use super::HubHandle;
use crate::{
    credentials::{Credentials, unix_now_s},
    enrol,
};

/// The wall clock may jump, so that it is looked at this often and not slept up to.
const LOOK_EVERY: Duration = Duration::from_secs(1800);
/// Waits between attempts that failed.
const RETRY_FIRST: Duration = Duration::from_secs(30);
const RETRY_MAX: Duration = Duration::from_secs(3600);

#[derive(Clone, Debug)]
pub struct RotateConfig {
    pub credentials: Credentials,
    /// Join port, `host:10002`.
    pub server: String,
    pub node: String,
}

/// Renews at a random point between 70 and 90 % of the lifetime, as KubeEdge does. Runs until the drain.
pub async fn rotate(cfg: RotateConfig, hub: Arc<HubHandle>, drain: Drain) {
    let share = 70 + rt::random_u64() % 21;
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
    let mut pause = Duration::ZERO;
    while drain.sleep(pause).await {
        pause = LOOK_EVERY;
        match renew_if_due(&cfg, share, unix_now_s()).await {
            Ok(false) => {}
            Ok(true) => {
                tracing::info!(target: "hub", "the node's certificate was renewed");
                backoff.reset();
                hub.reconnect("the node's certificate was renewed");
            }
            Err(error) => {
                tracing::warn!(target: "hub", "the node's certificate was not renewed yet: {error:#}");
                pause = backoff.random_delay().max(RETRY_FIRST);
            }
        }
    }
}

/// True when a new certificate is on the disk.
pub(crate) async fn renew_if_due(cfg: &RotateConfig, share: u64, now_s: u64) -> anyhow::Result<bool> {
    let current = cfg.credentials.load()?;
    let validity = CertInfo::parse(&current.cert_der)?.validity;
    if now_s < due_at(&validity, share) {
        return Ok(false);
    }
    // Three separate files cannot change at one moment; there the key stays.
    let key = if cfg.credentials.is_bundle() { Key::generate()? } else { current.key.clone() };
    let renewed = enrol::renew(&cfg.server, &cfg.node, &current, key).await?;
    cfg.credentials.store(&renewed)?;
    Ok(true)
}

fn due_at(validity: &Validity, share: u64) -> u64 {
    let lifetime = validity.not_after.saturating_sub(validity.not_before);
    validity.not_before + lifetime / 100 * share
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_between_seventy_and_ninety_percent() {
        let validity = Validity { not_before: 1_000, not_after: 101_000 };
        assert_eq!((due_at(&validity, 70), due_at(&validity, 90)), (71_000, 91_000));
    }
}
