//! Mode 1 with `modules.eventBus.bridge`: messages of configured topics are copied between the node's broker and the external one.
//!
//! ```text
//! node's broker --- out: topic ---------------> prefix + topic --- external broker
//!               <--------------- prefix + topic: in ---
//! ```
//!
//! Messages do not go round: what `out` writes on the external broker may not be what `in` reads there ([`check`] refuses it), and the
//! node's own topics, which are served on both brokers anyway, are not copied.
//!
//! Copies are published with QoS 1, and a message is acknowledged to its source when the other side has its copies (`pump`).

use anyhow::{bail, ensure};
use mqtt::topic::{filter_is_valid, filters_overlap, matches};

use crate::{
    config::{BridgeDirection, BridgeRule},
    limits::BUS_BRIDGE_RULES_MAX,
};

/// What edgecore itself reads on both brokers, beside topics that begin with `$`: a copy would reach it twice.
const OWN: [&str; 2] = ["SYS/dis/upload_records", "+/user/#"];

/// The filter of a rule on the external broker.
fn outside(rule: &BridgeRule) -> String {
    format!("{}{}", rule.prefix, rule.topic)
}

/// The filter that a rule reads.
pub(super) fn source(rule: &BridgeRule) -> String {
    match rule.direction {
        BridgeDirection::Out => rule.topic.clone(),
        BridgeDirection::In => outside(rule),
    }
}

/// Refuses rules that would send messages round or that read what the node has already.
pub fn check(rules: &[BridgeRule]) -> anyhow::Result<()> {
    ensure!(rules.len() <= BUS_BRIDGE_RULES_MAX, "has {} rules; at most {BUS_BRIDGE_RULES_MAX}", rules.len());
    for rule in rules {
        let (topic, outside) = (&rule.topic, outside(rule));
        ensure!(filter_is_valid(topic) && filter_is_valid(&outside), "{outside:?} is no MQTT filter");
        ensure!(!rule.prefix.contains(['+', '#']), "prefix {:?} has a wildcard", rule.prefix);
        ensure!(
            !topic.starts_with('$') && !outside.starts_with('$'),
            "{topic:?}: the node itself serves topics that begin with $ on both brokers"
        );
    }
    let of = |direction| rules.iter().filter(move |rule| rule.direction == direction);
    for out in of(BridgeDirection::Out) {
        if let Some(back) =
            of(BridgeDirection::In).find(|back| filters_overlap(&outside(out), &outside(back)))
        {
            bail!(
                "{:?} (out) and {:?} (in) are the same topics on the external broker, so copies would come back: give one of them another prefix",
                outside(out),
                outside(back)
            );
        }
    }
    Ok(())
}

/// The topic on the other side; `None` for what is not copied.
pub(super) fn target_topic(rule: &BridgeRule, topic: &str) -> Option<String> {
    let target = match rule.direction {
        BridgeDirection::Out => format!("{}{topic}", rule.prefix),
        BridgeDirection::In => topic.strip_prefix(rule.prefix.as_str())?.to_owned(),
    };
    let is_own = |topic: &str| topic.starts_with('$') || OWN.iter().any(|own| matches(own, topic));
    (!is_own(topic) && !is_own(&target)).then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(direction: BridgeDirection, topic: &str, prefix: &str) -> BridgeRule {
        BridgeRule { topic: topic.into(), direction, prefix: prefix.into(), retain: false, live: false }
    }

    #[test]
    fn rules_that_would_send_messages_round_are_refused() {
        use BridgeDirection::{In, Out};
        for (rules, expected) in [
            (vec![rule(Out, "a/#", ""), rule(In, "a/+/set", "")], "would come back"),
            (vec![rule(Out, "a/#", "s/"), rule(In, "s/a/b", "")], "would come back"),
            (vec![rule(Out, "#", ""), rule(In, "x", "")], "would come back"),
            (vec![rule(In, "$hw/events/x", "")], "begin with $"),
            (vec![rule(Out, "x", "$a/")], "begin with $"),
            (vec![rule(Out, "a", "x/+/")], "has a wildcard"),
            (vec![rule(Out, "a/#/b", "")], "no MQTT filter"),
        ] {
            let error = check(&rules).unwrap_err().to_string();
            assert!(error.contains(expected), "{rules:?}: {error}");
        }
        check(&[rule(Out, "a/#", "site/"), rule(In, "a/#", "cmd/"), rule(Out, "b/+", "")]).unwrap();
    }

    #[test]
    fn topics_get_and_lose_the_prefix() {
        use BridgeDirection::{In, Out};
        assert_eq!(target_topic(&rule(Out, "a/#", "s/"), "a/b").as_deref(), Some("s/a/b"));
        assert_eq!(target_topic(&rule(In, "a/#", "s/"), "s/a/b").as_deref(), Some("a/b"));
        assert_eq!(target_topic(&rule(In, "a/#", "s/"), "x"), None);
        // The node uploads these itself, from either broker.
        assert_eq!(target_topic(&rule(Out, "#", "s/"), "default/user/alarm"), None);
        assert_eq!(target_topic(&rule(Out, "#", "s/"), "user/alarm"), None);
    }
}
