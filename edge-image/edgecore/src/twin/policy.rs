//! What a Device asks of the way its values take: the annotation `kinglet.dev/values` of the Device, and of its DeviceModel for
//! what the Device does not say. JSON by property name; `*` stands for all properties:
//!
//! ```json
//! {"temperature": {"deadband": 0.2, "everyMs": 10000}, "*": {"toCloud": true}}
//! ```
//!
//! An annotation and not a key of `visitors.configData`, because mappers of others read that one, and the CRD of KubeEdge has no
//! field for it.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{types::TypeMetadata, validate};
use crate::limits::{POLICIES_MAX, REPORT_EVERY_MS_MAX, REPORT_REFRESH_MS};

pub const ANNOTATION: &str = "kinglet.dev/values";
const ALL: &str = "*";

/// One property's part. What is absent is taken from `*`, then from the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Policy {
    /// A value closer than this to the one that the cloud has is not reported.
    pub deadband: Option<f64>,
    /// The same in percent of the value that the cloud has. With both, a value must leave both.
    pub deadband_percent: Option<f64>,
    /// The least time between two reports of the property.
    pub every_ms: Option<i64>,
    /// A value that does not change, or stays within its deadband, is told again after this time.
    pub refresh_ms: Option<i64>,
    /// False: the value stays on the node (and goes where `pushMethod` says).
    pub to_cloud: Option<bool>,
    /// False: no history is kept of it.
    pub history: Option<bool>,
}

impl Policy {
    fn or(self, other: Policy) -> Policy {
        Policy {
            deadband: self.deadband.or(other.deadband),
            deadband_percent: self.deadband_percent.or(other.deadband_percent),
            every_ms: self.every_ms.or(other.every_ms),
            refresh_ms: self.refresh_ms.or(other.refresh_ms),
            to_cloud: self.to_cloud.or(other.to_cloud),
            history: self.history.or(other.history),
        }
    }

    fn check(&self) -> Result<(), String> {
        let wrong = |value: Option<f64>| value.is_some_and(|value| !value.is_finite() || value < 0.0);
        if wrong(self.deadband) || wrong(self.deadband_percent) {
            return Err("a deadband is a number from 0 on".into());
        }
        let times = [("everyMs", self.every_ms), ("refreshMs", self.refresh_ms)];
        for (key, value) in times {
            if value.is_some_and(|value| !(0..=REPORT_EVERY_MS_MAX).contains(&value)) {
                return Err(format!("{key} is a number of milliseconds from 0 to {REPORT_EVERY_MS_MAX}"));
            }
        }
        Ok(())
    }

    pub fn goes_to_cloud(&self) -> bool {
        self.to_cloud != Some(false)
    }

    pub fn has_history(&self) -> bool {
        self.history != Some(false)
    }

    /// When a value that is not the told one is to be reported, if it was told `at_ms`.
    pub fn due_ms(&self, told: &Told, value: &str, metadata: Option<&TypeMetadata>) -> i64 {
        if told.metadata.as_ref() != metadata {
            // Its quality changed, or its type: nothing to weigh.
            return told.at_ms;
        }
        let interval_ms = self.every_ms.unwrap_or(0);
        let refresh_ms = self.refresh_ms.unwrap_or(REPORT_REFRESH_MS).max(interval_ms);
        let wait_ms =
            if told.value == value || self.is_within(&told.value, value) { refresh_ms } else { interval_ms };
        told.at_ms + wait_ms
    }

    fn is_within(&self, told: &str, value: &str) -> bool {
        if self.deadband.is_none() && self.deadband_percent.is_none() {
            return false;
        }
        let (Ok(told), Ok(value)) = (told.parse::<f64>(), value.parse::<f64>()) else { return false };
        // A value that is no number any more is news.
        if !told.is_finite() || !value.is_finite() {
            return false;
        }
        let distance = (value - told).abs();
        let inside = |band: f64| distance < band || (distance == 0.0);
        self.deadband.is_some_and(inside)
            || self.deadband_percent.is_some_and(|percent| inside(percent / 100.0 * told.abs()))
    }
}

/// What the cloud was last told of a property, as far as this process knows.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    pub value: String,
    pub metadata: Option<TypeMetadata>,
    pub at_ms: i64,
}

/// The annotations of a Device and its model, read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policies(BTreeMap<String, Policy>);

impl Policies {
    pub fn of(&self, property: &str) -> Policy {
        self.0.get(property).or_else(|| self.0.get(ALL)).copied().unwrap_or_default()
    }

