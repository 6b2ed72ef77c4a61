//! Renewal of the node's certificate before it expires, and of the list of CAs that it trusts.
//!
//! The list is asked for at the start and every [`TRUST_CHECKS`] looks. A certificate of a CA that does not sign any more is
//! renewed at once, so that a change of the CA is over when every node has been here once. An expired certificate is renewed with
//! the same key: that is what a cloud may still accept for a while.

use std::{sync::Arc, time::Duration};

use pki::{Bundle, CertInfo, Key, Validity};
use rt::{Backoff, Drain};

use super::HubHandle;
use crate::{
    credentials::{Credentials, unix_now_s},
    enrol,
};

/// Looks at the certificate between two requests for the list of CAs.
const TRUST_CHECKS: u32 = 12;
/// Waits between attempts that failed.
const RETRY_FIRST: Duration = Duration::from_secs(30);
const RETRY_MAX: Duration = Duration::from_secs(3600);

#[derive(Clone, Debug)]
pub struct RotateConfig {
    pub credentials: Credentials,
    /// Join port, `host:10002`.
    pub server: String,
    pub node: String,
    /// False: certificates are not renewed (KubeEdge's rotateCertificates); CAs are still learned.
    pub renews: bool,
    /// The wall clock may jump, so that it is looked at this often and not slept up to.
    pub look_every: Duration,
}

/// Renews at a random point between 70 and 90 % of the lifetime, as KubeEdge does. Runs until the drain.
pub async fn rotate(cfg: RotateConfig, hub: Arc<HubHandle>, drain: Drain) {
    let share = 70 + rt::random_u64() % 21;
    let mut backoff = Backoff::new(RETRY_FIRST.min(cfg.look_every), RETRY_MAX);
    let mut pause = Duration::ZERO;
    let mut trust_in = 0;
    let mut seen = cfg.credentials.load().ok().map(|bundle| bundle.cert_der);
    while drain.sleep(pause).await {
        pause = cfg.look_every;
        let asks_trust = trust_in == 0;
        match look(&cfg, share, unix_now_s(), asks_trust).await {
            Ok(()) => {
                trust_in = if asks_trust { TRUST_CHECKS } else { trust_in - 1 };
                backoff.reset();
            }
            Err(error) => {
                tracing::warn!(target: "hub", "the node's certificate was not renewed yet: {error:#}");
                pause = backoff.random_delay().max(RETRY_FIRST.min(cfg.look_every));
            }
        }
        // Also what somebody else has put there.
        let current = cfg.credentials.load().ok().map(|bundle| bundle.cert_der);
        if current.is_some() && current != seen {
            tracing::info!(target: "hub", "the node has a new certificate");
            hub.certificate_changed();
            seen = current;
        }
    }
}

async fn look(cfg: &RotateConfig, share: u64, now_s: u64, asks_trust: bool) -> anyhow::Result<()> {
    if asks_trust {
        learn_trust(cfg).await?;
    }
    renew_if_due(cfg, share, now_s).await.map(|_| ())
}

/// Writes down the CAs that the cloud has now, if they changed.
pub(crate) async fn learn_trust(cfg: &RotateConfig) -> anyhow::Result<()> {
    let current = cfg.credentials.load()?;
    let Some(mut cas) = enrol::fetch_trust(&cfg.server, &current).await? else { return Ok(()) };
    if !current.cas().eq(cas.iter().map(Vec::as_slice)) {
        let more_cas = cas.split_off(1);
        cfg.credentials.store(&Bundle { ca_der: cas.swap_remove(0), more_cas, ..current })?;
        tracing::info!(target: "hub", "the cloud's list of CAs has changed; the node trusts the new one now");
    }
    Ok(())
}

/// True when a new certificate is on the disk. A cloud ends a change of its CA when every node has a certificate of the new one: who
/// has that must trust the new CA as well, so the list is asked for first, and again if the change began in between.
pub(crate) async fn renew_if_due(cfg: &RotateConfig, share: u64, now_s: u64) -> anyhow::Result<bool> {
    let current = cfg.credentials.load()?;
    let info = CertInfo::parse(&current.cert_der)?;
    if !cfg.renews || (now_s < due_at(&info.validity, share) && is_of_signing_ca(&current)?) {
        return Ok(false);
    }
    if let Err(error) = learn_trust(cfg).await {
        tracing::debug!(target: "hub", "the cloud does not tell its CAs: {error:#}");
    }
    let current = cfg.credentials.load()?;
    let has_expired = now_s > info.validity.not_after;
    let key = if has_expired { current.key.clone() } else { Key::generate()? };
    let renewed = enrol::renew(&cfg.server, &cfg.node, &current, key).await?;
    cfg.credentials.store(&renewed)?;
    if !is_of_signing_ca(&renewed)? {
        learn_trust(cfg).await?;
    }
    Ok(true)
}

fn is_of_signing_ca(bundle: &Bundle) -> Result<bool, pki::PkiError> {
    Ok(CertInfo::parse(&bundle.cert_der)?.names_issuer(&CertInfo::parse(&bundle.ca_der)?))
}

fn due_at(validity: &Validity, share: u64) -> u64 {
    let lifetime = validity.not_after.saturating_sub(validity.not_before);
    validity.not_before + lifetime * share / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_between_seventy_and_ninety_percent() {
        let validity = Validity { not_before: 1_000, not_after: 101_000 };
        assert_eq!((due_at(&validity, 70), due_at(&validity, 90)), (71_000, 91_000));
        let short = Validity { not_before: 0, not_after: 40 };
        assert_eq!((due_at(&short, 70), due_at(&short, 90)), (28, 36));
    }
}
