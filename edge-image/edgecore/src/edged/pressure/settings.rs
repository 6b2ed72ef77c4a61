//! Thresholds out of the configuration: kubelet's keys and syntax, and defaults that fit a small board.

use std::{collections::BTreeMap, time::Duration};

use super::{Amount, Signal, Threshold};
use crate::{
    config::{Config, GoDuration},
    edged::quantity,
};

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;

#[derive(Clone, Debug, PartialEq)]
pub struct PressureSettings {
    pub thresholds: Vec<Threshold>,
    /// A condition lasts so long after its cause is over.
    pub transition_period: Duration,
    /// The longest grace that a soft eviction gives.
    pub soft_grace_max: Duration,
}

impl Default for PressureSettings {
    fn default() -> PressureSettings {
        PressureSettings {
            thresholds: defaults(),
            transition_period: Duration::from_secs(300),
            soft_grace_max: Duration::ZERO,
        }
    }
}

/// kubelet's, but a large disk need not keep a tenth of itself free, nor a small board a hundred of its few megabytes.
fn defaults() -> Vec<Threshold> {
    [
        (Signal::Memory, Amount::Percent(12.5, 100 * MIB)),
        (Signal::NodeDisk, Amount::Percent(10.0, GIB)),
        (Signal::NodeInodes, Amount::Percent(5.0, u64::MAX)),
        (Signal::ImageDisk, Amount::Percent(15.0, 2 * GIB)),
        (Signal::ImageInodes, Amount::Percent(5.0, u64::MAX)),
    ]
    .map(|(signal, amount)| Threshold { signal, amount, grace: None, reclaim: None })
    .to_vec()
}

impl PressureSettings {
    /// What cannot be read is logged and left out: a node with a wrong threshold still runs pods.
    pub fn from_config(config: &Config) -> PressureSettings {
        let kubelet = &config.modules.edged.tailored_kubelet_config;
        let mut thresholds = match &kubelet.eviction_hard {
            Some(hard) => read(hard, "evictionHard", |_| Some(None)),
            None => defaults(),
        };
        thresholds.extend(read(&kubelet.eviction_soft, "evictionSoft", |name| {
            kubelet.eviction_soft_grace_period.get(name).map(|GoDuration(grace)| Some(*grace))
        }));
        for (name, text) in &kubelet.eviction_minimum_reclaim {
            let signal = Signal::of(name);
            let amount = parse(text);
            if signal.is_none() || amount.is_none() {
                tracing::warn!("evictionMinimumReclaim: {name}: {text:?} is not understood and left out");
            }
            for threshold in thresholds.iter_mut().filter(|threshold| Some(threshold.signal) == signal) {
                threshold.reclaim = amount;
            }
        }
        PressureSettings {
            thresholds,
            transition_period: kubelet.eviction_pressure_transition_period.0,
            soft_grace_max: Duration::from_secs(u64::from(kubelet.eviction_max_pod_grace_period)),
        }
    }
}

fn read(
    map: &BTreeMap<String, String>,
    key: &str,
    grace: impl Fn(&str) -> Option<Option<Duration>>,
) -> Vec<Threshold> {
    let mut thresholds = Vec::new();
    for (name, text) in map {
        // "0%" and "100%" switch a threshold off.
        if matches!(text.as_str(), "0%" | "100%") {
            continue;
        }
        match (Signal::of(name), parse(text), grace(name)) {
            (Some(signal), Some(amount), Some(grace)) => {
                thresholds.push(Threshold { signal, amount, grace, reclaim: None });
            }
            (None, _, _) => tracing::warn!("{key}: {name} is not a signal of this node and left out"),
            (_, None, _) => tracing::warn!("{key}: {name}: {text:?} is neither a quantity nor a percentage"),
            (_, _, None) => {
                tracing::warn!("{key}: {name} has no entry in evictionSoftGracePeriod and is left out")
            }
        }
    }
    thresholds
}

fn parse(text: &str) -> Option<Amount> {
    match text.strip_suffix('%') {
        Some(percent) => {
            let percent: f64 = percent.parse().ok()?;
            (0.0..=100.0).contains(&percent).then_some(Amount::Percent(percent, u64::MAX))
        }
        None => quantity::parse_units(text).and_then(|units| u64::try_from(units).ok()).map(Amount::Units),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelets_syntax() {
        assert_eq!(parse("100Mi"), Some(Amount::Units(100 * MIB)));
        assert_eq!(parse("7.5%"), Some(Amount::Percent(7.5, u64::MAX)));
        for wrong in ["-5%", "101%", "x", "", "5%%"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        let text = "
modules: {edgeHub: {websocket: {server: 'c:10000'}}, edged: {tailoredKubeletConfig: {
  evictionHard: {memory.available: 200Mi, nodefs.available: 0%, nonsense: 1},
  evictionSoft: {imagefs.available: 20%, memory.available: 1Gi}, evictionSoftGracePeriod: {imagefs.available: 2m},
  evictionMinimumReclaim: {memory.available: 50Mi}, evictionMaxPodGracePeriod: 60}}}";
        let config = Config::parse("f".as_ref(), text).unwrap().config;
        let settings = PressureSettings::from_config(&config);
        let soft = Some(Duration::from_secs(120));
        assert_eq!(
            settings.thresholds,
            [
                Threshold {
                    signal: Signal::Memory,
                    amount: Amount::Units(200 * MIB),
                    grace: None,
                    reclaim: Some(Amount::Units(50 * MIB))
                },
                Threshold {
                    signal: Signal::ImageDisk,
                    amount: Amount::Percent(20.0, u64::MAX),
                    grace: soft,
                    reclaim: None
                },
            ]
        );
        assert_eq!(settings.soft_grace_max, Duration::from_secs(60));
    }

    #[test]
    fn defaults_fit_a_small_board_and_a_large_disk() {
        let at = |signal: Signal, capacity: u64| {
            defaults().iter().find(|threshold| threshold.signal == signal).unwrap().amount.of(capacity)
        };
        assert_eq!(at(Signal::Memory, 8 * GIB), 100 * MIB);
        assert_eq!(at(Signal::Memory, 512 * MIB), 64 * MIB);
        assert_eq!(at(Signal::NodeDisk, 256 * GIB), GIB);
        assert_eq!(at(Signal::NodeDisk, 4000), 400);
    }
}