    /// `device` and `model` are the annotations' texts. The error says what to write.
    pub fn read(device: Option<&str>, model: Option<&str>) -> Result<Policies, String> {
        let parse = |text: Option<&str>| -> Result<BTreeMap<String, Policy>, String> {
            let Some(text) = text else { return Ok(BTreeMap::new()) };
            let read: BTreeMap<String, Policy> = serde_json::from_str(text)
                .map_err(|error| format!("write JSON such as {{\"*\": {{\"deadband\": 0.5}}}}: {error}"))?;
            if read.len() > POLICIES_MAX {
                return Err(format!("more than {POLICIES_MAX} properties: use *"));
            }
            for (name, policy) in &read {
                if name != ALL {
                    validate::name(name)?;
                }
                policy.check().map_err(|reason| format!("{name}: {reason}"))?;
            }
            Ok(read)
        };
        let (device, model) = (parse(device)?, parse(model)?);
        let names: std::collections::BTreeSet<&String> = device.keys().chain(model.keys()).collect();
        let of = |all: &BTreeMap<String, Policy>, name: &str| all.get(name).copied().unwrap_or_default();
        let merged = names.into_iter().map(|name| {
            let own = of(&device, name).or(of(&device, ALL));
            (name.clone(), own.or(of(&model, name)).or(of(&model, ALL)))
        });
        Ok(Policies(merged.collect()))
    }
}

/// Any text is policies or an error. For random bytes.
pub fn fuzz_policies(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Ok(policies) = Policies::read(Some(&text), None) else { return };
    let told = Told { value: "1.5".into(), metadata: None, at_ms: 5 };
    for name in ["*", "temperature"] {
        let _ = policies.of(name).due_ms(&told, "2.5", None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(value: &str) -> Told {
        Told { value: value.into(), metadata: None, at_ms: 1_000 }
    }

    #[test]
    fn the_property_counts_before_the_star_and_the_device_before_the_model() {
        let policies = Policies::read(
            Some(r#"{"t":{"deadband":0.5},"*":{"everyMs":7}}"#),
            Some(r#"{"t":{"deadband":9,"toCloud":false},"h":{"history":false}}"#),
        )
        .unwrap();
        let t = policies.of("t");
        assert_eq!((t.deadband, t.every_ms, t.to_cloud), (Some(0.5), Some(7), Some(false)));
        assert!(!policies.of("h").has_history() && policies.of("other").every_ms == Some(7));
        for (text, reason) in [
            ("{", "write JSON such as"),
            (r#"{"t":{"band":1}}"#, "unknown field `band`"),
            (r#"{"t":{"deadband":-1}}"#, "t: a deadband is a number from 0 on"),
            (r#"{"t":{"everyMs":-1}}"#, "t: everyMs is a number of milliseconds"),
            (r#"{"a b":{}}"#, "is not a property name"),
        ] {
            let error = Policies::read(Some(text), None).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn deadbands_absolute_and_percent() {
        let absolute = Policy { deadband: Some(0.5), ..Policy::default() };
        let later = 1_000 + REPORT_REFRESH_MS;
        for (value, due) in
            [("20.4", later), ("20.5", 1_000), ("19.6", later), ("19.5", 1_000), ("nan", 1_000)]
        {
            assert_eq!(absolute.due_ms(&told("20"), value, None), due, "{value}");
        }
        let percent = Policy { deadband_percent: Some(10.0), ..Policy::default() };
        for (value, due) in [("109", later), ("110", 1_000), ("-100", 1_000), ("x", 1_000)] {
            assert_eq!(percent.due_ms(&told("100"), value, None), due, "{value}");
        }
        assert_eq!(percent.due_ms(&told("0"), "0.001", None), 1_000, "all is far from nothing");
        let both = Policy { deadband: Some(1.0), deadband_percent: Some(10.0), ..Policy::default() };
        assert_eq!(both.due_ms(&told("100"), "105", None), later, "left one band only");
        let every = Policy { every_ms: Some(300), ..Policy::default() };
        assert_eq!(every.due_ms(&told("1"), "2", None), 1_300);
        let bad = TypeMetadata { quality: "stale".into(), ..TypeMetadata::default() };
        assert_eq!(absolute.due_ms(&told("20"), "20", Some(&bad)), 1_000, "a quality is news at once");
    }

    #[test]
    fn random_annotations_never_panic() {
        let mut random = mqtt::broker::testing::Random(3);
        let good = br#"{"temperature": {"deadband": 0.2, "everyMs": 10000, "deadbandPercent": 1e300}, "*": {"toCloud": true}}"#;
        for _ in 0..1_500 {
            let mut bytes = good.to_vec();
            for _ in 0..=random.below(3) {
                let at = random.below(bytes.len());
                bytes[at] = random.below(256) as u8;
            }
            fuzz_policies(&bytes);
        }
    }
}
